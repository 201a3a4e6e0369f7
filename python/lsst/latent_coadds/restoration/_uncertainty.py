# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Uncertainty of a restored image, from refits to perturbed data."""

from __future__ import annotations

__all__ = ("GROWTH", "Bootstrap", "find_missed", "replicate", "smooth_variance")

import math
from collections.abc import Callable, Iterable, Iterator

import torch

from ._fidelity import HuberFidelity
from ._fit import evaluate
from ._kernels import convolve, gaussian_kernel
from ._operators import ConvolutionOperator
from ._peaks import local_maximum
from ._point_finder import PointFinder
from ._point_sources import MatchedFilter, PointSources
from ._proximal import NonNegativeQuadratic
from ._residual import ResidualCorrection

_THRESHOLD = 4.0
"""What points leave of the matched filter above this, in sigma, is structure."""

_ROUNDS = 3
"""How often points that overlap with structure are left out of the points."""

_BRIGHTEST = 200.0
"""Brighter points, in sigma, count as structure: refits start from the solution there."""

_KNOWN = 7.0
"""Refits start with the light of points beyond some twice this, in sigma:
with all of it, they would find it again and err too little; and they cannot
make more than that in their few steps.
"""

_PLACE, _WIDTH, _FLUX = 0.035, (1.4, 0.018), 0.005
"""What the place (px), the variance (px^2: the first of them over S/N, and the
second) and the flux of a point in a restored image differ by from one place in a
pixel, and from one noise, to the other. Found with `benchmarks/coverage.py`.
"""

_DEPTH = 1.5
"""What is taken out of the mean of these truths, in units of what they lost."""

_NARROW = 2.5
"""FWHM (px) over which the squares of realizations are averaged on sources."""

_LEAST_PRECISION = 0.05
"""Least precision, over that with all data, by which the noise of the sky is scaled."""

_LOOKS = 5
"""How often sky and sources are told apart."""

_BELOW = 1.0
"""How far, in sigma, below the threshold of points something may be a point that was missed."""

GROWTH = 3
"""Pixels by which what a matched filter finds, or what is bright, spreads."""

_START_DAMPING = 0.1
"""Damping of the linear deconvolution that everything fainter starts from."""


