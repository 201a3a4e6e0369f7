# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Intervals of measurements in a star's core, where its place matters most."""

from __future__ import annotations

__all__ = ("SourcePlace",)

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ._student import student_quantile

_REACH = 4
"""How far (px) a source may be from what is measured, and its place in a realization from that."""

_ROUNDS = 8
"""Rounds in which a centroid is found."""

_LEAST_FOUND, _LEAST_FLUX = 8, 0.35
"""How many realizations must have the source, with how much of its flux."""

_NARROW = 25.0
"""Pixels that weights have, in units of the source's variance: a fit of a PSF has 13,
and in apertures places hardly matter.
"""

_SURE = 0.25
"""Error of the place, in sigma of the source's profile, below which places enter linearly."""

_UNEXPLAINED = 0.5
"""Part of the squared errors that places and fluxes may leave unexplained."""

_FARTHEST = 6.0
"""Distance (px) from where the source is that is looked at."""

_TAPS = 5
_RADII, _ANGLES, _FACTORS = 9, 24, 17
"""Steps by which the region is searched."""


@dataclasses.dataclass(frozen=True)
class SourcePlace:
    """Where a source is, and how well its place and its flux are known.

    Attributes
    ----------
    sigma : `float`
        That of a Gaussian as wide as the source, in pixels.
    shifts : `numpy.ndarray`, shape (n, 2)
        Places in the realizations that have it, along y and x, less that in
        the image.
    factors : `numpy.ndarray`, shape (n,)
        Fluxes there, over that in the image.
    which : `numpy.ndarray` of bool, shape (N,)
        The realizations that have it.
    """

    sigma: float
    shifts: np.ndarray
    factors: np.ndarray
    which: np.ndarray

    @classmethod
    def find(cls, image: np.ndarray, realizations: np.ndarray, y: float, x: float) -> SourcePlace | None:
        """Find the source that is next to a place.

        Parameters
        ----------
        image : `numpy.ndarray`, shape (H, W)
            The image.
        realizations : `numpy.ndarray`, shape (N, H, W)
            Samples of its error.
        y, x : `float`
            The place.

        Returns
        -------
        place : `SourcePlace` or `None`
            `None` if no source is within four pixels, or if it is found again
            in too few realizations to say anything.
        """
        half = 2 * _REACH
        rows, columns = (slice(round(p) - half, round(p) + half + 1) for p in (y, x))
        if rows.start < 0 or columns.start < 0:
            return None
        stamp = np.nan_to_num(image[rows, columns])
        if stamp.shape != (2 * half + 1, 2 * half + 1):
            return None
        top, left = (int(p[0]) + _REACH for p in _highest(stamp[None, _REACH:-_REACH, _REACH:-_REACH]))
        around = stamp[top - 3 : top + 4, left - 3 : left + 4]
        area = np.count_nonzero(around > 0.5 * stamp[top, left])
        sigma = max(0.7, math.sqrt(area / math.pi) / 1.177)
        y0, x0, flux = (v[0] for v in _centroid(stamp[None], np.array([top]), np.array([left]), sigma))
        if not (flux > 0.0 and math.hypot(y0 - top, x0 - left) < 1.5):
            return None
        planes = stamp + np.nan_to_num(realizations[:, rows, columns])
        near = planes[:, top - _REACH : top + _REACH + 1, left - _REACH : left + _REACH + 1]
        below, right = _highest(near)
        ys, xs, fluxes = _centroid(planes, below + top - _REACH, right + left - _REACH, sigma)
        shifts, factors = np.stack([ys - y0, xs - x0], axis=1), fluxes / flux
        which = (factors > _LEAST_FLUX) & (np.hypot(*shifts.T) < _REACH)
        if which.sum() < _LEAST_FOUND:
            return None
        return cls(sigma, shifts[which], factors[which], which)

    @property
    def error(self) -> float:
        """Standard error of the place along an axis."""
        return math.sqrt(np.mean(self.shifts**2))

    def is_narrow(self, weights: np.ndarray) -> bool:
        """Return whether what weights see depends on the place of the source, and that is uncertain."""
        n_pixels = np.abs(weights).sum() ** 2 / (weights**2).sum()
        return bool(n_pixels < _NARROW * self.sigma**2 and self.error > _SURE * self.sigma)

    def interval(
        self,
        measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
        errors: np.ndarray,
        level: float,
        relative_error: float,
    ) -> tuple[float, float] | None:
        """Return the interval of a measurement.

        Parameters
        ----------
        measure : `~collections.abc.Callable`
            Returns the measurement on the image moved down and to the right
            by whole pixels (n,).
        errors : `numpy.ndarray`, shape (N,)
            Errors of the measurement in the realizations.
        level : `float`
            How often the interval should contain the truth.
        relative_error : `float`
            Another error of the flux, as a part of it.

        Returns
        -------
        low, high : `float`
            The interval; `None` if the place and the flux of the source do
            not explain the errors.

        Notes
        -----
        The profile-likelihood interval [1]_ of what is measured, which is
        all that the measurement can be for places, fluxes and other errors
        within ``t`` standard errors of those of the image. It needs no
        linearity: the truth of a pixel beside a faint star is the light of a
        star that may be nearer or farther. Errors of places are those along
        the axes of an ellipse.

        References
        ----------
        .. [1] S. S. Wilks, Annals of Mathematical Statistics 9, 60 (1938).
        """
        n = len(self.factors)
        t = student_quantile(0.5 + 0.5 * level, n - 1)
        # Axes of the region of places, as columns.
        variance, axes = np.linalg.eigh(self.shifts.T @ self.shifts / n)
        axes = axes * np.minimum(t * np.sqrt(variance.clip(0.0)), _FARTHEST)
        moved = _Moved(measure, math.ceil(max(np.abs(axes).sum(axis=1).max(), np.abs(self.shifts).max())))
        expected = self.factors * moved.at(*self.shifts.T) - moved.at(np.zeros(1), np.zeros(1))
        seen = errors[self.which]
        # Their mean counts as well: a bias is nothing that places and fluxes explain.
        other = math.sqrt(np.sum((seen - expected) ** 2) / (n - 1))
        if other**2 > _UNEXPLAINED * np.mean(seen**2):
            return None
        scale = math.hypot(float(self.factors.std(ddof=1)), relative_error)
        latitude, radius, angle = np.meshgrid(
            np.linspace(-0.5 * math.pi, 0.5 * math.pi, _FACTORS),
            np.linspace(0.0, 1.0, _RADII),
            2.0 * math.pi * np.arange(_ANGLES) / _ANGLES,
            indexing="ij",
        )
        factor, within = np.sin(latitude), np.cos(latitude)
        reach = radius * within
        values = moved.at(
            *(axes @ np.stack([(reach * np.sin(angle)).ravel(), (reach * np.cos(angle)).ravel()]))
        )
        values *= np.maximum(1.0 + t * scale * factor, 0.0).ravel()
        rest = (t * other * within * np.sqrt(1.0 - radius**2)).ravel()
        return float((values - rest).min()), float((values + rest).max())


