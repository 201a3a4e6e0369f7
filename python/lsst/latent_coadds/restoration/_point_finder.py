# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which sources are points, where, and how bright."""

from __future__ import annotations

__all__ = ("PointFinder", "has_neighbour")

import dataclasses
from collections.abc import Callable

import torch

from ._peaks import detect_peaks, local_maximum
from ._point_sources import MatchedFilter, PointSources

_CLOSEST = 3
"""Points of one round are at least this many pixels apart, plus one."""

_STEPS = 5
"""Times that positions and fluxes are improved together in a round."""

_CHUNK = 1024
"""Points whose neighbours are looked for at a time."""

_RELAXATION = 0.8
"""Part of a step that is made: overlapping points would overshoot."""

_LEAST_SHARE = 0.01
"""Share of the weight that data have on a point at least, as far as steps are concerned."""

_FLATTEST = 0.2
"""Least second derivative of the likelihood of a place over the expected one."""

_MOST_TILT = 0.8
"""Largest correlation of the errors of places along x and y."""

_QUIET = 0.5
"""Share of the weight above which a point makes no noise of its own to speak of."""

_LARGEST_WIDTH = 2.0
"""What is wider than a point by more than this, in sigma, is no point."""

_LARGEST_RESIDUAL = 4.0
"""What differs more than this, in sigma, from points nearby is not taken for a point."""

_APART = 0.7
"""Bright candidates that are this far apart, in units of the resolution, are two."""

_SURELY = 30.0
"""S/N from which they are bright."""

_SHADOW = 0.3
"""Part of the flux of a neighbour below which a candidate within its core is dropped."""

_SUSPICION = 0.02
"""Part of its flux by which the residual of a point may deviate: what PSFs may be wrong by."""


