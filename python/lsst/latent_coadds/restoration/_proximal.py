# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Non-negative quadratic problems whose curvature is a convolution."""

from __future__ import annotations

__all__ = ("InnerPace", "NonNegativeQuadratic", "momentum")

import copy
import dataclasses
import math
from collections.abc import Sequence

import torch

from ._component import Component
from ._kernels import value_at_origin
from ._local_curvature import LocalCurvature
from ._operators import ConvolutionOperator

_LARGEST_T = 30.0
"""Bound of Nesterov's t in steps that go on from those of another update."""


@dataclasses.dataclass
class InnerPace:
    """What the steps of one update take over from those of the update before.

    Attributes
    ----------
    move : `torch.Tensor`, shape (N,), or `None`
        Where momentum leads from the last step; `None` at the beginning.
    t : `float`
        Nesterov's t.
    """

    move: torch.Tensor | None = None
    t: float = 1.0

    def freeze(self, free: torch.Tensor) -> None:
        """End the momentum of coefficients that are not ``free`` (N,)."""
        self.move = None if self.move is None else self.move * free

    def stop(self) -> None:
        """Begin again without momentum."""
        self.move, self.t = None, 1.0


def momentum(t: float) -> tuple[float, float]:
    """Return Nesterov's factor for step ``t``, and the next ``t``."""
    following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * t * t))
    return (t - 1.0) / following, following


