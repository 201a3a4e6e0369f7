# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("local_balance",)

import torch

from ._kernels import value_at_origin
from ._operators import ConvolutionOperator
from ._peaks import local_maximum

_LOWEST_BALANCE = 0.05

_AROUND = 32
"""How far (px) from pixels of an exposure the curvature knows of them."""

_ALL = 0.97
"""Share of the weight from which on all exposures have data."""


def local_balance(
    operator: ConvolutionOperator,
    inverse_variance: torch.Tensor,
    weights: torch.Tensor,
    curvature: torch.Tensor,
) -> torch.Tensor | None:
    """Return the square root of the relative weight of the data near each pixel.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        The forward model.
    inverse_variance : `torch.Tensor`, shape (T, H, W)
        Weight of each pixel, 0 where it is not good.
    weights : `torch.Tensor`, shape (T,)
        Weight of each exposure.
    curvature : `torch.Tensor`
        Transform of the curvature where all exposures have data.

    Returns
    -------
    balance : `torch.Tensor`, shape ``latent_shape``, or `None`
        1 where pixels of all exposures are good, and have the weight of
        their exposure; `None` if that is so everywhere.

    Notes
    -----
    It makes the diagonal of ``b C b`` that of the true curvature: the sum
    over pixels of squared kernels times weights. Of pixels that are missing
    it knows only where they are so for some way around: at sharp edges
    ``b C b`` would be no bound of the curvature.
    """
    usual = weights[:, None, None] * (inverse_variance > 0)
    expected = operator.square_weight(usual)
    seen = local_maximum(expected / value_at_origin(curvature, operator.fft_shape), _AROUND).clamp_max_(1.0)
    alike = bool(((inverse_variance - usual).abs() <= 1e-3 * usual).all())
    if alike and bool((seen > _ALL).all()):
        return None
    ratio = operator.square_weight(inverse_variance) / expected.clamp_min(1e-3 * float(expected.max()))
    ratio *= seen
    return ratio.clamp_(_LOWEST_BALANCE**2, _LOWEST_BALANCE**-2).sqrt_()
