# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stars seen by many exposures, and what they say about these exposures."""

from __future__ import annotations

__all__ = ("StarFit", "StarStamps", "initial_stars")

import dataclasses
from collections.abc import Sequence

import torch

from ._exposure_calibration import CALIBRATION_PARAMETERS
from ._psf_spline import PsfSpline, stretch_matrix

_N = len(CALIBRATION_PARAMETERS)
_POINT = (3, 4, 5)
"""Parameters of a point: place and flux. Others have size and shear as well."""

_HUBER = 3.0
"""Residual in sigma beyond which a pixel counts less."""

_OUTLIER = 8.0
"""Residual in sigma beyond which it does not count at all, if it is not in a
bright star, where a PSF that is wrong leaves as much.
"""

_LARGEST_CHI2 = 2.0
"""Mean squared residual beyond which a star in an exposure counts less: it may
vary, move, or be hit by a cosmic ray.
"""

_STAR_SCATTER = (0.005, 0.003, 0.003, 0.01, 0.01, 0.005)
"""Scatter (rms) of each parameter among the stars of an exposure besides their
noise: colours, variability, proper motions, errors of PSF models.
"""

_LARGEST_DEVIATION = 4.0
"""Mean squared deviation of a star in an exposure, in units of noise and that
scatter, from which on it counts less than half.
"""

_ALIKE = ([0], [1, 2], [3, 4], [5])
"""Parameters that share a prior."""

_LEAST_PRIOR = 0.1
"""Narrowest prior, over the error of a correction."""

_LARGEST_STEP = (0.15, 0.15, 0.15, 0.7, 0.7, 1.0)


@dataclasses.dataclass(frozen=True)
class StarStamps:
    """One exposure's pixels around stars.

    Attributes
    ----------
    exposure : `int`
        Number of the exposure.
    stars : `torch.Tensor`, shape (n,)
        Numbers of the stars.
    spline : `PsfSpline`
        PSF of the exposure.
    terms : `torch.Tensor`, shape (n, J)
        Terms of the PSF at the stars.
    x, y : `torch.Tensor`, shape (n, p)
        Latent coordinates of the pixels.
    area : `torch.Tensor`, shape (n, p)
        Area of the pixels in latent pixels.
    image, weight : `torch.Tensor`, shape (n, p)
        Light of the stars alone, and its inverse variance, float64.
    """

    exposure: int
    stars: torch.Tensor
    spline: PsfSpline
    terms: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    area: torch.Tensor
    image: torch.Tensor
    weight: torch.Tensor


