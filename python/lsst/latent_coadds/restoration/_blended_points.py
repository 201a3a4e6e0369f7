# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Points on top of galaxies."""

from __future__ import annotations

__all__ = ("find_blended_points",)

import math

import torch

from ._accelerated import subtract_light
from ._direct import direct_coadd
from ._fidelity import HuberFidelity
from ._filled import start_accelerated
from ._find_points import find_points, fit_points
from ._point_finder import PointFinder
from ._point_sources import MatchedFilter, PointSources
from ._proximal import NonNegativeQuadratic
from ._settings import DirectSettings
from ._stack import ExposureStack

_SCALE = 2.5
"""Standard deviation (latent px) of the Gaussians that broad light is made of."""

_PRICE = 1.0
"""Price of pixels against them, in units of the noise of the gradient. At 0.5 noise is of pixels and becomes
points; a higher price gives more of a star to the Gaussians.
"""

_STEPS = 60
"""Steps of the fit of broad light; it is cheap, for exposures are filled in."""

_ROUNDS = 4
"""Times that broad light is fitted; it takes a tenth of a star that it does not know of."""

_SETTLED = 0.3
"""Largest change, in errors of places and fluxes, after which that ends."""

_FACTOR = 2.0
"""Times the threshold that such a point must reach: on galaxies the model errs by more than noise."""

_RING = 1.5
"""Radius of what is around a point, in units of the width of the PSF."""

_LARGEST_EXCESS = 2.0
"""Largest excess, in sigma, of broad light at a point over that around it."""

_TAKEN = 0.2
"""Part of its flux by which that may be larger; small galaxies have 0.6 and more."""

_ANGLES = 8
"""Places around a point."""


def find_blended_points(
    stack: ExposureStack, matched: MatchedFilter, points: PointSources, delta: float, threshold: float
) -> PointSources:
    """Return points that are told only where broad light is taken away.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    matched : `MatchedFilter`
        Their matched filter.
    points : `PointSources`
        Points that were found without.
    delta : `float`
        Residual, in sigma, beyond which the loss is linear.
    threshold : `float`
        Least significance of other points; 0 finds none.

    Returns
    -------
    others : `PointSources`
        Points that are not among those given.

    Notes
    -----
    What the points leave is fitted with non-negative pixels and Gaussians.
    With the Gaussians taken away a star on a galaxy is a point as others are.
    So is the core of a small galaxy; but there the Gaussians have their
    maximum, while they are as high around a star as under it.
    """
    others = PointSources.none(matched.device)
    if not matched.finds(threshold):
        return others
    operator, weights = matched.operator, stack.exposure_weights()
    row, column = (o - operator.margin for o in stack.origin)
    quadratic = NonNegativeQuadratic(
        operator,
        weights,
        curvature=matched.curvature,
        scales=(0.0, _SCALE),
        penalties=(_PRICE, 0.0),
        origin=(row, column),
    )
    finder = PointFinder(matched, _FACTOR * threshold)
    rest = subtract_light(stack, operator, matched.light(points))
    for _ in range(_ROUNDS):
        broad = _broad_light(subtract_light(rest, operator, matched.light(others)), quadratic)
        left = subtract_light(rest, operator, broad)
        before, others = others, fit_points(finder, _data_term(left, delta), others)
        left = subtract_light(left, operator, matched.light(others))
        new = find_points(left, matched, _data_term(left, delta), finder.threshold)
        known = points.join(others)
        new = new.select(_is_apart(new, known, matched) & ~_has_excess(new, broad, matched))
        if not len(new) and len(others) == len(before) and matched.distance(before, others) < _SETTLED:
            break
        others = others.join(new)
    return others


def _data_term(stack: ExposureStack, delta: float) -> HuberFidelity:
    """Return the data term of exposures without their outliers."""
    kept = direct_coadd(stack, DirectSettings(clip=True)).kept
    return HuberFidelity(stack.image, stack.inverse_variance.sqrt(), delta).without(~kept)


def _broad_light(rest: ExposureStack, quadratic: NonNegativeQuadratic) -> torch.Tensor:
    """Return the padded transform of the Gaussians of a fit."""
    coefficients = start_accelerated(rest, quadratic, direct_coadd(rest, DirectSettings(clip=True)), _STEPS)
    # Those of the pixels come first.
    coefficients[: math.prod(quadratic.operator.latent_shape)] = 0.0
    return quadratic.combine(coefficients)


def _is_apart(found: PointSources, points: PointSources, matched: MatchedFilter) -> torch.Tensor:
    """Return whether (n,) no other point is within the width of the PSF."""
    if not len(found) or not len(points):
        return torch.ones_like(found.flux, dtype=torch.bool)
    places, others = (torch.stack([p.x, p.y], dim=1) for p in (found, points))
    return (torch.cdist(places, others) > matched.resolution).all(dim=1)


def _has_excess(found: PointSources, broad: torch.Tensor, matched: MatchedFilter) -> torch.Tensor:
    """Return whether (n,) broad light has more at a point than around it."""
    light = matched.operator.untransform(matched.signal(broad, torch.zeros_like(broad))) * matched.flux_error
    radius = _RING * matched.resolution
    around = torch.zeros_like(found.flux)
    for k in range(_ANGLES):
        angle = 2.0 * math.pi * k / _ANGLES
        place = PointSources(
            found.x + radius * math.cos(angle), found.y + radius * math.sin(angle), found.flux
        )
        around += matched.at(light, place) / _ANGLES
    strength = found.flux / matched.flux_errors(found)
    return matched.at(light, found) - around > _LARGEST_EXCESS + _TAKEN * strength
