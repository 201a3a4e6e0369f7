# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guess at what lies in the holes of a coadd."""

from __future__ import annotations

__all__ = ("fill_holes",)

import math

import torch

from ._kernels import convolve, gaussian_kernel
from ._peaks import local_maximum


def fill_holes(
    image: torch.Tensor, variance: torch.Tensor, psf: torch.Tensor, *, significance: float = 20.0
) -> torch.Tensor:
    """Fill the pixels of a coadd that no exposure covers.

    Parameters
    ----------
    image, variance : `torch.Tensor`, shape (H, W)
        The coadd; its variance is infinite in holes.
    psf : `torch.Tensor`, shape (k, k)
        Its PSF.
    significance : `float`, optional
        How sure, in sigma, a star behind a hole must be.

    Returns
    -------
    filled : `torch.Tensor`, shape (H, W)
        The coadd with a local mean in the holes, or with the core of a star
        where the light around a hole is that of a star behind it; zero deep
        inside of large holes.

    Notes
    -----
    The masked core of a saturated star is the usual hole. A start that knows
    nothing of the core puts its light on the rim, as a ring.
    """
    covered = torch.isfinite(variance)
    if bool(covered.all()):
        return image
    weight = covered.to(image.dtype)
    kernel = gaussian_kernel(6.0, 25)
    mean = convolve(image * weight, kernel) / convolve(weight, kernel).clamp_min(1e-3)
    star = _stars_behind(image * weight, weight, variance[covered].median(), psf, significance)
    return torch.where(covered, image, torch.maximum(mean, star))


def _stars_behind(
    image: torch.Tensor, weight: torch.Tensor, variance: torch.Tensor, psf: torch.Tensor, significance: float
) -> torch.Tensor:
    """Return the profiles of stars whose best position is in a hole."""
    mirrored = psf.flip((-2, -1))
    power = convolve(weight, mirrored**2).clamp_min(1e-3 * float((psf**2).sum()))
    product = convolve(image, mirrored)
    quality = product / (power * variance).sqrt()
    peak = local_maximum(quality, math.ceil(psf.shape[-1] / 4))
    chosen = (weight == 0) & (quality == peak) & (quality > significance)
    amplitude = product / power
    impulses = torch.zeros_like(image)
    for y, x in torch.nonzero(chosen).tolist():
        _add_impulse(impulses, quality, y, x, float(amplitude[y, x]))
    return convolve(impulses, psf)


def _add_impulse(impulses: torch.Tensor, quality: torch.Tensor, y: int, x: int, amplitude: float) -> None:
    """Share an amplitude among the pixels next to the vertex of a peak."""
    height, width = quality.shape
    if not (0 < y < height - 1 and 0 < x < width - 1):
        impulses[y, x] += amplitude
        return
    dy = _vertex(*(float(q) for q in quality[y - 1 : y + 2, x]))
    dx = _vertex(*(float(q) for q in quality[y, x - 1 : x + 2]))
    sy, sx = (1 if d >= 0 else -1 for d in (dy, dx))
    dy, dx = abs(dy), abs(dx)
    impulses[y, x] += amplitude * (1 - dy) * (1 - dx)
    impulses[y + sy, x] += amplitude * dy * (1 - dx)
    impulses[y, x + sx] += amplitude * (1 - dy) * dx
    impulses[y + sy, x + sx] += amplitude * dy * dx


def _vertex(before: float, at: float, after: float) -> float:
    """Return where the parabola through three values has its vertex."""
    curvature = 2 * at - before - after
    return 0.0 if curvature <= 0 else max(-0.5, min(0.5, 0.5 * (after - before) / curvature))
