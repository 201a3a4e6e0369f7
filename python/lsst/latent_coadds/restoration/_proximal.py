# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Non-negative quadratic problems whose curvature is a convolution."""

from __future__ import annotations

__all__ = ("NonNegativeQuadratic", "momentum")

import math
from collections.abc import Sequence

import torch

from ._kernels import FWHM_PER_SIGMA, centred_rfft2, gaussian_kernel
from ._operators import ConvolutionOperator


def momentum(t: float) -> tuple[float, float]:
    """Return Nesterov's factor for step ``t``, and the next ``t``."""
    following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * t * t))
    return (t - 1.0) / following, following


class NonNegativeQuadratic:
    """Local quadratic models of the data term, in non-negative coefficients.

    The latent image is a sum over scales: coefficients ``z`` of shape
    (S, *latent_shape), z >= 0, each convolved with a Gaussian of its scale.
    The curvature of the data term for spatially constant weights is a
    convolution too, so a step costs two real transforms of one image per
    scale, whatever the number of exposures.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        The forward model.
    weights : `torch.Tensor`, shape (T,)
        Weight of each exposure.
    scales : `~collections.abc.Sequence` [ `float` ], optional
        Standard deviations of the Gaussians in pixels; 0 is a point.
    penalties : `~collections.abc.Sequence` [ `float` ], optional
        Price of a coefficient of each scale, in units of the noise of the
        gradient with respect to it.
    """

    def __init__(
        self,
        operator: ConvolutionOperator,
        weights: torch.Tensor,
        *,
        scales: Sequence[float] = (0.0,),
        penalties: Sequence[float] = (0.0,),
    ) -> None:
        self.operator = operator
        self.curvature = operator.power(weights)
        self._floor = 0.01 / math.sqrt(float(weights.sum())) / len(scales)
        largest_size = (min(operator.fft_shape) - 1) // 2 * 2 + 1
        profiles = []
        for scale in scales:
            size = min(2 * math.ceil(5.0 * scale) + 1, largest_size)
            kernel = gaussian_kernel(FWHM_PER_SIGMA * scale, size).to(self.curvature.device)
            profiles.append(centred_rfft2(kernel, operator.fft_shape).real.to(self.curvature))
        self._profiles = torch.stack(profiles)
        power = self.curvature * self._profiles**2
        self._largest = power[:, :1, :1].clone() * len(scales)
        noise = torch.fft.irfft2(power, s=operator.fft_shape, dim=(-2, -1))[:, :1, :1].clamp_min(0.0).sqrt()
        self._prices = noise * power.new_tensor(list(penalties))[:, None, None]

    @property
    def n_scales(self) -> int:
        """Number of scales, S."""
        return len(self._profiles)

    def combine(self, z: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of the latent image of coefficients."""
        return (self.operator.transform(z) * self._profiles).sum(dim=0)

    def latent(self, z: torch.Tensor) -> torch.Tensor:
        """Return the latent image of coefficients."""
        return self.operator.untransform(self.combine(z))

    def divide(self, latent: torch.Tensor) -> torch.Tensor:
        """Return coefficients that share a non-negative image among scales."""
        return latent.expand(self.n_scales, -1, -1) / self.n_scales

    def penalty(self, z: torch.Tensor) -> float:
        """Return the price of coefficients."""
        return float((z.sum(dim=(1, 2), dtype=torch.float64) * self._prices[:, 0, 0]).sum())

    def solve(
        self, z: torch.Tensor, gradient: torch.Tensor, n_steps: int, *, damping: float = 1.0
    ) -> torch.Tensor:
        """Return approximate minimisers of a quadratic model plus the price.

        Parameters
        ----------
        z : `torch.Tensor`, shape (S, *latent_shape)
            Non-negative coefficients: the expansion point and the start.
        gradient : `torch.Tensor`
            Padded transform of the gradient of the data term with respect to
            the latent image, at ``z``.
        n_steps : `int`
            Number of steps.
        damping : `float`, optional
            Factor by which the curvature is raised.

        Notes
        -----
        Accelerated projected gradient. The step of a pixel is scaled with
        its own brightness over that of its surroundings, as in
        multiplicative updates, so that light concentrates into stars soon.
        """
        curvature = damping * self.curvature
        target = curvature * self.combine(z) - gradient
        ahead, t = z, 1.0
        step = z
        for i in range(n_steps):
            if i % 4 == 0:
                step = self._step_lengths(z, damping)
            slope = self._project(curvature * self.combine(ahead) - target).add_(self._prices)
            new = torch.addcmul(ahead, step, slope, value=-1.0).clamp_min_(0.0)
            if float(((ahead - new) / step * (new - z)).sum()) > 0.0:
                t = 1.0
            beta, t = momentum(t)
            ahead = torch.add(new, new - z, alpha=beta).clamp_min_(0.0)
            z = new
        return z

    def _project(self, transform: torch.Tensor) -> torch.Tensor:
        """Apply the adjoint of `combine`."""
        return self.operator.untransform(transform * self._profiles)

    def _step_lengths(self, z: torch.Tensor, damping: float) -> torch.Tensor:
        z = z.clamp_min(self._floor)
        scale = damping * self._largest
        curved = self._project(damping * self.curvature * self.combine(z))
        lengths = z / torch.maximum(curved, 1e-6 * scale * self._floor)
        return torch.minimum(torch.maximum(lengths, 0.3 / scale), 30.0 / scale)
