# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measurements of restored scenes against the truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from photutils.detection import find_peaks
from scenes import Scene
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize

from lsst.latent_coadds.qa import StarShape, aperture_flux, measure_star, psf_flux, ring_depth, weighted_flux
from lsst.latent_coadds.restoration import ExposureStack, Restoration, gaussian_kernel

APERTURE = 3.0
"""Radius of the photometric aperture in pixels."""

WEIGHT_FWHM = 6.7
"""Width of the Gaussian weight in pixels, 1.5 times that of the seeing."""

FILTER_FWHM = (0.0, 2.0, 3.0, 4.0, 5.0, 6.0)
"""Widths of the Gaussians that a detection image may be smoothed with."""


@dataclasses.dataclass
class Result:
    """A coadd of a scene, as plain arrays.

    ``image`` and ``variance`` are (H, W), ``psf`` is (k, k).
    """

    image: np.ndarray
    variance: np.ndarray
    psf: np.ndarray
    seconds: float

    @classmethod
    def from_restoration(cls, restoration: Restoration, seconds: float) -> Result:
        """Take the arrays of a restoration."""
        planes = (restoration.image, restoration.variance, restoration.psf)
        return cls(*(plane.numpy().astype(np.float64) for plane in planes), seconds)


def make_stack(scene: Scene, good: np.ndarray | None = None) -> ExposureStack:
    """Return the exposures of a scene; no cosmic ray is masked."""
    return ExposureStack(scene.image, scene.variance, scene.good if good is None else good, scene.psf)


