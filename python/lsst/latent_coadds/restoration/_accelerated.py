# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The accelerated form of ImageMM: point sources, and a latent image of all else."""

from __future__ import annotations

__all__ = (
    "AcceleratedFit",
    "fill_exposures",
    "find_points",
    "fit_points",
    "fit_stack",
    "local_precision",
    "sky_price",
    "start_accelerated",
    "subtract_light",
)

import copy
import dataclasses
import math
from collections.abc import Callable

import torch

from ._direct import DirectCoadd, direct_coadd
from ._fidelity import HuberFidelity
from ._fit import Fit, HeldOut, ProgressCallback, evaluate, fit_accelerated
from ._frames import flags_to_latent
from ._holes import fill_holes
from ._kernels import value_at_origin
from ._operators import ConvolutionOperator
from ._peaks import local_maximum
from ._point_finder import PointFinder
from ._point_sources import MatchedFilter, PointSources
from ._proximal import NonNegativeQuadratic
from ._rejection import reject_outliers
from ._residual import SourceDiscs, covered_weight
from ._settings import DirectSettings, ImageMMSettings
from ._settling import Settling
from ._stack import ExposureStack

_REJECTIONS = 2
"""How often outliers are looked for and the fit is made again."""

_ROUNDS = 12
"""Largest number of steps of points with an exact gradient of the data term."""

_SETTLED = 0.003
"""Largest step, in units of the errors of places and fluxes, with which points have settled."""

_AROUND = 8
"""How far (px) from where points and prices change the latent image may."""

_LEAST_SEEN = 0.3
"""Share of the exposures that must have data on a point."""

_STRUCTURE = (3.0, 4.0)
"""Where, in sigma, light that points do not explain may be narrow."""


@dataclasses.dataclass
class AcceleratedFit:
    """Points, and the latent image of the rest.

    Attributes
    ----------
    quadratic : `NonNegativeQuadratic`
        The problem that was solved for the rest.
    fidelity : `HuberFidelity`
        Its data term: the exposures without the points, without outliers.
    fit : `Fit`
        Its solution.
    matched : `MatchedFilter`
        What found the points.
    points : `PointSources`
        The points.
    rejected : `torch.Tensor` of bool, shape (T, h, w)
        Outliers of single exposures.
    """

    quadratic: NonNegativeQuadratic
    fidelity: HuberFidelity
    fit: Fit
    matched: MatchedFilter
    points: PointSources
    rejected: torch.Tensor

    @property
    def transform(self) -> torch.Tensor:
        """Padded transform of the latent image, points included."""
        return self.fit.transform + self.matched.light(self.points)


def fit_stack(
    stack: ExposureStack,
    quadratic: NonNegativeQuadratic,
    spread: float,
    settings: ImageMMSettings,
    *,
    whole: ExposureStack | None = None,
    held_out: Callable[[torch.Tensor, torch.Tensor], HeldOut | None] | None = None,
    progress: ProgressCallback | None = None,
) -> AcceleratedFit:
    """Fit points and a latent image to exposures.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures, without held-out pixels.
    quadratic : `NonNegativeQuadratic`
        The problem.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    settings : `ImageMMSettings`
        How to fit.
    whole : `ExposureStack`, optional
        The exposures with held-out pixels, where outliers are looked for too.
    held_out : `~collections.abc.Callable`, optional
        Returns what watches the fit, from the light of the points (padded
        transform) and the outliers.
    progress : `~collections.abc.Callable`, optional
        Called with (iteration, largest number of iterations, objective).

    Raises
    ------
    RestorationError
        The fit diverged.

    Notes
    -----
    A star in a non-negative image is a few pixels that its noise has picked:
    wider than the PSF if it is faint, and of a width and height that depend
    on its place in a pixel if it is bright. So what the matched filter finds,
    and a point explains up to the noise, is fitted with a position between
    pixels; the latent image is fitted to what the points leave, be it the
    wings of a wrong PSF or a galaxy under a star. In the latent image narrow
    components are dear where the matched filter finds nothing else.
    """
    whole = stack if whole is None else whole
    operator = quadratic.operator
    fidelity = _data_term(stack, settings)
    coverage = covered_weight(quadratic, fidelity)
    matched = MatchedFilter(quadratic, spread, local_precision(quadratic, stack, stack.exposure_weights()))
    points = find_points(stack, matched, fidelity, settings.point_threshold)
    light = matched.light(points)
    rest = subtract_light(stack, operator, light)
    coefficients = start_accelerated(
        rest, quadratic, direct_coadd(rest, DirectSettings(clip=True)), settings.n_start
    )
    fidelity = _data_term(rest, settings)
    transform = quadratic.combine(coefficients)
    gradient = evaluate(operator, fidelity, transform)[1]
    discs = SourceDiscs(quadratic, coverage)
    price = sky_price(quadratic, discs, transform, gradient, settings)
    quadratic = quadratic.with_price(price)
    rejected = torch.zeros_like(stack.good)
    watch = None if held_out is None else held_out(light, rejected)
    settling = Settling(matched, spread, settings.target_fwhm, settings.settled) if settings.settled else None
    fit = fit_accelerated(fidelity, quadratic, coefficients, settings, progress, watch, settling=settling)
    for _ in range(_REJECTIONS if settings.reject_sigma > 0.0 else 0):
        everything = _data_term(whole, settings).without(rejected)
        found = reject_outliers(operator, everything, fit.transform + light, settings.reject_sigma)
        if not bool(found.any()):
            break
        rejected |= found
        # What was an outlier may have been a point. Far from it all stays as it is, as in other tiles.
        near = _surroundings(operator, found, matched.resolution)
        gradient = evaluate(operator, fidelity.without(rejected), fit.transform)[1]
        data = _data_term(stack, settings).without(rejected)
        candidates = matched.signal(fit.transform + light, gradient)
        new = find_points(stack, matched, data, settings.point_threshold, signal=candidates)
        kept = points.select(matched.at(near, points) == 0.0)
        points = kept.join(new.select(matched.at(near, new) > 0.0))
        light = matched.light(points)
        price = torch.where(near > 0.0, sky_price(quadratic, discs, fit.transform, gradient, settings), price)
        quadratic = quadratic.with_price(price)
        fidelity = _data_term(subtract_light(stack, operator, light), settings).without(rejected)
        watch = None if held_out is None else held_out(light, rejected)
        following = fit_accelerated(
            fidelity, quadratic, fit.coefficients, settings, progress, watch, fit.pace, settling
        )
        fit = fit.then(_change_near(following, fit, near, fidelity, quadratic))
    return AcceleratedFit(quadratic, fidelity, fit, matched, points, rejected)


