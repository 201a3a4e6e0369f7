# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""AstroClearNet: restoration by a network trained on the exposures."""

from __future__ import annotations

__all__ = ("restore_astroclearnet",)

import dataclasses
import importlib.resources
import time
from collections.abc import Callable

import torch
from torch import nn

from ._fidelity import HuberFidelity
from ._implants import SourceMaker
from ._kernels import gaussian_kernel, matching_kernels
from ._learned import LatentPredictor, Output, Response, split_pixels
from ._learned_restorer import Preparation, Respond, Weights, restore_learned
from ._member import Twin
from ._model import make_bare_quadratic, make_correction, make_operator, split_target, stamp_size
from ._network import LatentNetwork, PublishedNetwork
from ._points_apart import PointsApart
from ._problem import Region, TrainingProblem
from ._proximal import NonNegativeQuadratic
from ._restoration import Restoration
from ._settings import AstroClearNetSettings
from ._stack import ExposureStack
from ._training import TrainingOptions
from ._weights import load_weights

_TURNS = 8
"""Ways in which the network of the improved form sees crops turned and mirrored."""


def restore_astroclearnet(
    stack: ExposureStack,
    settings: AstroClearNetSettings,
    *,
    generator: torch.Generator,
    progress: Callable[[int, int, float], None] | None = None,
    weights: Weights | None = None,
) -> Restoration:
    """Restore a stack with AstroClearNet.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    settings : `AstroClearNetSettings`
        How to train.
    generator : `torch.Generator`
        Source of the weights, of the held-out pixels and of the noise.
    progress : `~collections.abc.Callable`, optional
        Called with (iteration, largest number of iterations, loss).
    weights : `dict`, optional
        Weights of a trained network, which is applied as it is.

    Raises
    ------
    RestorationError
        Training diverged, or the network collapsed to an empty image.

    Notes
    -----
    The network sees the exposures and returns the latent image; its weights
    minimise the Huber loss of that image, seen through the PSFs, against the
    same exposures. In the improved form point sources are taken out of the
    exposures first, and put into the result (see `PointsApart`). A part of
    the pixels is held out; the weights that they like best are kept. Noise
    realizations are outputs for perturbed data with the weights as they are:
    the scatter of the training itself is not in them.
    """
    options = training_options(settings)
    return restore_learned(
        stack,
        settings,
        prepare,
        options,
        "astroclearnet",
        generator=generator,
        weights=weights,
        progress=progress,
    )


def prepare(
    stack: ExposureStack, settings: AstroClearNetSettings, generator: torch.Generator | None
) -> Preparation:
    """Make a stack ready for the network."""
    start = time.perf_counter()
    published = settings.form == "published"
    size = stamp_size(stack, settings.target_fwhm)
    target = gaussian_kernel(settings.target_fwhm, size)
    spread, remainder = (0.0, target) if published else split_target(settings)
    operator = make_operator(stack, spread, 0.0)
    quadratic = make_bare_quadratic(operator, stack, spread)
    held_out, training, test = split_pixels(stack, settings.held_out, settings.huber_delta, generator)
    kernels = matching_kernels(stack.psf, spread).to(stack.image.dtype)
    subset = stack.without(held_out)
    threshold = 0.0 if published else settings.point_threshold
    apart = PointsApart.find(subset, quadratic, spread, settings.target_fwhm, settings.huber_delta, threshold)
    training, test = apart.subtract(training), apart.subtract(test)
    make = _published if published else _improved
    make_network, predict, respond, implant = make(
        stack, settings, quadratic, apart, apart.fill(subset), spread
    )
    correction = None if published else make_correction(quadratic, training, spread, settings)
    return Preparation(
        problem=TrainingProblem(
            kernels, operator, training, test, apart.light if len(apart.points) else None
        ),
        rejected=torch.zeros_like(stack.good),
        make_network=make_network,
        predict=predict,
        respond=respond,
        spread=spread,
        quadratic=quadratic,
        output=Output(operator, correction, remainder),
        psf=target,
        timings={"prepare": time.perf_counter() - start},
        implant=implant,
        apart=apart,
        start=_stored_weights() if settings.start == "stored" and not published else None,
    )


