# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may be behind the light that is no point, or may be none."""

from __future__ import annotations

__all__ = ("LikelyStructure",)

import math

import torch

from ._fidelity import HuberFidelity
from ._fit import evaluate
from ._peaks import local_maximum
from ._point_finder import has_neighbour
from ._point_sources import MatchedFilter, PointSources
from ._smooth_sources import SmoothSourceFit, SmoothSources

_THRESHOLD = 4.0
"""Peaks of the matched filter in structure above this, in sigma, are sources."""

_PROFILES = (0.0, 2.0 / 3.0, 1.5)
"""Profiles that sources may have: Gaussian, exponential, and one with a cusp."""

_STEPS = (8, 5, 5)
"""Steps to each of the profiles, from the one before."""

_LEAST_GAIN, _AROUND = 25.0, 10
"""Twice the logarithm of the likelihood by which the latent image is better, summed over
this many pixels each way, where structure is not smooth sources.
"""

_SPREAD = 8
"""Pixels by which such places spread within structure."""

_STRENGTH = (12.0, 120.0)
"""S/N of points that may be galaxies: fainter ones may have any width, and that of brighter
ones tells more of errors of PSFs.
"""

_LARGEST_SIZE, _SIZES = 1.0, 10
"""Variance of galaxies that look like points, at most, over that of the PSF, and how many are tried."""

_GALAXIES_PER_STAR = 5.0
"""Galaxies for each star away from the Milky Way, where they are not told apart at a glance."""

_LEAST_ODDS, _MOST_GAIN = 1.0 / 3.0, 50.0
"""Odds below which a point is a point; and logarithm of a ratio of likelihoods that is enough."""

_DRAWS = 12
"""Draws of a source, of which the first with a shape that there can be counts."""