def _change_near(
    following: Fit, before: Fit, near: torch.Tensor, fidelity: HuberFidelity, quadratic: NonNegativeQuadratic
) -> Fit:
    """Return a fit that went on, but only near some places: others had been done before."""
    near = local_maximum(near, _AROUND)
    coefficients = quadratic.select(following.coefficients, near)
    coefficients += quadratic.select(before.coefficients, 1.0 - near)
    transform = quadratic.combine(coefficients)
    gradient = evaluate(quadratic.operator, fidelity, transform)[1]
    return dataclasses.replace(following, coefficients=coefficients, transform=transform, gradient=gradient)


def _data_term(stack: ExposureStack, settings: ImageMMSettings) -> HuberFidelity:
    return HuberFidelity(stack.image, stack.inverse_variance.sqrt(), settings.huber_delta)


def subtract_light(stack: ExposureStack, operator: ConvolutionOperator, light: torch.Tensor) -> ExposureStack:
    """Return exposures without the light of a latent image (padded transform)."""
    rest = copy.copy(stack)
    rest.image = torch.empty_like(stack.image)
    lifted = operator.lift(light)
    for which in operator.chunks():
        rest.image[which] = stack.image[which] - operator.predict(lifted, which)
    rest.image.masked_fill_(~stack.good, 0.0)
    return rest


def find_points(
    stack: ExposureStack,
    matched: MatchedFilter,
    fidelity: HuberFidelity,
    threshold: float,
    *,
    signal: torch.Tensor | None = None,
) -> PointSources:
    """Return the point sources of exposures.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    matched : `MatchedFilter`
        Their matched filter.
    fidelity : `HuberFidelity`
        Their data term.
    threshold : `float`
        What is fainter, in sigma, is no source; 0 finds nothing. Nor is
        anything found where PSFs are sampled too coarsely.
    signal : `torch.Tensor`, optional
        Filtered data to look for candidates in. By default the coadd fills
        gaps and outliers, which are left out of the fit of the candidates.
    """
    if threshold <= 0.0 or not matched.well_sampled:
        return PointSources.none(matched.device)
    finder = PointFinder(matched, threshold)
    if signal is None:
        coadd = direct_coadd(stack, DirectSettings(clip=True))
        fidelity = fidelity.without(~coadd.kept)
        filled = fill_holes(coadd.image, coadd.variance, coadd.psf)
        gradient = _filled_gradient(stack, matched.operator, coadd, filled)
        signal = matched.signal(torch.zeros_like(gradient), gradient)
    return fit_points(finder, fidelity, finder.candidates(signal))


