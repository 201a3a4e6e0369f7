# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Highest pixels around."""

from __future__ import annotations

__all__ = ("detect_peaks", "local_maximum")

import torch


def local_maximum(image: torch.Tensor, radius: int) -> torch.Tensor:
    """Return the largest value (H, W) in a square of ``2 radius + 1`` pixels around each pixel."""
    size = 2 * radius + 1
    return torch.nn.functional.max_pool2d(image[None, None], size, stride=1, padding=radius)[0, 0]


def detect_peaks(image: torch.Tensor, threshold: float, *, radius: int = 3) -> torch.Tensor:
    """Return rows and columns (n, 2) of the highest pixels around, above a threshold."""
    return torch.nonzero((image >= local_maximum(image, radius)) & (image > threshold))
