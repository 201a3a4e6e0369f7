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

import torch

from ._operators import ConvolutionOperator


def momentum(t: float) -> tuple[float, float]:
    """Return Nesterov's factor for step ``t``, and the next ``t``."""
    following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * t * t))
    return (t - 1.0) / following, following


class NonNegativeQuadratic:
    """Minimise ``<gradient, z - x> + (z - x)' B (z - x) / 2`` over z >= 0.

    ``B`` is the curvature of the data term for spatially constant weights: a
    convolution, so a step costs two real transforms of one image, whatever
    the number of exposures.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        The forward model.
    weights : `torch.Tensor`, shape (T,)
        Weight of each exposure.
    """

    def __init__(self, operator: ConvolutionOperator, weights: torch.Tensor) -> None:
        self.operator = operator
        self.curvature = operator.power(weights)
        self._largest = float(self.curvature[0, 0])
        self._floor = 0.01 / math.sqrt(float(weights.sum()))

    def apply(self, z: torch.Tensor) -> torch.Tensor:
        """Return ``B z`` for a latent image."""
        return self.operator.untransform(self.curvature * self.operator.transform(z))

    def solve(
        self, x: torch.Tensor, gradient: torch.Tensor, n_steps: int, *, damping: float = 1.0
    ) -> torch.Tensor:
        """Return an approximate minimiser.

        Parameters
        ----------
        x : `torch.Tensor`
            Non-negative latent image: the expansion point and the start.
        gradient : `torch.Tensor`
            Gradient at ``x``.
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
        target = damping * self.apply(x) - gradient
        z, t = x, 1.0
        step = x
        for i in range(n_steps):
            if i % 4 == 0:
                step = self._step_lengths(x, damping)
            new = (z - step * (damping * self.apply(z) - target)).clamp_min_(0.0)
            if float(((z - new) / step * (new - x)).sum()) > 0.0:
                t = 1.0
            beta, t = momentum(t)
            z = torch.add(new, new - x, alpha=beta).clamp_min_(0.0)
            x = new
        return x

    def _step_lengths(self, x: torch.Tensor, damping: float) -> torch.Tensor:
        x = x.clamp_min(self._floor)
        scale = damping * self._largest
        lengths = x / (damping * self.apply(x)).clamp_min_(1e-6 * scale * self._floor)
        return lengths.clamp_(0.3 / scale, 30.0 / scale)
