# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much pixels and stars count in a fit of stars and exposures."""

from __future__ import annotations

__all__ = ("N_WAYS", "source_scatter", "temper", "weigh_pixels")

import torch

from ._star_stamps import StarStamps

N_WAYS = 8
"""Ways in which an image of a star may change: those of a star, wings, and sky."""

_HUBER = 3.0
"""Residual in sigma beyond which a pixel counts less."""

_OUTLIER = 8.0
"""Residual in sigma beyond which it does not count at all, if it is not in a
bright star, where a PSF that is wrong leaves as much.
"""

_LARGEST_CHI2 = 2.0
"""Mean squared residual beyond which a star in an exposure counts less: it may
vary, move, or be hit by a cosmic ray.
"""

_STAR_SCATTER = (0.005, 0.003, 0.003, 0.01, 0.01, 0.005, 0.01, 0.02)
"""Scatter (rms) of each parameter among the stars of an exposure besides their
noise: colours, variability, proper motions, errors of PSF models.
"""

_GALAXY_SCATTER = (0.15, 0.05, 0.05, 0.05, 0.05, 0.1, 2.0, 0.0)
"""The same of a source that is extended, per unit of its size: a galaxy is no
stretched PSF.
"""

_SHEAR_SCATTER = 0.15
"""Scatter of its shears, as a part of its own."""

_LARGEST_DEVIATION = 4.0
"""Mean squared deviation of a star in an exposure, in units of noise and that
scatter, from which on it counts less than half.
"""


def weigh_pixels(
    block: StarStamps, model: torch.Tensor, model_error: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return residuals of stamps and their robust weights.

    Parameters
    ----------
    block : `StarStamps`
        The data.
    model : `torch.Tensor`, shape (n, p)
        Light of the stars.
    model_error : `float`
        Error of PSFs as a part of the light.

    Returns
    -------
    residual, weight : `torch.Tensor`, shape (n, p)
        Data minus model, and inverse variances after robust weighting.
    chi2, used : `torch.Tensor`, shape (n,)
        Weighted mean square of the residuals, and numbers of pixels.
    """
    weight = block.weight / (1.0 + block.weight * (model_error * model) ** 2)
    residual = block.image - model
    size = residual.abs() * weight.sqrt()
    weight = weight * (_HUBER / size.clamp_min(_HUBER))
    weight = weight * (size < _OUTLIER * (1.0 + 0.05 * model.abs() * block.weight.sqrt()))
    used = (weight > 0).sum(dim=1).clamp_min(1)
    chi2 = (weight * residual**2).sum(dim=1) / used
    return residual, weight * (_LARGEST_CHI2 / chi2.clamp_min(_LARGEST_CHI2))[:, None], chi2, used


def source_scatter(stars: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """Return the offsets (rms) that sources have of their own in an exposure.

    Parameters
    ----------
    stars : `torch.Tensor`, shape (S, 6)
        Size, shear, place, and logarithm of the flux of each source.
    wide : `torch.Tensor`, shape (S,), bool
        Which of them are no points.

    Returns
    -------
    scatter : `torch.Tensor`, shape (S, 8)
        Of each of the ways in which an image may change.
    """
    scatter = stars.new_tensor(_STAR_SCATTER).expand(len(stars), N_WAYS)
    extent = stars[:, :1].abs() * wide[:, None]
    scatter = scatter + extent * stars.new_tensor(_GALAXY_SCATTER)
    scatter[:, 1:3] += (_SHEAR_SCATTER * wide * stars[:, 1:3].norm(dim=1))[:, None]
    return scatter


def temper(
    gram: torch.Tensor, slope: torch.Tensor, scatter: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normal matrices and slopes of stars that do not all tell the same.

    Parameters
    ----------
    gram : `torch.Tensor`, shape (T, S, 8, 8)
        Normal matrix G of each star in each exposure.
    slope : `torch.Tensor`, shape (T, S, 8)
        Its slope b.
    scatter : `torch.Tensor`, shape (S, 8)
        Offsets (rms) that each star has of its own in an exposure.

    Returns
    -------
    gram, slope : `torch.Tensor`
        The same of what the stars tell about the exposures.

    Notes
    -----
    With such offsets, of covariance C, the matrix of a star becomes
    ``(G^-1 + C)^-1`` and its slope ``(1 + G C)^-1 b``: however bright it is,
    one star does not decide. One that deviates by more (it moves, it varies)
    gets a smaller weight.
    """
    unit = torch.eye(N_WAYS, dtype=gram.dtype, device=gram.device)
    mixed = unit + gram * (scatter**2)[:, None, :]
    gram_after = torch.linalg.solve(mixed, gram)
    slope_after = torch.linalg.solve(mixed, slope[..., None])[..., 0]
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(1e-30)
    own = torch.linalg.solve(gram + torch.diag_embed(1e-6 * scale), slope[..., None])[..., 0]
    deviation = (own * slope_after).sum(dim=-1) / N_WAYS
    weight = 1.0 / (1.0 + deviation.clamp_min(0.0) / _LARGEST_DEVIATION)
    gram_after = 0.5 * (gram_after + gram_after.transpose(-1, -2))
    return weight[..., None, None] * gram_after, weight[..., None] * slope_after
