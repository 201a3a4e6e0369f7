# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("MemoryRequest", "round_up_request")

import dataclasses
import math

from ..restoration import estimate_memory
from ..tasks._tile_plan import GIB, HOST_MODEL, PLANE_BYTES

MIB = 2.0**20

_BOX_OF_ROTATED_SQUARE = 1.0 + 2.0 / math.pi
"""Mean area of the box around a square of unit side that is turned by any angle."""


@dataclasses.dataclass(frozen=True)
class MemoryRequest:
    """How much memory to ask for, given the exposures of a patch.

    Parameters
    ----------
    restorer : `str`, optional
        Name of the restorer.
    on_device : `bool`, optional
        Whether a device other than the CPU does the work; the host then
        holds the exposures of a tile only.
    native : `bool`, optional
        Whether the exposures keep their own pixels, which may be turned
        against those of the tile.
    patch_size : `float`, optional
        Side of a patch with its overlap, in pixels of the output.
    tile_size, halo : `int`, optional
        Side of the tiles that the memory is to suffice for, and the pixels
        around them, in pixels of the output.
    cache_memory : `float`, optional
        GiB of pixels of the exposures that are kept between tiles.
    base : `float`, optional
        MiB of a process that has read nothing yet.

    Notes
    -----
    The request is what `~lsst.latent_coadds.tasks.TilePlan` asks for to make
    tiles of ``tile_size``: the process itself, the planes of the output, the
    cache, and the model of the restorer for the number of exposures that
    reach a tile. With less than this, tiles are smaller and the work is
    slower; with more, they are larger.
    """

    restorer: str = "imagemm"
    on_device: bool = False
    native: bool = False
    patch_size: float = 4200.0
    tile_size: int = 512
    halo: int = 40
    cache_memory: float = 1.0
    base: float = 900.0

    @property
    def _box_area(self) -> float:
        """Pixels of an exposure for each pixel of a tile (`float`)."""
        return _BOX_OF_ROTATED_SQUARE if self.native else 1.0

    def count_overlapping(self, n_visits: int, n_detectors: int) -> int:
        """Return how many detectors reach a tile.

        Parameters
        ----------
        n_visits, n_detectors : `int`
            Numbers of visits, and of detectors in all visits, that overlap
            the patch.

        Returns
        -------
        n_exposures : `int`
            Expected number, rounded up.

        Notes
        -----
        Square detectors of side ``w`` without gaps reach a square of side
        ``s`` at a random place ``(1 + s / w)**2`` times for each visit.
        What is seen for the patch gives ``w``.
        """
        if n_visits < 1:
            return 0
        outer = (min(self.tile_size, self.patch_size) + 2 * self.halo) * math.sqrt(self._box_area)
        per_visit = max(1.0, n_detectors / n_visits)
        inverse_width = (math.sqrt(per_visit) - 1.0) / (self.patch_size + 2 * self.halo)
        return min(n_detectors, math.ceil(n_visits * (1.0 + outer * inverse_width) ** 2 - 1e-9))

    def mebibytes(self, n_visits: int, n_detectors: int) -> int:
        """Return the request for a patch.

        Parameters
        ----------
        n_visits, n_detectors : `int`
            Numbers of visits, and of detectors in all visits, that overlap
            the patch.

        Returns
        -------
        request : `int`
            MiB.
        """
        side = math.ceil(min(self.tile_size, self.patch_size)) + 2 * self.halo
        model = HOST_MODEL if self.on_device else estimate_memory(self.restorer)
        needed = self.base * MIB + PLANE_BYTES * self.patch_size**2
        n_exposures = math.ceil(self._box_area * self.count_overlapping(n_visits, n_detectors))
        needed += model.bytes((side, side), n_exposures)
        # The cache takes a quarter of all memory at most.
        needed = min(needed + self.cache_memory * GIB, needed / 0.75)
        return math.ceil(needed / MIB)


def round_up_request(mebibytes: float) -> int:
    """Round a request up, so that few different ones remain.

    Parameters
    ----------
    mebibytes : `float`
        Memory in MiB.

    Returns
    -------
    rounded : `int`
        The next power of two or one and a half times such a power, and 1024
        at least: at most half as much again.
    """
    power = 1024
    while power < mebibytes:
        if 3 * power // 2 >= mebibytes:
            return 3 * power // 2
        power *= 2
    return power
