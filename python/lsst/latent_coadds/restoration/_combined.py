# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""ImageMM and a network, one after the other."""

from __future__ import annotations

__all__ = ("restore_combined",)

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import nn

from ._accelerated import AcceleratedFit, fit_stack
from ._fidelity import HuberFidelity
from ._find_points import local_precision, share_seen
from ._kernels import convolve, gaussian_kernel, matching_kernels
from ._learned import LatentPredictor, Output, Response, split_pixels
from ._learned_restorer import Preparation, Weights, restore_learned
from ._model import (
    make_bare_quadratic,
    make_correction,
    make_operator,
    make_quadratic,
    split_target,
    stamp_size,
)
from ._network import LatentNetwork
from ._point_bootstrap import PointBootstrap
from ._point_sources import MatchedFilter
from ._points_apart import PointsApart
from ._problem import TrainingProblem
from ._restoration import Restoration
from ._settings import CombinedSettings
from ._stack import ExposureStack
from ._training import TrainingOptions


def restore_combined(
    stack: ExposureStack,
    settings: CombinedSettings,
    *,
    generator: torch.Generator,
    progress: Callable[[int, int, float], None] | None = None,
    weights: Weights | None = None,
) -> Restoration:
    """Restore a stack with ImageMM and improve that with a network.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    settings : `CombinedSettings`
        Settings of both.
    generator : `torch.Generator`
        Source of the weights, of the held-out pixels and of the noise.
    progress : `~collections.abc.Callable`, optional
        Called with (iteration, largest number of iterations, loss).
    weights : `dict`, optional
        Weights of a trained network, which is applied as it is.

    Raises
    ------
    RestorationError
        One of the two diverged.

    Notes
    -----
    The network is that of AstroClearNet; it adds to the ImageMM solution in
    the asinh domain, where its last layer starts at zero. Training ends when
    held-out pixels no longer gain, which may be at once: then the result is
    that of ImageMM. The points of ImageMM are no part of what the network sees.
    """
    return restore_learned(
        stack,
        settings,
        prepare,
        training_options(settings),
        "combined",
        generator=generator,
        weights=weights,
        progress=progress,
    )


def training_options(settings: CombinedSettings) -> TrainingOptions:
    """Return how the network is trained."""
    return TrainingOptions(
        n_iter=settings.network_steps,
        learning_rate=settings.learning_rate,
        warm_up=10,
        weight_decay=0.01,
        clip_norm=1.0,
        crop=settings.crop,
        check_every=settings.check_every,
        patience=settings.patience,
        time_limit=settings.time_limit,
        # ImageMM has done so.
        reject_sigma=0.0,
    )


def prepare(
    stack: ExposureStack, settings: CombinedSettings, generator: torch.Generator | None
) -> Preparation:
    """Fit ImageMM to a stack, and make it ready for the network."""
    start = time.perf_counter()
    held_out, training, test = split_pixels(stack, settings.held_out, settings.huber_delta, generator)
    spread, remainder = split_target(settings)
    solution = _fit_seed(stack.without(held_out), stack, spread, settings)
    timings = {"imagemm": time.perf_counter() - start}
    subset = stack.without(held_out | solution.rejected)
    operator = make_operator(stack, settings.target_fwhm, 0.0)
    quadratic = make_bare_quadratic(operator, stack, settings.target_fwhm)
    precision = local_precision(quadratic, subset, share_seen(quadratic, subset))
    apart = PointsApart(
        MatchedFilter(quadratic, settings.target_fwhm, precision),
        solution.points,
        settings.point_threshold,
        settings.target_fwhm,
    )
    training, test = (apart.subtract(term.without(solution.rejected)) for term in (training, test))
    # The network sees the seed without its correction.
    bootstrap = PointBootstrap(solution, solution.fit.transform, spread, settings)
    predictor = LatentPredictor(
        quadratic,
        settings.target_fwhm,
        stack.exposure_weights(),
        skip="seed",
        softness=0.02,
        origin=stack.origin,
    )
    rows, columns = (slice(0, n) for n in operator.latent_shape)

    def make_seed(transform: torch.Tensor) -> torch.Tensor:
        latent = solution.quadratic.operator.untransform(transform)
        return convolve(latent, remainder).clamp_min_(0.0)

    inputs = predictor.encode(apart.fill(subset), make_seed(solution.fit.transform))

    def respond(network: nn.Module, problem: HuberFidelity, rest: torch.Tensor) -> Response:
        same, others, transform, _ = bootstrap.refit(problem)
        found = dataclasses.replace(apart, points=same.join(others))
        seen = predictor.encode(found.subtract(problem).image, make_seed(transform))
        return Response(predictor.predict(network, seen, (rows, columns)), found)

    correction = make_correction(quadratic, training, settings.target_fwhm, settings)
    kernels = matching_kernels(stack.psf, settings.target_fwhm).to(stack.image)
    return Preparation(
        problem=TrainingProblem(
            kernels, operator, training, test, apart.light if len(apart.points) else None
        ),
        rejected=solution.rejected,
        make_network=lambda: LatentNetwork(predictor.n_features, width=settings.width).to(stack.image),
        predict=lambda network, region, turn: predictor.predict(network, inputs, region, turn),
        respond=respond,
        spread=settings.target_fwhm,
        quadratic=quadratic,
        output=Output(operator, correction, gaussian_kernel(0.0, 1)),
        psf=gaussian_kernel(settings.target_fwhm, stamp_size(stack, settings.target_fwhm)),
        timings=timings,
        apart=apart,
    )


def _fit_seed(
    subset: ExposureStack, whole: ExposureStack, spread: float, settings: CombinedSettings
) -> AcceleratedFit:
    """Fit ImageMM to the pixels that are not held out."""
    operator = make_operator(subset, spread, settings.smooth_scale)
    quadratic = make_quadratic(operator, subset, spread, settings)
    return fit_stack(subset, quadratic, spread, settings, whole=whole)
