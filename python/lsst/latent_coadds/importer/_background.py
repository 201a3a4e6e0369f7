# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("residual_background", "source_pixels")

import numpy as np
import scipy.ndimage
import sep

from ._variance import background_level

_MIN_EMPTY = 0.15


def source_pixels(
    image: np.ndarray, bad: np.ndarray, *, sigma: float = 2.0, threshold: float = 2.5, grow: int = 6
) -> np.ndarray:
    """Find the pixels that sources reach, with their faint surroundings.

    Parameters
    ----------
    image : `numpy.ndarray`
        Pixels, ``(H, W)``.
    bad : `numpy.ndarray`
        Boolean ``(H, W)``, `True` where a pixel must not be used.
    sigma : `float`, optional
        Width of the smoothing in pixels.
    threshold : `float`, optional
        In standard deviations of the smoothed image.
    grow : `int`, optional
        Pixels by which what is found is grown.

    Returns
    -------
    source : `numpy.ndarray`
        Boolean ``(H, W)``.
    """
    level, _ = background_level(image, ~bad)
    smooth = scipy.ndimage.gaussian_filter(np.where(bad, 0.0, image - level), sigma)
    middle, noise = background_level(smooth, ~bad)
    found = smooth - middle > threshold * noise
    return scipy.ndimage.binary_dilation(found, iterations=grow) if grow > 0 else found


def residual_background(
    image: np.ndarray, bad: np.ndarray, *, mesh: int | None = None
) -> tuple[np.ndarray | float, float]:
    """Measure the sky that was left in an exposure.

    Parameters
    ----------
    image : `numpy.ndarray`
        Pixels, ``(H, W)``.
    bad : `numpy.ndarray`
        Boolean ``(H, W)``, `True` where a pixel must not be used.
    mesh : `int`, optional
        Cell in pixels of a background that varies; a constant by default.

    Returns
    -------
    background : `numpy.ndarray` or `float`
        The background, ``(H, W)`` where it varies.
    level : `float`
        Its level.

    Notes
    -----
    A clipped median of all pixels lies above the sky, because the wings of
    sources are in it; a tenth of the noise in every pixel is a per cent of a
    faint star's flux. Sources are therefore left out, unless they cover
    nearly everything.
    """
    empty = ~bad & ~source_pixels(image, bad)
    if empty.mean() < _MIN_EMPTY:
        empty = ~bad
    level, _ = background_level(image, empty)
    if mesh is None:
        return level, level
    mask = np.ascontiguousarray(~empty)
    return sep.Background(np.ascontiguousarray(image), mask=mask, bw=mesh, bh=mesh).back(), level
