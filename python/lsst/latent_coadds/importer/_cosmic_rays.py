# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("CosmicRaySettings", "find_cosmic_rays", "find_saturated")

import dataclasses

import astroscrappy
import numpy as np
import scipy.ndimage

from ._variance import background_level


@dataclasses.dataclass(frozen=True)
class CosmicRaySettings:
    """How cosmic rays are found.

    Parameters
    ----------
    threshold : `float`, optional
        Laplacian signal-to-noise ratio of a cosmic ray's brightest pixels.
    neighbour_fraction : `float`, optional
        Fraction of the threshold that their neighbours must reach.
    contrast : `float`, optional
        Least ratio of the Laplacian to the fine structure that the PSF
        explains. Lower finds fainter cosmic rays, and in the end stars.
    growth : `float`, optional
        Pixels that stand out from their surroundings by so many standard
        deviations, within two pixels of a cosmic ray, belong to it too.
    n_iterations : `int`, optional
        Most rounds.
    """

    threshold: float = 4.5
    neighbour_fraction: float = 0.1
    contrast: float = 2.0
    growth: float = 2.5
    n_iterations: int = 4


def find_cosmic_rays(
    image: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    *,
    fwhm: float,
    settings: CosmicRaySettings | None = None,
) -> np.ndarray:
    """Find cosmic rays by their sharpness.

    Parameters
    ----------
    image : `numpy.ndarray`
        Background-subtracted pixels, ``(H, W)``.
    variance : `numpy.ndarray`
        Their variance, ``(H, W)``.
    bad : `numpy.ndarray`
        Boolean ``(H, W)``, `True` where a pixel is bad already.
    fwhm : `float`
        FWHM of the stars in pixels, which protects them.
    settings : `CosmicRaySettings`, optional
        Thresholds.

    Returns
    -------
    cosmic_ray : `numpy.ndarray`
        Boolean ``(H, W)``.

    Notes
    -----
    The noise is that of the variance plane, so that gain and sky need not be
    known. In resampled exposures the interpolation has smoothed cosmic rays
    and spread them by a pixel or two: tracks are therefore grown along what
    stands out from a 7 by 7 median, and the result by one pixel. Faint
    tracks are missed all the same, and are left to the robust fit of the
    restoration.
    """
    settings = settings or CosmicRaySettings()
    sigma = np.sqrt(variance)
    scale = background_level(image / sigma, ~bad)[1]
    size = max(2 * int(np.ceil(1.5 * fwhm)) + 1, 5)

    # The finder takes stars that the edge cuts for cosmic rays: continue them.
    def extend(array: np.ndarray, dtype: type) -> np.ndarray:
        return np.ascontiguousarray(np.pad(array, size, mode="edge"), dtype=dtype)

    found, _ = astroscrappy.detect_cosmics(
        extend(np.where(bad, 0.0, image), np.float32),
        inmask=extend(bad, np.bool_),
        inbkg=extend(np.zeros(image.shape), np.float32),
        invar=extend(variance * max(scale, 0.5) ** 2, np.float32),
        gain=1.0,
        readnoise=0.0,
        satlevel=np.inf,
        sigclip=settings.threshold,
        sigfrac=settings.neighbour_fraction,
        objlim=settings.contrast,
        niter=settings.n_iterations,
        sepmed=True,
        cleantype="medmask",
        fsmode="convolve",
        psfmodel="gauss",
        psffwhm=fwhm,
        psfsize=size,
    )
    found = found[size:-size, size:-size]
    seeds = found & ~bad
    if not seeds.any():
        return seeds
    smooth = scipy.ndimage.median_filter(image, size=7)
    # A star stands out from its surroundings as well: do not grow into one.
    sharp = ((image - smooth) / sigma > settings.growth) & (smooth < 2.0 * sigma)
    track = scipy.ndimage.binary_propagation(seeds, structure=np.ones((5, 5)), mask=sharp | seeds)
    return scipy.ndimage.binary_dilation(track, structure=np.ones((3, 3))) & ~bad


def find_saturated(image: np.ndarray, level: float, *, grow: int = 1) -> np.ndarray:
    """Find saturated pixels.

    Parameters
    ----------
    image : `numpy.ndarray`
        Counts per pixel, ``(H, W)``.
    level : `float`
        Counts from which a pixel is saturated.
    grow : `int`, optional
        Pixels by which saturated regions are grown.

    Returns
    -------
    saturated : `numpy.ndarray`
        Boolean ``(H, W)``.
    """
    saturated = image >= level
    if grow > 0 and saturated.any():
        saturated = scipy.ndimage.binary_dilation(saturated, structure=np.ones((3, 3)), iterations=grow)
    return saturated
