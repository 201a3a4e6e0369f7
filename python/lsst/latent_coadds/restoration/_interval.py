# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Intervals of linear measurements, from noise realizations."""

from __future__ import annotations

__all__ = ("ErrorModel", "Interval", "measure_interval")

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ._place_interval import SourcePlace
from ._restoration import Restoration
from ._student import student_interval, student_quantile

_LATTICE = 10
"""Places per axis at which a measurement is repeated on the realizations."""

_FEWEST = 24
"""Fewer such places say too little about the sky."""

_MOST = 1.5
"""Largest factor by which errors of the sky are taken to differ from place to place."""

_SOURCE, _RESTLESS = 5.0, 1.5
"""A place is on a source if the measurement, there or `_BESIDE` it, is above the
first of these in units of its errors in the sky, or if its errors are above the
second.
"""

_BESIDE = 2
"""Pixels by which a measurement is moved to see whether a source is next to it."""

_CENTRE = 4
"""Which of the places `_around` a place it is itself."""

_PASSES = 3
"""How often places that are on sources are taken out of the sky."""

_LINEAR = 2.0
"""Errors of the sky up to which an interval on a source counts in differences, and not in factors."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """An interval for the true value of a measurement.

    Attributes
    ----------
    value : `float`
        The measurement on the image.
    bias : `float`
        By how much the image is expected to be off; ``value - bias`` is the
        best estimate.
    error : `float`
        Standard error of the measurement.
    low, high : `float`
        The interval.
    level : `float`
        How often it should contain the truth.
    on_source : `bool`
        Whether the errors of this place were used, or those of the sky.
    """

    value: float
    bias: float
    error: float
    low: float
    high: float
    level: float
    on_source: bool

    @property
    def estimate(self) -> float:
        """The measurement without the expected bias."""
        return self.value - self.bias


class ErrorModel:
    """The errors of an image, for any linear measurement on it.

    Parameters
    ----------
    image : array-like, shape (H, W)
        The image.
    variance : array-like, shape (H, W)
        Its variance; infinite or NaN where there is no data.
    realizations : array-like, shape (N, H, W), optional
        Samples of its error: what it differs from the truth by. Fewer than
        two are not used; the noise is taken to be white then.
    relative_error : `float`, optional
        Error of the flux scale, as a part of the measurement, to be added.
        The realizations know of none, nor of errors of the PSFs.

    Notes
    -----
    The true value of a measurement w . x is ``w . image`` less its error, and
    the N realizations have the errors ``w . r_k``.

    *On a source* their mean is the bias, which is taken off, and their
    standard deviation s gives the interval ``+- t s sqrt(1 + 1/N)``, with
    Student's t of N - 1 degrees of freedom: it covers for any N from 2 on.
    This happens on an asinh scale that is linear up to two errors of the sky,
    for the place of a star enters a pixel as a factor: the logarithm of a
    Gaussian is a square of distances. If d is Gaussian with a variance of
    s^2 along each of two axes, the expected value of its square is off by
    ``2 s^2``, and the variance of the square is ``4 s^2 (|d|^2 + s^2)``, with ``|d|^2``
    too large by 2 s^2 where it is measured: by twice the squared bias. So
    realizations scatter too much where they are curved, which is where they
    are too low on average and vary by tens of per cent. One and a half times
    the squared bias is taken off there: not twice, for intervals of skewed
    errors must not be too narrow.

    *In the core of a faint star* not even that will do, for its place is known
    to half a pixel. There the interval is the profile-likelihood interval of
    place and flux, whose errors are those that the star has in the
    realizations (see `SourcePlace.interval`).

    *In the sky* errors are far from Gaussian where a restoration is
    non-negative: mostly tiny, and sometimes a speck. But there the errors of
    any other place in the sky are as good. The measurement is therefore
    repeated at up to a hundred places of each realization, and the interval
    is bounded by quantiles of these errors, each in units of what the
    variance plane expects there (which knows about missing exposures).

    A place is on a source if the measurement exceeds five errors of the sky
    there or two pixels away, or if the realizations differ there more than
    1.5 times as much as in the sky. Such places are none of the sky's, nor
    is a realization where it exceeds five errors there or two pixels away:
    where the image does, it is not called sky.
    """

    def __init__(
        self, image: Any, variance: Any, realizations: Any = None, *, relative_error: float = 0.0
    ) -> None:
        self.image = _as_array(image)
        self.variance = _as_array(variance)
        if self.image.ndim != 2 or self.variance.shape != self.image.shape:
            raise ValueError(
                f"image and variance must be planes of one shape, not {self.image.shape} and "
                f"{self.variance.shape}."
            )
        if realizations is None:
            realizations = np.zeros((0, *self.image.shape))
        self.realizations = np.asarray(realizations)
        if self.realizations.shape[1:] != self.image.shape:
            raise ValueError(
                f"realizations have shape {self.realizations.shape}, but the image has {self.image.shape}; "
                "give (N, H, W)."
            )
        if not relative_error >= 0.0:
            raise ValueError(f"relative_error is {relative_error}; it must not be negative.")
        self.relative_error = relative_error

    @classmethod
    def from_restoration(cls, restoration: Restoration, *, relative_error: float = 0.0) -> ErrorModel:
        """Take the image, its variance and its realizations of a result."""
        return cls(
            restoration.image,
            restoration.variance,
            restoration.noise_realizations,
            relative_error=relative_error,
        )

    def interval(self, weights: Any, level: float = 0.68, *, corner: tuple[int, int] = (0, 0)) -> Interval:
        """Return the interval of a linear measurement.

        Parameters
        ----------
        weights : array-like, shape (h, w)
            The measurement is the sum of weights times pixels: an aperture,
            a PSF over its squared sum, a coordinate times an aperture.
        level : `float`, optional
            How often the interval should contain the truth.
        corner : `tuple` [ `int`, `int` ], optional
            Row and column of the image where the first weight belongs.

        Returns
        -------
        interval : `Interval`
            All NaN where a pixel with a weight has no data.

        Raises
        ------
        ValueError
            The weights leave the image, or the level is not between 0 and 1.
        """
        weights = _as_array(weights)
        if not 0.0 < level < 1.0:
            raise ValueError(f"level is {level}; it must lie between 0 and 1.")
        rows, columns = self._place(weights, corner)
        used = weights != 0.0
        pixels = self.image[rows, columns][used]
        expected = self.variance[rows, columns][used]
        w = weights[used]
        if not (np.isfinite(pixels).all() and np.isfinite(expected).all()):
            nan = math.nan
            return Interval(nan, nan, nan, nan, nan, level, False)
        if not len(w):
            return Interval(0.0, 0.0, 0.0, 0.0, 0.0, level, False)
        value = float(w @ pixels)
        white = math.sqrt(float(w**2 @ expected))
        more = self.relative_error * abs(value)
        n = len(self.realizations)
        if n < 2:
            half = student_quantile(0.5 + 0.5 * level, math.inf) * math.hypot(white, more)
            return Interval(value, 0.0, math.hypot(white, more), value - half, value + half, level, False)
        errors = self.realizations[:, rows, columns][:, used].astype(np.float64) @ w
        sky, spread = self._measure_sky(weights, white)
        nearby = self._measure(self.image, weights, *_around(np.array([corner[0]]), np.array([corner[1]])))
        on_source = _is_source(nearby, np.mean(errors[None] ** 2, axis=1), spread)[0]
        if on_source:
            bias, error, low, high = student_interval(value, errors, level, _LINEAR * spread, more)
            low, high = self._follow_place(weights, corner, errors, level, (low, high))
        else:
            tail = 0.5 - 0.5 * level
            low, high = (value - float(q) for q in np.quantile(sky, (1.0 - tail, tail)))
            bias, error = float(np.median(sky)), float(np.std(sky))
            if more > 0.0:
                factor = math.hypot(error, more) / error
                low, high = (value - bias + factor * (bound - value + bias) for bound in (low, high))
                error *= factor
        return Interval(value, bias, error, low, high, level, bool(on_source))

    def _follow_place(
        self,
        weights: np.ndarray,
        corner: tuple[int, int],
        errors: np.ndarray,
        level: float,
        usual: tuple[float, float],
    ) -> tuple[float, float]:
        """Return the interval in the core of a star with an uncertain place, and elsewhere the usual one."""
        share = np.abs(weights) / np.abs(weights).sum()
        rows, columns = np.indices(weights.shape)
        y, x = corner[0] + float((share * rows).sum()), corner[1] + float((share * columns).sum())
        place = SourcePlace.find(self.image, self.realizations, y, x)
        if place is None or not place.is_narrow(weights):
            return usual

        def measure(down: np.ndarray, right: np.ndarray) -> np.ndarray:
            return self._measure(self.image, weights, corner[0] - down, corner[1] - right)

        found = place.interval(measure, errors, level, self.relative_error)
        return usual if found is None else found

    def _place(self, weights: np.ndarray, corner: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns that weights stand for."""
        if weights.ndim != 2 or not np.isfinite(weights).all():
            raise ValueError("weights must be a plane of finite numbers.")
        fits = all(
            0 <= start and start + n <= size
            for start, n, size in zip(corner, weights.shape, self.image.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"Weights of shape {weights.shape} at {tuple(corner)} leave the image, {self.image.shape}."
            )
        rows, columns = (slice(start, start + n) for start, n in zip(corner, weights.shape, strict=True))
        return rows, columns

    def _measure(
        self, planes: np.ndarray, weights: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> np.ndarray:
        """Return a measurement on planes (..., H, W) with weights that start at rows and columns.

        Places (any shape) that leave the planes are moved inside.
        """
        used_rows, used_columns = (np.flatnonzero(weights.any(axis=k)) for k in (1, 0))
        stamp = weights[used_rows[0] : used_rows[-1] + 1, used_columns[0] : used_columns[-1] + 1]
        windows = sliding_window_view(planes, stamp.shape, axis=(-2, -1))
        height, width = windows.shape[-4:-2]
        rows = np.clip(rows + used_rows[0], 0, height - 1)
        columns = np.clip(columns + used_columns[0], 0, width - 1)
        return np.tensordot(windows[..., rows, columns, :, :], stamp, axes=2)

    def _measure_sky(self, weights: np.ndarray, white: float) -> tuple[np.ndarray, float]:
        """Return errors (n,) of the measurement in the sky, and their rms.

        The errors are for as much noise as there is at a place with the
        error ``white`` in white noise. Where there is no sky they are none.
        """
        used_rows, used_columns = (np.flatnonzero(weights.any(axis=k)) for k in (1, 0))
        if not len(used_rows):
            return np.zeros(0), 0.0
        lines = [
            np.unique(np.linspace(-used[0], size - 1 - used[-1], _LATTICE).astype(int))
            for size, used in zip(self.image.shape, (used_rows, used_columns), strict=True)
        ]
        rows, columns = (g.reshape(-1) for g in np.meshgrid(*lines, indexing="ij"))
        scale = np.sqrt(self._measure(self.variance, weights**2, rows, columns))
        finite = np.isfinite(scale)
        if finite.sum() < _FEWEST:
            return np.zeros(0), 0.0
        quiet = finite & (scale <= 1.5 * np.quantile(scale[finite], 0.2))
        noise, nearby = (
            self._measure(planes, weights, *_around(rows, columns))
            for planes in (self.realizations, self.image)
        )
        largest = np.abs(noise).max(axis=2).T
        noise = noise[:, :, _CENTRE].T
        square = np.mean(noise**2, axis=1)
        spread = math.sqrt(square[quiet].mean())
        for _ in range(_PASSES):
            fewer = quiet & ~_is_source(nearby, square, spread)
            if fewer.sum() < _FEWEST:
                break
            quiet, spread = fewer, math.sqrt(square[fewer].mean())
        factor = np.clip(white / scale[quiet], 1.0 / _MOST, _MOST)
        # An image with a speck beside the place is not called sky there; nor is a realization.
        return (noise[quiet] * factor[:, None])[largest[quiet] <= _SOURCE * spread], spread


def _around(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns (n, 9) of places (n,) and of those beside them."""
    step = np.array([-_BESIDE, 0, _BESIDE])
    down, right = (g.reshape(-1) for g in np.meshgrid(step, step, indexing="ij"))
    return rows[:, None] + down, columns[:, None] + right


def _is_source(nearby: np.ndarray, square: np.ndarray, spread: float) -> np.ndarray:
    """Return whether (n,) places are on sources, from values (n, 9) there and mean squared errors (n,)."""
    return (np.abs(nearby).max(axis=1) > _SOURCE * spread) | (square > (_RESTLESS * spread) ** 2)


def measure_interval(
    restoration: Restoration,
    weights: Any,
    level: float = 0.68,
    *,
    corner: tuple[int, int] = (0, 0),
    relative_error: float = 0.0,
) -> Interval:
    """Return the interval of a linear measurement on a restored image.

    Parameters
    ----------
    restoration : `Restoration`
        The result, with noise realizations.
    weights : array-like, shape (h, w)
        The measurement is the sum of weights times pixels.
    level : `float`, optional
        How often the interval should contain the truth.
    corner : `tuple` [ `int`, `int` ], optional
        Row and column of the image where the first weight belongs.
    relative_error : `float`, optional
        Error of the flux scale, as a part of the measurement.

    See Also
    --------
    ErrorModel : The same for many measurements, and for images from anywhere.
    """
    model = ErrorModel.from_restoration(restoration, relative_error=relative_error)
    return model.interval(weights, level, corner=corner)


def _as_array(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)
