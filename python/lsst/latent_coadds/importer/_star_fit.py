# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("StarFit", "fit_star")

import dataclasses
from typing import TYPE_CHECKING

import galsim
import numpy as np

if TYPE_CHECKING:
    import piff


@dataclasses.dataclass(frozen=True)
class StarFit:
    """A PSF model fitted to one star.

    Parameters
    ----------
    x, y : `float`
        Centre in pixels of the exposure.
    flux, flux_error : `float`
        Flux in units of the image, for a PSF that sums to one over its stamp.
    position_error : `float`
        Uncertainty of the centre per axis, in pixels.
    chi2 : `float`
        Reduced chi-square.
    n_dof : `int`
        Degrees of freedom.
    converged : `bool`
        Whether the centre settled near the start.
    """

    x: float
    y: float
    flux: float
    flux_error: float
    position_error: float
    chi2: float
    n_dof: int
    converged: bool


def fit_star(
    psf: piff.PSF,
    image: np.ndarray,
    weight: np.ndarray,
    *,
    x: float,
    y: float,
    radius: float,
    x0: int = 0,
    y0: int = 0,
    norm: float = 1.0,
    n_iterations: int = 12,
) -> StarFit:
    """Fit flux, centre and local background of one star by Gauss-Newton.

    Parameters
    ----------
    psf : `piff.PSF`
        PSF model.
    image, weight : `numpy.ndarray`
        Pixels and their inverse variance, ``(H, W)``; weight 0 where bad.
    x, y : `float`
        Starting centre in pixels of the exposure.
    radius : `float`
        Pixels further than this from the start are not used.
    x0, y0 : `int`, optional
        Exposure coordinates of the array's first pixel.
    norm : `float`, optional
        Sum of the PSF model over its stamp.
    n_iterations : `int`, optional
        Most iterations.

    Returns
    -------
    fit : `StarFit`
        The result; ``converged`` is `False` when too few pixels are good or
        the centre runs away by more than half the radius.
    """
    reach = int(np.ceil(radius))
    xc, yc = round(x) - x0, round(y) - y0
    ys = slice(max(yc - reach, 0), min(yc + reach + 1, image.shape[0]))
    xs = slice(max(xc - reach, 0), min(xc + reach + 1, image.shape[1]))
    failed = StarFit(x, y, np.nan, np.nan, np.nan, np.nan, 0, False)
    data, inverse = image[ys, xs], weight[ys, xs]
    if data.size == 0:
        return failed
    yy, xx = np.mgrid[ys, xs]
    near = np.hypot(xx + x0 - x, yy + y0 - y) <= radius
    use = near & (inverse > 0.0)
    if use.sum() < max(16, 0.6 * near.sum()):
        return failed
    root = np.sqrt(inverse[use])
    centre = np.array([x, y])
    stamp_origin = (xs.start + x0, ys.start + y0)
    for _ in range(n_iterations):
        design = _design(psf, centre, stamp_origin, data.shape, norm)[:, use] * root
        solution, *_ = np.linalg.lstsq(design.T, data[use] * root, rcond=None)
        if not solution[0] > 0.0:
            return failed
        step = np.clip(solution[1:3] / solution[0], -1.0, 1.0)
        centre = centre + step
        if np.hypot(*(centre - (x, y))) > 0.5 * radius:
            return failed
        if np.hypot(*step) < 1e-4:
            break
    covariance = np.linalg.inv(design @ design.T)
    residual = data[use] * root - solution @ design
    n_dof = max(int(use.sum()) - 4, 1)
    return StarFit(
        float(centre[0]),
        float(centre[1]),
        float(solution[0]),
        float(np.sqrt(covariance[0, 0])),
        float(np.sqrt(0.5 * (covariance[1, 1] + covariance[2, 2])) / solution[0]),
        float(residual @ residual / n_dof),
        n_dof,
        bool(np.hypot(*step) < 0.05),
    )


def _design(
    psf: piff.PSF, centre: np.ndarray, origin: tuple[int, int], shape: tuple[int, int], norm: float
) -> np.ndarray:
    """PSF, its derivatives by the centre, and a constant: ``(4, h, w)``."""

    def draw(dx: float, dy: float) -> np.ndarray:
        stamp = galsim.Image(np.zeros(shape), xmin=origin[0], ymin=origin[1], wcs=galsim.PixelScale(1.0))
        x, y = float(centre[0]) + dx, float(centre[1]) + dy
        return psf.draw(float(centre[0]), float(centre[1]), image=stamp, center=(x, y)).array / norm

    h = 0.05
    by_x = (draw(h, 0.0) - draw(-h, 0.0)) / (2.0 * h)
    by_y = (draw(0.0, h) - draw(0.0, -h)) / (2.0 * h)
    return np.stack([draw(0.0, 0.0), by_x, by_y, np.ones(shape)])
