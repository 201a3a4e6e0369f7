# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Where points may be, as the data tell in which they were found."""

from __future__ import annotations

__all__ = ("PlaceLikelihood",)

import dataclasses
import math

import torch

from ._point_finder import has_neighbour
from ._point_sources import MatchedFilter, PointSources

_BRIGHTEST = 20.0
"""S/N from which the curvature of the likelihood is known to 7 % without looking."""

_STEP, _REACH = 0.5, 10
"""Places that are looked at: how far apart they are, in Cramér-Rao errors of a
place, and how many of these steps they go each way.
"""

_DEPTH = 4.0
"""Twice the logarithm of the likelihood by which the region falls below the maximum: two standard errors."""

_CHUNK = 128
"""Points that are looked at together."""


class PlaceLikelihood:
    """The likelihood of the places of faint points.

    Parameters
    ----------
    matched : `MatchedFilter`
        The filter.
    filled : `torch.Tensor`
        Padded transform of the filtered data without all points, as it would
        be without masked pixels.
    points : `PointSources`
        The points.

    Notes
    -----
    With the flux that fits best at a place, the logarithm of the likelihood
    is half the squared significance there. How it falls off around a faint
    star is a matter of noise: for a Gaussian PSF its second derivative along
    an axis scatters by ``sqrt(2)`` over the S/N around that of an isolated
    star without noise, and where it is flat, the star is more often far from
    where it was found. Other data of the same sky do not show that, for they
    have other noise. But a place is a location parameter, of which the
    likelihood that was seen, mirrored, is the distribution of its error among
    all data whose likelihood has that shape [1]_; that the curvature that was
    seen is to be preferred to the expected one holds in general [2]_.

    A Gaussian with the area and the second moments of the region within two
    standard errors stands for the likelihood, which has longer tails.

    Bright points, and points with another one within a resolution element,
    have no likelihood here: that of the former is as expected, and that of
    the latter is one of several places at once.

    References
    ----------
    .. [1] R. A. Fisher, Proceedings of the Royal Society A 144, 285 (1934).
    .. [2] B. Efron and D. V. Hinkley, Biometrika 65, 457 (1978).
    """

    def __init__(self, matched: MatchedFilter, filled: torch.Tensor, points: PointSources) -> None:
        faint = points.flux < _BRIGHTEST * matched.flux_errors(points)
        alone = ~has_neighbour(points, matched.resolutions(points), math.inf)
        self._which = torch.nonzero(faint & alone)[:, 0]
        self._points = points
        chosen = points.select(self._which)
        parts = torch.arange(len(chosen), device=matched.device).split(_CHUNK)
        roots = [_find_root(matched, filled, chosen.select(part)) for part in parts if len(part)]
        self._root = torch.cat([points.x.new_zeros(0, 2, 2), *roots])

    def move(self, again: PointSources, generator: torch.Generator) -> PointSources:
        """Return points with places that are off as those that were found may be.

        Parameters
        ----------
        again : `PointSources`
            As many points.
        generator : `torch.Generator`
            Source of the places, on the CPU.

        Returns
        -------
        moved : `PointSources`
            The same with the places of faint points drawn anew.
        """
        drawn = torch.randn(len(self._which), 2, 1, generator=generator, dtype=torch.float64)
        right, down = (self._root @ drawn.to(self._root))[:, :, 0].unbind(dim=1)
        x, y = again.x.clone(), again.y.clone()
        x[self._which] = self._points.x[self._which] + right
        y[self._which] = self._points.y[self._which] + down
        return dataclasses.replace(again, x=x, y=y)


def _find_root(matched: MatchedFilter, filled: torch.Tensor, points: PointSources) -> torch.Tensor:
    """Return a root (n, 2, 2) of the covariance of errors along x and y."""
    line = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64, device=matched.device)
    right, down = (g.reshape(-1) for g in torch.meshgrid(line, line, indexing="xy"))
    error_x, error_y = matched.place_error(points)
    x, y = _STEP * error_x[:, None] * right, _STEP * error_y[:, None] * down
    flux = points.flux[:, None].expand_as(x)
    places = PointSources(*(v.reshape(-1) for v in (points.x[:, None] + x, points.y[:, None] + y, flux)))
    own = flux * matched.overlap(x.reshape(-1), y.reshape(-1)).view_as(x)
    value = (matched.value(filled, places).view_as(x) + own).clamp_min(0.0)
    square = matched.share(points)[:, None] / matched.precision * value**2
    inside = (square >= square.amax(dim=1, keepdim=True) - _DEPTH).to(x)
    xx, xy, yy = ((inside * a * b).sum(dim=1) / inside.sum(dim=1) for a, b in ((x, x), (x, y), (y, y)))
    # A disc has a fourth of its squared radius as variance along each axis.
    covariance = 4.0 / _DEPTH * torch.stack([xx, xy, xy, yy], dim=1).view(-1, 2, 2)
    least = torch.diag_embed(torch.stack([_STEP * error_x, _STEP * error_y], dim=1) ** 2)
    return torch.linalg.cholesky(covariance + 1e-3 * least)
