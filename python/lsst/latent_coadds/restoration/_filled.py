# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exposures whose gaps and outliers a coadd fills."""

from __future__ import annotations

__all__ = ("fill_exposures", "filled_gradient", "start_accelerated")

import torch

from ._direct import DirectCoadd
from ._holes import fill_holes
from ._operators import ConvolutionOperator
from ._proximal import NonNegativeQuadratic
from ._stack import ExposureStack


def fill_exposures(
    stack: ExposureStack, coadd: DirectCoadd, filled: torch.Tensor, which: slice
) -> torch.Tensor:
    """Return exposures with a coadd where that left them out.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    coadd : `DirectCoadd`
        Their coadd.
    filled : `torch.Tensor`, shape (H, W)
        Its image, without holes.
    which : `slice`
        The exposures to return.

    Returns
    -------
    data : `torch.Tensor`, shape (n, h, w)
        The exposures.
    """
    around = torch.stack([stack.to_frame(t, filled) for t in range(which.start, which.stop)])
    return torch.where(coadd.kept[which], stack.image[which], around)


def filled_gradient(
    stack: ExposureStack,
    operator: ConvolutionOperator,
    coadd: DirectCoadd,
    filled: torch.Tensor,
    transform: torch.Tensor,
) -> torch.Tensor:
    """Return the padded transform of the gradient at a latent image.

    The data have the coadd in gaps and outliers, and each exposure has one weight.
    """
    weights = stack.exposure_weights()
    lifted = operator.lift(transform)
    total: torch.Tensor | None = None
    for which in operator.chunks():
        residual = operator.predict(lifted, which) - fill_exposures(stack, coadd, filled, which)
        total = operator.back_project(weights[which, None, None] * residual, which, into=total)
    assert total is not None
    return operator.lower(total)


def start_accelerated(
    stack: ExposureStack, quadratic: NonNegativeQuadratic, coadd: DirectCoadd, n_steps: int
) -> torch.Tensor:
    """Solve the problem with outliers and gaps replaced by the coadd.

    Without gaps the curvature is a convolution, so this costs little; it
    brings all but the last details.
    """
    operator = quadratic.operator
    filled = fill_holes(coadd.image, coadd.variance, coadd.psf)
    coefficients = quadratic.divide(operator.extend(filled).clamp_min_(0.0))
    transform = quadratic.combine(coefficients)
    gradient = filled_gradient(stack, operator, coadd, filled, transform)
    return quadratic.solve(coefficients, gradient, n_steps, transform=transform, constant=True)
