# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detection of sources with the matched filter, without any truth."""

from __future__ import annotations

__all__ = ("Detections", "detect_sources", "filter_with_psf", "flux_noise_map", "match_positions")

import dataclasses
from collections.abc import Iterable

import numpy as np
from scipy.fft import next_fast_len
from scipy.ndimage import grey_opening, maximum_filter
from scipy.spatial import cKDTree


@dataclasses.dataclass(frozen=True)
class Detections:
    """Peaks of a filtered image.

    Parameters
    ----------
    x, y : `numpy.ndarray`, ``(n,)``
        Positions in pixels.
    flux : `numpy.ndarray`, ``(n,)``
        Flux of a point source there.
    snr : `numpy.ndarray`, ``(n,)``
        Flux over its noise.
    """

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    snr: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, which: np.ndarray) -> Detections:
        return Detections(self.x[which], self.y[which], self.flux[which], self.snr[which])


def filter_with_psf(image: np.ndarray, psf: np.ndarray) -> np.ndarray:
    """Return the flux that a point source at each pixel would have.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(..., h, w)``
        Images without background; NaN counts as 0.
    psf : `numpy.ndarray`, ``(k, k)``
        Centred PSF with a sum of one, k odd.

    Returns
    -------
    flux : `numpy.ndarray`, ``(..., h, w)``, `float64`
        Correlation with the PSF over the sum of its squares, the
        least-squares amplitude of the PSF for white noise.
    """
    values = np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0).astype(float)
    return _correlate(values, psf) / float(np.sum(psf**2))


