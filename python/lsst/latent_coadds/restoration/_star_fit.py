# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stars seen by many exposures, and what they say about these exposures."""

from __future__ import annotations

__all__ = ("StarFit",)

from collections.abc import Sequence
from typing import Any

import torch

from ._exposure_calibration import CALIBRATION_PARAMETERS
from ._exposure_prior import ExposurePrior
from ._star_stamps import N_STAR, StarStamps
from ._star_weights import N_WAYS, source_scatter, temper, weigh_pixels

_P = len(CALIBRATION_PARAMETERS) + 1
"""Numbers of an exposure: its corrections, and the level of its sky, in sigma, of
which only the stars are to be freed here.
"""

_POINT = (3, 4, 5)
"""Parameters of any source: place and flux."""

_POINT_SHAPE = (0.005, 0.003, 0.003)
"""Size and shears (rms) that a point may seem to have."""

_FIXED = 1e16
"""Precision of what is not to change."""

_LARGEST_STEP = (0.15, 0.15, 0.15, 0.7, 0.7, 1.0, 0.3, *(0.1,) * 6, 0.3)


class StarFit:
    """Fit of stars and of exposures at once.

    Parameters
    ----------
    stamps : `~collections.abc.Sequence` [ `StarStamps` ]
        The data.
    stars : `torch.Tensor`, shape (S, 6)
        Size, shear, place, and logarithm of the flux of each star to begin
        with; see `initial_stars`.
    parameters : `torch.Tensor`, shape (T, 13)
        Corrections of the exposures to begin with, in the order of
        ``CALIBRATION_PARAMETERS``.
    weights : `torch.Tensor`, shape (T,)
        Weights of the exposures in means that are held fixed; their sum is 1.
    prior : `ExposurePrior`
        What is expected of the corrections, and of the level of the sky.
    model_error : `float`
        Error of PSFs as a part of the light.
    points : `torch.Tensor`, shape (S,), or `None`
        Which sources are points. They, too, get sizes and shears, but small
        ones, so that a galaxy that was taken for a point is no error of all
        PSFs. Others have sizes and shears which count less in exposures with
        wider PSFs, as those of galaxies do. If no source is known to be a
        point (`None`), all may have sizes and shears that are the same in
        all exposures.

    Notes
    -----
    A stretch, a shift and a scale of the PSF change the image of a star in
    the same six ways, whether the exposure or the star has them; wings and
    sky are two more, which stars have not. So one 8 x 8 matrix per star and
    exposure holds all that a Gauss-Newton step needs, also of corrections that vary
    over the field; stars are eliminated first.

    What is common to all exposures and could as well belong to the stars is
    fixed: the weighted means of shifts and of flux scales are zero, and where
    sources are not known to be points those of size and shear too.
    """

    def __init__(
        self,
        stamps: Sequence[StarStamps],
        stars: torch.Tensor,
        parameters: torch.Tensor,
        weights: torch.Tensor,
        prior: ExposurePrior,
        model_error: float,
        points: torch.Tensor | None,
    ) -> None:
        self.stamps = stamps
        levels = parameters.new_zeros((len(parameters), _P - parameters.shape[1]))
        self.parameters = torch.cat([parameters, levels], dim=1).to(torch.float64)
        self.stars = stars.to(torch.float64).clone()
        self.prior = prior
        self._weights = weights
        self._model_error = model_error
        self._points = points
        self._wide = torch.zeros(self.n_stars, dtype=torch.bool) if points is None else ~points
        self.errors = torch.zeros_like(self.parameters)
        self.mean_errors = torch.zeros_like(self.parameters[0])
        self.flux_error = 0.0
        self._before: tuple[torch.Tensor, float] | None = None
        self.chi2 = float("nan")
        self.field = torch.zeros((self.n_stars, 2), dtype=torch.float64)
        for block in stamps:
            self.field[block.stars] = block.field
        widths = torch.tensor([block.spline.fwhm for block in stamps], dtype=torch.float64)
        self._width = float(widths.median()) if len(stamps) else 1.0

    @property
    def corrections(self) -> dict[str, Any]:
        """Parameters, and errors of all kinds, as in `ExposureCalibration`."""
        means, flux_error = self._before or (self.mean_errors, self.flux_error)
        return {
            "parameters": self.parameters[:, :-1],
            "errors": self.errors[:, :-1],
            "mean_errors": means[:-1],
            "flux_error": flux_error,
        }

    @property
    def n_stars(self) -> int:
        """Number of stars, S."""
        return len(self.stars)

    def evaluate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normal matrices (T, S, 8, 8) and slopes (T, S, 8).

        A slope is minus half the derivative of chi2, after robust weights.
        """
        n = len(self.parameters)
        gram = self.parameters.new_zeros((n, self.n_stars, N_WAYS, N_WAYS))
        slope = self.parameters.new_zeros((n, self.n_stars, N_WAYS))
        total = count = 0.0
        for block in self.stamps:
            model, changes = self._model(block)
            residual, weight, chi2, used = weigh_pixels(block, model, self._model_error)
            total, count = total + float((chi2 * used).sum()), count + float(used.sum())
            weighted = changes * weight[:, None]
            gram[block.exposure, block.stars] = weighted @ changes.transpose(1, 2)
            slope[block.exposure, block.stars] = (weighted * residual[:, None]).sum(dim=2)
        self.chi2 = total / max(count, 1.0)
        return gram, slope

    def residual(self, block: StarStamps) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return light, residuals and robust weights (n, p) of the pixels around points."""
        model = self._model(block)[0]
        residual, weight, _, _ = weigh_pixels(block, model, self._model_error)
        return model, residual, weight * ~self._wide[block.stars, None]

    def shifted(self, block: StarStamps, dx: int, dy: int) -> torch.Tensor:
        """Return the light (n, p) if unstretched PSFs were moved by whole pixels."""
        return self._model(block, (float(dx), float(dy)))[0]

    def _model(
        self, block: StarStamps, moved: tuple[float, float] = (0.0, 0.0)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the light (n, p) of stars, and its changes (n, 8, p)."""
        exposure, stars = self.parameters[block.exposure], self.stars[block.stars]
        places = stars[:, 3:5] + exposure[3:5]
        dx, dy = block.x - places[:, :1], block.y - places[:, 1:]
        told = exposure[:3] + block.field @ exposure[7:13].reshape(3, 2).T
        gain, response = self._extent(block)
        shape = response[:, None] * told + gain[:, None] * stars[:, :3]
        value, changes = block.spline.change(
            block.spline.knots(block.terms), dx, dy, shape, exposure[6], moved
        )
        # Stamps of PSFs sum to one, whatever a change moves across their edges.
        norm, slopes = block.spline.sums(block.terms, told, exposure[6])
        flux = torch.exp(stars[:, 5] + exposure[5]) / norm
        light = block.area * flux[:, None]
        changes = changes - slopes[:, :, None] * value[:, None]
        noise = block.weight[block.weight > 0].median() ** -0.5
        sky = (noise * block.area)[:, None]
        model = light * value + exposure[-1] * sky[:, 0]
        return model, torch.cat([light[:, None] * changes, sky], dim=1)

    def _extent(self, block: StarStamps) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how an exposure's stars (n,) show a shape of their own, and one of the PSF.

        A galaxy adds to the square of the width what is the same in all
        exposures, and so less to the width of one that is wide already.
        """
        stars, one = self.stars[block.stars], torch.ones(len(block.stars), dtype=torch.float64)
        ratio = (self._width / block.spline.fwhm) ** 2
        added = (ratio * torch.expm1(2.0 * stars[:, 0])).clamp_min(-0.5)
        wide = self._wide[block.stars]
        small = stars[:, 0].abs() < 1e-6
        gain = torch.where(small, ratio * one, 0.5 * torch.log1p(added) / stars[:, 0].where(~small, one))
        return torch.where(wide, gain, one), torch.where(wide, 1.0 / (1.0 + added), one)

    def fit(self, n_steps: int, *, hold_exposures: bool = False) -> None:
        """Take Gauss-Newton steps.

        Parameters
        ----------
        n_steps : `int`
            Number of steps.
        hold_exposures : `bool`, optional
            Whether to fit sources alone.
        """
        for _ in range(n_steps):
            gram, slope = temper(*self.evaluate(), source_scatter(self.stars, self._wide))
            self._step(gram, slope, hold_exposures=hold_exposures)

    def narrow_prior(self) -> None:
        """Take priors that are as narrow as corrections turn out to be; see `ExposurePrior`."""
        # A prior that says that nothing is wrong would say that all is known.
        self._before = self.mean_errors.clone(), self.flux_error
        idle = self.prior.narrow(self.parameters, self.errors, self.mean_errors)
        self.parameters[:, idle] = 0.0
        self.errors[:, idle] = 0.0
        self.mean_errors[idle] = 0.0

    def _step(self, gram: torch.Tensor, slope: torch.Tensor, *, hold_exposures: bool) -> None:
        by_star, by_exposure = self._ways()
        star_gram = by_star.transpose(-1, -2) @ gram
        star_matrix = (star_gram @ by_star).sum(dim=0)
        star_matrix = star_matrix + torch.diag_embed(1e-9 * star_matrix.diagonal(dim1=1, dim2=2) + 1e-30)
        star_slope = (by_star.transpose(-1, -2) @ slope[..., None]).sum(dim=0)[..., 0]
        if self._points is not None:
            precision = self._shape_precision()
            star_matrix.diagonal(dim1=1, dim2=2)[:, :3].add_(precision)
            star_slope[:, :3] -= precision * self.stars[:, :3]
        free = self.prior.free
        if self._points is None:
            # Without a point nothing tells the wings of a source from those of a PSF.
            free = [i for i in free if i != 6]
        change = torch.zeros_like(self.parameters)
        if free and not hold_exposures:
            ways = by_exposure[..., free]
            cross = (star_gram @ ways).transpose(-1, -2)
            diagonal = (ways.transpose(-1, -2) @ gram @ ways).sum(dim=1)
            right = (ways.transpose(-1, -2) @ slope[..., None]).sum(dim=1)[..., 0]
            change[:, free] = self._solve_exposures(diagonal, cross, right, star_matrix, star_slope, free)
            limit = change.new_tensor(_LARGEST_STEP)
            change = torch.maximum(torch.minimum(change, limit), -limit)
            star_slope = star_slope - torch.einsum("tsap,ta->sp", cross, change[:, free])
        step = torch.linalg.solve(star_matrix, star_slope)
        limit = step.new_tensor(_LARGEST_STEP[:N_STAR])
        self.stars = self.stars + torch.maximum(torch.minimum(step, limit), -limit)
        self.parameters = self.parameters + change
        # What the stars would absorb.
        fixed = [i for i in self._anchored(free) if i < N_STAR]
        mean = self._weights @ self.parameters[:, fixed]
        self.parameters[:, fixed] -= mean
        self.stars[:, fixed] += mean

    def _shape_precision(self) -> torch.Tensor:
        """Return the inverse variances (S, 3) of what is expected of shapes of sources."""
        precision = self.stars.new_tensor(_POINT_SHAPE) ** -2
        for i in range(3):
            if i not in self.prior.free:
                # PSFs are right, and so points have no shape.
                precision[i] = _FIXED
        return precision * ~self._wide[:, None]

    def _ways(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how stars (T, S, 8, 6) and exposures (T, S, 8, P) change images of stars."""
        n = len(self.parameters)
        by_star = torch.eye(N_WAYS, N_STAR, dtype=torch.float64).repeat(n, self.n_stars, 1, 1)
        by_exposure = torch.eye(N_WAYS, _P, dtype=torch.float64).repeat(n, self.n_stars, 1, 1)
        by_exposure[:, :, 7, 7] = 0.0
        by_exposure[:, :, 7, -1] = 1.0
        for i in range(3):
            by_exposure[:, :, i, 7 + 2 * i : 9 + 2 * i] = self.field
        if self._points is not None:
            for block in self.stamps:
                gain, response = self._extent(block)
                by_star[block.exposure, block.stars, :3] *= gain[:, None, None]
                by_exposure[block.exposure, block.stars, :3] *= response[:, None, None]
        return by_star, by_exposure

    def _anchored(self, free: Sequence[int]) -> list[int]:
        """Return parameters whose weighted means are held at zero."""
        if self._points is not None:
            return [i for i in _POINT if i in free]
        return [i for i in free if i not in (6, _P - 1)]

    def _solve_exposures(
        self,
        diagonal: torch.Tensor,
        cross: torch.Tensor,
        right: torch.Tensor,
        star_matrix: torch.Tensor,
        star_slope: torch.Tensor,
        free: Sequence[int],
    ) -> torch.Tensor:
        """Return changes (T, F) of free parameters with the stars eliminated."""
        n, f = right.shape
        inverse = torch.linalg.inv(star_matrix)
        reached = torch.einsum("tsap,spq->tsaq", cross, inverse)
        flat = cross.permute(1, 3, 0, 2).reshape(-1, n * f)
        matrix = -reached.permute(1, 3, 0, 2).reshape(-1, n * f).T @ flat
        blocks = matrix.reshape(n, f, n, f)
        for t in range(n):
            blocks[t, :, t] += diagonal[t]
        right = right - torch.einsum("tsap,sp->ta", reached, star_slope)
        precision = self.prior.precision(n)
        here = self.prior.free
        for i, name in enumerate(free):
            own = precision[here.index(name)]
            blocks[:, i, :, i] += own
            right[:, i] -= own @ self.parameters[:, name]
        scale = float(matrix.diagonal().max())
        for name in self._anchored(free):
            i = list(free).index(name)
            row = matrix.new_zeros((n, f))
            row[:, i] = self._weights
            matrix += scale * torch.outer(row.reshape(-1), row.reshape(-1))
            right = right - scale * (self._weights @ self.parameters[:, name]) * row
        covariance = torch.linalg.inv(matrix)
        self.errors[:, list(free)] = covariance.diagonal().clamp_min(0.0).sqrt().reshape(n, f)
        means = torch.einsum("t,taub,u->ab", self._weights, covariance.reshape(n, f, n, f), self._weights)
        self.mean_errors[list(free)] = means.diagonal().clamp_min(0.0).sqrt()
        effect = (self._weights[:, None] * self._flux_effects()[:, list(free)]).reshape(-1)
        self.flux_error = float(effect @ covariance @ effect) ** 0.5
        return (covariance @ right.reshape(-1)).reshape(n, f)

    def _flux_effects(self) -> torch.Tensor:
        """Return changes of the logarithm of a point's flux (T, P) with the numbers of an exposure.

        Of a flux that is measured with the PSF f as weight: that of g is
        ``<f, g> / <f, f>``.
        """
        effects = torch.zeros_like(self.parameters)
        for block in self.stamps:
            exposure = self.parameters[block.exposure]
            value, changes = block.spline.unit_stamp(exposure[:3], exposure[6])
            effects[block.exposure, :7] = -(changes @ value) / (value @ value)
            effects[block.exposure, 3:6] = 0.0
        return effects

    def star_shapes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how much wider than a point each source is (S,), and the error.

        The logarithm of the size that the source would have of its own, if
        the PSFs are what they are now.
        """
        gram, slope = (plane.sum(dim=0) for plane in self.evaluate())
        matrix = gram[:, :N_STAR, :N_STAR]
        matrix = matrix + torch.diag_embed(1e-9 * matrix.diagonal(dim1=1, dim2=2) + 1e-30)
        covariance = torch.linalg.inv(matrix)
        change = (covariance @ slope[:, :N_STAR, None])[..., 0]
        return self.stars[:, 0] + change[:, 0], covariance[:, 0, 0].clamp_min(0.0).sqrt()
