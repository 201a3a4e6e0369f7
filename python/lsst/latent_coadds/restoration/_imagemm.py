# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""ImageMM: restoration by majorisation and minimisation."""

from __future__ import annotations

__all__ = ("restore_imagemm",)

import math
import time
from collections.abc import Callable

import torch

from ._accelerated import AcceleratedFit, fit_stack, subtract_light
from ._assemble import assemble
from ._direct import DirectCoadd, direct_coadd
from ._fidelity import HuberFidelity
from ._fit import HeldOut, ProgressCallback, fit_published
from ._holes import fill_holes
from ._kernels import convolve, gaussian_kernel
from ._learned import split_pixels
from ._model import make_correction, make_operator, make_quadratic, split_target, stamp_size
from ._operators import ConvolutionOperator
from ._point_bootstrap import PointBootstrap
from ._point_sources import MatchedFilter, PointSources
from ._proximal import NonNegativeQuadratic
from ._restoration import Restoration
from ._settings import DirectSettings, ImageMMSettings
from ._stack import ExposureStack
from ._uncertainty import Bootstrap, smooth_variance


def restore_imagemm(
    stack: ExposureStack,
    settings: ImageMMSettings,
    *,
    generator: torch.Generator,
    progress: Callable[[int, int, float], None] | None = None,
) -> Restoration:
    """Restore a stack with ImageMM.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    settings : `ImageMMSettings`
        How to fit.
    generator : `torch.Generator`
        Source of the noise realizations.
    progress : `~collections.abc.Callable`, optional
        Called with (iteration, largest number of iterations, objective).

    Raises
    ------
    RestorationError
        The fit diverged.

    Notes
    -----
    *Accelerated form.* The model of an exposure with PSF f is
    ``(f / s) * h`` with h >= 0, where s is a Gaussian with a variance of
    ``pixel_spread`` and ``/`` is a regularised division of transforms. The
    result is ``h * c``, where c is such that a star in h, which has a width of
    s, gets the target PSF. So nothing in the result is narrower than c, and a star that
    h has to divide between neighbouring pixels is no wider than the target.
    h itself is the sum of pixels and of Gaussians of ``smooth_scale``, where
    pixels have a small price, so that galaxies are not broken into points,
    and a high one in the sky. Point sources are not in h: they have positions
    between pixels, and the target PSF itself (see `fit_stack`).

    *Published form.* The multiplicative update of the bare latent image x >= 0,
    started from the clipped coadd; the result is convolved with the target
    PSF (if any) afterwards, which is known to be too wide by a few per cent
    to a quarter.
    """
    start = time.perf_counter()
    timings: dict[str, float] = {}
    accelerated = settings.form == "accelerated"
    size = stamp_size(stack, settings.target_fwhm)
    spread, remainder = (
        split_target(settings) if accelerated else (0.0, gaussian_kernel(settings.target_fwhm, size))
    )
    operator = make_operator(stack, spread, settings.smooth_scale)
    quadratic = make_quadratic(operator, stack, spread, settings)
    subset, watch = _hold_out(stack, operator, settings, generator)
    timings["prepare"] = time.perf_counter() - start
    make = fit_stack if accelerated else _fit_published
    solution = make(subset, quadratic, spread, settings, whole=stack, held_out=watch, progress=progress)
    timings["fit"] = time.perf_counter() - start - sum(timings.values())
    fit, rejected = solution.fit, solution.rejected
    correction = make_correction(quadratic, solution.fidelity, spread, settings) if accelerated else None

    def correct(transform: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return transform if correction is None else correction.correct(transform, gradient)

    def narrow(corrected: torch.Tensor) -> torch.Tensor:
        return operator.crop(convolve(operator.untransform(corrected), remainder))

    corrected = correct(fit.transform, fit.gradient)
    image = narrow(corrected) + solution.matched.render(solution.points, settings.target_fwhm)
    bright = image
    if accelerated and settings.point_threshold > 0.0:
        again = PointBootstrap(solution, corrected, spread, settings)
        # Where a point may have been missed, errors are not those of the sky.
        bright = image + solution.matched.render(again.missed, settings.target_fwhm)
        realizations = again.realize(correct, narrow, settings.n_realizations, generator)
    else:
        bootstrap = Bootstrap(
            quadratic, solution.fidelity, spread, fit.transform, fit.gradient, corrected, settings.target_fwhm
        )
        realizations = bootstrap.realize(
            fit.coefficients, correct, narrow, settings.n_realizations, generator
        )
    timings["uncertainty"] = time.perf_counter() - start - sum(timings.values())
    lifted = operator.lift(corrected + solution.matched.light(solution.points))
    variance = (
        smooth_variance(realizations, bright, operator.crop(operator.square_weight(subset.inverse_variance)))
        if len(realizations)
        else direct_coadd(subset, DirectSettings(clip=True)).variance
    )
    return assemble(
        stack,
        image=image,
        variance=variance,
        psf=gaussian_kernel(settings.target_fwhm, size, dtype=stack.image.dtype),
        model=lambda t: operator.predict(lifted, slice(t, t + 1))[0],
        clipped=lambda t, residual: (residual.abs() > 2.0 * settings.huber_delta) | rejected[t],
        noise_realizations=realizations,
        history=fit.history,
        n_iterations=fit.n_iterations,
        converged=fit.converged,
        method="imagemm",
        settings=settings,
        timings=timings,
    )


def _hold_out(
    stack: ExposureStack,
    operator: ConvolutionOperator,
    settings: ImageMMSettings,
    generator: torch.Generator,
) -> tuple[ExposureStack, Callable[[torch.Tensor, torch.Tensor], HeldOut] | None]:
    """Return the stack to fit, and what watches the rest of it, if any."""
    if settings.held_out <= 0.0:
        return stack, None
    pixels, _, test = split_pixels(stack, settings.held_out, settings.huber_delta, generator)

    def watch(light: torch.Tensor, rejected: torch.Tensor) -> HeldOut:
        image = subtract_light(stack, operator, light).image
        return HeldOut(operator, HuberFidelity(image, test.inverse_sigma, test.delta).without(rejected))

    return stack.without(pixels), watch


def _fit_published(
    stack: ExposureStack,
    quadratic: NonNegativeQuadratic,
    spread: float,
    settings: ImageMMSettings,
    *,
    whole: ExposureStack,
    held_out: Callable[[torch.Tensor, torch.Tensor], HeldOut] | None,
    progress: ProgressCallback | None,
) -> AcceleratedFit:
    """Run the published update; there are no points."""
    operator = quadratic.operator
    fidelity = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), settings.huber_delta)
    coadd = direct_coadd(stack, DirectSettings(clip=True))
    latent = _start_published(stack, operator, coadd)
    rejected = torch.zeros_like(stack.good)
    watch = None if held_out is None else held_out(torch.zeros_like(quadratic.curvature), rejected)
    fit = fit_published(operator, fidelity, latent, settings, progress, watch)
    matched = MatchedFilter(quadratic, spread)
    return AcceleratedFit(
        quadratic,
        fidelity,
        fit,
        matched,
        PointSources.none(matched.device),
        rejected,
        stack.image.new_ones(operator.latent_shape),
    )


def _start_published(stack: ExposureStack, operator: ConvolutionOperator, coadd: DirectCoadd) -> torch.Tensor:
    """Return the clipped coadd, made positive."""
    filled = fill_holes(coadd.image, coadd.variance, coadd.psf)
    sigma = 1.0 / math.sqrt(float(stack.exposure_weights().sum()))
    return operator.extend(filled).clamp_min_(0.01 * sigma)
