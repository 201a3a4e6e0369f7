# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Highest pixels around."""

from __future__ import annotations

__all__ = ("detect_peaks", "local_maximum", "share_at_least")

import torch

_ROUNDING = 1e-4
"""Share of the weight that rounding makes of none."""


def local_maximum(image: torch.Tensor, radius: int) -> torch.Tensor:
    """Return the largest value (H, W) in a square of ``2 radius + 1`` pixels around each pixel."""
    size, pool = 2 * radius + 1, torch.nn.functional.max_pool2d
    rows = pool(image[None, None], (size, 1), stride=1, padding=(radius, 0))
    return pool(rows, (1, size), stride=1, padding=(0, radius))[0, 0]


def share_at_least(share: torch.Tensor, least: float, radius: int = 32) -> torch.Tensor:
    """Return shares of the weight (H, W), raised to a part of the largest one around.

    What the exposures of a whole tile have is no measure: it may be far more than
    those of a place.
    """
    return torch.maximum(share, least * local_maximum(share, radius)).clamp_min_(_ROUNDING)


def detect_peaks(image: torch.Tensor, threshold: float, *, radius: int = 3) -> torch.Tensor:
    """Return rows and columns (n, 2) of the highest pixels around, above a threshold."""
    return torch.nonzero((image >= local_maximum(image, radius)) & (image > threshold))
