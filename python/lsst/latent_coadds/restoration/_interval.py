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

from ._restoration import Restoration
from ._student import student_quantile

_LATTICE = 10
"""Places per axis at which a measurement is repeated on the realizations."""

_FEWEST = 24
"""Fewer such places say too little about the sky."""

_MOST = 1.5
"""Largest factor by which missing exposures raise the errors of the sky."""

_SOURCE, _RESTLESS = 5.0, 2.0
"""A measurement is on a source if it is above the first of these in units of
its errors in the sky, or if its errors are above the second.
"""


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

    *In the sky* errors are far from Gaussian where a restoration is
    non-negative: mostly tiny, and sometimes a speck. But there the errors of
    any other place in the sky are as good. The measurement is therefore
    repeated at several hundred places on each realization, and the interval
    is bounded by quantiles of these errors, each in units of what the
    variance plane expects there (which knows about missing exposures).

    A measurement is on a source if it exceeds five errors of the sky, or if
    the realizations differ there twice as much as in the sky.
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
        value = float(w @ pixels)
        white = math.sqrt(float(w**2 @ expected))
        more = self.relative_error * abs(value)
        n = len(self.realizations)
        if n < 2:
            half = student_quantile(0.5 + 0.5 * level, math.inf) * math.hypot(white, more)
            return Interval(value, 0.0, math.hypot(white, more), value - half, value + half, level, False)
        errors = self.realizations[:, rows, columns][:, used].astype(np.float64) @ w
        sky = self._sky_errors(weights, white)
        spread = float(np.sqrt(np.mean(sky**2))) if sky.size else 0.0
        on_source = abs(value) > _SOURCE * spread or float(np.mean(errors**2)) > (_RESTLESS * spread) ** 2
        if on_source:
            bias = float(errors.mean())
            error = float(errors.std(ddof=1)) * math.sqrt(1.0 + 1.0 / n)
            half = student_quantile(0.5 + 0.5 * level, n - 1) * error
            low, high = bias - half, bias + half
        else:
            tail = 0.5 - 0.5 * level
            low, high = (float(q) for q in np.quantile(sky, (tail, 1.0 - tail)))
            bias, error = float(np.median(sky)), float(np.std(sky))
        if more > 0.0:
            factor = math.hypot(error, more) / error
            low, high = (bias + factor * (bound - bias) for bound in (low, high))
            error *= factor
        return Interval(value, bias, error, value - high, value - low, level, on_source)

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

    def _sky_errors(self, weights: np.ndarray, white: float) -> np.ndarray:
        """Return errors of the measurement at other places, as if the noise were that of this one."""
        rows, columns = (np.flatnonzero(weights.any(axis=k)) for k in (1, 0))
        if not len(rows):
            return np.zeros(0)
        stamp = weights[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        starts = [
            np.unique(np.linspace(0, size - n, _LATTICE).astype(int))
            for size, n in zip(self.image.shape, stamp.shape, strict=True)
        ]
        places = np.ix_(*starts)
        variance = sliding_window_view(self.variance, stamp.shape)[places]
        scale = np.sqrt(np.einsum("ijkl,kl->ij", variance, stamp**2)).reshape(-1)
        finite = np.isfinite(scale)
        if finite.sum() < _FEWEST:
            return np.zeros(0)
        every = np.arange(len(self.realizations))
        noise = sliding_window_view(self.realizations, stamp.shape, axis=(1, 2))[np.ix_(every, *starts)]
        errors = np.tensordot(noise, stamp, axes=2).reshape(len(every), -1)
        sky = finite & (scale <= 1.5 * np.quantile(scale[finite], 0.2))
        # Near a source the variance plane says less about the sky.
        factor = np.clip(white / np.median(scale[sky]), 1.0, _MOST)
        return (errors[:, sky] * factor).reshape(-1)


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