def measure_stars(result: Result, scene: Scene) -> np.ndarray:
    """Measure isolated stars.

    Returns
    -------
    table : `numpy.ndarray`, (N, 8)
        Columns: S/N, flux in the aperture over truth minus one, FWHM over
        that of the attached PSF, offset in x and in y (px), depth of the
        deepest ring over the peak; and as the second column, but from a fit of
        the attached PSF, and with a wide Gaussian as weight.
    """
    psf_shape = measure_star(result.psf, *(np.array(result.psf.shape[::-1]) // 2).tolist())
    assert psf_shape is not None, "The attached PSF can be measured."
    weight = gaussian_kernel(WEIGHT_FWHM, 23).numpy()
    rows = []
    for x, y, s, flux in scene.stars:
        measured = aperture_flux(result.image, x, y, APERTURE, psf=result.psf)
        shape = measure_star(result.image, x, y) if s >= 15 else None
        usable = shape is not None and np.hypot(shape.x - x, shape.y - y) < 2
        rows.append(
            (
                s,
                measured / flux - 1,
                shape.fwhm / psf_shape.fwhm if usable else np.nan,
                shape.x - x if usable else np.nan,
                shape.y - y if usable else np.nan,
                _ring(result.image, shape) if usable and s >= 100 else np.nan,
                psf_flux(result.image, x, y, result.psf) / flux - 1,
                weighted_flux(result.image, x, y, weight, result.psf) / flux - 1,
            )
        )
    return np.array(rows, dtype=float)


def _ring(image: np.ndarray, shape: StarShape) -> float:
    return ring_depth(image, shape.x, shape.y, peak=shape.peak, fwhm=shape.fwhm, radius=14.0).depth


def background_rms(result: Result, scene: Scene, distance: float = 14.0) -> float:
    """Return the rms about the mean in sky without sources and rays."""
    y, x = np.mgrid[: result.image.shape[0], : result.image.shape[1]]
    free = np.ones(result.image.shape, dtype=bool)
    for row in scene.stars:
        free &= np.hypot(x - row[0], y - row[1]) > distance
    for row in scene.galaxies:
        free &= np.hypot(x - row[0], y - row[1]) > distance
    rays = gaussian_filter(scene.hits.astype(float), 2.0) > 1e-3
    border = (x < 12) | (y < 12) | (x >= x.max() - 12) | (y >= y.max() - 12)
    return float(result.image[free & ~rays & ~border].std())


def count_split_pairs(result: Result, centers: np.ndarray, angles: np.ndarray, separation: float) -> int:
    """Count pairs of which both stars are found as peaks of their own."""
    sigma = float(np.sqrt(np.median(result.variance)))
    peaks = find_peaks(result.image, 5 * sigma, box_size=3)
    if peaks is None:
        return 0
    found = np.column_stack([peaks["x_peak"], peaks["y_peak"]]).astype(float)
    n_split = 0
    for center, angle in zip(centers, angles, strict=True):
        step = 0.5 * separation * np.array([np.cos(angle), np.sin(angle)])
        nearest = [np.argmin(np.hypot(*(found - center - sign * step).T)) for sign in (-1, 1)]
        distances = [
            np.hypot(*(found[k] - center - sign * step)) for k, sign in zip(nearest, (-1, 1), strict=True)
        ]
        n_split += int(nearest[0] != nearest[1] and max(distances) < 1.2)
    return n_split


def detection_image(result: Result, fwhm: float) -> np.ndarray:
    """Smooth a coadd for detection; the plain coadd by its own PSF."""
    if fwhm < 0:
        kernel = np.zeros(result.image.shape)
        k = result.psf.shape[0]
        kernel[:k, :k] = result.psf
        kernel = np.roll(kernel, (-(k // 2), -(k // 2)), axis=(0, 1))
        return np.fft.irfft2(np.fft.rfft2(result.image) * np.fft.rfft2(kernel).conj(), s=result.image.shape)
    return gaussian_filter(result.image, fwhm / 2.35482) if fwhm else result.image


def detect(image: np.ndarray, truth: np.ndarray, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Detect peaks and match them to the truth.

    Parameters
    ----------
    image : `numpy.ndarray`, (H, W)
        Detection image.
    truth : `numpy.ndarray`, (N, 2)
        Positions of the sources.
    exclude : `numpy.ndarray` [`bool`], (H, W)
        Where peaks do not count.

    Returns
    -------
    source : `numpy.ndarray`, (N,)
        Peak value that each source was found with, or minus infinity.
    false : `numpy.ndarray`
        Values of the peaks that match no source.
    """
    spread = 1.4826 * np.median(np.abs(image - np.median(image))) or image.std()
    peaks = find_peaks(image, np.median(image) + 0.5 * spread, box_size=5, mask=exclude, border_width=12)
    values = np.full(len(truth), -np.inf)
    if peaks is None:
        return values, np.zeros(0)
    order = np.argsort(peaks["peak_value"])[::-1]
    x, y, height = (np.asarray(peaks[name])[order] for name in ("x_peak", "y_peak", "peak_value"))
    false = []
    for column, row, value in zip(x, y, height, strict=True):
        distance = np.hypot(truth[:, 0] - column, truth[:, 1] - row)
        nearest = int(distance.argmin())
        if distance[nearest] < 2.5:
            values[nearest] = max(values[nearest], value)
        else:
            false.append(value)
    return values, np.array(false)


def limiting_signal_to_noise(
    signal_to_noise: np.ndarray, values: np.ndarray, false: np.ndarray, purity: float = 0.95
) -> float:
    """Return the S/N at which half of the sources are found.

    The threshold is the lowest at which ``purity`` of all detections are
    real; the completeness is fitted with a logistic function of log S/N.
    """
    levels = np.sort(np.concatenate([values[np.isfinite(values)], false]))
    n_true = np.array([(values >= level).sum() for level in levels])
    n_false = np.array([(false >= level).sum() for level in levels])
    pure = n_true >= purity * (n_true + n_false)
    # The lowest level from which on upwards the purity always holds.
    impure = np.flatnonzero(~pure)
    threshold = levels[min(impure[-1] + 1, len(levels) - 1)] if len(impure) else levels[0]
    found = values >= threshold
    log_s = np.log(signal_to_noise)

    def loss(p: np.ndarray) -> float:
        z = np.clip((log_s - p[0]) * np.exp(p[1]), -30, 30)
        chance = 1 / (1 + np.exp(-z))
        return -float(np.where(found, np.log(chance + 1e-9), np.log(1 - chance + 1e-9)).sum())

    fit = minimize(loss, [np.log(5.0), 1.5], method="Nelder-Mead")
    return float(np.exp(fit.x[0]))


def held_out_loss(restoration: Restoration, scene: Scene, held: np.ndarray, delta: float = 3.0) -> float:
    """Return the mean Huber loss on held-out pixels, (T, H, W) bool."""
    total = 0.0
    for t in range(len(scene.image)):
        residual = (scene.image[t] - restoration.model(t).numpy()) / scene.sigma[t]
        size = np.abs(residual[held[t]])
        total += np.where(size < delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum()
    return float(total / held.sum())


def hold_out(scene: Scene, fraction: float = 0.05, seed: int = 0) -> np.ndarray:
    """Choose pixels to hold out, (T, H, W) bool."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(scene.image.shape, generator=generator) < fraction).numpy()
