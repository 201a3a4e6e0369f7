# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("local_jacobian", "pixel_scale", "serialisable_wcs", "shifted_wcs")

import warnings

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, Sip
from astropy.wcs.utils import fit_wcs_from_points

from lsst.images import XY, Box, DetectorFrame, SkyProjection


def local_jacobian(wcs: WCS, x: float, y: float) -> np.ndarray:
    """Differentiate tangent-plane coordinates by pixel coordinates.

    Parameters
    ----------
    wcs : `astropy.wcs.WCS`
        Celestial WCS.
    x, y : `float`
        Pixel, 0-based.

    Returns
    -------
    jacobian : `numpy.ndarray`
        ``(2, 2)``, degrees per pixel: rows are east and north, columns x and
        y. Distortions are included, unlike in the header's CD matrix.
    """
    px, py = np.array([x - 1, x + 1, x, x]), np.array([y, y, y - 1, y + 1])
    sky = SkyCoord(*wcs.all_pix2world(px, py, 0), unit="deg")
    centre = SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg")
    east, north = centre.spherical_offsets_to(sky)
    e, n = east.deg, north.deg
    return np.array([[e[1] - e[0], e[3] - e[2]], [n[1] - n[0], n[3] - n[2]]]) / 2.0


def pixel_scale(wcs: WCS, shape: tuple[int, int]) -> float:
    """Side of a pixel in the middle of an exposure.

    Parameters
    ----------
    wcs : `astropy.wcs.WCS`
        Celestial WCS.
    shape : `tuple` [`int`, `int`]
        Height and width.

    Returns
    -------
    scale : `float`
        Arcseconds.
    """
    jacobian = local_jacobian(wcs, (shape[1] - 1) / 2, (shape[0] - 1) / 2)
    return float(3600.0 * np.sqrt(abs(np.linalg.det(jacobian))))


def shifted_wcs(wcs: WCS, dx: float, dy: float) -> WCS:
    """Move a WCS so that every sky position lies at another pixel.

    Parameters
    ----------
    wcs : `astropy.wcs.WCS`
        Celestial WCS.
    dx, dy : `float`
        Pixels by which sky positions move.

    Returns
    -------
    wcs : `astropy.wcs.WCS`
        The moved WCS, with its distortions moved along.
    """
    moved = wcs.deepcopy()
    moved.wcs.crpix = np.asarray(wcs.wcs.crpix) + (dx, dy)
    if wcs.sip is not None:
        # SIP polynomials have an origin of their own.
        moved.sip = Sip(wcs.sip.a, wcs.sip.b, wcs.sip.ap, wcs.sip.bp, np.asarray(wcs.sip.crpix) + (dx, dy))
    moved.wcs.set()
    return moved


def serialisable_wcs(wcs: WCS, shape: tuple[int, int], *, tolerance: float = 0.005) -> tuple[WCS, float]:
    """Return a WCS that an `lsst.images.SkyProjection` reproduces.

    Parameters
    ----------
    wcs : `astropy.wcs.WCS`
        Celestial WCS.
    shape : `tuple` [`int`, `int`]
        Height and width of the exposure.
    tolerance : `float`, optional
        Largest error in pixels.

    Returns
    -------
    wcs : `astropy.wcs.WCS`
        The WCS itself wherever possible (TAN, TAN-SIP and TPV are exact),
        else a TAN-SIP fit to it.
    error : `float`
        Largest error over the exposure, in pixels.

    Raises
    ------
    ValueError
        Raised if neither is within the tolerance.
    """
    error = _projection_error(wcs, wcs, shape)
    if error <= tolerance:
        return wcs, error
    y, x = np.meshgrid(np.linspace(0, shape[0] - 1, 24), np.linspace(0, shape[1] - 1, 24), indexing="ij")
    sky = SkyCoord(*wcs.all_pix2world(x.ravel(), y.ravel(), 0), unit="deg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        for degree in (None, 2, 3, 4):
            fitted = fit_wcs_from_points((x.ravel(), y.ravel()), sky, projection="TAN", sip_degree=degree)
            error = _projection_error(wcs, fitted, shape)
            if error <= tolerance:
                return fitted, error
    raise ValueError(
        f"the WCS ({wcs.wcs.ctype[0]}) cannot be written: a TAN-SIP approximation is off by {error:.3f} px; "
        "convert it to TAN-SIP or TPV."
    )


def _projection_error(truth: WCS, wcs: WCS, shape: tuple[int, int]) -> float:
    """Largest distance in pixels between a WCS and what is serialised for another one."""
    y, x = np.meshgrid(np.linspace(0, shape[0] - 1, 9), np.linspace(0, shape[1] - 1, 9), indexing="ij")
    bbox = Box.from_shape(shape)
    frame = DetectorFrame(instrument="check", visit=0, detector=0, bbox=bbox)
    try:
        projection = SkyProjection.from_fits_wcs(wcs, frame, pixel_bounds=bbox)
        sky = projection.pixel_to_sky(XY(x=x, y=y))
        px, py = truth.all_world2pix(sky.ra.deg, sky.dec.deg, 0)
    except Exception:
        return float("inf")
    error = float(np.max(np.hypot(px - x, py - y)))
    return error if np.isfinite(error) else float("inf")
