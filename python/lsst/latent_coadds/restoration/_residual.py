# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a non-negative solution leaves behind, estimated linearly."""

from __future__ import annotations

__all__ = ("ResidualCorrection",)

import torch

from ._kernels import centred_rfft2, gaussian_kernel
from ._proximal import NonNegativeQuadratic


class ResidualCorrection:
    """A signed, linear estimate of the light that a solution has missed.

    A non-negative solution turns positive noise of the sky into sources and
    cannot do the same with negative noise: the sky gets a pedestal, for which
    faint sources pay. Their residuals still know. They are deconvolved
    linearly, at the spatial frequencies where that is well determined, and
    added; the result then has no pedestal and may be negative in places.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The curvature of the data term.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    damping : `float`
        Response, relative to that at zero frequency, at which the estimate
        falls to one half.

    Notes
    -----
    With B the summed power of the PSFs (times weights), the estimate is the
    back-projected residual times ``B / (B^2 + damping^2 B(0)^2)``.
    """

    def __init__(self, quadratic: NonNegativeQuadratic, spread: float, damping: float) -> None:
        shape = quadratic.operator.fft_shape
        size = min(21, (min(shape) - 1) // 2 * 2 + 1)
        kernel = gaussian_kernel(spread, size).to(quadratic.curvature.device)
        power = centred_rfft2(kernel, shape).real.to(quadratic.curvature) ** 2
        total = quadratic.curvature * power
        self._filter = power * total / (total**2 + (damping * float(total[0, 0])) ** 2)

    def apply(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the correction of a latent image.

        Parameters
        ----------
        gradient : `torch.Tensor`
            Padded transform of the gradient at the solution.

        Returns
        -------
        correction : `torch.Tensor`
            Padded transform of the correction.
        """
        return self._filter * -gradient
