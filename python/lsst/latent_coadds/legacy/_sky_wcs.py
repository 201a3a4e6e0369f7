# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("fit_fits_wcs", "read_sky_wcs")

from collections.abc import Callable
from typing import Any

import numpy as np
from astropy.wcs import WCS, Sip

from ._archive import ArchivedObject
from ._errors import LegacyFileError

type PixelToSky = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def read_sky_wcs(sky_wcs: ArchivedObject) -> PixelToSky:
    """Read the exact WCS.

    Parameters
    ----------
    sky_wcs : `ArchivedObject`
        A ``SkyWcs``, which is text of Starlink AST.

    Returns
    -------
    pixel_to_sky : `~collections.abc.Callable`
        Takes x and y, 0-based pixels of the detector, and returns right
        ascension and declination (ICRS) in degrees.

    Raises
    ------
    LegacyFileError
        If the text is no WCS, or the AST library is missing.
    """
    text = np.asarray(sky_wcs.row["wcs"]).astype(np.uint8).tobytes().decode()
    try:
        import starlink.Ast
    except ImportError as error:
        raise LegacyFileError("its WCS is in the AST language; install starlink-pyast to read it.") from error
    # What stands before the object is the version and the class.
    lines = text[text.index("Begin") :].splitlines() if "Begin" in text else []
    try:
        frames: Any = starlink.Ast.Channel(lines).read()
        assert frames.Naxes == 2
    except Exception as error:
        raise LegacyFileError(f"its WCS cannot be read as AST text ({error}); write it again.") from error

    def pixel_to_sky(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ra, dec = np.rad2deg(frames.tran(np.stack([np.ravel(x), np.ravel(y)]).astype(float)))
        return np.reshape(ra % 360.0, np.shape(x)), np.reshape(dec, np.shape(x))

    return pixel_to_sky


def fit_fits_wcs(
    pixel_to_sky: PixelToSky,
    shape: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
    *,
    header_wcs: WCS | None = None,
    tolerance: float = 0.005,
) -> tuple[WCS, float]:
    """Return a FITS WCS that agrees with another one.

    Parameters
    ----------
    pixel_to_sky : `~collections.abc.Callable`
        See `read_sky_wcs`.
    shape : `tuple` [`int`, `int`]
        Height and width of the image.
    origin : `tuple` [`int`, `int`], optional
        x and y of the image's first pixel on the detector.
    header_wcs : `astropy.wcs.WCS`, optional
        WCS of the header, in pixels of the image; taken if it agrees.
    tolerance : `float`, optional
        Largest error in pixels.

    Returns
    -------
    wcs : `astropy.wcs.WCS`
        In pixels of the image: the header's, or a TAN-SIP fit of the lowest
        degree that suffices.
    error : `float`
        Its largest error over the image, in pixels.

    Raises
    ------
    LegacyFileError
        If no fit is within the tolerance.
    """
    error = np.inf
    if header_wcs is not None:
        error = _measure_error(header_wcs, pixel_to_sky, shape, origin, 9)
        if error <= tolerance:
            return header_wcs, error
    for degree in range(1, 8):
        wcs = _fit_tan_sip(pixel_to_sky, shape, origin, degree)
        error = _measure_error(wcs, pixel_to_sky, shape, origin, 17)
        if error <= tolerance:
            return wcs, error
    raise LegacyFileError(
        f"its WCS is no TAN-SIP projection: the best one is off by {error:.3f} px. Import it in a full stack."
    )


def _fit_tan_sip(
    pixel_to_sky: PixelToSky, shape: tuple[int, int], origin: tuple[int, int], degree: int
) -> WCS:
    """Fit polynomials to the gnomonic projection about the middle of the image."""
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    y, x = (axis.ravel() for axis in _make_grid(shape, 4 * degree + 8))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crpix = centre + 1.0
    wcs.wcs.crval = [float(c[0]) for c in pixel_to_sky(*(np.array([c]) for c in centre + origin))]
    wcs.wcs.cd = np.eye(2)
    wcs.wcs.set()
    # With a unit matrix, pixels are degrees on the tangent plane.
    plane = np.stack(wcs.wcs_world2pix(*pixel_to_sky(x + origin[0], y + origin[1]), 0)) - centre[:, None]
    # Pixels in units of half the image keep the powers alike.
    half = max(shape) / 2
    u, v = (x - centre[0]) / half, (y - centre[1]) / half
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i) if i + j]
    terms = np.stack([u**i * v**j for i, j in powers], axis=1)
    solution = np.linalg.lstsq(terms, plane.T, rcond=None)[0].T
    solution /= np.array([half ** (i + j) for i, j in powers])
    linear = [powers.index((1, 0)), powers.index((0, 1))]
    wcs.wcs.cd = solution[:, linear]
    if degree > 1:
        distortion = np.linalg.solve(solution[:, linear], solution)
        along_x, along_y = np.zeros((2, degree + 1, degree + 1))
        for n, (i, j) in enumerate(powers):
            if i + j > 1:
                along_x[i, j], along_y[i, j] = distortion[:, n]
        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        wcs.sip = Sip(along_x, along_y, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def _make_grid(shape: tuple[int, int], n: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = (np.linspace(0, side - 1, n) for side in shape)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    return y, x


def _measure_error(
    wcs: WCS, pixel_to_sky: PixelToSky, shape: tuple[int, int], origin: tuple[int, int], n: int
) -> float:
    """Return the largest distance, in pixels, between where two WCSs put a point."""
    y, x = _make_grid(shape, n)
    try:
        px, py = wcs.all_world2pix(*pixel_to_sky(x + origin[0], y + origin[1]), 0)
    except Exception:  # astropy's iteration does not converge
        return np.inf
    error = float(np.max(np.hypot(px - x, py - y)))
    return error if np.isfinite(error) else np.inf
