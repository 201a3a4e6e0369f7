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

from ._accelerated import start_accelerated
from ._direct import direct_coadd
from ._fidelity import HuberFidelity
from ._fit import Fit, fit_accelerated
from ._kernels import convolve, gaussian_kernel, matching_kernels
from ._learned import LatentPredictor, Output, Response, fill_data, split_pixels
from ._learned_restorer import Preparation, Weights, restore_learned
from ._model import make_correction, make_operator, make_quadratic, split_target, stamp_size
from ._network import LatentNetwork
from ._problem import TrainingProblem
from ._proximal import NonNegativeQuadratic
from ._rejection import reject_outliers
from ._restoration import Restoration
from ._settings import CombinedSettings, DirectSettings
from ._stack import ExposureStack
from ._training import TrainingOptions
from ._uncertainty import Bootstrap


@dataclasses.dataclass
class _Seed:
    """The ImageMM solution that the network starts from."""

    quadratic: NonNegativeQuadratic
    coefficients: torch.Tensor
    remainder: torch.Tensor

    def image(self, transform: torch.Tensor) -> torch.Tensor:
        """Return the latent image at the target PSF."""
        latent = self.quadratic.operator.untransform(transform)
        return convolve(latent, self.remainder).clamp_min_(0.0)


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
    that of ImageMM.
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
    subset = stack.without(held_out)
    seed, fit = _fit_seed(subset, training, settings)
    rejected = _reject(seed, stack, fit.transform, settings)
    training, test = training.without(rejected), test.without(rejected)
    subset = subset.without(rejected)
    fit = fit_accelerated(training, seed.quadratic, fit.coefficients, settings)
    seed = dataclasses.replace(seed, coefficients=fit.coefficients)
    # The network sees the seed without its correction.
    bootstrap = Bootstrap(
        seed.quadratic,
        training,
        split_target(settings)[0],
        fit.transform,
        fit.gradient,
        fit.transform,
        settings.target_fwhm,
    )
    coadd = direct_coadd(subset, DirectSettings(clip=True))
    timings = {"imagemm": time.perf_counter() - start}
    operator = make_operator(stack, settings.target_fwhm, 0.0)
    quadratic = NonNegativeQuadratic(operator, stack.exposure_weights())
    predictor = LatentPredictor(
        quadratic,
        settings.target_fwhm,
        stack.exposure_weights(),
        skip="seed",
        softness=0.02,
        origin=stack.origin,
    )
    inputs = predictor.encode(fill_data(subset, coadd), seed.image(fit.transform))
    rows, columns = (slice(0, n) for n in operator.latent_shape)

    def respond(network: nn.Module, problem: HuberFidelity) -> Response:
        again, _ = bootstrap.refit(problem, seed.coefficients)
        inputs = predictor.encode(problem.image, seed.image(again))
        return Response(predictor.predict(network, inputs, (rows, columns)))

    correction = make_correction(quadratic, training, settings.target_fwhm, settings)
    kernels = matching_kernels(stack.psf, settings.target_fwhm).to(stack.image)
    return Preparation(
        problem=TrainingProblem(kernels, operator, training, test),
        rejected=rejected,
        make_network=lambda: LatentNetwork(predictor.n_features, width=settings.width).to(stack.image),
        predict=lambda network, region, turn: predictor.predict(network, inputs, region, turn),
        respond=respond,
        spread=settings.target_fwhm,
        quadratic=quadratic,
        output=Output(operator, correction, gaussian_kernel(0.0, 1)),
        psf=gaussian_kernel(settings.target_fwhm, stamp_size(stack, settings.target_fwhm)),
        timings=timings,
    )


def _fit_seed(
    subset: ExposureStack, training: HuberFidelity, settings: CombinedSettings
) -> tuple[_Seed, Fit]:
    """Fit ImageMM to the pixels that are not held out."""
    spread, remainder = split_target(settings)
    operator = make_operator(subset, spread, settings.smooth_scale)
    quadratic = make_quadratic(operator, subset, settings)
    coadd = direct_coadd(subset, DirectSettings(clip=True))
    coefficients = start_accelerated(subset, quadratic, coadd, settings.n_start)
    fit = fit_accelerated(training, quadratic, coefficients, settings)
    return _Seed(quadratic, fit.coefficients, remainder), fit


def _reject(
    seed: _Seed, stack: ExposureStack, transform: torch.Tensor, settings: CombinedSettings
) -> torch.Tensor:
    """Return what of single exposures the ImageMM solution lacks."""
    if settings.reject_sigma <= 0.0:
        return torch.zeros_like(stack.good)
    everything = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), settings.huber_delta)
    return reject_outliers(seed.quadratic.operator, everything, transform, settings.reject_sigma)