class LikelyStructure:
    """Skies of smooth sources that exposures do not tell from what they have besides points.

    Parameters
    ----------
    matched : `MatchedFilter`
        The filter.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    fidelity : `HuberFidelity`
        The exposures without points.
    signal : `torch.Tensor`
        Padded transform of the filtered data without points.
    structure : `torch.Tensor`, shape ``latent_shape``
        1 where the matched filter finds something besides points, 0 elsewhere.
    known : `torch.Tensor`
        Padded transform of the latent image there.
    points : `PointSources`
        The points.

    Notes
    -----
    A solution made of pixels is noise already, and data of it are not data of
    a galaxy: what a fit makes of those is in it from the beginning, and counts
    as truth. So elliptical sources with a smooth profile (`SmoothSources`) are
    fitted to the exposures. Their errors are those of the likelihood; the
    profile, of which the exposures know little, is drawn from some that fit
    best each, with the likelihood for a probability. Where the latent image
    fits the exposures better than its freedom explains, the sky is not made of
    sources: ``rough`` is 1 in structure around, and 0 elsewhere.

    A point that is rather wide may be a galaxy. With the flux that fits best
    for each size, five galaxies for each star, and all variances up to that of
    the PSF as likely, the odds are five times the mean over these variances of
    the likelihood over that of a point. (The score of the width at a point does
    not do: the likelihood of a galaxy has its maximum far from there.)
    """

    def __init__(
        self,
        matched: MatchedFilter,
        spread: float,
        fidelity: HuberFidelity,
        signal: torch.Tensor,
        structure: torch.Tensor,
        known: torch.Tensor,
        points: PointSources,
    ) -> None:
        self._fit = SmoothSourceFit(matched, spread, fidelity)
        gradient = evaluate(matched.operator, fidelity, known)[1]
        odds = _find_odds(matched, matched.left(gradient), points)
        odds *= matched.at(structure, points) == 0.0
        self._wide = torch.nonzero(odds > _LEAST_ODDS)[:, 0]
        wide = points.select(self._wide)
        # The exposures are without these points, too.
        besides = -matched.light(wide)
        begin = self._fit.begin(signal, structure, _THRESHOLD).join(self._fit.widen(wide))
        profiles, gain = self._fit_profiles(begin, besides)
        best = SmoothSources.choose(profiles, gain.argmax(dim=1))
        slope = gradient + self._fit.gradient(best, besides)
        change, slope = (matched.operator.untransform(t) for t in (self._fit.light(best) - known, slope))
        self.rough = _find_rough(change * slope * structure, structure)
        smooth = matched.at(self.rough, best.points) == 0.0
        for profile in profiles:
            smooth &= profile.values.isfinite().all(dim=1)
        self._profiles = [p.select(smooth) for p in profiles]
        self._weights = torch.softmax(gain[smooth], dim=1)
        self._roots = [self._fit.root(p) for p in self._profiles]
        # The points are the last of the sources.
        chance = odds[self._wide] / (1.0 + odds[self._wide])
        n_before = len(best) - len(wide)
        self._chance = torch.cat([torch.ones_like(best.x[:n_before]), chance])[smooth]
        self._wide = self._wide[smooth[n_before:]]

    def _fit_profiles(
        self, begin: SmoothSources, besides: torch.Tensor
    ) -> tuple[list[SmoothSources], torch.Tensor]:
        """Return the sources with each of the profiles, and logarithms of their likelihoods (n, profiles)."""
        profiles: list[SmoothSources] = []
        gradients: list[torch.Tensor] = []
        for profile, n_steps in zip(_PROFILES, _STEPS, strict=True):
            before = profiles[-1] if profiles else begin
            profiles.append(self._fit.improve(before.with_profile(profile), n_steps, besides))
            gradients.append(self._fit.gradient(profiles[-1], besides))
        gains = [
            self._fit.gain(p, profiles[0], 0.5 * (g + gradients[0]))
            for p, g in zip(profiles, gradients, strict=True)
        ]
        return profiles, torch.stack(gains, dim=1).nan_to_num(nan=-1e9, posinf=-1e9)

    def draw(self, generator: torch.Generator) -> tuple[SmoothSources, torch.Tensor]:
        """Return the sources of a sky, and which points (n,) are none of its points.

        Parameters
        ----------
        generator : `torch.Generator`
            Source of what is random, on the CPU.
        """
        n = len(self._chance)
        chance = torch.rand(n, 2, generator=generator, dtype=torch.float64).to(self._weights)
        noise = torch.randn(n, _DRAWS, 6, generator=generator, dtype=torch.float64).to(self._weights)
        which = (chance[:, :1] > self._weights.cumsum(dim=1)[:, :-1]).sum(dim=1)
        moved = [self._fit.move(p, *r, noise) for p, r in zip(self._profiles, self._roots, strict=True)]
        is_there = chance[:, 1] < self._chance
        replaced = self._wide[is_there[n - len(self._wide) :]]
        return SmoothSources.choose(moved, which).select(is_there), replaced

    def light(self, sources: SmoothSources) -> torch.Tensor:
        """Return the padded transform of sources at the PSF of the latent image."""
        return self._fit.light(sources)


def _find_odds(matched: MatchedFilter, left: torch.Tensor, points: PointSources) -> torch.Tensor:
    """Return the odds (n,) that points are galaxies, 0 where that is not asked."""
    largest = _LARGEST_SIZE * matched.psf_variance
    star = matched.log_likelihood(left, points, 0.0)
    sizes = [largest * (k + 0.5) / _SIZES for k in range(_SIZES)]
    gains = torch.stack([matched.log_likelihood(left, points, size) - star for size in sizes])
    strength = points.flux / matched.flux_errors(points)
    asked = (strength > _STRENGTH[0]) & (strength < _STRENGTH[1])
    asked &= ~has_neighbour(points, 2.0 * matched.resolutions(points), math.inf)
    odds = _GALAXIES_PER_STAR * gains.clamp_max(_MOST_GAIN).exp().mean(dim=0)
    return torch.where(asked, odds, 0.0)


def _find_rough(gain: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
    """Return 1 (latent shape) in structure around which the latent image is better, 0 elsewhere.

    Parameters
    ----------
    gain : `torch.Tensor`, shape ``latent_shape``
        Twice the logarithm of the likelihood by which it is, pixel by pixel.
    structure : `torch.Tensor`, shape ``latent_shape``
        1 where there is structure, 0 elsewhere.
    """
    size = 2 * _AROUND + 1
    total = size**2 * torch.nn.functional.avg_pool2d(gain[None, None], size, stride=1, padding=_AROUND)[0, 0]
    return local_maximum((total > _LEAST_GAIN).to(structure) * structure, _SPREAD) * structure
