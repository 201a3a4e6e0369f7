# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Quantiles of Student's t distribution, without scipy."""

from __future__ import annotations

__all__ = ("student_quantile",)

import functools
import math
import statistics


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
