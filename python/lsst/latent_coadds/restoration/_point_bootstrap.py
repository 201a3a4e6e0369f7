# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Uncertainty of an image of points and of a latent image of the rest."""

from __future__ import annotations

__all__ = ("PointBootstrap",)

from collections.abc import Callable

import torch

from ._accelerated import STRUCTURE, AcceleratedFit, sky_price
from ._fidelity import HuberFidelity
from ._fit import evaluate
from ._likely_structure import LikelyStructure
from ._peaks import local_maximum
from ._place_likelihood import PlaceLikelihood
from ._point_finder import PointFinder
from ._point_sources import PointSources
from ._residual import ResidualCorrection, SourceDiscs, covered_weight
from ._settings import ImageMMSettings
from ._uncertainty import GROWTH, find_missed, replicate

_THRESHOLD = 4.0
"""Where the matched filter finds more than this, in sigma, besides the points, is structure."""

_STEPS = 50
"""Steps of a refit."""

_START_DAMPING = 0.1
"""Damping of the linear deconvolution that it starts from."""


class PointBootstrap:
    """The fitted sky, and fits to data that other noise would have made of it.

    Parameters
    ----------
    solution : `AcceleratedFit`
        What was fitted.
    corrected : `torch.Tensor`
        Padded transform of its latent image with the linear correction.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    settings : `ImageMMSettings`
        How it was fitted.

    Notes
    -----
    The sky consists of the points, of smooth sources where the matched filter
    finds something besides (or of the corrected latent image, if that is no
    smooth source: see `LikelyStructure`), and of nothing else. The sources are
    others in each realization, as far as the exposures leave that open: the
    fit starts from the latent image there, so its noise is in all of them,
    and their mean knows what it is. From the data
    of each realization points are found and measured anew, so that their
    places and fluxes err as those of the result do, and sources close to the
    threshold are lost now and then. What the matched filter finds closely
    below the threshold may be such a source: it is a point of that sky too,
    though it is none of the result.

    How far faint points are from where they were found is not left to the new
    noise, but drawn from the likelihood of their places (`PlaceLikelihood`).

    The noise is white and Gaussian, as the variance plane has it. Errors of
    the PSFs, of the registration, of the flux scales and correlated input
    noise are not in it.
    """

    def __init__(
        self, solution: AcceleratedFit, corrected: torch.Tensor, spread: float, settings: ImageMMSettings
    ) -> None:
        self._quadratic, self._fidelity = solution.quadratic, solution.fidelity
        self._matched, self._settings, self._noise = solution.matched, settings, solution.noise
        self._finder = PointFinder(solution.matched, settings.point_threshold)
        self._operator = operator = solution.quadratic.operator
        self._discs = SourceDiscs(self._quadratic, covered_weight(self._quadratic, self._fidelity))
        self._start = ResidualCorrection(self._quadratic, spread, _START_DAMPING)
        signal = self._matched.signal(solution.fit.transform, solution.fit.gradient)
        self.structure = local_maximum(
            (self._matched.significance(signal) > _THRESHOLD).to(signal.real), GROWTH
        )
        self._known = self._quadratic.select(solution.fit.coefficients, self.structure)
        self._latent = operator.untransform(corrected) * self.structure
        self._found, self._signal, self._spread = solution.points, signal, spread
        self.missed = find_missed(solution.matched, signal, self.structure, settings.point_threshold)
        self._points = solution.points.join(self.missed)
        self._places, self._missed_places = self._find_places(solution)

    def _find_places(self, solution: AcceleratedFit) -> tuple[PlaceLikelihood, PlaceLikelihood]:
        """Return the likelihoods of the places of the points that were found, and of those that were not."""
        matched = self._matched
        # What the latent image has beside points, and is no structure, may be part of them.
        specks = solution.fit.transform - self._quadratic.combine(self._known)
        filled = matched.fill(matched.left(solution.fit.gradient))
        filled = filled + matched.signal(specks, torch.zeros_like(specks))
        found = PlaceLikelihood(matched, filled, solution.points)
        return found, PlaceLikelihood(matched, matched.residual(filled, self.missed), self.missed)

    def realize(
        self,
        correct: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        narrow: Callable[[torch.Tensor], torch.Tensor],
        n_realizations: int,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Fit the sky with new noise, several times.

        Parameters
        ----------
        correct : `~collections.abc.Callable`
            Returns the padded transform of the corrected latent image from
            those of a latent image and of the gradient there.
        narrow : `~collections.abc.Callable`
            Returns the final image (H, W) of that.
        n_realizations : `int`
            Number of fits.
        generator : `torch.Generator`
            Source of the noise, on the CPU.

        Returns
        -------
        realizations : `torch.Tensor`, shape (n_realizations, H, W)
            What the images differ from their truth by. Their mean is the
            bias that is to be expected.
        """
        matched, fwhm = self._matched, self._settings.target_fwhm
        if n_realizations == 0:
            return self._latent.new_zeros((0, *self._operator.shape))
        structure, errors = self._find_structure(), []
        rough = self._operator.transform(self._latent * structure.rough)
        for _ in range(n_realizations):
            smooth, replaced = structure.draw(generator)
            rest = structure.light(smooth) + rough
            points = self._points.without(replaced)
            sky = matched.light(points) + rest
            (problem,) = replicate(self._operator, sky, self._fidelity, 1, generator)
            again, others, transform, gradient = self.refit(problem)
            again, likely = self._move(again, points, generator)
            image = matched.render(again.join(others), fwhm) + narrow(correct(transform, gradient))
            errors.append(image - matched.render(likely, fwhm) - narrow(rest))
        return torch.stack(errors)

    def _find_structure(self) -> LikelyStructure:
        """Return what may be behind the light that is no point."""
        return LikelyStructure(
            self._matched,
            self._spread,
            self._fidelity,
            self._signal,
            self.structure,
            self._quadratic.combine(self._known),
            self._found,
        )

    def _move(
        self, again: PointSources, points: PointSources, generator: torch.Generator
    ) -> tuple[PointSources, PointSources]:
        """Return points of other data and of the sky with places as uncertain as they are.

        A point that was found errs in its place. Of one that was missed, and
        is missed again, it is not known where it is, nor how bright.
        """
        n = len(self._points) - len(self.missed)
        every = torch.arange(len(self._points), device=again.x.device)
        found, missed = again.select(every[:n]), again.select(every[n:])
        at, anew = self.missed, self._missed_places.move(self.missed, generator)
        noise = torch.randn(len(at), generator=generator, dtype=torch.float64).to(at.flux)
        flux = (at.flux + noise * self._matched.flux_errors(at)).clamp_min(0.0)
        lost = missed.flux == 0.0
        likely = PointSources(
            torch.where(lost, anew.x, at.x), torch.where(lost, anew.y, at.y), torch.where(lost, flux, at.flux)
        )
        return self._places.move(found, generator).join(missed), points.select(every[:n]).join(likely)

    def refit(self, problem: HuberFidelity) -> tuple[PointSources, PointSources, torch.Tensor, torch.Tensor]:
        """Fit data of the sky.

        Parameters
        ----------
        problem : `HuberFidelity`
            The data.

        Returns
        -------
        again : `PointSources`
            The points of the sky in them, with a flux of zero if they are not seen.
        others : `PointSources`
            What else looks like a point.
        transform, gradient : `torch.Tensor`
            Padded transforms of the latent image of the rest and of the
            gradient there.

        Notes
        -----
        The fit of the rest starts from the old one, where there was
        something, and from a linear deconvolution elsewhere.
        """
        quadratic, matched = self._quadratic, self._matched
        known = quadratic.combine(self._known)
        before = matched.light(self._points)
        slope = evaluate(self._operator, problem, known + before)[1]
        again, others = self._finder.again(matched.left(slope), self._points)
        # Structure stays what it is.
        others = others.select(matched.at(self.structure, others) == 0.0)
        light = matched.light(again.join(others))
        slope = slope + quadratic.curvature * (light - before)
        start = self._operator.untransform(self._start.apply(slope)).clamp_min_(0.0)
        coefficients = self._known + quadratic.divide(start)
        transform = quadratic.combine(coefficients)
        slope = evaluate(self._operator, problem, transform + light)[1]
        near = self._discs.weight(transform, slope, STRUCTURE)
        quadratic = quadratic.with_price(sky_price(quadratic, near, self._noise, self._settings))
        coefficients = quadratic.solve(coefficients, slope, _STEPS, transform=transform, constant=True)
        transform = quadratic.combine(coefficients)
        return again, others, transform, evaluate(self._operator, problem, transform + light)[1]
