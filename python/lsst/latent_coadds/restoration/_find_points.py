# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Point sources of exposures, found with the matched filter and fitted to the data themselves."""

from __future__ import annotations

__all__ = ("find_points", "fit_points", "local_precision", "share_seen")

import math

import torch

from ._direct import DirectCoadd, direct_coadd
from ._fidelity import HuberFidelity
from ._fit import evaluate
from ._kernels import value_at_origin
from ._peaks import local_maximum, share_at_least
from ._point_finder import PointFinder
from ._point_sources import MatchedFilter, PointSources
from ._proximal import NonNegativeQuadratic
from ._settings import DirectSettings
from ._stack import ExposureStack

_SEARCH = 5
"""Steps after which what candidates leave may be others."""

_ROUNDS = 20
"""Largest number of steps of points with an exact gradient of the data term."""

_LEAST_SHARE = 0.05
"""Share of the weight around below which pixels that are missing are not made up for."""

_SLACK = 0.5
"""How far, in sigma, candidates may fall below the threshold before they have settled."""

_LAST_ROUNDS = 6
"""Largest number of steps after those go that are below it then."""

_SETTLED = 0.003
"""Largest step, in units of the errors of places and fluxes, with which points have settled."""

_LEAST_SEEN = 0.15
"""Share of the exposures around a point that must have data on it."""

_AROUND = 24
"""How far (px) around."""


def find_points(
    stack: ExposureStack, matched: MatchedFilter, fidelity: HuberFidelity, threshold: float
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

    Notes
    -----
    Candidates are peaks of the likely flux of a point at each place, from
    what pixels are there. Outliers are left out.
    """
    if not matched.finds(threshold):
        return PointSources.none(matched.device)
    finder = PointFinder(matched, threshold)
    coadd = direct_coadd(stack, DirectSettings(clip=True))
    candidates = finder.candidates(_signal(stack, matched, coadd), n_rounds=1)
    return fit_points(finder, fidelity.without(~coadd.kept), candidates, search=True)


def _signal(stack: ExposureStack, matched: MatchedFilter, coadd: DirectCoadd) -> torch.Tensor:
    """Return the padded transform of the filtered data, as if (hardly) any pixel were missing.

    Exposures have constant weights: with their own, the cores of bright stars would look broad.
    """
    operator = matched.operator
    weight = stack.exposure_weights()[:, None, None] * coadd.kept
    data = operator.untransform(matched.left(-operator.adjoint_transform(weight * stack.image)))
    if matched.coverage is None:
        return operator.transform(data)
    share = operator.square_weight(weight) / value_at_origin(matched.curvature, operator.fft_shape)
    share = share_at_least(matched.of_points(share), _LEAST_SHARE)
    return operator.transform(torch.where(matched.coverage > 0.0, data / share, 0.0))


def fit_points(
    finder: PointFinder, fidelity: HuberFidelity, points: PointSources, *, search: bool = False
) -> PointSources:
    """Return those candidates that are points, as the exposures themselves have them.

    Parameters
    ----------
    finder : `PointFinder`
        Judges the candidates.
    fidelity : `HuberFidelity`
        The data.
    points : `PointSources`
        The candidates.
    search : `bool`, optional
        Whether to look for others in what they leave, once they are in their places.
    """
    matched = finder.matched
    # With a robust loss nearly all pixels of a bright star would count as outliers, for its place
    # or its PSF is off by more than their noise. Outliers proper have been left out.
    square = HuberFidelity(fidelity.image, fidelity.inverse_sigma, math.inf)

    def leave(candidates: PointSources) -> torch.Tensor:
        return matched.left(evaluate(matched.operator, square, matched.light(candidates))[1])

    points, settled = finder.prune(points, _SLACK), False
    for n in range(_ROUNDS if len(points) else 0):
        points, settled = _step(finder, leave(points), points)
        if search and (settled or n + 1 == _SEARCH):
            points = points.join(finder.peaks(matched.fill(leave(points))))
            search = settled = False
        # What the model in gaps and outliers pretended goes.
        n_before, points = len(points), finder.prune(points, _SLACK)
        settled &= len(points) == n_before
        if settled:
            break
    n_before, points = len(points), finder.prune(points)
    settled &= len(points) == n_before
    for _ in range(_LAST_ROUNDS):
        if settled or not len(points):
            break
        points, settled = _step(finder, leave(points), points)
    if not len(points):
        return points
    return finder.judge(matched.left(evaluate(matched.operator, fidelity, matched.light(points))[1]), points)


def _step(finder: PointFinder, left: torch.Tensor, points: PointSources) -> tuple[PointSources, bool]:
    """Return points after a step, and whether they have settled."""
    after = finder.step(left, points)
    return after, finder.matched.distance(points, after) < _SETTLED


def share_seen(quadratic: NonNegativeQuadratic, stack: ExposureStack) -> torch.Tensor:
    """Return the share (latent shape) of the weight of all exposures that good pixels have."""
    operator = quadratic.operator
    weight = stack.exposure_weights()[:, None, None] * stack.good
    return operator.square_weight(weight) / value_at_origin(quadratic.curvature, operator.fft_shape)


def local_precision(
    quadratic: NonNegativeQuadratic, stack: ExposureStack, seen: torch.Tensor
) -> torch.Tensor:
    """Return the precision (latent shape) of a point's flux over that with all data.

    It is 0 where far more exposures are masked than nearby.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The curvature of the data term.
    stack : `ExposureStack`
        The exposures.
    seen : `torch.Tensor`, shape ``latent_shape``
        What `share_seen` returns for them.
    """
    operator = quadratic.operator
    precision = operator.square_weight(stack.inverse_variance)
    precision /= value_at_origin(quadratic.curvature, operator.fft_shape)
    return torch.where(seen > _LEAST_SEEN * local_maximum(seen, _AROUND), precision, 0.0)
