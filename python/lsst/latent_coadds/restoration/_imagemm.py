# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""ImageMM: restoration by majorisation and minimisation."""

from __future__ import annotations

__all__ = (
    "make_correction",
    "make_operator",
    "make_quadratic",
    "restore_imagemm",
    "split_target",
    "stamp_size",
    "start_accelerated",
)

import math
import time
from collections.abc import Callable

import torch

from ._assemble import assemble
from ._direct import DirectCoadd, direct_coadd
from ._fidelity import HuberFidelity
from ._fit import HeldOut, fit_accelerated, fit_published
from ._holes import fill_holes
from ._kernels import FWHM_PER_SIGMA, convolve, gaussian_kernel, matching_kernels, remaining_kernel
from ._learned import split_pixels
from ._operators import ConvolutionOperator
from ._proximal import NonNegativeQuadratic, local_balance
from ._rejection import reject_outliers
from ._residual import AdaptiveCorrection, ResidualCorrection, covered_weight
from ._restoration import Restoration
from ._settings import AstroClearNetSettings, DirectSettings, ImageMMSettings
from ._stack import ExposureStack
from ._uncertainty import Bootstrap, smooth_variance

_REJECTIONS = 2
"""How often outliers are looked for and the fit is made again."""

_SHARED_VARIANCE = 0.02
"""By how much the variance (latent px^2 per axis) of a star in a non-negative
image exceeds that of s, on average over its places in a pixel: sampled, s has
less than the 0.25 that a star half-way between two pixels must have.
"""


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
    h itself is the sum of points and of Gaussians of ``smooth_scale``, where
    points have a small price, so that galaxies are not broken into points.

    *Published form.* The multiplicative update of the bare latent image x >= 0,
    started from the clipped coadd; the result is convolved with the target
    PSF (if any) afterwards, which is known to be too wide by a few per cent
    to a quarter.
    """
    start = time.perf_counter()
    timings: dict[str, float] = {}
    subset, fidelity, test = _hold_out(stack, settings, generator)
    coadd = direct_coadd(subset, DirectSettings(clip=True))
    accelerated = settings.form == "accelerated"
    size = stamp_size(stack, settings.target_fwhm)
    spread, remainder = (
        split_target(settings) if accelerated else (0.0, gaussian_kernel(settings.target_fwhm, size))
    )
    operator = make_operator(stack, spread, settings.smooth_scale)
    quadratic = make_quadratic(operator, stack, settings)
    timings["prepare"] = time.perf_counter() - start
    rejected = torch.zeros_like(stack.good)
    whole = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), settings.huber_delta)
    if accelerated:
        coefficients = start_accelerated(subset, quadratic, coadd, settings.n_start)
        timings["start"] = time.perf_counter() - start - timings["prepare"]
        fit = fit_accelerated(
            fidelity, quadratic, coefficients, settings, progress, _watch(operator, test, rejected)
        )
        for _ in range(_REJECTIONS if settings.reject_sigma > 0.0 else 0):
            found = reject_outliers(operator, whole.without(rejected), fit.transform, settings.reject_sigma)
            if not bool(found.any()):
                break
            rejected |= found
            fidelity = fidelity.without(rejected)
            watch = _watch(operator, test, rejected)
            following = fit_accelerated(
                fidelity, quadratic, fit.coefficients, settings, progress, watch, fit.pace
            )
            fit = fit.then(following)
    else:
        latent = _start_published(subset, operator, coadd)
        fit = fit_published(operator, fidelity, latent, settings, progress, _watch(operator, test, rejected))
    timings["fit"] = time.perf_counter() - start - sum(timings.values())
    correction = make_correction(quadratic, fidelity, spread, settings) if accelerated else None

    def correct(transform: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return transform if correction is None else correction.correct(transform, gradient)

    def narrow(corrected: torch.Tensor) -> torch.Tensor:
        return operator.crop(convolve(operator.untransform(corrected), remainder))

    corrected = correct(fit.transform, fit.gradient)
    image = narrow(corrected)
    bootstrap = Bootstrap(
        quadratic, fidelity, spread, fit.transform, fit.gradient, corrected, settings.target_fwhm
    )
    realizations = bootstrap.realize(fit.coefficients, correct, narrow, settings.n_realizations, generator)
    timings["uncertainty"] = time.perf_counter() - start - sum(timings.values())
    lifted = operator.lift(corrected)
    variance = smooth_variance(realizations, image) if len(realizations) else coadd.variance
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
    stack: ExposureStack, settings: ImageMMSettings, generator: torch.Generator
) -> tuple[ExposureStack, HuberFidelity, HuberFidelity | None]:
    """Return the stack and the data term to fit, and that to watch, if any."""
    if settings.held_out <= 0.0:
        fidelity = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), settings.huber_delta)
        return stack, fidelity, None
    pixels, fidelity, test = split_pixels(stack, settings.held_out, settings.huber_delta, generator)
    return stack.without(pixels), fidelity, test


def _watch(
    operator: ConvolutionOperator, test: HuberFidelity | None, rejected: torch.Tensor
) -> HeldOut | None:
    return None if test is None else HeldOut(operator, test.without(rejected))


def stamp_size(stack: ExposureStack, target_fwhm: float) -> int:
    """Return an odd size that holds the target PSF."""
    return 2 * max(stack.psf.shape[-1] // 2, math.ceil(2.5 * target_fwhm)) + 1


def split_target(settings: ImageMMSettings | AstroClearNetSettings) -> tuple[float, torch.Tensor]:
    """Return the FWHM of s, and c (see `restore_imagemm`).

    What c completes is not s itself but the mean image of bright stars in h,
    which is a little wider; so a fit of the target PSF finds their flux.
    """
    target = settings.target_fwhm
    spread = FWHM_PER_SIGMA * math.sqrt(settings.pixel_spread)
    if target <= spread:
        return target, gaussian_kernel(0.0, 1)
    seen = FWHM_PER_SIGMA * math.sqrt(settings.pixel_spread + _SHARED_VARIANCE)
    return spread, remaining_kernel(target, min(seen, target))


def make_operator(stack: ExposureStack, spread: float, scale: float) -> ConvolutionOperator:
    """Return the forward model for PSFs divided by a Gaussian.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    spread : `float`
        FWHM of the Gaussian.
    scale : `float`
        Largest scale of the latent image's components.
    """
    kernels = matching_kernels(stack.psf, spread).to(stack.image.dtype)
    margin = min(stack.psf.shape[-1] // 2, 16)
    return ConvolutionOperator(
        kernels, stack.shape, margin=margin, padding=math.ceil(4.0 * scale), sampler=stack.make_sampler()
    )


def make_quadratic(
    operator: ConvolutionOperator, stack: ExposureStack, settings: ImageMMSettings
) -> NonNegativeQuadratic:
    """Return the problem that settings ask for."""
    weights = stack.exposure_weights()
    if settings.form == "published":
        return NonNegativeQuadratic(operator, weights)
    balance = local_balance(operator, stack.inverse_variance, weights)
    origin = tuple(o - operator.margin for o in stack.origin)
    if settings.smooth_scale <= 0.0:
        return NonNegativeQuadratic(operator, weights, balance=balance)
    return NonNegativeQuadratic(
        operator,
        weights,
        scales=(0.0, settings.smooth_scale),
        penalties=(settings.point_penalty, 0.0),
        balance=balance,
        origin=(origin[0], origin[1]),
    )


def start_accelerated(
    stack: ExposureStack, quadratic: NonNegativeQuadratic, coadd: DirectCoadd, n_steps: int
) -> torch.Tensor:
    """Solve the problem with outliers and gaps replaced by the coadd.

    Without gaps the curvature is a convolution, so this costs little; it
    brings all but the last details.
    """
    operator = quadratic.operator
    weights = stack.exposure_weights()
    filled = fill_holes(coadd.image, coadd.variance, coadd.psf)
    coefficients = quadratic.divide(operator.extend(filled).clamp_min_(0.0))
    transform = quadratic.combine(coefficients)
    lifted = operator.lift(transform)
    total = torch.zeros_like(lifted)
    for which in operator.chunks():
        around = torch.stack([stack.to_frame(t, filled) for t in range(which.start, which.stop)])
        data = torch.where(coadd.kept[which], stack.image[which], around)
        residual = operator.predict(lifted, which) - data
        operator.back_project(weights[which, None, None] * residual, which, into=total)
    gradient = operator.lower(total)
    return quadratic.solve(coefficients, gradient, n_steps, transform=transform, constant=True)


def make_correction(
    quadratic: NonNegativeQuadratic,
    fidelity: HuberFidelity,
    spread: float,
    settings: ImageMMSettings | AstroClearNetSettings,
) -> AdaptiveCorrection | ResidualCorrection | None:
    """Return the correction that settings ask for."""
    damping, sky_damping = settings.residual_damping, settings.sky_damping
    if damping <= 0.0:
        return None
    coverage = covered_weight(quadratic, fidelity)
    if sky_damping in (0.0, damping):
        return ResidualCorrection(quadratic, spread, damping, coverage)
    return AdaptiveCorrection(quadratic, spread, damping, sky_damping, coverage)


def _start_published(stack: ExposureStack, operator: ConvolutionOperator, coadd: DirectCoadd) -> torch.Tensor:
    """Return the clipped coadd, made positive."""
    filled = fill_holes(coadd.image, coadd.variance, coadd.psf)
    sigma = 1.0 / math.sqrt(float(stack.exposure_weights().sum()))
    return operator.extend(filled).clamp_min_(0.01 * sigma)
