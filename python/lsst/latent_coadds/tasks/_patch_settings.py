# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("RestorePatchSettings",)

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from lsst.images import Box

from ..adapters import PatchExposure, PatchGrid, Tile, stack_tile
from ..restoration import ExposureCalibration
from ._tile_plan import TilePlan


@dataclasses.dataclass(frozen=True)
class RestorePatchSettings:
    """How a patch is worked on; see `BuildLatentCoaddConfig`."""

    bad_mask_planes: tuple[str, ...]
    saturated_mask_planes: tuple[str, ...]
    saturated_fraction: float
    method: str
    native: bool
    psf_degree: int
    tile_size: int | None
    halo: int
    cell_size: int
    warping_order: int
    max_invalid_fraction: float
    cache_memory: float
    max_memory: float
    max_device_memory: float
    n_training_crops: int
    training_crop_size: int
    initial_weights: str | None
    seed: int
    device: str
    learned: ExposureCalibration | None = None

    def plan(self, exposures: Sequence[PatchExposure], patch: PatchGrid) -> TilePlan:
        """Return how to divide a patch."""
        return TilePlan(
            exposures=exposures,
            patch=patch,
            method=self.method,
            halo=self.halo,
            native=self.native,
            device=self.device,
            max_memory=self.max_memory,
            max_device_memory=self.max_device_memory,
        )

    def make_generator(self, patch: PatchGrid, *numbers: int) -> torch.Generator:
        """Return random numbers for a part of the work on a patch."""
        # Pixels of a tract may be negative, which seeds may not.
        entropy = [self.seed, patch.tract, patch.patch, *(n % 2**32 for n in numbers)]
        state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state >> np.uint64(1)))

    def stack(self, exposures: Sequence[PatchExposure], inner: Box) -> Tile | None:
        """Return the exposures of a tile, calibrated with what was learned."""
        tile = stack_tile(
            exposures,
            inner,
            self.halo,
            native=self.native,
            psf_degree=self.psf_degree,
            edge_width=self.warping_order,
        )
        if tile is None or self.learned is None:
            return tile
        return dataclasses.replace(tile, stack=self.learned.apply(tile.stack))
