# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Latent images made by networks: what goes in, and what comes out."""

from __future__ import annotations

__all__ = ("Inputs", "LatentPredictor", "Output", "Response", "describe", "split_pixels")

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ._assemble import assemble
from ._direct import direct_coadd
from ._fidelity import HuberFidelity
from ._fit import evaluate
from ._kernels import convolve
from ._operators import ConvolutionOperator
from ._points_apart import PointsApart
from ._problem import Region
from ._proximal import NonNegativeQuadratic
from ._residual import AdaptiveCorrection, ResidualCorrection, covered_weight
from ._restoration import Restoration
from ._settings import DirectSettings
from ._stack import ExposureStack
from ._training import Training
from ._uncertainty import Bootstrap, smooth_variance

LARGEST_EXPONENT = 16.0
"""Bound of asinh(signal / noise): a signal of four million sigma."""


def split_pixels(
    stack: ExposureStack, fraction: float, delta: float, generator: torch.Generator | None
) -> tuple[torch.Tensor, HuberFidelity, HuberFidelity]:
    """Hold out a random part of the pixels; none without a generator.

    Returns
    -------
    held_out : `torch.Tensor` of bool, shape (T, H, W)
        The pixels.
    training, test : `HuberFidelity`
        Data terms without them, and of them alone.
    """
    held_out = torch.zeros_like(stack.good)
    if generator is not None:
        held_out = (torch.rand(stack.image.shape, generator=generator) < fraction).to(stack.image.device)
    inverse_sigma = stack.inverse_variance.sqrt()
    training, test = (
        HuberFidelity(stack.image, inverse_sigma * chosen, delta) for chosen in (~held_out, held_out)
    )
    return held_out, training, test


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a network sees, on the grid of the latent image.

    ``features`` (F, h, w) and ``exposures`` (T, 2, h, w) are in the asinh
    domain; the network adds to the feature with the number ``base``.
    """

    features: torch.Tensor
    exposures: torch.Tensor
    base: int


class LatentPredictor:
    """Make inputs from data, and latent images from a network's output.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The problem, with kernels that contain the target PSF.
    spread : `float`
        FWHM of the Gaussian that the kernels were divided by.
    weights : `torch.Tensor`, shape (T,)
        Weight of each exposure.
    skip : `str`
        ``"linear"``, ``"coadd"`` or ``"seed"``.
    softness : `float`
        Rounding of the non-negativity, in sigma of the coadd.
    origin : `tuple` [ `int`, `int` ], optional
        Where the stack begins on a larger grid; see `ExposureStack`.
    turns : `int`, optional
        Number of ways, 1 to 8, in which the network may see its inputs turned
        and mirrored.

    Notes
    -----
    The dynamic range from sky to just below saturation is held by
    ``asinh(x / sigma)``; the output is ``sigma p(sinh(base + network))`` with
    the smooth positive part ``p(v) = (v + sqrt(v^2 + softness^2)) / 2``: a
    ReLU there dies within a few steps.
    """

    dampings = (0.1, 0.02)

    def __init__(
        self,
        quadratic: NonNegativeQuadratic,
        spread: float,
        weights: torch.Tensor,
        *,
        skip: str,
        softness: float,
        origin: tuple[int, int] = (0, 0),
        turns: int = 1,
    ) -> None:
        self.operator = quadratic.operator
        self.origin = origin
        self.turns = turns
        self.weights = weights
        self._latent_weights = weights * self.operator.gains
        self.pooling = self._latent_weights / self._latent_weights.sum()
        self.sigma = 1.0 / math.sqrt(float(self._latent_weights.sum()))
        self.skip = skip
        self.softness = softness
        # Gaps are filled in, but an exposure has no pixels beyond its edges.
        reached = weights[:, None, None].sqrt().expand(-1, *self.operator.data_shape)
        coverage = covered_weight(quadratic, HuberFidelity(reached, reached, 1.0))
        self._linear = [ResidualCorrection(quadratic, spread, damping, coverage) for damping in self.dampings]

    @property
    def n_features(self) -> int:
        """Number of feature images."""
        return 1 + len(self.dampings) + (self.skip == "seed")

    def encode(self, data: torch.Tensor, seed: torch.Tensor | None = None) -> Inputs:
        """Return the inputs for exposures without gaps.

        Parameters
        ----------
        data : `torch.Tensor`, shape (T, h, w)
            Exposures; gaps and outliers are filled in.
        seed : `torch.Tensor`, shape (h, w), optional
            A latent image at the target PSF.
        """
        operator = self.operator
        back = operator.transform(operator.adjoint(-self.weights[:, None, None] * data))
        nothing = torch.zeros_like(back)
        data = operator.register(data, self.pooling)
        coadd = (self.pooling[:, None, None] * data).sum(dim=0)
        linear = [operator.untransform(estimate.correct(nothing, back)) for estimate in self._linear]
        images = [operator.extend(coadd), *linear]
        if seed is not None:
            images.append(seed)
        features = torch.asinh(torch.stack(images) / self.sigma)
        noise = self._latent_weights.clamp_min(1e-6 * float(self._latent_weights.max())).rsqrt()[
            :, None, None
        ]
        exposures = torch.stack([data / noise, (data - coadd) / noise], dim=1)
        base = {"coadd": 0, "linear": 1, "seed": len(features) - 1}[self.skip]
        return Inputs(features, torch.asinh(operator.extend(exposures)), base)

    def predict(
        self, network: nn.Module, inputs: Inputs, region: Region, turn: int | None = None
    ) -> torch.Tensor:
        """Return the latent image of a region.

        Parameters
        ----------
        network : `torch.nn.Module`
            The network.
        inputs : `Inputs`
            What it sees.
        region : `tuple` [ `slice`, `slice` ]
            Rows and columns of the latent image.
        turn : `int`, optional
            Which of the turned and mirrored images the network sees; the
            result is turned back. The mean of all by default.
        """
        if turn is None:
            total = self.predict(network, inputs, region, 0)
            for k in range(1, self.turns):
                total = total + self.predict(network, inputs, region, k)
            return total / self.turns
        images = [a[..., region[0], region[1]] for a in (inputs.features, inputs.exposures)]
        base = images[0][inputs.base]
        cell = getattr(network, "cell", 1)
        starts = [o - self.operator.margin + s.start for o, s in zip(self.origin, region, strict=True)]
        before = [start % cell for start in starts]
        after = [-(start + n) % cell for start, n in zip(starts, base.shape, strict=True)]
        pad = (before[1], after[1], before[0], after[0])
        seen = [_turn(functional.pad(a, pad, mode="replicate"), turn) for a in images]
        change = _turn_back(network(*seen, self.pooling), turn)
        change = change[before[0] :, before[1] :][: base.shape[0], : base.shape[1]]
        signal = torch.sinh((base + change).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT))
        return 0.5 * self.sigma * (signal + torch.sqrt(signal**2 + self.softness**2))


def _turn(images: torch.Tensor, turn: int) -> torch.Tensor:
    """Turn images by ``turn`` right angles; mirror them from 4 on."""
    return torch.rot90(images.flip(-1) if turn >= 4 else images, turn % 4, (-2, -1))


def _turn_back(images: torch.Tensor, turn: int) -> torch.Tensor:
    images = torch.rot90(images, -(turn % 4), (-2, -1))
    return images.flip(-1) if turn >= 4 else images


@dataclasses.dataclass(frozen=True)
class Response:
    """What a restorer makes of data.

    Attributes
    ----------
    latent : `torch.Tensor`, shape (h, w)
        The latent image of a network.
    apart : `PointsApart`, optional
        Points that are not in it.
    """

    latent: torch.Tensor
    apart: PointsApart | None = None


@dataclasses.dataclass(frozen=True)
class Output:
    """From a latent image to the result.

    Attributes
    ----------
    operator : `ConvolutionOperator`
        The forward model.
    correction : `AdaptiveCorrection`, `ResidualCorrection` or `None`
        Linear correction for what was missed.
    remainder : `torch.Tensor`, shape (k, k)
        Kernel that is applied at the end.
    """

    operator: ConvolutionOperator
    correction: AdaptiveCorrection | ResidualCorrection | None
    remainder: torch.Tensor

    def correct(self, transform: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of the corrected latent image.

        Parameters
        ----------
        transform, gradient : `torch.Tensor`
            Padded transforms of the latent image and of the gradient there.
        """
        return transform if self.correction is None else self.correction.correct(transform, gradient)

    def narrow(self, corrected: torch.Tensor) -> torch.Tensor:
        """Return the final image (H, W) from what `correct` returns."""
        return self.operator.crop(convolve(self.operator.untransform(corrected), self.remainder))

    def finish(self, response: Response, fidelity: HuberFidelity) -> torch.Tensor:
        """Return the final image (H, W) from what was made of the data of a data term."""
        transform = self.operator.transform(response.latent)
        apart = response.apart
        if apart is None:
            return self.narrow(self.correct(transform, evaluate(self.operator, fidelity, transform)[1]))
        gradient = evaluate(self.operator, fidelity, transform + apart.light)[1]
        return self.narrow(self.correct(transform, gradient)) + apart.image


