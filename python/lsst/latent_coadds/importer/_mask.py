# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("excluded_pixels",)

from collections.abc import Mapping

import numpy as np

_HARMLESS = frozenset({"CROSSTALK", "DETECTED", "DETECTED_NEGATIVE", "INTERPOLATED", "NOT_DEBLENDED"})
"""Planes that say something of a pixel, and not that it is bad."""


def excluded_pixels(mask: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Combine the mask planes whose pixels are not to be measured.

    Parameters
    ----------
    mask : mapping [`str`, `numpy.ndarray`]
        Boolean ``(H, W)`` by mask plane.
    shape : `tuple` [`int`, `int`]
        Height and width.

    Returns
    -------
    excluded : `numpy.ndarray`
        Boolean ``(H, W)``; detections and interpolated pixels do not count,
        unless another plane is set there.
    """
    result = np.zeros(shape, dtype=bool)
    for name, plane in mask.items():
        if name not in _HARMLESS:
            result |= plane
    return result
