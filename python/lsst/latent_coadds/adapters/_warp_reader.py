# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of one visit that were interpolated to a patch by others."""

from __future__ import annotations

__all__ = ("WarpReader", "mean_variance_ratio")

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from lsst.images import Box

from ._errors import BadInputError, InputProblem
from ._exposure_reader import DetectorPixels, ExposureReader
from ._patch_grid import PatchGrid
from ._pixel_mapping import PixelMapping

_GRID_TOLERANCE = 2e-3
"""Largest distance in pixels between those of a warp and of the patch."""

_SEARCH_STEP = 24.0
"""Step in pixels of the search for a position that has a PSF."""


def mean_variance_ratio(order: int) -> float:
    """Return what Lanczos interpolation leaves of the variance of white noise.

    Parameters
    ----------
    order : `int`
        Order of the kernel.

    Returns
    -------
    ratio : `float`
        Sum of the squared weights in two dimensions, on average over all
        positions between pixels. The noise power at low frequencies stays
        what it was, so that it is the variance of a pixel over this.
    """
    shift = (np.arange(256)[:, None] + 0.5) / 256
    offset = np.arange(1 - order, order + 1) - shift
    weight = np.sinc(offset) * np.sinc(offset / order)
    weight /= weight.sum(axis=1, keepdims=True)
    return float((weight**2).sum(axis=1).mean()) ** 2


class WarpReader(ExposureReader):
    """What warps of all types have in common.

    Notes
    -----
    The variance plane of a warp is that of single pixels, and neighbouring
    pixels share noise. As for the images that are registered here, `read`
    gives the noise power instead, which is what a fit has to weigh; for the
    average over positions see `mean_variance_ratio`.

    A warp holds all detectors of a visit, and its PSF jumps from one to the
    next; there is none in the gaps.
    """

    is_warp: ClassVar[bool] = True

    def check_grid(self, patch: PatchGrid, mapping: PixelMapping) -> None:
        box = patch.outer_bbox
        x, y = (
            a.ravel()
            for a in np.meshgrid(np.linspace(box.x.min, box.x.max, 5), np.linspace(box.y.min, box.y.max, 5))
        )
        found_x, found_y = mapping(x, y)
        factor = float(patch.oversampling)
        # Both grids have the corner of pixel (0, 0) in common.
        distance = np.hypot(found_x - (x + 0.5) / factor + 0.5, found_y - (y + 0.5) / factor + 0.5).max()
        remedy = (
            f"Make the warps of tract {patch.tract}, patch {patch.patch} with sky map {patch.skymap!r}, or "
            "read the calexps instead (input_kind='calexps')."
        )
        if not distance < _GRID_TOLERANCE:
            raise BadInputError(
                self.name,
                InputProblem.OTHER_GRID,
                f"By its WCS, its pixels lie up to {distance:.3g} px away from those of the patch. {remedy}",
            )
        if not self._reaches(box, factor):
            raise BadInputError(
                self.name,
                InputProblem.OTHER_GRID,
                f"Its box {self.bbox} does not reach the patch, which is {box}"
                f"{'' if factor == 1 else f' on a grid {factor:g} times finer'}. {remedy}",
            )

    def _reaches(self, box: Box, factor: float) -> bool:
        own = self.bbox
        return (
            own.x.start < box.x.stop / factor
            and own.x.stop > box.x.start / factor
            and own.y.start < box.y.stop / factor
            and own.y.stop > box.y.start / factor
        )

    def locate_psf(self, x: float, y: float) -> tuple[float, float]:
        first: BadInputError | None = None
        box = self.bbox
        largest = max(box.x.size, box.y.size)
        for ring in range(int(largest / _SEARCH_STEP) + 2):
            n = 1 if ring == 0 else 8 * min(ring, 4)
            for k in range(n):
                angle = 2 * math.pi * k / n
                near_x = min(max(x + ring * _SEARCH_STEP * math.cos(angle), box.x.min), box.x.max)
                near_y = min(max(y + ring * _SEARCH_STEP * math.sin(angle), box.y.min), box.y.max)
                try:
                    self.compute_psf_kernel(x=near_x, y=near_y)
                except BadInputError as error:
                    first = first or error
                else:
                    return near_x, near_y
        assert first is not None, "At least one position was tried."
        raise first

    def read(self, bbox: Box, bad: Sequence[str], saturated: Sequence[str]) -> DetectorPixels:
        pixels = super().read(bbox, (*bad, "NO_DATA"), saturated)  # type: ignore[safe-super]
        power = pixels.variance / np.float32(self.pixel_variance_ratio)
        return dataclasses.replace(pixels, variance=power)
