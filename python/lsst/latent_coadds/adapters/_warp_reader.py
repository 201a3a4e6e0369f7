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

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from lsst.images import Box, Polygon

from ._detector_pixels import DetectorPixels
from ._errors import BadInputError, InputProblem
from ._exposure_reader import ExposureReader, InputPart
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
    next; there is none in the gaps. After `split` each detector is an
    exposure of its own, as for calexps.
    """

    is_warp: ClassVar[bool] = True

    _bbox: Box
    _part: InputPart | None = None
    _region: Polygon | None = None
    _whole_bbox: Box | None = None

    @property
    def _whole(self) -> Box:
        """Box of the warp, of which this may be a part."""
        return self._bbox if self._whole_bbox is None else self._whole_bbox

    def split(self) -> tuple[ExposureReader, ...]:
        parts = self.parts()
        if len(parts) < 2:
            return (self,)
        pieces = [self._select_part(part) for part in parts]
        return tuple(piece for piece in pieces if piece is not None) or (self,)

    def _select_part(self, part: InputPart) -> WarpReader | None:
        """Return a reader of one detector, or `None` if it is not in the box."""
        corners = self.sky_projection.sky_to_pixel(part.corners)
        own = self._whole
        x0, x1 = (int(f(v)) for f, v in ((np.floor, corners.x.min()), (np.ceil, corners.x.max())))
        y0, y1 = (int(f(v)) for f, v in ((np.floor, corners.y.min()), (np.ceil, corners.y.max())))
        x0, x1 = max(x0, own.x.start), min(x1 + 1, own.x.stop)
        y0, y1 = max(y0, own.y.start), min(y1 + 1, own.y.stop)
        if x0 >= x1 or y0 >= y1:
            return None
        piece = copy.copy(self)
        piece._part = part
        piece._region = Polygon(x_vertices=corners.x, y_vertices=corners.y)
        piece._whole_bbox, piece._bbox = own, Box.factory[y0:y1, x0:x1]
        piece.detector = part.detector
        piece._name = f"{self._name}, detector {part.detector}"
        return piece

    def parts(self) -> tuple[InputPart, ...]:
        return self._find_parts() if self._part is None else (self._part,)

    def _find_parts(self) -> tuple[InputPart, ...]:
        """Return the detectors of the whole warp."""
        return super().parts()

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
                f"Its box {self._whole} does not reach the patch, which is {box}"
                f"{'' if factor == 1 else f' on a grid {factor:g} times finer'}. {remedy}",
            )

    def _reaches(self, box: Box, factor: float) -> bool:
        own = self._whole
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
                if self._region is not None and not self._region.contains(x=near_x, y=near_y):
                    continue
                try:
                    self.compute_psf_kernel(x=near_x, y=near_y)
                except BadInputError as error:
                    first = first or error
                else:
                    return near_x, near_y
        if first is None:
            raise BadInputError(
                self.name,
                InputProblem.NO_PSF,
                f"It covers too little to have a PSF near x={x:.1f}, y={y:.1f}; nothing needs to be done "
                "unless this detector matters.",
            )
        raise first

    def read(self, bbox: Box, bad: Sequence[str], saturated: Sequence[str]) -> DetectorPixels:
        pixels = super().read(bbox, (*bad, "NO_DATA"), saturated)  # type: ignore[safe-super]
        power = pixels.variance / np.float32(self.pixel_variance_ratio)
        if self._region is None:
            return dataclasses.replace(pixels, variance=power)
        rows = np.arange(bbox.y.start, bbox.y.stop, dtype=np.float64)[:, None]
        columns = np.arange(bbox.x.start, bbox.x.stop, dtype=np.float64)[None, :]
        beside = ~np.asarray(self._region.contains(x=columns, y=rows))
        no_data = beside if pixels.no_data is None else pixels.no_data | beside
        return dataclasses.replace(pixels, variance=power, good=pixels.good & ~beside, no_data=no_data)