def describe(
    stack: ExposureStack,
    quadratic: NonNegativeQuadratic,
    output: Output,
    result: Training,
    respond: Callable[[HuberFidelity, torch.Tensor], Response],
    *,
    apart: PointsApart | None = None,
    spread: float,
    settings: Any,
    method: str,
    psf: torch.Tensor,
    timings: dict[str, float],
    generator: torch.Generator,
) -> Restoration:
    """Return the result of a training, with its uncertainty.

    Parameters
    ----------
    stack : `ExposureStack`
        All exposures, held-out pixels included.
    quadratic : `NonNegativeQuadratic`
        The problem, to find sources with.
    output : `Output`
        From a latent image to the result.
    result : `Training`
        What was trained.
    respond : `~collections.abc.Callable`
        Returns what the restorer, with its weights as they are, makes of the
        data of another data term, of whose sky the padded transform without
        points is given.
    apart : `PointsApart`, optional
        Points that are not in the latent image.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    settings, method, psf, timings
        As in `Restoration`.
    generator : `torch.Generator`
        Source of the noise.
    """
    start = time.perf_counter()
    latent, rejected = result.latents[0], result.rejected[0]
    whole = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), settings.huber_delta)
    fidelity = whole.without(rejected)
    operator = output.operator
    transform = operator.transform(latent)
    light = torch.zeros_like(transform) if apart is None else apart.light
    gradient = evaluate(operator, fidelity, transform + light)[1]
    corrected = output.correct(transform, gradient)
    known = 0.0 if apart is None else apart.image
    image = output.narrow(corrected) + known
    threshold = 0.0 if apart is None else apart.threshold
    bootstrap = Bootstrap(
        quadratic, fidelity, spread, transform, gradient, corrected, settings.target_fwhm, threshold
    )
    # What it knows of is the rest; its data have all.
    rest, bootstrap.sky = bootstrap.sky, bootstrap.sky + light
    images = (
        output.finish(respond(problem, rest), problem) - known
        for problem in bootstrap.replicate(settings.n_realizations, generator)
    )
    realizations = bootstrap.compare(images, output.narrow, generator)
    variance = (
        smooth_variance(realizations, image, operator.crop(operator.square_weight(whole.inverse_sigma**2)))
        if len(realizations)
        else direct_coadd(stack, DirectSettings()).variance
    )
    lifted = operator.lift(corrected + light)
    timings["uncertainty"] = time.perf_counter() - start
    return assemble(
        stack,
        image=image,
        variance=variance,
        psf=psf,
        model=lambda t: operator.predict(lifted, slice(t, t + 1))[0],
        clipped=lambda t, residual: (residual.abs() > 2.0 * settings.huber_delta) | rejected[t],
        noise_realizations=realizations,
        history=result.history,
        n_iterations=result.n_iterations,
        converged=result.converged,
        method=method,
        settings=settings,
        timings=timings,
    )
