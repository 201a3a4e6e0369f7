# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The parts that ImageMM and the networks share: model, curvature, correction."""

from __future__ import annotations

__all__ = (
    "make_bare_quadratic",
    "make_correction",
    "make_operator",
    "make_quadratic",
    "split_target",
    "stamp_size",
    "sum_curvature",
)

import math

import torch

from ._balance import local_balance
from ._fidelity import HuberFidelity
from ._kernels import FWHM_PER_SIGMA, gaussian_kernel, matching_kernels, remaining_kernel, value_at_origin
from ._local_curvature import LocalCurvature, make_local_curvature
from ._operators import ConvolutionOperator
from ._proximal import NonNegativeQuadratic
from ._residual import AdaptiveCorrection, ResidualCorrection, covered_weight
from ._settings import AstroClearNetSettings, ImageMMSettings
from ._stack import ExposureStack

_ALIKE = (1.3, 1.6)
"""Ratio of two curvatures at a frequency up to which they are alike, and from which on they are not."""

_RELEVANT = 0.01
"""Curvature over that at frequency 0 from which on frequencies matter."""

_SHARED_VARIANCE = 0.02
"""By how much the variance (latent px^2 per axis) of a star in a non-negative
image exceeds that of s, on average over its places in a pixel: sampled, s has
less than the 0.25 that a star half-way between two pixels must have.
"""


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
    kernels = matching_kernels(stack.psf, spread, reference=stack.reference_terms).to(stack.image.dtype)
    margin = min(stack.psf.shape[-1] // 2, 16)
    return ConvolutionOperator(
        kernels,
        stack.shape,
        margin=margin,
        padding=math.ceil(4.0 * scale),
        sampler=stack.make_sampler(),
        reference=stack.reference_terms,
    )


def sum_curvature(operator: ConvolutionOperator, stack: ExposureStack, spread: float) -> torch.Tensor:
    """Return the transform of the curvature of the data term, for constant weights.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        The forward model.
    stack : `ExposureStack`
        The exposures.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.

    Notes
    -----
    In a part of a larger image it has the weight of the exposures here and
    the shape of those of the whole image, so that parts agree. The steps of
    the fit and of the realizations take it for the truth, however; so where
    the exposures here are too different, it is their own. What the solution
    is judged and corrected by is another matter: `make_local_curvature`.
    """
    own = operator.power(stack.exposure_weights())
    if stack.field is None:
        return own
    whole = stack.field.curvature(spread, operator.fft_shape).to(own)
    whole *= value_at_origin(own, operator.fft_shape) / value_at_origin(whole, operator.fft_shape)
    seen = torch.maximum(own, whole) > _RELEVANT * whole[0, 0]
    least = 1e-3 * _RELEVANT * float(whole[0, 0])
    off = (own.clamp_min(least) / whole.clamp_min(least)).log()[seen].abs().max()
    near, far = (math.log(limit) for limit in _ALIKE)
    return torch.lerp(own, whole, ((far - off) / (far - near)).clamp(0.0, 1.0))


def make_quadratic(
    operator: ConvolutionOperator, stack: ExposureStack, spread: float, settings: ImageMMSettings
) -> NonNegativeQuadratic:
    """Return the problem that settings ask for."""
    weights = stack.exposure_weights()
    if settings.form == "published":
        return NonNegativeQuadratic(operator, weights)
    curvature, local = _curvatures(operator, stack, spread)
    balance = local_balance(operator, stack.inverse_variance, weights, curvature)
    origin = tuple(o - operator.margin for o in stack.origin)
    if settings.smooth_scale <= 0.0:
        return NonNegativeQuadratic(operator, weights, curvature=curvature, balance=balance, local=local)
    return NonNegativeQuadratic(
        operator,
        weights,
        curvature=curvature,
        scales=(0.0, settings.smooth_scale),
        penalties=(settings.point_penalty, 0.0),
        balance=balance,
        origin=(origin[0], origin[1]),
        local=local,
    )


def make_bare_quadratic(
    operator: ConvolutionOperator, stack: ExposureStack, spread: float
) -> NonNegativeQuadratic:
    """Return the problem of pixels alone, without prices, for constant weights."""
    curvature, local = _curvatures(operator, stack, spread)
    return NonNegativeQuadratic(operator, stack.exposure_weights(), curvature=curvature, local=local)


def _curvatures(
    operator: ConvolutionOperator, stack: ExposureStack, spread: float
) -> tuple[torch.Tensor, LocalCurvature]:
    curvature = sum_curvature(operator, stack, spread)
    return curvature, make_local_curvature(operator, stack, spread, curvature)


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
