# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Noise of coadds: its correlation, and what that does to fluxes."""

from __future__ import annotations

__all__ = ("aperture_noise_ratio", "autocorrelation", "coverage", "linear_flux_error", "weight_correlation")

import numpy as np
from scipy.fft import next_fast_len

from ._photometry import aperture_weights


def autocorrelation(images: np.ndarray, good: np.ndarray, *, max_lag: int = 10) -> np.ndarray:
    """Measure the correlation of the noise of pixels at each separation.

    Parameters
    ----------
    images : `numpy.ndarray`, ``(..., h, w)``
        Noise realizations, or an image.
    good : `numpy.ndarray`, ``(h, w)``, `bool`
        Pixels that count, such as empty sky.
    max_lag : `int`, optional
        Largest separation along x and y.

    Returns
    -------
    correlation : `numpy.ndarray`, ``(2 max_lag + 1, 2 max_lag + 1)``
        One in the middle; entry ``[max_lag + dy, max_lag + dx]`` is the mean
        product of pixels that far apart over the mean square. NaN if no
        pixel counts, or at lags that no two of them have.

    Notes
    -----
    The mean over the pixels that count is subtracted from each image. Sums
    go over the pairs of pixels that both count, whatever the mask.
    """
    stack = np.asarray(images, dtype=float).reshape(-1, *good.shape)
    use = good & np.isfinite(stack).all(axis=0)
    size = [next_fast_len(n + max_lag + 1, real=True) for n in good.shape]
    lags = np.arange(-max_lag, max_lag + 1)
    pairs = _correlate_with_itself(use.astype(float), size)[np.ix_(lags, lags)]
    products = np.zeros_like(pairs)
    for image in stack:
        centered = np.where(use, image - image[use].mean() if use.any() else 0.0, 0.0)
        products += _correlate_with_itself(centered, size)[np.ix_(lags, lags)]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(pairs > 0.5, products / np.round(pairs), np.nan)
        return mean / mean[max_lag, max_lag]


def _correlate_with_itself(image: np.ndarray, size: list[int]) -> np.ndarray:
    return np.fft.irfft2(np.abs(np.fft.rfft2(image, size)) ** 2, size)


def weight_correlation(weights: np.ndarray, max_lag: int) -> np.ndarray:
    """Return the sum of products of weights at each separation.

    Parameters
    ----------
    weights : `numpy.ndarray`, ``(k, l)``
        Weights of pixels in a sum.
    max_lag : `int`
        Largest separation along x and y.

    Returns
    -------
    products : `numpy.ndarray`, ``(2 max_lag + 1, 2 max_lag + 1)``
        The sum of squares in the middle.
    """
    size = [next_fast_len(n + max_lag + 1, real=True) for n in weights.shape]
    lags = np.arange(-max_lag, max_lag + 1)
    return _correlate_with_itself(weights, size)[np.ix_(lags, lags)]


def aperture_noise_ratio(correlation: np.ndarray, radius: float) -> float:
    """Return how much noisier an aperture is than with white noise.

    Parameters
    ----------
    correlation : `numpy.ndarray`, ``(2 n + 1, 2 n + 1)``
        See `autocorrelation`.
    radius : `float`
        Radius of the aperture in pixels.

    Returns
    -------
    ratio : `float`
        Standard deviation of the sum in the aperture, over that for white
        noise of the same variance per pixel.
    """
    side = 2 * int(np.ceil(radius)) + 3
    weights = aperture_weights((side, side), side // 2, side // 2, radius)
    products = weight_correlation(weights, len(correlation) // 2)
    return float(np.sqrt(max(np.sum(np.nan_to_num(correlation) * products), 0.0) / np.sum(weights**2)))


def linear_flux_error(
    weights: np.ndarray, variance: np.ndarray, correlation: np.ndarray | None = None
) -> float:
    """Return the error of a weighted sum of pixels with correlated noise.

    Parameters
    ----------
    weights : `numpy.ndarray`, ``(k, l)``
        Weights of the pixels.
    variance : `numpy.ndarray`, ``(k, l)``
        Their variances.
    correlation : `numpy.ndarray`, ``(2 n + 1, 2 n + 1)``, optional
        See `autocorrelation`; by default the noise is white. It is taken to
        be the same everywhere, while the variance may change.

    Returns
    -------
    error : `float`
        Standard deviation of the sum.
    """
    scaled = weights * np.sqrt(np.maximum(variance, 0.0))
    if correlation is None:
        return float(np.sqrt(np.sum(scaled**2)))
    products = weight_correlation(scaled, len(correlation) // 2)
    return float(np.sqrt(max(np.sum(np.nan_to_num(correlation) * products), 0.0)))


def coverage(
    flux: np.ndarray, truth: np.ndarray, error: np.ndarray, *, n_sigma: float
) -> tuple[float, float]:
    """Return how often an interval around a flux holds the truth.

    Parameters
    ----------
    flux, truth, error : `numpy.ndarray`, ``(n,)``
        Measured and true fluxes, and the errors that were given to them;
        entries that are not finite do not count.
    n_sigma : `float`
        Half the width of the interval in units of the error.

    Returns
    -------
    fraction, uncertainty : `float`
        The part of the intervals that hold the truth, and its standard
        error, by Wilson's formula so that it is not zero for 0 or 1; NaN
        without fluxes.
    """
    use = np.isfinite(flux) & np.isfinite(truth) & np.isfinite(error)
    n = int(use.sum())
    if n == 0:
        return np.nan, np.nan
    p = float(np.mean(np.abs(flux[use] - truth[use]) <= n_sigma * error[use]))
    return p, float(np.sqrt(p * (1 - p) / n + 1 / (4 * n**2)) / (1 + 1 / n))
