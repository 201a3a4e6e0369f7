# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How points are drawn between pixels."""

from __future__ import annotations

__all__ = ("TAPS", "sampled_gaussian", "undo_window", "window")

import math

import torch

TAPS = 4
"""Half-width in pixels of the Kaiser-Bessel window that puts a point between pixels."""

_BETA = 16.0
"""Shape of that window: its transform falls to 1/280 at the Nyquist frequency, and to nothing soon after."""

_LEAST_RESPONSE = 0.01
"""Transform of the window below which the division by it ends: no PSF has light there."""


def sampled_gaussian(distance: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Return a Gaussian, (n, pixels), that sums to one; without a width, shared linearly."""
    if float(variance.max() if variance.numel() else 1.0) == 0.0:
        return (1.0 - distance.abs()).clamp_min(0.0)
    weight = torch.exp(-0.5 * distance**2 / variance)
    return weight / weight.sum(dim=1, keepdim=True)


def window(distance: torch.Tensor) -> torch.Tensor:
    """Return the Kaiser-Bessel window, of unit area, at distances in pixels."""
    height = _BETA / (2.0 * TAPS * math.sinh(_BETA))
    return height * torch.special.i0(_BETA * (1.0 - (distance / TAPS) ** 2).clamp_min(0.0).sqrt())


def undo_window(n: int, *, full: bool) -> torch.Tensor:
    """Return one over the transform of the window at the frequencies of n pixels."""
    frequency = (torch.fft.fftfreq if full else torch.fft.rfftfreq)(n, dtype=torch.float64)
    root = (_BETA**2 - (2.0 * math.pi * TAPS * frequency) ** 2).sqrt()
    transform = torch.sinh(root) / root * (_BETA / math.sinh(_BETA))
    return 1.0 / transform.clamp_min(_LEAST_RESPONSE)
