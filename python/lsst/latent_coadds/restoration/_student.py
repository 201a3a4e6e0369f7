# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Student's t distribution, without scipy, and intervals by it."""

from __future__ import annotations

__all__ = ("student_interval", "student_quantile")

import functools
import math
import statistics

import numpy as np

_FARTHEST = 4.0
"""How far an interval reaches at most, in units of its half width on a linear scale."""

_CURVED, _LEAST_LEFT, _STEEPEST = 1.5, 0.5, 5.0
"""What is taken off the variance where realizations are curved, in units of their
squared bias; the share of the variance that stays in any case; and the largest bias
that curvature makes, in units of the variance (both on the asinh scale).
"""

_HIGH, _LOW = (0.5, 1.0), (1.0, 2.0)
"""Means of errors, over their scatter, from the first of which on they begin to count as
differences, and from the second on do: where realizations are too high, and where they are
too low, as errors of places make them, too.
"""


@functools.cache
def student_quantile(probability: float, n_degrees: float) -> float:
    """Return a quantile of Student's t distribution.

    Parameters
    ----------
    probability : `float`
        Between 0 and 1.
    n_degrees : `float`
        Degrees of freedom, a positive whole number or infinity.

    Notes
    -----
    Inverts the finite series for whole degrees of freedom (Abramowitz and
    Stegun, 26.7.3 and 26.7.4) by bisection.
    """
    if probability < 0.5:
        return -student_quantile(1.0 - probability, n_degrees)
    if math.isinf(n_degrees) or n_degrees > 1000:
        return statistics.NormalDist().inv_cdf(probability)
    low, high = 0.0, 1.0
    while _within(high, int(n_degrees)) < 2.0 * probability - 1.0:
        low, high = high, 2.0 * high
    for _ in range(80):
        middle = 0.5 * (low + high)
        if _within(middle, int(n_degrees)) < 2.0 * probability - 1.0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _within(t: float, n: int) -> float:
    """Return the probability between -t and t for n degrees of freedom."""
    angle = math.atan(t / math.sqrt(n))
    cosine = math.cos(angle)
    term, total = (cosine, 0.0) if n % 2 else (1.0, 0.0)
    for k in range(1 if n % 2 else 0, n - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    if n % 2:
        return 2.0 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def student_interval(
    value: float, errors: np.ndarray, level: float, soft: float, more: float
) -> tuple[float, float, float, float]:
    """Return bias, standard error and both ends of the interval of a measurement.

    Parameters
    ----------
    value : `float`
        The measurement.
    errors : `numpy.ndarray`, shape (N,)
        Its errors in the realizations.
    level : `float`
        How often the interval should contain the truth.
    soft : `float`
        Value at which the asinh scale turns from a linear to a logarithmic one.
    more : `float`
        Another error, known already.

    Notes
    -----
    See `ErrorModel`.
    """
    mean, scatter = float(errors.mean()), float(errors.std(ddof=1))
    first, last = _HIGH if mean > 0.0 else _LOW
    t = min(max((abs(mean) - first * scatter) / max((last - first) * scatter, 1e-300), 0.0), 1.0)
    share = t * t * (3.0 - 2.0 * t)
    factors = _scaled_interval(value, errors, level, soft, more)
    if share == 0.0:
        return factors
    # What is off by more than it scatters is not off by a factor.
    bias, *others = _scaled_interval(value - mean, errors - mean, level, soft, more)
    pairs = zip(factors, (bias + mean, *others), strict=True)
    bias, error, low, high = (f + share * (d - f) for f, d in pairs)
    return bias, error, low, high


def _scaled_interval(
    value: float, errors: np.ndarray, level: float, soft: float, more: float
) -> tuple[float, float, float, float]:
    """Return what `student_interval` does, with all errors on an asinh scale."""
    n = len(errors)
    soft = max(soft, 1e-9 * (abs(value) + float(np.abs(errors).max())), 1e-300)
    middle = math.asinh(value / soft)
    steps = np.arcsinh((value + errors) / soft) - middle
    shift, square = float(steps.mean()), float(steps.var(ddof=1))
    bias = min(max(-shift, 0.0), _STEEPEST * square)
    curved = _CURVED * max(bias**2 - square / n, 0.0)
    square = max(square - curved, _LEAST_LEFT * square) * (1.0 + 1.0 / n)
    square += (more / math.hypot(value, soft)) ** 2
    half = student_quantile(0.5 + 0.5 * level, n - 1) * math.sqrt(square)
    error = math.hypot(float(errors.std(ddof=1)) * math.sqrt(1.0 + 1.0 / n), more)
    # Factors are of no use where a realization has lost all of a star.
    linear = value - float(errors.mean())
    reach = _FARTHEST * student_quantile(0.5 + 0.5 * level, n - 1) * error
    bounds = ((0, 2.0 * error), (-1, reach), (1, reach))
    centre, low, high = (
        min(max(soft * _sinh(middle - shift + k * half), linear - most), linear + most) for k, most in bounds
    )
    return value - centre, error, low, high


def _sinh(x: float) -> float:
    return math.sinh(min(max(x, -700.0), 700.0))
