# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("StarShape", "measure_star")

import dataclasses

import numpy as np
from scipy.optimize import least_squares

_FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))


@dataclasses.dataclass(frozen=True)
class StarShape:
    """What an elliptical Gaussian says about a star.

    Parameters
    ----------
    x, y : `float`
        Centre in pixels.
    fwhm : `float`
        Full width at half maximum in pixels: the geometric mean of both axes.
    ellipticity : `float`
        ``(a - b) / (a + b)`` of the axes.
    peak : `float`
        Height above the background.
    background : `float`
        Level around the star.
    """

    x: float
    y: float
    fwhm: float
    ellipticity: float
    peak: float
    background: float


def measure_star(image: np.ndarray, x: float, y: float, *, radius: float = 8.0) -> StarShape | None:
    """Fit an elliptical Gaussian and a level to a star.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        Image with the star.
    x, y : `float`
        About where it is, to a pixel or two.
    radius : `float`, optional
        Pixels to fit, from the nearest pixel on.

    Returns
    -------
    shape : `StarShape` or `None`
        `None` if the stamp leaves the image, holds a NaN, or the fit fails.

    Notes
    -----
    The Gaussian is compared with pixel values as they are, without integrals
    over pixels: a star whose PSF includes the pixel has the width of that
    PSF.
    """
    half = int(radius)
    x0, y0 = round(x) - half, round(y) - half
    if min(x0, y0) < 0 or x0 + 2 * half >= image.shape[1] or y0 + 2 * half >= image.shape[0]:
        return None
    stamp = image[y0 : y0 + 2 * half + 1, x0 : x0 + 2 * half + 1].astype(float)
    yy, xx = np.mgrid[: stamp.shape[0], : stamp.shape[1]]
    use = np.hypot(xx - (x - x0), yy - (y - y0)) <= radius
    if not np.all(np.isfinite(stamp[use])):
        return None
    level = float(np.median(stamp[use]))
    peak = float(stamp[use].max()) - level
    if peak <= 0:
        return None
    xs, ys, values = xx[use], yy[use], stamp[use] / peak
    start = np.array([x - x0, y - y0, 0.0, 0.0, 0.0, 1.0, level / peak])
    start[2] = np.log(max(np.sqrt(np.count_nonzero(values - level / peak > 0.5) / np.pi), 0.7))

    def residual(p: np.ndarray) -> np.ndarray:
        return _gaussian(p, xs, ys) - values

    fit = least_squares(residual, start, max_nfev=200)
    px, py, log_sigma, e1, e2, amplitude, background = fit.x
    if not fit.success or abs(px + x0 - x) > half or abs(py + y0 - y) > half:
        return None
    return StarShape(
        x=px + x0,
        y=py + y0,
        fwhm=_FWHM_PER_SIGMA * float(np.exp(log_sigma)),
        ellipticity=float(np.tanh(np.hypot(e1, e2))),
        peak=amplitude * peak,
        background=background * peak,
    )


def _gaussian(p: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Gaussian with log width p[2] and the shear tanh|e| towards (e1, e2)."""
    dx, dy = x - p[0], y - p[1]
    eta = np.hypot(p[3], p[4])
    c, s = np.cosh(2 * eta), np.sinh(2 * eta)
    u1, u2 = (p[3] / eta, p[4] / eta) if eta > 0 else (0.0, 0.0)
    distance = c * (dx**2 + dy**2) - s * (u1 * (dx**2 - dy**2) + 2 * u2 * dx * dy)
    return p[5] * np.exp(-0.5 * distance * np.exp(-2 * p[2])) + p[6]