def _correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    half = [n // 2 for n in kernel.shape]
    size = [next_fast_len(n + 2 * h, real=True) for n, h in zip(image.shape[-2:], half, strict=True)]
    transform = np.fft.rfft2(image, size) * np.fft.rfft2(kernel[::-1, ::-1], size)
    full = np.fft.irfft2(transform, size)
    return full[..., half[0] : half[0] + image.shape[-2], half[1] : half[1] + image.shape[-1]]


def flux_noise_map(
    variance: np.ndarray,
    psf: np.ndarray,
    realizations: np.ndarray | None = None,
    *,
    negative: bool = False,
    width: int = 15,
    sky: np.ndarray | None = None,
) -> np.ndarray:
    """Return the noise that `filter_with_psf` has where there is no source.

    Parameters
    ----------
    variance : `numpy.ndarray`, ``(h, w)``
        Variance of the image's pixels; not finite where there are no data.
    psf : `numpy.ndarray`, ``(k, k)``
        Centred PSF with a sum of one.
    realizations : `numpy.ndarray`, ``(n, h, w)``, optional
        Realizations of the image's noise. If given, they tell how it is
        correlated and distributed; else it is taken to be white.
    negative : `bool`, optional
        Whether the noise is to tell holes from fluctuations, not sources.
    width : `int`, optional
        Width in pixels of the spots that sources make in the variance.
    sky : `numpy.ndarray`, ``(h, w)``, `bool`, optional
        Pixels of the realizations that count; by default all without a spot.

    Returns
    -------
    noise : `numpy.ndarray`, ``(h, w)``
        Standard deviation of the flux; infinite without data.

    Notes
    -----
    A source is found if empty sky would hardly ever look like it, so what
    counts is the noise of empty sky: bright spots of the variance that are
    narrower than ``width`` are taken off it.

    The noise of a non-negative restoration is zero almost everywhere, with a
    few specks of the flux that a fluctuation in the exposures amounts to.
    Their number, and not the scatter, says what a detection is worth. So the
    noise is a fourth of the height which as many peaks of the realizations
    exceed as peaks of Gaussian noise with the same correlation exceed four
    standard deviations: ``n = (s1 / s0)^2 / 2 (2 pi)^-3/2 v exp(-v^2 / 2)``
    per pixel, where s0 is the standard deviation, s1 that of the gradient and
    v = 4 (Bond & Efstathiou 1987, MNRAS 226, 655, for high peaks).
    """
    usable = np.isfinite(variance) & (variance > 0)
    if not usable.any():
        return np.full(variance.shape, np.inf)
    # Gaps must neither lower the variance around them nor be spots themselves.
    filled = np.where(usable, variance, np.median(variance[usable]))
    opened = grey_opening(filled, size=(width, width))
    noise = np.sqrt(opened / np.sum(psf**2))
    if realizations is not None and len(realizations):
        empty = usable & (filled < 2 * opened if sky is None else sky)
        sign = -1 if negative else 1
        noise *= _peak_noise(
            (sign * filter_with_psf(plane, psf) / noise for plane in realizations), empty, psf
        )
        usable &= noise > 0
    return np.where(usable, noise, np.inf)


_LEVEL = 5.0
"""How high the peaks are that noise is known by, in its standard deviations."""

_FEWEST_PEAKS = 4.0
"""Where fewer are so high, these many are taken."""


def _peak_noise(planes: Iterable[np.ndarray], empty: np.ndarray, psf: np.ndarray) -> float:
    """Return the standard deviation of the Gaussian noise that has as many high peaks."""
    heights, square, products = [], 0.0, np.zeros(2)
    n, pairs = 0, np.zeros(2)
    both = (empty[1:] & empty[:-1], empty[:, 1:] & empty[:, :-1])
    # One by one, for the realizations of a large patch fill the memory.
    for plane in planes:
        heights.append(_find_peaks(plane, psf, 0.0, empty).snr)
        square, n = square + float(np.sum(plane[empty] ** 2)), n + int(np.count_nonzero(empty))
        sides = (plane[1:] * plane[:-1], plane[:, 1:] * plane[:, :-1])
        products += [float(np.sum(side[which])) for side, which in zip(sides, both, strict=True)]
        pairs += [np.count_nonzero(which) for which in both]
    if square == 0.0 or not pairs.all():
        return 0.0
    correlation = np.clip(products / pairs / (square / n), 1e-3, 1.0 - 1e-6)
    # The correlation of noise seen through a Gaussian is a Gaussian.
    bend = float(-2.0 * np.log(correlation).sum())
    levels = np.linspace(_LEVEL, 1.5, 351)
    expected = n * bend / 2.0 * (2.0 * np.pi) ** -1.5 * levels * np.exp(-0.5 * levels**2)
    which = min(int(np.searchsorted(expected, _FEWEST_PEAKS)), len(levels) - 1)
    highest = np.sort(np.concatenate(heights))[::-1]
    if len(highest) <= expected[which]:
        return float(np.sqrt(square / n))
    return float(np.interp(expected[which], np.arange(len(highest)) + 0.5, highest)) / float(levels[which])


def detect_sources(
    image: np.ndarray,
    psf: np.ndarray,
    noise: np.ndarray,
    *,
    threshold: float = 5.0,
    good: np.ndarray | None = None,
    negative: bool = False,
) -> Detections:
    """Find peaks of the image filtered with its PSF.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        Image without background.
    psf : `numpy.ndarray`, ``(k, k)``
        Its PSF, centred, with a sum of one.
    noise : `numpy.ndarray`, ``(h, w)``
        See `flux_noise_map`.
    threshold : `float`, optional
        Least flux of a peak, in units of the noise.
    good : `numpy.ndarray`, ``(h, w)``, `bool`, optional
        Pixels in which a peak may lie.
    negative : `bool`, optional
        Whether to look for holes instead.

    Returns
    -------
    detections : `Detections`
        In the order of falling significance. Place and height are those of
        the Gaussian through the peak and its neighbours; holes have a positive
        flux.

    Notes
    -----
    Between pixels, the peak of a star whose PSF has a FWHM of two pixels
    is up to a sixth higher than the highest pixel.
    """
    snr = filter_with_psf(-image if negative else image, psf) / noise
    found = _find_peaks(snr, psf, threshold, good)
    row, column = np.rint(found.y).astype(int), np.rint(found.x).astype(int)
    return dataclasses.replace(found, flux=found.snr * noise[row, column])


def _find_peaks(snr: np.ndarray, psf: np.ndarray, threshold: float, good: np.ndarray | None) -> Detections:
    """Return peaks above a threshold, highest first; their flux is not known."""
    radius = max(1, round(0.5 * equivalent_width(psf)))
    peak = (snr >= _LEAST_SHARE * threshold) & (snr == maximum_filter(snr, size=2 * radius + 1)) & (snr > 0)
    peak[[0, -1], :] = peak[:, [0, -1]] = False
    if good is not None:
        peak &= good
    y, x = np.nonzero(peak)
    dx, higher = _vertex(snr[y, x - 1], snr[y, x], snr[y, x + 1])
    dy, still_higher = _vertex(snr[y - 1, x], snr[y, x], snr[y + 1, x])
    height = higher * still_higher * snr[y, x]
    found = Detections(x + dx, y + dy, height, height)[height >= threshold]
    return found[np.argsort(-found.snr, kind="stable")]


def equivalent_width(psf: np.ndarray) -> float:
    """Return the FWHM of the Gaussian with as large a sum of squares."""
    return float(np.sqrt(2 * np.log(2) / np.pi / np.sum(psf**2)) * np.sum(psf))


def _vertex(left: np.ndarray, middle: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the Gaussian through three samples has its top, and its height over the middle's."""
    before, after = (np.log(np.clip(side / middle, _LEAST_SIDE, 1.0)) for side in (left, right))
    curvature = np.minimum(before + after, -1e-30)
    offset = np.clip(0.5 * (before - after) / curvature, -0.5, 0.5)
    return offset, np.exp(-0.5 * curvature * offset**2)


_LEAST_SHARE = 0.7
"""The highest pixel has at least this part of a peak's height."""

_LEAST_SIDE = 0.05
"""A pixel beside a peak counts as no lower than this part of it."""


def match_positions(
    x: np.ndarray, y: np.ndarray, other_x: np.ndarray, other_y: np.ndarray, radius: float
) -> np.ndarray:
    """Return the nearest of other positions.

    Parameters
    ----------
    x, y : `numpy.ndarray`, ``(n,)``
        Positions.
    other_x, other_y : `numpy.ndarray`, ``(m,)``
        Other positions.
    radius : `float`
        How far the nearest may be.

    Returns
    -------
    index : `numpy.ndarray`, ``(n,)``, `int`
        Which of the others is nearest; -1 if none is within the radius.
    """
    if len(other_x) == 0 or len(x) == 0:
        return np.full(len(x), -1)
    distance, index = cKDTree(np.column_stack([other_x, other_y])).query(np.column_stack([x, y]))
    return np.where(distance <= radius, index, -1)