def _filled_gradient(
    stack: ExposureStack,
    operator: ConvolutionOperator,
    coadd: DirectCoadd,
    filled: torch.Tensor,
    transform: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the padded transform of the gradient at a latent image, by default nothing.

    The data have the coadd in gaps and outliers, and each exposure has one weight.
    """
    weights = stack.exposure_weights()
    lifted = None if transform is None else operator.lift(transform)
    total: torch.Tensor | None = None
    for which in operator.chunks():
        residual = -fill_exposures(stack, coadd, filled, which)
        if lifted is not None:
            residual += operator.predict(lifted, which)
        total = operator.back_project(weights[which, None, None] * residual, which, into=total)
    assert total is not None
    return operator.lower(total)


def fit_points(finder: PointFinder, fidelity: HuberFidelity, points: PointSources) -> PointSources:
    """Return those candidates that are points, as the exposures themselves have them."""
    matched = finder.matched
    # With a robust loss nearly all pixels of a bright star would count as outliers, for its place
    # or its PSF is off by more than their noise. Outliers proper have been left out.
    square = HuberFidelity(fidelity.image, fidelity.inverse_sigma, math.inf)
    for _ in range(_ROUNDS if len(points) else 0):
        before = points
        left = matched.left(evaluate(matched.operator, square, matched.light(points))[1])
        points = finder.step(left, points)
        step = matched.distance(before, points)
        # What the model in gaps and outliers pretended goes.
        points = finder.prune(points)
        if step < _SETTLED:
            break
    if not len(points):
        return points
    return finder.judge(matched.left(evaluate(matched.operator, fidelity, matched.light(points))[1]), points)


def local_precision(
    quadratic: NonNegativeQuadratic, stack: ExposureStack, weights: torch.Tensor
) -> torch.Tensor:
    """Return the precision (latent shape) of a point's flux over that with all data.

    It is 0 where too many exposures are masked.
    """
    square_weight, whole = quadratic.operator.square_weight, weights[:, None, None]
    largest = value_at_origin(quadratic.curvature, quadratic.operator.fft_shape)
    seen = square_weight(whole * (stack.inverse_variance > 0)) / largest
    precision = square_weight(stack.inverse_variance) / largest
    return torch.where(seen > _LEAST_SEEN, precision, 0.0)


def sky_price(
    quadratic: NonNegativeQuadratic,
    discs: SourceDiscs,
    transform: torch.Tensor,
    gradient: torch.Tensor,
    settings: ImageMMSettings,
) -> torch.Tensor:
    """Return the price of narrow light, high but for what the matched filter finds.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The problem.
    discs : `SourceDiscs`
        Tells where sources are.
    transform, gradient : `torch.Tensor`
        Padded transforms of a latent image and of the gradient there.
    settings : `ImageMMSettings`
        The prices.

    Returns
    -------
    price : `torch.Tensor`, shape ``latent_shape``
        In units of the noise of the gradient.
    """
    near = discs.weight(transform, gradient, _STRUCTURE)
    if quadratic.n_scales == 1:
        # Without broad components all light is narrow.
        return torch.zeros_like(near)
    high = max(settings.sky_penalty, settings.point_penalty)
    return near * settings.point_penalty + (1.0 - near) * high


def _surroundings(operator: ConvolutionOperator, found: torch.Tensor, resolution: float) -> torch.Tensor:
    """Return 1 (latent shape) where outliers (T, h, w) reach, 0 elsewhere."""
    frames = None if operator.sampler is None else operator.sampler.frames
    flags = torch.stack([flags_to_latent(frames, t, plane) for t, plane in enumerate(found)]).any(dim=0)
    by = 2 * math.ceil(resolution)
    padded = torch.nn.functional.pad(flags.to(torch.float32), 4 * [operator.margin])
    return local_maximum(padded, by)


def start_accelerated(
    stack: ExposureStack, quadratic: NonNegativeQuadratic, coadd: DirectCoadd, n_steps: int
) -> torch.Tensor:
    """Solve the problem with outliers and gaps replaced by the coadd.

    Without gaps the curvature is a convolution, so this costs little; it
    brings all but the last details.
    """
    operator = quadratic.operator
    filled = fill_holes(coadd.image, coadd.variance, coadd.psf)
    coefficients = quadratic.divide(operator.extend(filled).clamp_min_(0.0))
    transform = quadratic.combine(coefficients)
    gradient = _filled_gradient(stack, operator, coadd, filled, transform)
    return quadratic.solve(coefficients, gradient, n_steps, transform=transform, constant=True)


def fill_exposures(
    stack: ExposureStack, coadd: DirectCoadd, filled: torch.Tensor, which: slice
) -> torch.Tensor:
    """Return exposures with a coadd where that left them out.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    coadd : `DirectCoadd`
        Their coadd.
    filled : `torch.Tensor`, shape (H, W)
        Its image, without holes.
    which : `slice`
        The exposures to return.

    Returns
    -------
    data : `torch.Tensor`, shape (n, h, w)
        The exposures.
    """
    around = torch.stack([stack.to_frame(t, filled) for t in range(which.start, which.stop)])
    return torch.where(coadd.kept[which], stack.image[which], around)