def _stored_weights() -> Weights:
    """Return weights that were trained on simulated fields."""
    place = importlib.resources.files("lsst.latent_coadds") / "resources" / "weights" / "astroclearnet.pt"
    with importlib.resources.as_file(place) as path:
        return load_weights(path)


def training_options(settings: AstroClearNetSettings) -> TrainingOptions:
    """Return how the network is trained."""
    names = [field.name for field in dataclasses.fields(TrainingOptions) if hasattr(settings, field.name)]
    turns = 1 if settings.form == "published" else _TURNS
    return TrainingOptions(turns=turns, **{name: getattr(settings, name) for name in names})


_Parts = tuple[
    Callable[[], nn.Module],
    Callable[[nn.Module, Region, int | None], torch.Tensor],
    Respond,
    Callable[[nn.Module, TrainingProblem, torch.Generator], Twin] | None,
]


def _improved(
    stack: ExposureStack,
    settings: AstroClearNetSettings,
    quadratic: NonNegativeQuadratic,
    apart: PointsApart,
    data: torch.Tensor,
    spread: float,
) -> _Parts:
    """Return how the network is made, used, used on other data, and shown known sources."""
    weights = stack.exposure_weights()
    predictor = LatentPredictor(
        quadratic, spread, weights, skip=settings.skip, softness=0.1, origin=stack.origin, turns=_TURNS
    )
    inputs = predictor.encode(data)
    rows, columns = (slice(0, n) for n in quadratic.operator.latent_shape)

    def make_network() -> nn.Module:
        return LatentNetwork(
            predictor.n_features,
            width=settings.width,
            depth=settings.depth,
            normalisation=settings.normalisation,
        ).to(data)

    def respond(network: nn.Module, problem: HuberFidelity, rest: torch.Tensor) -> Response:
        found = apart.again(problem, rest)
        seen = predictor.encode(found.fill(_with_data(stack, problem)))
        return Response(predictor.predict(network, seen, (rows, columns)), found)

    def predict(network: nn.Module, region: Region, turn: int | None) -> torch.Tensor:
        return predictor.predict(network, inputs, region, turn)

    maker = SourceMaker.from_quadratic(quadratic, spread)

    def implant(network: nn.Module, problem: TrainingProblem, generator: torch.Generator) -> Twin:
        sources = maker.draw(generator).to(data)
        seen = predictor.encode(data + problem.operator.forward(sources))

        def predict_twin(region: Region, turn: int | None) -> torch.Tensor:
            return predictor.predict(network, seen, region, turn)

        return Twin(predict_twin, problem.implanted(sources), sources, predictor.sigma)

    return make_network, predict, respond, implant


def _published(
    stack: ExposureStack,
    settings: AstroClearNetSettings,
    quadratic: NonNegativeQuadratic,
    apart: PointsApart,
    data: torch.Tensor,
    spread: float,
) -> _Parts:
    """Return the same for the published network, in units of sigma."""
    operator = quadratic.operator
    weights = stack.exposure_weights() * operator.gains
    sigma = float(weights.sum()) ** -0.5
    noise = weights.clamp_min(1e-6 * float(weights.max())).rsqrt()[:, None, None]

    def scaled(images: torch.Tensor) -> torch.Tensor:
        return operator.extend(operator.register(images, weights) / noise)

    inputs = scaled(data)

    def make_network() -> nn.Module:
        return PublishedNetwork(stack.n_exposures, width=settings.width).to(data)

    def predict(network: nn.Module, region: Region, turn: int | None) -> torch.Tensor:
        return sigma * network(inputs[:, region[0], region[1]])

    def respond(network: nn.Module, problem: HuberFidelity, rest: torch.Tensor) -> Response:
        return Response(sigma * network(scaled(apart.fill(_with_data(stack, problem)))))

    return make_network, predict, respond, None


def _with_data(stack: ExposureStack, problem: HuberFidelity) -> ExposureStack:
    """Return a stack with the data of a data term."""
    other = stack.without(problem.inverse_sigma == 0)
    other.image = torch.where(other.good, problem.image, torch.zeros_like(problem.image))
    return other
