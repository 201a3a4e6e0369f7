# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stars of a coadd, found without a catalogue: widths and what the PSF leaves."""

from __future__ import annotations

__all__ = ("ResidualStack", "find_isolated_detections", "psf_residual", "select_stars", "stack_residuals")

import dataclasses

import numpy as np
from scipy.spatial import cKDTree

from ._coadd import CoaddLike
from ._detection import Detections
from ._photometry import psf_flux, shift_kernel
from ._star import StarShape


def find_isolated_detections(detections: Detections, *, radius: float, fraction: float) -> np.ndarray:
    """Find detections without neighbours that matter, however many there are.

    Parameters
    ----------
    detections : `Detections`
        All that was found.
    radius : `float`
        How far away a neighbour counts, in pixels.
    fraction : `float`
        Neighbours together may have this part of the flux, at most.

    Returns
    -------
    isolated : `numpy.ndarray`, ``(n,)``, `bool`
        Those that stand alone.
    """
    if len(detections) == 0:
        return np.zeros(0, dtype=bool)
    tree = cKDTree(np.column_stack([detections.x, detections.y]))
    pairs = tree.query_pairs(radius, output_type="ndarray")
    light = np.zeros(len(detections))
    np.add.at(light, pairs[:, 0], detections.flux[pairs[:, 1]])
    np.add.at(light, pairs[:, 1], detections.flux[pairs[:, 0]])
    return light <= fraction * detections.flux


def select_stars(
    fwhm: np.ndarray, ellipticity: np.ndarray, psf_fwhm: float, *, tolerance: float
) -> np.ndarray:
    """Tell stars from galaxies by their shape.

    Parameters
    ----------
    fwhm, ellipticity : `numpy.ndarray`, ``(n,)``
        See `StarShape`; NaN where it could not be measured.
    psf_fwhm : `float`
        FWHM of the PSF, measured in the same way.
    tolerance : `float`
        Largest relative difference of the FWHM from that of the bulk of the
        stars, which is looked for near the PSF's.

    Returns
    -------
    stars : `numpy.ndarray`, ``(n,)``, `bool`
        Those that look like stars.

    Notes
    -----
    The images of stars may all be wider or narrower than the PSF, which is
    what is to be found out: hence the mode of the widths between 0.7 and 1.3
    of the PSF's is where stars are looked for.
    """
    ratio = fwhm / psf_fwhm
    near = ratio[(ratio > 0.7) & (ratio < 1.3) & (ellipticity < 0.15)]
    if near.size == 0:
        return np.zeros(len(fwhm), dtype=bool)
    grid = np.linspace(0.7, 1.3, 121)
    density = np.exp(-0.5 * ((grid[:, None] - near) / (0.5 * tolerance)) ** 2).sum(axis=1)
    mode = grid[np.argmax(density)]
    with np.errstate(invalid="ignore"):
        return (np.abs(ratio / mode - 1) < tolerance) & (ellipticity < 0.15)


@dataclasses.dataclass(frozen=True)
class ResidualStack:
    """What the PSF leaves of stars in a range of magnitudes.

    Parameters
    ----------
    low, high : `float`
        The range.
    n : `int`
        Number of stars.
    image : `numpy.ndarray`, ``(k, k)``
        Median over the stars of image minus fitted PSF, in units of the
        star's peak.
    peak : `float`
        Largest absolute value of ``image``.
    """

    low: float
    high: float
    n: int
    image: np.ndarray
    peak: float


def psf_residual(coadd: CoaddLike, shape: StarShape, *, half: int) -> np.ndarray | None:
    """Subtract the attached PSF from a star.

    Parameters
    ----------
    coadd : `CoaddLike`
        Coadd with the star.
    shape : `StarShape`
        Where it is.
    half : `int`
        The residual reaches so many pixels from its middle.

    Returns
    -------
    residual : `numpy.ndarray`, ``(2 half + 1, 2 half + 1)``, or `None`
        In units of the star's peak; `None` if it cannot be made. The pixel
        with the star's centre is in the middle.
    """
    kernel = coadd.kernel(shape.x, shape.y)
    if kernel is None:
        return None
    kernel = _resize(kernel, half)
    column, row = round(shape.x), round(shape.y)
    top, left = max(row - half, 0), max(column - half, 0)
    stamp = coadd.image[top : row + half + 1, left : column + half + 1] - shape.background
    flux = psf_flux(stamp, shape.x - left, shape.y - top, kernel)
    if not np.isfinite(flux) or flux <= 0:
        return None
    model = flux * shift_kernel(kernel, shape.x - column, shape.y - row)
    return (stamp - model) / (flux * kernel.max())


def _resize(kernel: np.ndarray, half: int) -> np.ndarray:
    """Cut or pad a centred kernel."""
    missing = half - kernel.shape[0] // 2
    if missing > 0:
        return np.pad(kernel, missing)
    cut = slice(-missing, kernel.shape[0] + missing)
    return kernel[cut, cut]


def stack_residuals(
    residuals: np.ndarray, magnitude: np.ndarray, edges: np.ndarray, *, fewest: int = 3
) -> list[ResidualStack]:
    """Take the median of residuals in ranges of magnitude.

    Parameters
    ----------
    residuals : `numpy.ndarray`, ``(n, k, k)``
        See `psf_residual`.
    magnitude : `numpy.ndarray`, ``(n,)``
        Magnitudes of the stars.
    edges : `numpy.ndarray`
        Limits of the ranges, ascending.
    fewest : `int`, optional
        Ranges with fewer stars are left out.

    Returns
    -------
    stacks : `list` [`ResidualStack`]
        One for each range with enough stars.
    """
    result = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (magnitude >= low) & (magnitude < high)
        if inside.sum() < fewest:
            continue
        image = np.median(residuals[inside], axis=0)
        result.append(
            ResidualStack(float(low), float(high), int(inside.sum()), image, float(np.abs(image).max()))
        )
    return result
