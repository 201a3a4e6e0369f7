# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("LocalCurvature", "make_local_curvature")

import dataclasses
from collections.abc import Iterable, Sequence

import torch

from ._operators import ConvolutionOperator
from ._stack import ExposureStack

_AROUND = 8
"""How far (px) around a place exposures count: single bad pixels are no matter."""

_LEAST_PART = 0.01
"""What has a smaller part than this everywhere is left out."""


@dataclasses.dataclass(frozen=True)
class LocalCurvature:
    """The shape of the curvature of the data term, place by place.

    Attributes
    ----------
    shapes : `tuple` [ `torch.Tensor`, ... ]
        Transforms of curvatures (S of them), with the same value at frequency 0.
    parts : `torch.Tensor`, shape (S, *latent_shape)
        Part of each at every latent pixel; they sum to one.
    typical : `torch.Tensor`
        That where all exposures are.

    Notes
    -----
    Exposures differ in their PSFs, and each covers a part of an image. What
    noise is amplified with, and what counts as a point, follows from those
    that are at a place, and must not depend on what else is in a tile. So
    there are a few curvatures for an image, from that of its sharpest
    exposures to that of its bluntest (`WholeField`), between which the mean
    sharpness of the good pixels around a place decides.
    """

    shapes: tuple[torch.Tensor, ...]
    parts: torch.Tensor
    typical: torch.Tensor

    @classmethod
    def uniform(cls, curvature: torch.Tensor, latent_shape: tuple[int, int]) -> LocalCurvature:
        """Return one curvature for all places."""
        return cls((curvature,), curvature.new_ones((1, *latent_shape)), curvature)

    def mix(self, planes: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return at each place (``latent_shape``) what belongs to its shape, of one plane per shape."""
        if len(self.shapes) == 1:
            return next(iter(planes))
        total = torch.zeros_like(self.parts[0])
        for part, plane in zip(self.parts, planes, strict=True):
            total.addcmul_(part, plane)
        return total

    def value(self, numbers: Iterable[float]) -> torch.Tensor:
        """Return at each place (``latent_shape``) the number that belongs to its shape."""
        return torch.tensordot(self.parts.new_tensor(list(numbers)), self.parts, dims=1)


def make_local_curvature(
    operator: ConvolutionOperator, stack: ExposureStack, spread: float, curvature: torch.Tensor
) -> LocalCurvature:
    """Return the shapes of the curvature at the places of a stack.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        The forward model.
    stack : `ExposureStack`
        The exposures.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    curvature : `torch.Tensor`
        Transform of the curvature of all exposures here; it is that of all
        places, unless they are a part of a larger image.
    """
    if stack.field is None:
        return LocalCurvature.uniform(curvature, operator.latent_shape)
    levels, mixtures, middle = stack.field.mixtures(spread)
    parts = _find_parts(_sharpness(operator, stack, levels[middle]), levels)
    used = [j for j, part in enumerate(parts) if float(part.max()) > _LEAST_PART]
    parts = parts[used]
    shapes = [
        _scaled(shape, curvature)
        for shape in stack.field.curvatures(
            spread, operator.fft_shape, [mixtures[j] for j in (*used, middle)]
        )
    ]
    return LocalCurvature(tuple(shapes[:-1]), parts / parts.sum(dim=0), shapes[-1])


def _scaled(shape: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
    return (shape / shape[0, 0]).to(curvature) * curvature[0, 0]


def _sharpness(operator: ConvolutionOperator, stack: ExposureStack, without_data: float) -> torch.Tensor:
    """Return the mean (latent shape) over exposures around of the sums of their squared kernels."""
    weight = stack.exposure_weights()[:, None, None] * stack.good
    terms = stack.reference_terms
    kernels = operator.kernels[:, 0] if terms is None else _typical(operator.kernels, terms)
    sharpness = (kernels**2).sum(dim=(1, 2)).to(weight)
    squares = operator.square_weight(weight)
    total = operator.square_weight(weight / sharpness[:, None, None])
    size = 2 * _AROUND + 1
    pool = torch.nn.functional.avg_pool2d
    squares, total = (
        pool(plane[None, None], size, stride=1, padding=_AROUND)[0, 0] for plane in (squares, total)
    )
    seen = total > 1e-4 * total.max()
    return torch.where(seen, squares / total.clamp_min(1e-30), without_data)


def _typical(kernels: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
    """Return the typical kernels (T, k, k) of kernels that vary."""
    return (terms.to(kernels)[:, :, None, None] * kernels).sum(dim=1)


def _find_parts(sharpness: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """Return the parts (L, *latent_shape) of levels, ascending, between which a value is interpolated."""
    parts = sharpness.new_zeros((len(levels), *sharpness.shape))
    parts[0] = 1.0
    for j in range(1, len(levels)):
        above = ((sharpness - levels[j - 1]) / (levels[j] - levels[j - 1])).clamp(0.0, 1.0)
        parts[j] = above
        parts[j - 1] -= above
    return parts
