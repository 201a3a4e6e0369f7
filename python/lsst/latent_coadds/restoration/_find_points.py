# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Point sources of exposures, found with the matched filter and fitted to the data themselves."""

from __future__ import annotations

__all__ = ("find_points", "fit_points", "local_precision")

import math

import torch

from ._direct import direct_coadd
from ._fidelity import HuberFidelity
from ._filled import filled_gradient
from ._fit import evaluate
from ._holes import fill_holes
from ._kernels import value_at_origin
from ._point_finder import PointFinder
from ._point_sources import MatchedFilter, PointSources
from ._proximal import NonNegativeQuadratic
from ._settings import DirectSettings
from ._stack import ExposureStack

_ROUNDS = 12
"""Largest number of steps of points with an exact gradient of the data term."""

_SETTLED = 0.003
"""Largest step, in units of the errors of places and fluxes, with which points have settled."""

_LEAST_SEEN = 0.3
"""Share of the exposures that must have data on a point."""


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
    Where candidates are looked for, the coadd fills gaps and outliers; these
    are left out of the fit of the candidates.
    """
    if not matched.finds(threshold):
        return PointSources.none(matched.device)
    finder = PointFinder(matched, threshold)
    coadd = direct_coadd(stack, DirectSettings(clip=True))
    fidelity = fidelity.without(~coadd.kept)
    filled = fill_holes(coadd.image, coadd.variance, coadd.psf)
    gradient = filled_gradient(stack, matched.operator, coadd, filled)
    signal = matched.signal(torch.zeros_like(gradient), gradient)
    return fit_points(finder, fidelity, finder.candidates(signal))


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