class Bootstrap:
    """A likely sky, and data that other noise would have made of it.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The problem that was solved.
    fidelity : `HuberFidelity`
        Its data term.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    transform, gradient : `torch.Tensor`
        Padded transforms of the solution and of the gradient there.
    corrected : `torch.Tensor`
        Padded transform of the solution with its linear correction.
    target_fwhm : `float`
        FWHM of the PSF of the result.
    point_threshold : `float`, optional
        Significance from which on points have been taken out of the solution;
        0 if they have not. What is closely below it may be a point.

    Notes
    -----
    A non-negative solution is sparse, and a star in it is a few neighbouring
    pixels that its noise has picked. A refit to the solution itself finds
    these pixels again, and errs by half as much as the solution did. So the
    sky that replaces it consists of points, at positions between pixels,
    wherever points explain the exposures; of the corrected solution where
    they do not and the matched filter finds something; and of nothing else.
    The points are not where the stars are, and a realization made at their
    places errs as a star there would. So for each realization the truth that
    it is compared with is moved by the errors of the places, and widened and
    brightened by what stars in restored images differ by. On average that
    lowers the peaks of the truth, which is no error of the image: it is taken
    out, and half as much beyond, since the bias was found at those places too.

    The noise is white and Gaussian, as the variance plane has it. Errors of
    the PSFs, of the registration, of the flux scales and correlated input
    noise are not in it.
    """

    def __init__(
        self,
        quadratic: NonNegativeQuadratic,
        fidelity: HuberFidelity,
        spread: float,
        transform: torch.Tensor,
        gradient: torch.Tensor,
        corrected: torch.Tensor,
        target_fwhm: float,
        point_threshold: float = 0.0,
    ) -> None:
        operator = quadratic.operator
        self._quadratic, self._fidelity, self._operator = quadratic, fidelity, operator
        self._matched = MatchedFilter(quadratic, spread)
        self._finder = PointFinder(self._matched)
        self._start = ResidualCorrection(quadratic, spread, _START_DAMPING)
        signal = self._matched.signal(transform, gradient)
        points = self._jittered = self._finder.find(signal)
        points = points.select(points.flux < _BRIGHTEST * self._matched.flux_error)
        for _ in range(_ROUNDS):
            # What is partly a point is structure altogether, or its light would count twice.
            left = self._matched.significance(self._matched.residual(signal, points))
            self.structure = local_maximum((left > _THRESHOLD).to(left), GROWTH)
            points = points.select(self._matched.at(self.structure, points) == 0.0)
        self.bright = points.select(points.flux > _KNOWN * self._matched.flux_error)
        self._broad = operator.transform(operator.untransform(corrected) * self.structure)
        self._points, self._target_fwhm = points, target_fwhm
        rest = self._matched.residual(signal, points)
        self._missed = find_missed(self._matched, rest, self.structure, point_threshold)
        self.sky = self._matched.light(points.join(self._missed)) + self._broad

    def replicate(self, n_realizations: int, generator: torch.Generator) -> Iterator[HuberFidelity]:
        """Yield data terms with other data of the same sky; see `replicate`."""
        return replicate(self._operator, self.sky, self._fidelity, n_realizations, generator)

    def realize(
        self,
        coefficients: torch.Tensor,
        correct: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        narrow: Callable[[torch.Tensor], torch.Tensor],
        n_realizations: int,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Refit the likely sky with new noise, several times.

        Parameters
        ----------
        coefficients : `torch.Tensor`
            The solution of the problem.
        correct : `~collections.abc.Callable`
            Returns the padded transform of the corrected latent image from
            those of a latent image and of the gradient there.
        narrow : `~collections.abc.Callable`
            Returns the final image (H, W) from that.
        n_realizations : `int`
            Number of refits.
        generator : `torch.Generator`
            Source of the noise, on the CPU.

        Returns
        -------
        realizations : `torch.Tensor`, shape (n_realizations, H, W)
            What the refitted images differ from their truth by. Their mean
            is the bias that is to be expected.
        """
        images = (
            narrow(correct(*self.refit(problem, coefficients)))
            for problem in self.replicate(n_realizations, generator)
        )
        return self.compare(images, narrow, generator)

    def compare(
        self,
        images: Iterable[torch.Tensor],
        narrow: Callable[[torch.Tensor], torch.Tensor],
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Return what images (H, W) that were made of `replicate` differ from the truth by.

        Parameters
        ----------
        images : `~collections.abc.Iterable` [ `torch.Tensor` ]
            The images.
        narrow, generator
            As in `realize`.

        Returns
        -------
        realizations : `torch.Tensor`, shape (N, H, W)
            Their mean is the bias that is to be expected.
        """
        points = self._points.join(self._missed)
        truth = self._matched.render(points, self._target_fwhm) + narrow(self._broad)
        errors, moved = [], torch.zeros_like(truth)
        for image in images:
            move = self._draw_move(generator)
            moved += move
            errors.append(image - truth - move)
        if not errors:
            return truth.new_zeros((0, *truth.shape))
        return torch.stack(errors) + _DEPTH * moved / len(errors)

    def refit(
        self, problem: HuberFidelity, coefficients: torch.Tensor, *, n_steps: int = 50
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return padded transforms of a latent image and of the gradient there.

        Parameters
        ----------
        problem : `HuberFidelity`
            Data of the likely sky.
        coefficients : `torch.Tensor`
            The solution of the original problem, for where there is structure.
        n_steps : `int`, optional
            Steps of the fit.

        Notes
        -----
        A fit from scratch needs ten times the steps, most of them for what
        is bright. So it starts with part of the light of bright points where
        the new data have them, with the old solution of what is no point, and
        with a linear deconvolution of the rest.
        """
        quadratic = self._quadratic
        known = quadratic.select(coefficients, self.structure)
        before = quadratic.combine(known) + self._matched.light(self.bright)
        slope = evaluate(self._operator, problem, before)[1]
        points = self._finder.improve(self._matched.signal(before, slope), self.bright, n_steps=2)
        least = _KNOWN * self._matched.flux_error
        flux = points.flux.clamp_min(least)
        light = flux * (flux - least) / (flux + least)
        start = known + quadratic.scatter(points.x, points.y, light)
        slope = slope + quadratic.curvature * (quadratic.combine(start) - before)
        start = start + quadratic.divide(self._operator.untransform(self._start.apply(slope)).clamp_min_(0.0))
        seen = quadratic.combine(start)
        slope = evaluate(self._operator, problem, seen)[1]
        seen = quadratic.combine(quadratic.solve(start, slope, n_steps, transform=seen, constant=True))
        return seen, evaluate(self._operator, problem, seen)[1]

    def _draw_move(self, generator: torch.Generator) -> torch.Tensor:
        """Return what points (H, W) that are as likely differ by from those that there are."""
        points = self._jittered
        dx, dy, wider, brighter = (
            torch.randn(len(points), generator=generator, dtype=torch.float64).to(points.x.device)
            for _ in range(4)
        )
        x, y = (
            p + d * torch.hypot(e, torch.full_like(e, _PLACE))
            for p, d, e in zip((points.x, points.y), (dx, dy), self._matched.place_error(points), strict=True)
        )
        strength = (points.flux / self._matched.flux_error).clamp_min(1.0)
        wider = wider * torch.hypot(_WIDTH[0] / strength, torch.full_like(strength, _WIDTH[1]))
        moved = PointSources(x, y, points.flux * (1.0 + _FLUX * brighter))
        render = self._matched.render
        return render(moved, self._target_fwhm, wider) - render(points, self._target_fwhm)


def find_missed(
    matched: MatchedFilter, signal: torch.Tensor, structure: torch.Tensor, threshold: float
) -> PointSources:
    """Return what may be points, and is a little below their threshold.

    Parameters
    ----------
    matched : `MatchedFilter`
        The filter.
    signal : `torch.Tensor`
        Padded transform of the filtered data without the points that were found.
    structure : `torch.Tensor`, shape ``latent_shape``
        1 where there is something that is no point, 0 elsewhere.
    threshold : `float`
        Significance from which on points are found; 0 if none are.
    """
    if not matched.finds(threshold):
        return PointSources.none(matched.device)
    found = PointFinder(matched, threshold - _BELOW).candidates(signal, n_rounds=1)
    strength = found.flux / matched.flux_errors(found)
    return found.select((strength > threshold - _BELOW) & (matched.at(structure, found) == 0.0))


def replicate(
    operator: ConvolutionOperator,
    sky: torch.Tensor,
    fidelity: HuberFidelity,
    n_realizations: int,
    generator: torch.Generator,
) -> Iterator[HuberFidelity]:
    """Yield data terms with other data of the same sky.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        Forward model.
    sky : `torch.Tensor`
        Padded transform of the latent image.
    fidelity : `HuberFidelity`
        Says how large the noise is, and what is masked.
    n_realizations : `int`
        How many.
    generator : `torch.Generator`
        Source of the noise, on the CPU.
    """
    covered = fidelity.inverse_sigma > 0
    sigma = torch.where(covered, 1.0 / fidelity.inverse_sigma, 0.0)
    lifted = operator.lift(sky)
    for _ in range(n_realizations):
        data = torch.empty_like(sigma)
        for which in operator.chunks():
            noise = torch.randn(sigma[which].shape, generator=generator, dtype=sigma.dtype)
            data[which] = operator.predict(lifted, which) + noise.to(sigma.device) * sigma[which]
        yield HuberFidelity(data, fidelity.inverse_sigma, fidelity.delta)


def smooth_variance(realizations: torch.Tensor, image: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    """Return a variance plane from noise realizations.

    Parameters
    ----------
    realizations : `torch.Tensor`, shape (N, H, W)
        Noise realizations, N > 0.
    image : `torch.Tensor`, shape (H, W)
        The image they belong to.
    precision : `torch.Tensor`, shape (H, W)
        What the exposures know of the flux of a point at each pixel, in any
        unit: its inverse variance.

    Notes
    -----
    The noise of a restored sky is a few specks, and a mean of its squares over
    neighbours is as uneven as they are. So the exposures say how the noise
    changes from place to place, and all of the sky how large it is. Where the
    image is bright, squares are averaged over the width of a star. No pixel is
    surer than the sky around it: the specks of a realization are rarely where
    those of the image are.
    """
    square = (realizations**2).mean(dim=0)
    # Where hardly any exposure has data the image is what its surroundings suggest.
    relative = (precision / precision.max().clamp_min(1e-30)).clamp_min(_LEAST_PRECISION).to(square)
    sky = torch.ones_like(square)
    # Errors of sources are no noise of the sky; the level of the sky tells what sources are.
    for _ in range(_LOOKS):
        level = (square * relative * sky).sum() / sky.sum().clamp_min(1.0)
        wide = level.clamp_min(1e-30) / relative
        bright = torch.sigmoid(4.0 * (image / wide.sqrt() - 5.0).clamp(-5.0, 5.0))
        sky = 1.0 - local_maximum(bright, GROWTH)
    narrow = _average(square, _NARROW)
    return torch.maximum(bright * narrow + (1.0 - bright) * wide, wide)


def _average(square: torch.Tensor, fwhm: float) -> torch.Tensor:
    """Return the mean (H, W) over neighbours, of which there are fewer at the edge."""
    kernel = gaussian_kernel(fwhm, 2 * math.ceil(1.5 * fwhm) + 1)
    share = convolve(torch.ones_like(square), kernel).clamp_min(1e-9)
    return (convolve(square, kernel) / share).clamp_min(1e-30)
