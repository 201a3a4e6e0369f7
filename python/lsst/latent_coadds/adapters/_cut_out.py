# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("CutOut",)

import dataclasses

import numpy as np

from ._detector_pixels import DetectorPixels


@dataclasses.dataclass(frozen=True)
class CutOut:
    """The pixels of a detector image that a part of the patch needs.

    Attributes
    ----------
    pixels : `DetectorPixels`
        The pixels as they are.
    area : `float`
        Mean area in detector pixels of a pixel of the patch.
    covered, good, saturated, cosmic_ray : `numpy.ndarray` [`bool`], (H, W)
        Planes on the patch's grid: whether the detector reaches there, and
        flags of the nearest detector pixel.
    pixel_variance_ratio : `float`
        As for `ExposureReader`.
    """

    pixels: DetectorPixels
    area: float
    covered: np.ndarray
    good: np.ndarray
    saturated: np.ndarray
    cosmic_ray: np.ndarray
    pixel_variance_ratio: float