class NonNegativeQuadratic:
    """Local quadratic models of the data term, in non-negative coefficients.

    The latent image is a sum over scales: coefficients z >= 0, each of which
    stands for a Gaussian of its scale. They are one vector (N,), scale after
    scale; wide Gaussians stand on every second pixel only. The curvature of
    the data term for spatially constant weights is a convolution too, so a
    step costs two real transforms of one image per scale (and a quarter of
    that for wide Gaussians), whatever the number of exposures.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        The forward model.
    weights : `torch.Tensor`, shape (T,)
        Weight of each exposure.
    curvature : `torch.Tensor`, optional
        Transform of the curvature of the data term, by default the summed
        power of the kernels.
    scales : `~collections.abc.Sequence` [ `float` ], optional
        Standard deviations of the Gaussians in pixels, the first below 2; 0
        is a point.
    penalties : `~collections.abc.Sequence` [ `float` ], optional
        Price of a coefficient of each scale, in units of the noise of the
        gradient with respect to it.
    balance : `torch.Tensor`, shape ``latent_shape``, optional
        Square root of the weight of the data near each latent pixel, over
        that of ``weights``; see `local_balance`. Without it weights are taken
        to be constant, and sources with much noise of their own, whose
        weight is low, converge slowly.
    origin : `tuple` [ `int`, `int` ], optional
        Where the latent image begins on the grid of all tiles.
    local : `LocalCurvature`, optional
        The shapes that the curvature has at places, for those who judge the
        solution; steps do with ``curvature``. By default that.
    """

    def __init__(
        self,
        operator: ConvolutionOperator,
        weights: torch.Tensor,
        *,
        curvature: torch.Tensor | None = None,
        scales: Sequence[float] = (0.0,),
        penalties: Sequence[float] = (0.0,),
        balance: torch.Tensor | None = None,
        origin: tuple[int, int] = (0, 0),
        local: LocalCurvature | None = None,
    ) -> None:
        self.operator = operator
        self._arguments = (weights, tuple(scales), tuple(penalties), origin)
        self.curvature = operator.power(weights) if curvature is None else curvature
        self.local = LocalCurvature.uniform(self.curvature, operator.latent_shape) if local is None else local
        self._complex = torch.complex(self.curvature, torch.zeros_like(self.curvature))
        self._components: list[Component] = []
        end = 0
        for scale in scales:
            component = Component(operator, self.curvature, scale, end, origin)
            self._components.append(component)
            end = component.part.stop
        self._floor = 0.01 / math.sqrt(float(weights.sum())) / len(scales)
        self._largest, self._prices = self.curvature.new_empty(end), self.curvature.new_empty(end)
        for component, penalty in zip(self._components, penalties, strict=True):
            self._largest[component.part] = len(scales) * component.largest
            self._prices[component.part] = penalty * component.noise
        self._balance = None if balance is None else self.spread(balance)

    @property
    def n_scales(self) -> int:
        """Number of scales, S."""
        return len(self._components)

    @property
    def largest_scale(self) -> float:
        """Standard deviation of the widest Gaussians in pixels."""
        return max(self._arguments[1])

    def part(
        self, operator: ConvolutionOperator, which: list[int], corner: tuple[int, int]
    ) -> tuple[NonNegativeQuadratic, torch.Tensor]:
        """Return the problem for a part of the latent image.

        Parameters
        ----------
        operator : `ConvolutionOperator`
            The forward model of the part, with the margin of the whole.
        which : `list` [ `int` ]
            Its exposures.
        corner : `tuple` [ `int`, `int` ]
            Where (row, column) it begins, even numbers.

        Returns
        -------
        quadratic : `NonNegativeQuadratic`
            The problem, with the prices of the whole.
        index : `torch.Tensor` of int, shape (n,)
            The numbers of its coefficients.
        """
        weights, scales, penalties, origin = self._arguments
        curvature = operator.power(weights[which])
        # The balance refers to the weight of all exposures.
        curvature *= value_at_origin(self.curvature, self.operator.fft_shape).to(curvature) / value_at_origin(
            curvature, operator.fft_shape
        )
        part = NonNegativeQuadratic(
            operator,
            weights[which],
            curvature=curvature,
            scales=scales,
            penalties=penalties,
            origin=(origin[0] + corner[0], origin[1] + corner[1]),
        )
        pairs = zip(self._components, part._components, strict=True)
        index = torch.cat([whole.index(corner, mine.shape) for whole, mine in pairs])
        like = part._prices
        part._prices, part._largest = self._prices[index].to(like), self._largest[index].to(like)
        part._balance = None if self._balance is None else self._balance[index].to(like)
        return part, index

    def only(self, free: torch.Tensor) -> NonNegativeQuadratic:
        """Return the same problem, where coefficients that are not ``free`` (N,) stay as they are.

        To let them move within an update and to put them back after it takes
        from the others what they have made up for: it stops 20 sigma from the solution.
        """
        other = copy.copy(self)
        other._largest = torch.where(free, self._largest, math.inf)
        return other

    def combine(self, z: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of the latent image of coefficients (N,)."""
        total = None
        for component in self._components:
            total = component.add(z, total)
        assert total is not None
        return total

    def latent(self, z: torch.Tensor) -> torch.Tensor:
        """Return the latent image of coefficients (N,)."""
        return self.operator.untransform(self.combine(z))

    def divide(self, latent: torch.Tensor) -> torch.Tensor:
        """Return coefficients that share a non-negative image among scales."""
        shares = (c.step**2 / self.n_scales * latent[c.places] for c in self._components)
        return torch.cat([share.reshape(-1) for share in shares])

    def select(self, z: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Return coefficients (N,) times a plane of latent shape."""
        return z * self.spread(where)

    def spread(self, plane: torch.Tensor) -> torch.Tensor:
        """Return the value of a plane of latent shape at each coefficient, (N,)."""
        return torch.cat([plane[c.places].reshape(-1) for c in self._components])

    def scatter(self, x: torch.Tensor, y: torch.Tensor, flux: torch.Tensor) -> torch.Tensor:
        """Return coefficients (N,) of the first scale for points, shared bilinearly."""
        z = torch.zeros_like(self._prices)
        height, width = self._components[0].shape
        left, top = x.floor(), y.floor()
        for right, share in ((0, 1.0 - x + left), (1, x - left)):
            column = (left.long() + right).clamp(0, width - 1)
            for below, part in ((0, 1.0 - y + top), (1, y - top)):
                row = (top.long() + below).clamp(0, height - 1)
                z.index_add_(0, row * width + column, (flux * share * part).clamp_min(0.0).to(z))
        return z

    def penalty(self, z: torch.Tensor) -> float:
        """Return the price of coefficients."""
        return float((z.double() * self._prices).sum())

    def with_price(self, price: torch.Tensor) -> NonNegativeQuadratic:
        """Return the same problem, where coefficients of the first scale have another price.

        Parameters
        ----------
        price : `torch.Tensor`, shape ``latent_shape``
            In units of the noise of the gradient, as the penalties.
        """
        other = copy.copy(self)
        first = self._components[0]
        other._prices = self._prices.clone()
        other._prices[first.part] = (first.noise * price).reshape(-1)
        return other

    def slope(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the derivative (N,) of data term and price, from the padded transform of a gradient."""
        return self._project(gradient).add_(self._prices)

    def solve(
        self,
        z: torch.Tensor,
        gradient: torch.Tensor,
        n_steps: int,
        *,
        damping: float = 1.0,
        transform: torch.Tensor | None = None,
        constant: bool = False,
        pace: InnerPace | None = None,
    ) -> torch.Tensor:
        """Return approximate minimisers of a quadratic model plus the price.

        Parameters
        ----------
        z : `torch.Tensor`, shape (N,)
            Non-negative coefficients: the expansion point and the start.
        gradient : `torch.Tensor`
            Padded transform of the gradient of the data term with respect to
            the latent image, at ``z``.
        n_steps : `int`
            Number of steps.
        damping : `float`, optional
            Factor by which the curvature is raised.
        transform : `torch.Tensor`, optional
            What `combine` returns for ``z``, if it is known.
        constant : `bool`, optional
            Whether the weights of the data term are constant, so that there
            is nothing to balance.
        pace : `InnerPace`, optional
            Momentum of the steps before, which is used and replaced.

        Notes
        -----
        Accelerated projected gradient. The step of a pixel is scaled with
        its own brightness over that of its surroundings, as in
        multiplicative updates, so that light concentrates into stars soon.
        A coefficient that momentum has carried uphill goes on without it; to
        restart all of them would make one part of a tile depend on another.
        Ten steps from rest hardly gather any, so blends of bright stars need
        the momentum of the updates before.

        With a balance b the curvature is ``b C b``, with C that of constant
        weights; the unknowns are then ``b z``.
        """
        curvature = self._complex if damping == 1.0 else damping * self._complex
        balance = None if constant else self._balance
        slope = self.slope(gradient)
        if balance is not None:
            z, slope, transform = z * balance, slope.div_(balance), None
        curved = self._project(curvature * (self.combine(z) if transform is None else transform))
        target = curved - slope
        ahead, t = z, 1.0
        if pace is not None and pace.move is not None:
            move, t = torch.where(slope * pace.move > 0.0, 0.0, pace.move), min(pace.t, _LARGEST_T)
            ahead = torch.add(z, move).clamp_min_(0.0)
        for i in range(n_steps):
            if i > 0 or ahead is not z:
                curved = self._project(self.combine(ahead).mul_(curvature))
                slope = torch.sub(curved, target, out=slope)
            if i % 4 == 0:
                step = self._step_lengths(ahead, curved, damping)
            new = torch.addcmul(ahead, step, slope, value=-1.0).clamp_min_(0.0)
            beta, t = momentum(t)
            if beta > 0.0:
                move = new - z
                move.masked_fill_(slope * move > 0.0, 0.0)
                ahead = torch.add(new, move, alpha=beta).clamp_min_(0.0)
            else:
                ahead = new
            z = new
        if pace is not None:
            pace.move, pace.t = ahead - z, t
        return z if balance is None else z / balance

    def _project(self, transform: torch.Tensor) -> torch.Tensor:
        """Apply the adjoint of `combine`."""
        out = torch.empty_like(self._prices)
        for component in self._components:
            component.project(transform, out)
        return out

    def _step_lengths(self, z: torch.Tensor, curved: torch.Tensor, damping: float) -> torch.Tensor:
        """Return the scale of the steps at ``z``, where the curvature gives ``curved``."""
        scale = damping * self._largest
        # A pixel at the floor is as bright as surroundings at the floor.
        bright = z.clamp_min(self._floor)
        lengths = bright / torch.add(curved, scale, alpha=self._floor).clamp_min_(1e-30)
        return torch.minimum(torch.maximum(lengths, 0.3 / scale), 30.0 / scale)
