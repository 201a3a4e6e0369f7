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

import time
from collections.abc import Callable

import torch
from torch import nn

from ._direct import direct_coadd
from ._fidelity import HuberFidelity
from ._imagemm import make_operator, stamp_size
from ._kernels import gaussian_kernel, matching_kernels
from ._learned import LatentPredictor, Output, check_not_empty, describe, fill_data, split_pixels
from ._network import LatentNetwork, PublishedNetwork
from ._proximal import NonNegativeQuadratic
from ._residual import ResidualCorrection
from ._restoration import Restoration
from ._settings import AstroClearNetSettings, DirectSettings
from ._stack import ExposureStack
from ._training import Predictor, Region, Training, TrainingProblem, train

Response = Callable[[HuberFidelity], torch.Tensor]


def restore_astroclearnet(
    stack: ExposureStack,
    settings: AstroClearNetSettings,
    *,
    generator: torch.Generator,
    progress: Callable[[int, int, float], None] | None = None,
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

    Raises
    ------
    RestorationError
        Training diverged, or the network collapsed to an empty image.

    Notes
    -----
    The network sees the exposures and returns the latent image; its weights
    minimise the Huber loss of that image, seen through the PSFs, against the
    same exposures. A part of the pixels is held out; the weights that they
    like best are kept. Noise realizations are outputs for perturbed data with
    the weights as they are: the scatter of the training itself is not in them.
    """
    start = time.perf_counter()
    published = settings.form == "published"
    spread = 0.0 if published else settings.target_fwhm
    operator = make_operator(stack, spread, 0.0)
    quadratic = NonNegativeQuadratic(operator, stack.exposure_weights())
    held_out, training, test = split_pixels(stack, settings.held_out, settings.huber_delta, generator)
    problem = TrainingProblem(
        matching_kernels(stack.psf, spread).to(stack.image.dtype), operator, training, test
    )
    subset = stack.without(held_out)
    data = fill_data(subset, direct_coadd(subset, DirectSettings(clip=True)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        make = _published if published else _improved
        network, predict, respond = make(stack, settings, quadratic, data)
    timings = {"prepare": time.perf_counter() - start}
    result = _train(network, predict, problem, settings, generator, progress)
    check_not_empty(problem, result)
    timings["fit"] = time.perf_counter() - start - timings["prepare"]
    corrects = not published and settings.residual_damping > 0.0
    correction = ResidualCorrection(quadratic, spread, settings.residual_damping) if corrects else None
    return describe(
        stack,
        quadratic,
        Output(operator, correction, settings.target_fwhm if published else 0.0),
        result,
        respond,
        settings=settings,
        method="astroclearnet",
        psf=gaussian_kernel(settings.target_fwhm, stamp_size(stack, settings.target_fwhm)),
        timings=timings,
        generator=generator,
    )


def _improved(
    stack: ExposureStack, settings: AstroClearNetSettings, quadratic: NonNegativeQuadratic, data: torch.Tensor
) -> tuple[nn.Module, Predictor, Response]:
    """Return the network, how to train it, and its response to other data."""
    weights = stack.exposure_weights()
    predictor = LatentPredictor(quadratic, settings.target_fwhm, weights, skip=settings.skip, softness=0.1)
    network = LatentNetwork(
        predictor.n_features,
        width=settings.width,
        depth=settings.depth,
        normalisation=settings.normalisation,
    ).to(data)
    inputs = predictor.encode(data)
    whole = tuple(slice(0, n) for n in quadratic.operator.latent_shape)

    def respond(problem: HuberFidelity) -> torch.Tensor:
        return predictor.predict(network, predictor.encode(problem.image), (whole[0], whole[1]))

    return network, lambda region: predictor.predict(network, inputs, region), respond


def _published(
    stack: ExposureStack, settings: AstroClearNetSettings, quadratic: NonNegativeQuadratic, data: torch.Tensor
) -> tuple[nn.Module, Predictor, Response]:
    """Return the published network; its latent image is in units of sigma."""
    operator = quadratic.operator
    weights = stack.exposure_weights()
    sigma = float(weights.sum()) ** -0.5
    noise = weights.clamp_min(1e-6 * float(weights.max())).rsqrt()[:, None, None]
    network = PublishedNetwork(stack.n_exposures, width=settings.width).to(data)

    def scaled(images: torch.Tensor) -> torch.Tensor:
        return operator.extend(images / noise)

    inputs = scaled(data)

    def predict(region: Region) -> torch.Tensor:
        return sigma * network(inputs[:, region[0], region[1]])

    return network, predict, lambda problem: sigma * network(scaled(problem.image))


def _train(
    network: nn.Module,
    predict: Predictor,
    problem: TrainingProblem,
    settings: AstroClearNetSettings,
    generator: torch.Generator,
    progress: Callable[[int, int, float], None] | None,
) -> Training:
    return train(
        network,
        predict,
        problem,
        n_iter=settings.n_iter,
        learning_rate=settings.learning_rate,
        warm_up=settings.warm_up,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        crop=settings.crop,
        check_every=settings.check_every,
        patience=settings.patience,
        time_limit=settings.time_limit,
        reject_sigma=settings.reject_sigma,
        generator=generator,
        progress=progress,
    )
