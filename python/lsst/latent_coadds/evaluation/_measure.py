# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Injected sources, measured on a coadd."""

from __future__ import annotations

__all__ = ("Detected", "detect_injected", "measure_injected")

import dataclasses

import galsim
import numpy as np
from astropy.table import Row, Table

from ..qa import (
    CoaddFigures,
    CoaddLike,
    aperture_weights,
    match_positions,
    shift_kernel,
    to_magnitude,
)
from ..restoration import ErrorModel
from ._injection import draw_profile

LEVELS = (0.68, 0.95)
"""How often the intervals should contain the truth."""


@dataclasses.dataclass(frozen=True)
class Detected:
    """What was found in a coadd whose sources are all known.

    Parameters
    ----------
    magnitude, snr : `numpy.ndarray`, ``(n,)``
        As measured.
    is_true : `numpy.ndarray`, ``(n,)``, `bool`
        Whether there is a source.
    """

    magnitude: np.ndarray
    snr: np.ndarray
    is_true: np.ndarray


def detect_injected(
    figures: CoaddFigures, x: np.ndarray, y: np.ndarray, *, radius: float, size: np.ndarray
) -> tuple[np.ndarray, Detected]:
    """Compare detections with the sources that were injected.

    Parameters
    ----------
    figures : `~lsst.latent_coadds.qa.CoaddFigures`
        What was found in the coadd.
    x, y : `numpy.ndarray`, ``(n,)``
        Positions of the sources in its pixels.
    radius : `float`
        How far a detection may be from its source, in pixels.
    size : `numpy.ndarray`, ``(n,)``
        Half-light radii of the sources in pixels. What is found that much
        farther off is a piece of the source.

    Returns
    -------
    snr : `numpy.ndarray`, ``(n,)``
        Significance of the detection of each source, 0 if there is none.
    detected : `Detected`
        All detections.
    """
    found = figures.detections
    index = match_positions(x, y, found.x, found.y, radius)
    snr = np.where(index >= 0, found.snr[index] if len(found) else 0.0, 0.0)
    # All of a source's pieces are its own, the purity is that of positions.
    distance = np.hypot(found.x[:, None] - x, found.y[:, None] - y)
    is_true = (distance <= radius + size).any(axis=1)
    return snr, Detected(to_magnitude(found.flux), found.snr, is_true)


def measure_injected(
    coadd: CoaddLike, sources: Table, x: np.ndarray, y: np.ndarray, *, radius: float
) -> Table:
    """Measure the fluxes of injected sources at their true positions.

    Parameters
    ----------
    coadd : `~lsst.latent_coadds.qa.CoaddLike`
        The coadd.
    sources : `astropy.table.Table`
        See `make_sources`.
    x, y : `numpy.ndarray`, ``(n,)``
        Their positions in pixels of the coadd.
    radius : `float`
        Radius of the aperture for galaxies, in pixels.

    Returns
    -------
    measured : `astropy.table.Table`
        ``flux``, and for each of the levels 0.68 and 0.95 the ends ``low_68``,
        ``high_68`` … of the interval, in nJy; NaN where a pixel has no data.

    Notes
    -----
    The flux of a star is the least-squares amplitude of the coadd's PSF. That
    of a galaxy is the sum over an aperture, over the part of the galaxy that
    a coadd with exactly its PSF would have there.
    """
    errors = ErrorModel(
        np.where(coadd.good, coadd.image, np.nan), np.where(coadd.good, coadd.variance, np.nan), coadd.noise
    )
    names = [f"{end}_{round(100 * level)}" for level in LEVELS for end in ("low", "high")]
    columns = {name: np.full(len(sources), np.nan) for name in ("flux", *names)}
    for i, row in enumerate(sources):
        kernel = coadd.kernel(x[i], y[i])
        if kernel is None:
            continue
        weights, row0, column0 = _weigh(row, kernel, x[i], y[i], radius, coadd.pixel_scale)
        height, width = weights.shape
        if (
            min(row0, column0) < 0
            or row0 + height > coadd.image.shape[0]
            or column0 + width > coadd.image.shape[1]
        ):
            continue
        for level in LEVELS:
            interval = errors.interval(weights, level, corner=(row0, column0))
            columns["flux"][i] = interval.value
            columns[f"low_{round(100 * level)}"][i] = interval.low
            columns[f"high_{round(100 * level)}"][i] = interval.high
    return Table(columns)


def _weigh(
    row: Row, kernel: np.ndarray, x: float, y: float, radius: float, pixel_scale: float
) -> tuple[np.ndarray, int, int]:
    """Return weights of pixels whose sum is the flux, and where the first is."""
    column, line = round(x), round(y)
    if row["is_star"]:
        # Wings weigh next to nothing, and often reach pixels without data.
        middle = kernel.shape[0] // 2
        half = min(middle, int(np.ceil(1.6 * radius)))
        cut = slice(middle - half, middle + half + 1)
        profile = shift_kernel(kernel, x - column, y - line)[cut, cut]
        return profile / np.sum(profile**2), line - half, column - half
    half = int(np.ceil(radius)) + 1
    size = 2 * half + 1
    weights = aperture_weights((size, size), half + x - column, half + y - line, radius)
    psf = galsim.InterpolatedImage(galsim.Image(kernel.copy(), scale=1.0), flux=1.0)
    expected = galsim.Convolve(draw_profile(row, pixel_scale), psf).drawImage(
        nx=size, ny=size, scale=1.0, method="no_pixel", offset=(x - column, y - line), dtype=float
    )
    return weights / np.sum(weights * expected.array), line - half, column - half
