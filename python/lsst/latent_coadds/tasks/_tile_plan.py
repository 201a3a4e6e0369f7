# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("TilePlan", "choose_halo", "explain_shrinking")

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lsst.images import Box

from ..adapters import BadInputError, ExposureReader, PatchExposure, PatchGrid, PatchPsf, PixelMapping, to_box
from ..restoration import (
    MAX_HALO,
    MemoryModel,
    Window,
    choose_halo_width,
    choose_tile_size,
    estimate_memory,
    resident_memory,
)

GIB = 2.0**30

HOST_MODEL = MemoryModel(per_exposure_pixel=40.0, per_pixel=100.0, fixed=2e8)
"""What a stack takes on the host while a device works on it."""

PLANE_BYTES = 40.0
"""Output planes of a patch, in bytes per pixel."""


def choose_halo(readers: Sequence[ExposureReader], patch: PatchGrid) -> int:
    """Choose a halo that holds the light of the PSFs.

    Parameters
    ----------
    readers : `~collections.abc.Sequence` [`~lsst.latent_coadds.adapters.ExposureReader`]
        The exposures; those that cannot be used do not count.
    patch : `~lsst.latent_coadds.adapters.PatchGrid`
        The patch.

    Returns
    -------
    halo : `int`
        Pixels of the patch; see
        `~lsst.latent_coadds.restoration.choose_halo_width`.
    """
    halo = 16
    for reader in readers:
        try:
            mapping = PixelMapping(patch, reader)
            outer = patch.outer_bbox
            if not _may_reach(mapping, reader.bbox, outer.padded(MAX_HALO)):
                continue
            psf = PatchPsf(reader, mapping)
            kernel = psf.kernel(outer.x.center, outer.y.center)
        except BadInputError:
            continue
        halo = max(halo, choose_halo_width(torch.from_numpy(kernel)))
    return halo


def _may_reach(mapping: PixelMapping, detector: Box, region: Box) -> bool:
    """Return `False` where a detector certainly lies beside a part of the tract."""
    x, y = np.meshgrid(
        np.linspace(detector.x.min, detector.x.max, 5), np.linspace(detector.y.min, detector.y.max, 5)
    )
    on_tract = mapping.inverse(x.ravel(), y.ravel())
    return all(
        # Where a mapping fails, what looks closer will say so.
        not (values.max() < interval.start - 1 or values.min() > interval.stop)
        for values, interval in zip(on_tract, (region.x, region.y), strict=True)
    )


@dataclasses.dataclass
class TilePlan:
    """How a patch is divided into tiles that fit in memory.

    Parameters
    ----------
    exposures : `~collections.abc.Sequence` [`~lsst.latent_coadds.adapters.PatchExposure`]
        Exposures of the patch.
    patch : `~lsst.latent_coadds.adapters.PatchGrid`
        The patch.
    method : `str`
        Name of the restorer.
    halo : `int`
        Pixels around a tile.
    native : `bool`
        Whether exposures keep their own pixels.
    device : `str`
        Where to compute.
    max_memory, max_device_memory : `float`
        Bounds in GiB for the process, and for a device other than the CPU;
        zero takes four fifths of what is free there.
    """

    exposures: Sequence[PatchExposure]
    patch: PatchGrid
    method: str
    halo: int
    native: bool
    device: str
    max_memory: float
    max_device_memory: float

    def __post_init__(self) -> None:
        bbox = self.patch.outer_bbox
        budget = self.max_memory * GIB - resident_memory() - PLANE_BYTES * bbox.area
        model = estimate_memory(self.method)
        if self.device == "cpu":
            self._limits = [(budget, model)]
        else:
            self._limits = [(budget, HOST_MODEL), (self._device_budget(), model)]

    def _device_budget(self) -> float:
        if self.max_device_memory > 0.0:
            return self.max_device_memory * GIB
        free, _ = torch.cuda.mem_get_info(self.device)
        return 0.8 * free

    def tile_size(self) -> int:
        """Return the largest side of a tile to begin with."""
        overlap = self._count_overlap()
        middle = self.patch.outer_bbox
        size = 0
        # Smaller tiles are reached by fewer detectors.
        for _ in range(3):
            size = min(choose_tile_size(budget, overlap, self.halo, model) for budget, model in self._limits)
            half = size // 2 + self.halo
            x, y = int(middle.x.center), int(middle.y.center)
            outer = Box.factory[y - half : y + half, x - half : x + half]
            needed = math.ceil(self._stack_pixels(outer) / outer.area)
            if needed <= overlap:
                break
            overlap = needed
        return size

    def _count_overlap(self, n: int = 33) -> int:
        """Return how many exposures lie on the most crowded place."""
        bbox = self.patch.outer_bbox
        x, y = np.meshgrid(np.linspace(bbox.x.min, bbox.x.max, n), np.linspace(bbox.y.min, bbox.y.max, n))
        count = np.zeros(x.shape, dtype=int)
        for exposure in self.exposures:
            limits = exposure.reader.bbox
            detector_x, detector_y = exposure.mapping(x.ravel(), y.ravel())
            inside = (detector_x > limits.x.start) & (detector_x < limits.x.stop)
            inside &= (detector_y > limits.y.start) & (detector_y < limits.y.stop)
            count += inside.reshape(x.shape)
        return int(count.max())

    def fits(self, window: Window) -> bool:
        """Return whether the exposures that reach a tile fit in memory."""
        outer = to_box(window).padded(self.halo)
        pixels = self._stack_pixels(outer)
        effective = math.ceil(pixels / outer.area)
        shape = (outer.y.size, outer.x.size)
        return all(
            model.bytes(shape, effective) <= max(budget, model.fixed) for budget, model in self._limits
        )

    def _stack_pixels(self, outer: Box) -> float:
        """Return the pixels of all exposures that reach a box, padding included."""
        boxes = [box for exposure in self.exposures if (box := exposure.reach(outer)) is not None]
        if not boxes:
            return 0.0
        if not self.native:
            return float(len(boxes) * outer.area)
        padded = max(box.y.size for box in boxes) * max(box.x.size for box in boxes)
        return float(len(boxes) * max(padded, outer.area))


def explain_shrinking(warn: Callable[[str], None]) -> Callable[[int, str], None]:
    """Return a callback that warns of smaller tiles."""

    def shrunk(tile_size: int, message: str) -> None:
        first = message.splitlines()[0]
        warn(
            f"Memory ran out ({first}); going on with tiles of at most {tile_size} pixels. Lower max_memory "
            "(or max_device_memory) to plan for less from the start."
        )

    return shrunk