class _Moved:
    """A measurement on an image that is moved, between pixels too."""

    def __init__(self, measure: Callable[[np.ndarray, np.ndarray], np.ndarray], reach: int) -> None:
        self._steps = np.arange(-reach - _TAPS, reach + _TAPS + 1)
        down, right = np.meshgrid(self._steps, self._steps, indexing="ij")
        self._values = measure(down.ravel(), right.ravel()).reshape(down.shape)

    def at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the measurement (n,) on the image moved by (n,) pixels, with Lanczos' kernel."""
        by_row, by_column = (_lanczos(p[:, None] - self._steps) for p in (y, x))
        return np.einsum("ni,ij,nj->n", by_row, self._values, by_column)


def _lanczos(distance: np.ndarray) -> np.ndarray:
    """Return weights (n, steps) that sum to one."""
    inside = np.abs(distance) < _TAPS
    weight = np.where(inside, np.sinc(distance) * np.sinc(distance / _TAPS), 0.0)
    return weight / weight.sum(axis=1, keepdims=True)


def _highest(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column (n,) of the highest pixel of planes (n, h, w)."""
    flat = planes.reshape(len(planes), -1).argmax(axis=1)
    return flat // planes.shape[2], flat % planes.shape[2]


def _centroid(
    planes: np.ndarray, y: np.ndarray, x: np.ndarray, sigma: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centroids and fluxes (n,) in planes (n, h, w), in a Gaussian window that follows the source."""
    rows, columns = (np.arange(size) for size in planes.shape[1:])
    y, x = y.astype(np.float64), x.astype(np.float64)
    for k in range(_ROUNDS + 1):
        down, right = (rows - y[:, None])[:, :, None], (columns - x[:, None])[:, None, :]
        light = planes * np.exp(-0.5 * (down**2 + right**2) / sigma**2)
        flux = light.sum(axis=(1, 2))
        if k == _ROUNDS:
            break
        total = np.where(flux > 0.0, flux, np.inf)
        y = y + np.clip(2.0 * (light * down).sum(axis=(1, 2)) / total, -1.0, 1.0)
        x = x + np.clip(2.0 * (light * right).sum(axis=(1, 2)) / total, -1.0, 1.0)
    return y, x, flux
