# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("background_level", "background_variance", "detector_variance", "noise_scale")

import numpy as np


def detector_variance(
    image: np.ndarray, *, gain: float, read_noise: float = 0.0, sky: float = 0.0
) -> np.ndarray:
    """Variance of a sky-subtracted exposure from the detector equation.

    Parameters
    ----------
    image : `numpy.ndarray`
        Counts per pixel, ``(H, W)``, after the sky was subtracted.
    gain : `float`
        Electrons per count.
    read_noise : `float`, optional
        Read noise in electrons per pixel.
    sky : `float`, optional
        Sky level in counts per pixel that was subtracted.

    Returns
    -------
    variance : `numpy.ndarray`
        Counts squared, ``(H, W)`` float64: sky and read noise, and the photon
        noise of pixels above the sky.

    Raises
    ------
    ValueError
        Raised if the gain is not positive, or if the constant part of the
        variance is not positive.
    """
    if not gain > 0.0:
        raise ValueError(f"The gain must be positive, not {gain}.")
    floor = max(sky, 0.0) / gain + (read_noise / gain) ** 2
    if not floor > 0.0:
        raise ValueError(
            f"Neither the sky ({sky}) nor the read noise ({read_noise}) is positive; "
            "give at least one of them, or leave out the gain to take the variance from the background."
        )
    return floor + np.clip(np.nan_to_num(image, nan=0.0), 0.0, None) / gain


def background_level(image: np.ndarray, use: np.ndarray, *, n_iterations: int = 8) -> tuple[float, float]:
    """Level and standard deviation of the background, robust to sources.

    Parameters
    ----------
    image : `numpy.ndarray`
        Pixel values, ``(H, W)``.
    use : `numpy.ndarray`
        Boolean ``(H, W)``, `True` where a pixel may be used.
    n_iterations : `int`, optional
        Rounds of clipping at three standard deviations.

    Returns
    -------
    level, sigma : `float`
        Median of the kept pixels, and a standard deviation from their median
        absolute deviation.

    Raises
    ------
    ValueError
        Raised if fewer than 16 pixels can be used.
    """
    values = image[use & np.isfinite(image)]
    if values.size < 16:
        raise ValueError(f"Only {values.size} pixels are good; the background cannot be measured.")
    for _ in range(n_iterations):
        level = float(np.median(values))
        sigma = float(1.4826 * np.median(np.abs(values - level)))
        kept = values[np.abs(values - level) < 3.0 * sigma] if sigma > 0.0 else values
        if kept.size == values.size or kept.size < 16:
            break
        values = kept
    return level, sigma


def background_variance(image: np.ndarray, use: np.ndarray, *, gain: float | None = None) -> np.ndarray:
    """Variance from the measured scatter of the background.

    Parameters
    ----------
    image : `numpy.ndarray`
        Counts per pixel, ``(H, W)``, sky-subtracted.
    use : `numpy.ndarray`
        Boolean ``(H, W)``, `True` where a pixel may be used.
    gain : `float`, optional
        Electrons per count. When given, the photon noise of pixels above the
        sky is added.

    Returns
    -------
    variance : `numpy.ndarray`
        Counts squared, ``(H, W)`` float64.

    Raises
    ------
    ValueError
        Raised if the background does not scatter at all.
    """
    level, sigma = background_level(image, use)
    if not sigma > 0.0:
        raise ValueError(
            "The background has no scatter, so there is no variance to measure; "
            "give a variance plane, or gain, read noise and sky."
        )
    variance = np.full(image.shape, sigma**2, dtype=np.float64)
    if gain is not None:
        variance += np.clip(np.nan_to_num(image - level, nan=0.0), 0.0, None) / gain
    return variance


def noise_scale(image: np.ndarray, variance: np.ndarray, use: np.ndarray) -> float:
    """Scatter of the background over the scatter that the variance predicts.

    Parameters
    ----------
    image, variance : `numpy.ndarray`
        Pixel values and their variance, ``(H, W)``.
    use : `numpy.ndarray`
        Boolean ``(H, W)``, `True` where a pixel may be used.

    Returns
    -------
    scale : `float`
        One where the two agree; below one in resampled exposures, whose noise
        is correlated.
    """
    safe = np.where(use & (variance > 0.0), variance, 1.0)
    _, sigma = background_level(image / np.sqrt(safe), use)
    return sigma
