# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("aperture_flux", "aperture_weights", "psf_flux", "shift_kernel", "weighted_flux")

import numpy as np


def aperture_weights(shape: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    """Return which part of each pixel lies in a circle.

    Parameters
    ----------
    shape : `tuple` [`int`, `int`]
        Rows and columns of the grid.
    x, y : `float`
        Centre of the circle.
    radius : `float`
        Its radius in pixels.

    Returns
    -------
    weights : `numpy.ndarray`, ``shape``, `float64`
        Between 0 and 1, to about one part in a thousand of the area.
    """
    n_sub = 11
    step = (np.arange(n_sub) - (n_sub - 1) / 2) / n_sub
    dy = np.arange(shape[0])[:, None] - y
    dx = np.arange(shape[1])[None, :] - x
    distance = np.hypot(dy, dx)
    weights = (distance < radius).astype(float)
    rows, columns = np.nonzero(np.abs(distance - radius) < 0.75)
    fine_y = dy[rows, 0][:, None, None] + step[None, :, None]
    fine_x = dx[0, columns][:, None, None] + step[None, None, :]
    weights[rows, columns] = (np.hypot(fine_y, fine_x) < radius).mean(axis=(1, 2))
    return weights


def shift_kernel(kernel: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Move an image by a part of a pixel.

    Parameters
    ----------
    kernel : `numpy.ndarray`, ``(k, k)``
        Image that vanishes towards its edges.
    dx, dy : `float`
        How far to move it.

    Returns
    -------
    shifted : `numpy.ndarray`, ``(k, k)``
        The image, shifted.

    Notes
    -----
    The Gaussian that has the curvature of the image's peak is moved by
    evaluating it, what is left by a phase in Fourier space.  That is exact
    for Gaussians, also for those of two pixels' width, which phases alone
    would give rings of some per cent of the peak.
    """
    before, after = _peak_gaussians(kernel, dx, dy)
    size = [2 * n for n in kernel.shape]
    phase = np.fft.fftfreq(size[0])[:, None] * dy + np.fft.rfftfreq(size[1])[None, :] * dx
    transform = np.fft.rfft2(kernel - before, size) * np.exp(-2j * np.pi * phase)
    return np.fft.irfft2(transform, size)[: kernel.shape[0], : kernel.shape[1]] + after


def _peak_gaussians(kernel: np.ndarray, dx: float, dy: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gaussian with the curvature of the peak, and it moved."""
    row, column = (n // 2 for n in kernel.shape)
    peak = kernel[row - 1 : row + 2, column - 1 : column + 2]
    zero = np.zeros(kernel.shape)
    if peak.shape != (3, 3) or not np.all(peak > 0):
        return zero, zero
    log = np.log(peak.astype(float))
    xx, yy = (2 * log[1, 1] - a - b for a, b in ((log[1, 0], log[1, 2]), (log[0, 1], log[2, 1])))
    xy = 0.25 * (log[0, 2] + log[2, 0] - log[0, 0] - log[2, 2])
    if min(xx, yy) <= 0 or xx * yy <= xy**2:
        return zero, zero
    slope = 0.5 * np.array([log[1, 2] - log[1, 0], log[2, 1] - log[0, 1]])
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - np.array([row, column])[:, None, None]

    def evaluate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        shape = -0.5 * (xx * x**2 + yy * y**2) - xy * x * y
        return np.exp(log[1, 1] + slope[0] * x + slope[1] * y + shape)

    return evaluate(x, y), evaluate(x - dx, y - dy)


def aperture_flux(
    image: np.ndarray, x: float, y: float, radius: float, *, psf: np.ndarray | None = None
) -> float:
    """Measure the flux in a circular aperture.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        Image without background.
    x, y : `float`
        Position of the source.
    radius : `float`
        Radius of the aperture in pixels.
    psf : `numpy.ndarray`, ``(k, k)``, optional
        Centred PSF with a sum of one.  If given, the flux is divided by
        the part of the PSF that falls into the aperture.

    Returns
    -------
    flux : `float`
        NaN if the aperture leaves the image or holds a NaN.
    """
    half = int(np.ceil(radius)) + 1
    stamp, x0, y0 = _cut(image, x, y, half)
    if stamp is None:
        return np.nan
    flux = float(np.sum(stamp * aperture_weights(stamp.shape, x - x0, y - y0, radius)))
    if psf is not None:
        center = (psf.shape[0] - 1) / 2
        dx, dy = x - round(x), y - round(y)
        weights = aperture_weights(psf.shape, center + dx, center + dy, radius)
        flux /= float(np.sum(shift_kernel(psf, dx, dy) * weights))
    return flux


def psf_flux(
    image: np.ndarray, x: float, y: float, psf: np.ndarray, *, variance: np.ndarray | None = None
) -> float:
    """Measure the flux of a point source at a known position.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        Image without background.
    x, y : `float`
        Position of the source.
    psf : `numpy.ndarray`, ``(k, k)``
        Centred PSF with a sum of one.
    variance : `numpy.ndarray`, ``(h, w)``, optional
        Weighs the pixels; by default all count alike.

    Returns
    -------
    flux : `float`
        Least-squares amplitude of the PSF.  NaN if the PSF's stamp leaves
        the image or holds a NaN.

    Notes
    -----
    The PSF is shifted to the source's place in its pixel by `shift_kernel`.
    """
    half = psf.shape[0] // 2
    stamp, x0, y0 = _cut(image, x, y, half)
    if stamp is None:
        return np.nan
    model = shift_kernel(psf, x - x0 - half, y - y0 - half)
    weight = np.ones_like(model)
    if variance is not None:
        cut, _, _ = _cut(variance, x, y, half)
        if cut is None:
            return np.nan
        weight = 1 / cut
    return float(np.sum(weight * model * stamp) / np.sum(weight * model**2))


def weighted_flux(image: np.ndarray, x: float, y: float, weight: np.ndarray, psf: np.ndarray) -> float:
    """Measure the flux of a point source with a weight wider than its PSF.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        Image without background.
    x, y : `float`
        Position of the source.
    weight : `numpy.ndarray`, ``(n, n)``
        Centred weight of the pixels, n odd; its scale does not matter.  Use
        a Gaussian of 1.5 times the width of the seeing.
    psf : `numpy.ndarray`, ``(k, k)``
        Centred PSF of the image with a sum of one.

    Returns
    -------
    flux : `float`
        NaN if the weight leaves the image or holds a NaN.

    Notes
    -----
    Flux of a restored image has its smallest error with the weight with
    which the matched filter of all exposures sees it: the autocorrelation of
    their PSFs, divided by the PSF of the image.  An aperture, or a fit of the
    narrow PSF, asks for frequencies that no exposure has.  Neighbours within
    the weight count with it.
    """
    half = weight.shape[0] // 2
    stamp, x0, y0 = _cut(image, x, y, half)
    if stamp is None:
        return np.nan
    moved = shift_kernel(weight, x - x0 - half, y - y0 - half)
    size = max(weight.shape[0], psf.shape[0])
    model = _embed(shift_kernel(psf, x - x0 - half, y - y0 - half), size)
    return float(np.sum(moved * stamp) / np.sum(_embed(moved, size) * model))


def _embed(kernel: np.ndarray, size: int) -> np.ndarray:
    return np.pad(kernel, (size - kernel.shape[0]) // 2)


def _cut(image: np.ndarray, x: float, y: float, half: int) -> tuple[np.ndarray | None, int, int]:
    x0, y0 = round(x) - half, round(y) - half
    if min(x0, y0) < 0 or x0 + 2 * half >= image.shape[1] or y0 + 2 * half >= image.shape[0]:
        return None, x0, y0
    stamp = image[y0 : y0 + 2 * half + 1, x0 : x0 + 2 * half + 1]
    return (stamp if np.all(np.isfinite(stamp)) else None), x0, y0