def _temper(gram: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normal matrices and slopes of stars that do not all tell the same.

    Parameters
    ----------
    gram : `torch.Tensor`, shape (T, S, 6, 6)
        Normal matrix G of each star in each exposure.
    slope : `torch.Tensor`, shape (T, S, 6)
        Its slope b.

    Notes
    -----
    With offsets of their own, of covariance C, the matrix of a star becomes
    ``(G^-1 + C)^-1`` and its slope ``(1 + G C)^-1 b``: however bright it is,
    one star does not decide. One that deviates by more (it moves, it varies)
    gets a smaller weight.
    """
    scatter = torch.diag(gram.new_tensor(_STAR_SCATTER) ** 2)
    unit = torch.eye(_N, dtype=gram.dtype, device=gram.device)
    mixed = unit + gram @ scatter
    gram_after = torch.linalg.solve(mixed, gram)
    slope_after = torch.linalg.solve(mixed, slope[..., None])[..., 0]
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(1e-30)
    own = torch.linalg.solve(gram + torch.diag_embed(1e-6 * scale), slope[..., None])[..., 0]
    deviation = (own * slope_after).sum(dim=-1) / _N
    weight = 1.0 / (1.0 + deviation.clamp_min(0.0) / _LARGEST_DEVIATION)
    gram_after = 0.5 * (gram_after + gram_after.transpose(-1, -2))
    return weight[..., None, None] * gram_after, weight[..., None] * slope_after


def initial_stars(places: torch.Tensor) -> torch.Tensor:
    """Return points (S, 6) as `StarFit` takes them from x, y and flux (S, 3)."""
    stars = torch.zeros((len(places), _N), dtype=torch.float64, device=places.device)
    stars[:, 3:5], stars[:, 5] = places[:, :2], places[:, 2].log()
    return stars


class StarFit:
    """Fit of stars and of exposures at once.

    Parameters
    ----------
    stamps : `~collections.abc.Sequence` [ `StarStamps` ]
        The data.
    stars : `torch.Tensor`, shape (S, 6)
        Size, shear, place, and logarithm of the flux of each star to begin
        with; see `initial_stars`.
    parameters : `torch.Tensor`, shape (T, 6)
        Corrections of the exposures to begin with.
    weights : `torch.Tensor`, shape (T,)
        Weights of the exposures in means that are held fixed; their sum is 1.
    prior_sigma : `~collections.abc.Sequence` [ `float` ]
        Prior of each parameter of an exposure; 0 keeps it.
    model_error : `float`
        Error of PSFs as a part of the light.

    Notes
    -----
    A stretch, a shift and a scale of the PSF change the image of a star in
    the same six ways, whether the exposure or the star has them. So one 6 x 6
    matrix per star and exposure holds all that a Gauss-Newton step needs;
    stars are eliminated first.

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
        prior_sigma: Sequence[float],
        model_error: float,
    ) -> None:
        self.stamps = stamps
        self.parameters = parameters.to(torch.float64).clone()
        self.stars = stars.to(torch.float64).clone()
        self._weights = weights
        self._prior = torch.tensor(prior_sigma, dtype=torch.float64, device=stars.device)
        self._model_error = model_error
        self.errors = torch.zeros_like(self.parameters)
        self.chi2 = float("nan")

    @property
    def n_stars(self) -> int:
        """Number of stars, S."""
        return len(self.stars)

    def evaluate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normal matrices (T, S, 6, 6) and slopes (T, S, 6).

        A slope is minus half the derivative of chi2, after robust weights.
        """
        n = len(self.parameters)
        gram = self.parameters.new_zeros((n, self.n_stars, _N, _N))
        slope = self.parameters.new_zeros((n, self.n_stars, _N))
        total = count = 0.0
        for block in self.stamps:
            model, changes = self._model(block)
            residual, weight, chi2, used = self._weigh(block, model)
            total, count = total + float((chi2 * used).sum()), count + float(used.sum())
            weighted = changes * weight[:, None]
            gram[block.exposure, block.stars] = weighted @ changes.transpose(1, 2)
            slope[block.exposure, block.stars] = (weighted * residual[:, None]).sum(dim=2)
        self.chi2 = total / max(count, 1.0)
        return gram, slope

    def _weigh(
        self, block: StarStamps, model: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return residuals and robust weights (n, p), chi2 per pixel and numbers of pixels (n,)."""
        weight = block.weight / (1.0 + block.weight * (self._model_error * model) ** 2)
        residual = block.image - model
        size = residual.abs() * weight.sqrt()
        weight = weight * (_HUBER / size.clamp_min(_HUBER))
        weight = weight * (size < _OUTLIER * (1.0 + 0.05 * model.abs() * block.weight.sqrt()))
        used = (weight > 0).sum(dim=1).clamp_min(1)
        chi2 = (weight * residual**2).sum(dim=1) / used
        return residual, weight * (_LARGEST_CHI2 / chi2.clamp_min(_LARGEST_CHI2))[:, None], chi2, used

    def residual(self, block: StarStamps) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return light, residuals and robust weights (n, p) of the pixels of an exposure."""
        model = self._model(block)[0]
        residual, weight, _, _ = self._weigh(block, model)
        return model, residual, weight

    def shifted(self, block: StarStamps, dx: int, dy: int) -> torch.Tensor:
        """Return the light (n, p) if unstretched PSFs were moved by whole pixels."""
        return self._model(block, (float(dx), float(dy)))[0]

    def _model(
        self, block: StarStamps, moved: tuple[float, float] = (0.0, 0.0)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the light (n, p) of stars, and its changes (n, 6, p)."""
        exposure, stars = self.parameters[block.exposure], self.stars[block.stars]
        places = stars[:, 3:5] + exposure[3:5]
        dx, dy = block.x - places[:, :1], block.y - places[:, 1:]
        matrix = stretch_matrix(exposure[:3] + stars[:, :3])
        u = matrix[:, 0, :1] * dx + matrix[:, 0, 1:] * dy
        v = matrix[:, 1, :1] * dx + matrix[:, 1, 1:] * dy
        value, slope_u, slope_v = block.spline.evaluate(
            block.spline.knots(block.terms), u - moved[0], v - moved[1]
        )
        slope_x = matrix[:, 0, :1] * slope_u + matrix[:, 1, :1] * slope_v
        slope_y = matrix[:, 0, 1:] * slope_u + matrix[:, 1, 1:] * slope_v
        # Stamps of PSFs sum to one, whatever a stretch moves across their edges.
        norm = float(block.spline.stamps(exposure[:3], exposure[3:5] * 0.0)[0].sum())
        flux = torch.exp(stars[:, 5] + exposure[5]) * torch.linalg.det(matrix) / norm
        along_x, along_y = slope_x * dx, slope_y * dy
        changes = torch.stack(
            [
                -2.0 * value - along_x - along_y,
                along_y - along_x,
                -(slope_x * dy + slope_y * dx),
                -slope_x,
                -slope_y,
                value,
            ],
            dim=1,
        )
        light = block.area * flux[:, None]
        return light * value, light[:, None] * changes

    def fit(self, n_steps: int, *, points: bool, hold_exposures: bool = False) -> None:
        """Take Gauss-Newton steps.

        Parameters
        ----------
        n_steps : `int`
            Number of steps.
        points : `bool`
            Whether the sources are points; otherwise each has its own size
            and shear.
        hold_exposures : `bool`, optional
            Whether to fit sources alone.
        """
        for _ in range(n_steps):
            gram, slope = _temper(*self.evaluate())
            self._step(gram, slope, points=points, hold_exposures=hold_exposures)

    def narrow_prior(self) -> None:
        """Take priors that are as narrow as corrections turn out to be.

        Where corrections scatter around zero by no more than their errors
        there is nothing to correct, and noise of the stars is not to become
        errors of PSFs. (The variance of the prior that makes the corrections
        most likely is their mean square less that of their errors.)
        """
        for group in _ALIKE:
            known = self.errors[:, group] < 0.9 * self._prior[group]
            if float(self._prior[group[0]]) > 0.0 and bool(known.any()):
                error = (self.errors[:, group][known] ** 2).mean()
                excess = (self.parameters[:, group][known] ** 2).mean() - error
                sigma = excess.clamp_min(_LEAST_PRIOR**2 * error).sqrt()
                self._prior[group] = torch.minimum(sigma, self._prior[group])

    def _step(self, gram: torch.Tensor, slope: torch.Tensor, *, points: bool, hold_exposures: bool) -> None:
        own = list(_POINT) if points else list(range(_N))
        free = [i for i in range(_N) if float(self._prior[i]) > 0.0]
        star_matrix = gram.sum(dim=0)[:, own][:, :, own]
        star_matrix = star_matrix + torch.diag_embed(1e-9 * star_matrix.diagonal(dim1=1, dim2=2) + 1e-30)
        star_slope = slope.sum(dim=0)[:, own]
        change = torch.zeros_like(self.parameters)
        if free and not hold_exposures:
            change[:, free] = self._solve_exposures(gram, slope, star_matrix, star_slope, own, free)
            limit = change.new_tensor(_LARGEST_STEP)
            change = torch.maximum(torch.minimum(change, limit), -limit)
            star_slope = star_slope - torch.einsum("tsap,ta->sp", gram[..., own], change)
        step = torch.zeros_like(self.stars)
        step[:, own] = torch.linalg.solve(star_matrix, star_slope)
        limit = step.new_tensor(_LARGEST_STEP)
        self.stars = self.stars + torch.maximum(torch.minimum(step, limit), -limit)
        self.parameters = self.parameters + change
        # What the stars would absorb.
        fixed = [i for i in own if i in free]
        mean = self._weights @ self.parameters[:, fixed]
        self.parameters[:, fixed] -= mean
        self.stars[:, fixed] += mean

    def _solve_exposures(
        self,
        gram: torch.Tensor,
        slope: torch.Tensor,
        star_matrix: torch.Tensor,
        star_slope: torch.Tensor,
        own: Sequence[int],
        free: Sequence[int],
    ) -> torch.Tensor:
        """Return changes (T, F) of free parameters with the stars eliminated."""
        n, f = len(gram), len(free)
        cross = gram[:, :, free][..., own]
        inverse = torch.linalg.inv(star_matrix)
        reached = torch.einsum("tsap,spq->tsaq", cross, inverse)
        flat = cross.permute(1, 3, 0, 2).reshape(-1, n * f)
        matrix = -reached.permute(1, 3, 0, 2).reshape(-1, n * f).T @ flat
        diagonal = gram.sum(dim=1)[:, free][:, :, free]
        for t in range(n):
            matrix[t * f : (t + 1) * f, t * f : (t + 1) * f] += diagonal[t]
        right = slope.sum(dim=1)[:, free] - torch.einsum("tsap,sp->ta", reached, star_slope)
        precision = self._prior[list(free)] ** -2
        right = right - precision * self.parameters[:, free]
        matrix.diagonal().add_(precision.repeat(n))
        scale = float(matrix.diagonal().max())
        for i, name in enumerate(free):
            if name in own:
                row = matrix.new_zeros((n, f))
                row[:, i] = self._weights
                matrix += scale * torch.outer(row.reshape(-1), row.reshape(-1))
                right = right - scale * (self._weights @ self.parameters[:, name]) * row
        covariance = torch.linalg.inv(matrix)
        self.errors[:, free] = covariance.diagonal().clamp_min(0.0).sqrt().reshape(n, f)
        return (covariance @ right.reshape(-1)).reshape(n, f)

    def star_shapes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how much wider than a point each source is (S,), and the error.

        The logarithm of the size that the source would have of its own, if
        the PSFs are what they are now.
        """
        gram, slope = self.evaluate()
        matrix = gram.sum(dim=0)
        matrix = matrix + torch.diag_embed(1e-9 * matrix.diagonal(dim1=1, dim2=2) + 1e-30)
        covariance = torch.linalg.inv(matrix)
        change = (covariance @ slope.sum(dim=0)[..., None])[..., 0]
        return self.stars[:, 0] + change[:, 0], covariance[:, 0, 0].clamp_min(0.0).sqrt()
