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
    "STRUCTURE",
    "AcceleratedFit",
    "fit_stack",
    "sky_price",
    "subtract_light",
)

import copy
import dataclasses
import math
from collections.abc import Callable

import torch

from ._direct import direct_coadd
from ._fidelity import HuberFidelity
from ._filled import start_accelerated
from ._find_points import find_points, local_precision, share_seen
from ._fit import Fit, HeldOut, ProgressCallback, fit_accelerated
from ._frames import flags_to_latent
from ._local_fit import fit_places
from ._operators import ConvolutionOperator
from ._peaks import local_maximum, share_at_least
from ._point_sources import MatchedFilter, PointSources
from ._proximal import NonNegativeQuadratic
from ._rejection import reject_outliers
from ._residual import SourceDiscs, covered_weight
from ._settings import DirectSettings, ImageMMSettings
from ._settling import Settling
from ._stack import ExposureStack

_REJECTIONS = 2
"""How often outliers are looked for and the fit is made again."""

_AROUND = 8
"""How far (px) from where points and prices change the latent image may."""

_LEAST_SEEN = 0.05
"""Share of the weight around below which the noise is not taken to fall any more."""

STRUCTURE = (3.0, 4.0)
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
    noise : `torch.Tensor`, shape ``latent_shape``
        Noise of the gradient over that where all exposures have data.
    """

    quadratic: NonNegativeQuadratic
    fidelity: HuberFidelity
    fit: Fit
    matched: MatchedFilter
    points: PointSources
    rejected: torch.Tensor
    noise: torch.Tensor

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
    seen = share_seen(quadratic, stack)
    matched = MatchedFilter(quadratic, spread, local_precision(quadratic, stack, seen))
    points = find_points(stack, matched, fidelity, settings.point_threshold)
    light = matched.light(points)
    rest = subtract_light(stack, operator, light)
    discs = SourceDiscs(quadratic, coverage)
    noise = share_at_least(seen, _LEAST_SEEN).sqrt_()
    start, price = _begin(rest, quadratic, discs, noise, settings)
    bare, quadratic = quadratic, quadratic.with_price(price)
    fidelity = _data_term(rest, settings)
    rejected = torch.zeros_like(stack.good)
    watch = None if held_out is None else held_out(light, rejected)
    settling = None
    if settings.settled:
        scale = quadratic.largest_scale
        settling = Settling(matched, spread, settings.target_fwhm, scale, settings.settled)
    fit = fit_accelerated(fidelity, quadratic, start, settings, progress, watch, settling=settling)
    fit = _finish(fit, fidelity, quadratic, settings, settling)
    for _ in range(_REJECTIONS if settings.reject_sigma > 0.0 else 0):
        everything = _data_term(whole, settings).without(rejected)
        found = reject_outliers(operator, everything, fit.transform + light, settings.reject_sigma)
        if not bool(found.any()):
            break
        rejected |= found
        # What was an outlier may have been a point. Far from it all stays as it is, as in other tiles.
        near = _surroundings(operator, found, matched.resolution)
        remaining = stack.without(rejected)
        new = find_points(remaining, matched, _data_term(remaining, settings), settings.point_threshold)
        kept = points.select(matched.at(near, points) == 0.0)
        points = kept.join(new.select(matched.at(near, new) > 0.0))
        light = matched.light(points)
        rest = subtract_light(remaining, operator, light)
        fidelity = _data_term(rest, settings)
        start, new_price = _begin(rest, bare, discs, noise, settings)
        price = torch.where(near > 0.0, new_price, price)
        quadratic = quadratic.with_price(price)
        watch = None if held_out is None else held_out(light, rejected)
        # Beyond the border no data contradict light that outliers have made.
        beyond = near.clone()
        operator.crop(beyond).zero_()
        again = quadratic.select(fit.coefficients, 1.0 - beyond) + quadratic.select(start, beyond)
        pace = None if fit.pace is None else fit.pace.begin_again(quadratic, again, beyond)
        places = local_maximum(near, _AROUND)
        windows = None if settling is None or watch is not None else settling.windows(places)
        if settling is not None and windows is not None:
            following = fit_places(fidelity, quadratic, again, places, windows, settings, settling)
        else:
            free = quadratic.spread(places) > 0.0
            following = fit_accelerated(
                fidelity, quadratic, again, settings, progress, watch, pace, settling, free
            )
            following = _finish(following, fidelity, quadratic, settings, settling)
        fit = fit.then(following)
    return AcceleratedFit(quadratic, fidelity, fit, matched, points, rejected, noise)


def _finish(
    fit: Fit,
    fidelity: HuberFidelity,
    quadratic: NonNegativeQuadratic,
    settings: ImageMMSettings,
    settling: Settling | None,
) -> Fit:
    """Return a fit that has settled where few places had not, each in a window of its own."""
    if settling is None or fit.unsettled is None or fit.windows is None:
        return fit
    return fit.then(
        fit_places(fidelity, quadratic, fit.coefficients, fit.unsettled, fit.windows, settings, settling)
    )


def _begin(
    rest: ExposureStack,
    quadratic: NonNegativeQuadratic,
    discs: SourceDiscs,
    noise: torch.Tensor,
    settings: ImageMMSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return coefficients to begin with, and the price of narrow light, for exposures without points."""
    coadd = direct_coadd(rest, DirectSettings(clip=True))
    start = start_accelerated(rest, quadratic, coadd, settings.n_start)
    near = discs.around(_significance(quadratic.operator, rest, coadd.kept), STRUCTURE)
    return start, sky_price(quadratic, near, noise, settings)


def _significance(operator: ConvolutionOperator, stack: ExposureStack, kept: torch.Tensor) -> torch.Tensor:
    """Return filtered data (latent shape) in sigma, from the pixels that are there."""
    weight = stack.inverse_variance * kept
    data = operator.adjoint(weight * stack.image)
    precision = operator.square_weight(weight)
    largest = precision.max().clamp_min(1e-30)
    precision /= largest
    return data * largest.rsqrt() * share_at_least(precision, _LEAST_SEEN**2).rsqrt()


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


def sky_price(
    quadratic: NonNegativeQuadratic,
    near: torch.Tensor,
    noise: torch.Tensor,
    settings: ImageMMSettings,
) -> torch.Tensor:
    """Return the price of narrow light, high but for what the matched filter finds.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The problem.
    near : `torch.Tensor`, shape ``latent_shape``
        How much each pixel is beside a source; see `SourceDiscs`.
    noise : `torch.Tensor`, shape ``latent_shape``
        Noise of the gradient over that where all exposures have data.
    settings : `ImageMMSettings`
        The prices.

    Returns
    -------
    price : `torch.Tensor`, shape ``latent_shape``
        In units of the noise of the gradient.
    """
    if quadratic.n_scales == 1:
        # Without broad components all light is narrow.
        return torch.zeros_like(near)
    high = max(settings.sky_penalty, settings.point_penalty)
    return (near * settings.point_penalty + (1.0 - near) * high) * noise


def _surroundings(operator: ConvolutionOperator, found: torch.Tensor, resolution: float) -> torch.Tensor:
    """Return 1 (latent shape) where outliers (T, h, w) reach, 0 elsewhere."""
    frames = None if operator.sampler is None else operator.sampler.frames
    flags = torch.stack([flags_to_latent(frames, t, plane) for t, plane in enumerate(found)]).any(dim=0)
    by = 2 * math.ceil(resolution)
    padded = torch.nn.functional.pad(flags.to(torch.float32), 4 * [operator.margin])
    return local_maximum(padded, by)