class PointFinder:
    """Finds points in filtered data.

    Parameters
    ----------
    matched : `MatchedFilter`
        The filter.
    threshold : `float`, optional
        Peaks that are lower, in sigma, are no sources.
    """

    def __init__(self, matched: MatchedFilter, threshold: float = 4.0) -> None:
        self.matched = matched
        self.threshold = threshold

    def find(self, signal: torch.Tensor) -> PointSources:
        """Return candidates that `judge` accepts, in what `MatchedFilter.signal` returns."""
        points = self.candidates(signal)
        return self.judge(self.matched.residual(signal, points), points)

    def candidates(self, signal: torch.Tensor, n_rounds: int = 2) -> PointSources:
        """Fit points to all peaks.

        Parameters
        ----------
        signal : `torch.Tensor`
            What `MatchedFilter.signal` returns.
        n_rounds : `int`, optional
            Peaks in what the points of earlier rounds leave join them.

        Returns
        -------
        points : `PointSources`
            Sources, with positions and fluxes that fit best together.
        """
        points = PointSources.none(self.matched.device)
        for _ in range(n_rounds):
            peaks = self.peaks(self.matched.residual(signal, points))
            points = self.improve(signal, points.join(peaks), n_steps=_STEPS)
        return points

    def peaks(self, signal: torch.Tensor) -> PointSources:
        """Return the highest pixels of filtered data as candidates."""
        matched = self.matched
        # In the light of a star its own noise lowers the significance of its core.
        height = matched.operator.untransform(signal) * matched.flux_error
        y, x = detect_peaks(height, self.threshold, radius=_CLOSEST).unbind(1)
        points = PointSources(x.double(), y.double(), height[y, x].double() * matched.flux_error)
        return points.select(points.flux > self.threshold * matched.flux_errors(points))

    def improve(self, signal: torch.Tensor, points: PointSources, *, n_steps: int) -> PointSources:
        """Return points moved towards the maximum of the likelihood.

        Parameters
        ----------
        signal : `torch.Tensor`
            What `MatchedFilter.signal` returns.
        points : `PointSources`
            Where to begin.
        n_steps : `int`
            Steps of positions and fluxes together.
        """
        ones = torch.ones_like(points.flux)
        for _ in range(n_steps if len(points) else 0):
            points = self._step(self.matched.residual(signal, points), points, ones)
        return points

    def step(self, left: torch.Tensor, points: PointSources) -> PointSources:
        """Return points after a step with an exact gradient.

        Parameters
        ----------
        left : `torch.Tensor`
            What `MatchedFilter.left` returns where the model has these points.
        points : `PointSources`
            The points.
        """
        return self._step(left, points, self._share(points), bends=True) if len(points) else points

    def _share(self, points: PointSources) -> torch.Tensor:
        """Return the coverage (n,) of points; where there is hardly any, steps are small nevertheless."""
        return self.matched.share(points).clamp_min(_LEAST_SHARE)

    def _step(
        self,
        left: torch.Tensor,
        points: PointSources,
        share: torch.Tensor,
        relaxation: float = _RELAXATION,
        bends: bool = False,
    ) -> PointSources:
        """Return points after a step with the expected second derivatives, or with those that are seen."""
        matched = self.matched
        value, slopes = matched.values(left, points)
        bright = points.flux.clamp_min(2.0 * matched.flux_error)
        # Where a star makes its noise, its flanks know more of its place than its core.
        sure = 2.0 * share / (1.0 + share)
        xx, yy = (bright * b * sure for b in matched.bends_expected(points))
        xy = torch.zeros_like(xx)
        if bends:
            left_xx, left_xy, left_yy = matched.bends(left, points)
            xx, yy = ((e - s).clamp(_FLATTEST * e, 3.0 * e) for e, s in ((xx, left_xx), (yy, left_yy)))
            limit = _MOST_TILT * (xx * yy).sqrt()
            xy = torch.minimum(torch.maximum(-left_xy, -limit), limit)
        square = xx * yy - xy**2
        dx, dy = (yy * slopes[0] - xy * slopes[1]) / square, (xx * slopes[1] - xy * slopes[0]) / square
        x, y = (
            p + (relaxation * d).clamp(-0.5, 0.5) for p, d in zip((points.x, points.y), (dx, dy), strict=True)
        )
        return PointSources(x, y, points.flux + relaxation * value / (matched.precision * share))

    def prune(self, points: PointSources, slack: float = 0.0) -> PointSources:
        """Return candidates without those that are faint, or in the core of a brighter one.

        Parameters
        ----------
        points : `PointSources`
            The candidates.
        slack : `float`, optional
            How far below the threshold they may be, in sigma.
        """
        bright = points.flux > (self.threshold - slack) * self.matched.flux_errors(points)
        return points.select(bright & ~has_neighbour(points, 0.5 * self.matched.resolutions(points), _SHADOW))

    def judge(self, left: torch.Tensor, points: PointSources) -> PointSources:
        """Return those candidates that are points as far as noise lets one tell.

        Parameters
        ----------
        left : `torch.Tensor`
            What all candidates leave of the filtered data.
        points : `PointSources`
            The candidates.

        Notes
        -----
        A point is as bright as the threshold, give or take half a sigma,
        leaves nothing beyond the noise and a small part of its flux, is not
        wider than a point, and has no other candidate beside it: two of them
        explain a galaxy, or a pair of stars between them, too well. Two with
        a S/N above 30 and 1.2 FWHM apart do not; nor does a candidate that
        is so faint that the point could have left it.
        """
        if not len(points):
            return points
        matched = self.matched
        around = local_maximum(matched.deviation(left).abs(), 4)
        strength = points.flux / matched.flux_errors(points)
        suspicion = _SUSPICION * strength.clamp_min(0.0)
        allowed = _LARGEST_RESIDUAL + suspicion
        good = (matched.at(around, points) < allowed) & (strength > self.threshold - 0.5)
        wide = matched.width(left, points) > _LARGEST_WIDTH + suspicion
        dim = strength < _SURELY

        def shown(which: torch.Tensor) -> torch.Tensor:
            return strength > allowed[which, None]

        def shown_beside_dim(which: torch.Tensor) -> torch.Tensor:
            return shown(which) & (dim[which, None] | dim)

        resolution = matched.resolutions(points)
        blended = has_neighbour(points, _APART * resolution, 1.0 / _SUSPICION, shown)
        blended |= has_neighbour(points, resolution, 1.0 / _SUSPICION, shown_beside_dim)
        return points.select(good & ~wide & ~blended)

    def again(self, left: torch.Tensor, points: PointSources) -> tuple[PointSources, PointSources]:
        """Return points as other data have them, and what else is a point there.

        Parameters
        ----------
        left : `torch.Tensor`
            What they leave of the other data.
        points : `PointSources`
            The points.

        Returns
        -------
        same : `PointSources`
            As many points; the flux of those that the data do not show is 0.
        others : `PointSources`
            Other points; none where there can be none at all.
        """
        if not self.matched.finds(self.threshold):
            return points, PointSources.none(self.matched.device)
        same = points
        if len(points):
            same = self._measure_again(left, points)
            shown = same.flux > self.threshold * self.matched.flux_errors(same)
            same = dataclasses.replace(same, flux=same.flux * shown)
        # Peaks are looked for as in data without gaps, for significances allow for coverage themselves.
        filled = self.matched.fill(left)
        found = self.candidates(filled, n_rounds=1)
        remains = self.matched.thin(self.matched.residual(filled, found))
        return same, self.judge(remains, found)

    def _measure_again(self, left: torch.Tensor, points: PointSources) -> PointSources:
        """Return points as other data have them, whatever their significance."""
        matched = self.matched
        bright = self._step(left, points, self._share(points), relaxation=1.0)
        # Faint ones move so far that one step does not do; but they make no noise of their own.
        faint = self.improve(matched.add(matched.fill(left), points), points, n_steps=_STEPS)
        which = matched.share(points) > _QUIET
        return PointSources(
            *(torch.where(which, getattr(faint, n), getattr(bright, n)) for n in ("x", "y", "flux"))
        )


def has_neighbour(
    points: PointSources,
    distance: torch.Tensor,
    factor: float,
    counts: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return whether (n,) a point is within its distance (n,) of another that is brighter, times a factor.

    With ``counts``, only neighbours do for which its result (m, n) is `True`,
    given the indices (m,) of points.
    """
    places = torch.stack([points.x, points.y], dim=1)
    found = torch.zeros_like(points.flux, dtype=torch.bool)
    every = torch.arange(len(points), device=found.device)
    # Crowded fields have thousands of points, and not the memory for all pairs at once.
    for which in every.split(_CHUNK):
        near = torch.cdist(places[which], places) < distance[which, None]
        near &= every[None] != which[:, None]
        near &= factor * points.flux[None] > points.flux[which, None]
        if counts is not None:
            near &= counts(which)
        found[which] = near.any(dim=1)
    return found
