# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("choose_crops", "train_restorer")

import time
from collections.abc import Sequence

import numpy as np

from lsst.images import Box

from ..adapters import PatchExposure, PatchGrid
from ..restoration import is_out_of_memory
from ._metrics import MetricsRecorder
from ._patch_settings import RestorePatchSettings
from ._reporter import Reporter
from ._restorers import Restorer
from ._tile_plan import explain_shrinking

_SMALLEST_CROP = 64
"""Parts to train on are not made smaller than this where memory runs out."""


def train_restorer(
    exposures: Sequence[PatchExposure],
    patch: PatchGrid,
    restorer: Restorer,
    settings: RestorePatchSettings,
    tile_size: int,
    metrics: MetricsRecorder,
    report: Reporter,
) -> Restorer:
    """Train one network for all tiles, on random parts of the patch."""
    started = time.perf_counter()
    whole = max(patch.outer_bbox.shape) <= tile_size
    size = max(patch.outer_bbox.shape) if whole else min(tile_size, settings.training_crop_size)
    # All parts are held at once, and together they are to take no more than a tile.
    largest = settings.plan(exposures, patch).tile_size() + 2 * settings.halo
    while True:
        n_crops = max(1, largest**2 // (size + 2 * settings.halo) ** 2)
        try:
            trained = _train_on_crops(exposures, patch, restorer, settings, size, n_crops, whole, report)
            break
        except (MemoryError, RuntimeError) as error:
            if size <= _SMALLEST_CROP or not is_out_of_memory(error):
                raise
            whole, size = False, max(_SMALLEST_CROP, size // 2)
            message = str(error)
        explain_shrinking(report.warn)(size, message)
    metrics.add_timing("training", time.perf_counter() - started)
    return trained


def _train_on_crops(
    exposures: Sequence[PatchExposure],
    patch: PatchGrid,
    restorer: Restorer,
    settings: RestorePatchSettings,
    size: int,
    n_crops: int,
    whole: bool,
    report: Reporter,
) -> Restorer:
    boxes = [patch.outer_bbox] if whole else choose_crops(patch, settings, size)[:n_crops]
    tiles = [tile for box in boxes if (tile := settings.stack(exposures, box)) is not None]
    if not tiles:
        return restorer

    def follow(update: int, n_updates: int, objective: float) -> None:
        report.progress(
            f"training on {len(tiles)} parts of the patch: update {update} of {n_updates}, "
            f"objective {objective:.6g}"
        )

    return restorer.train(
        [tile.stack for tile in tiles],
        device=settings.device,
        generator=settings.make_generator(patch, 0, 0, 1),
        weights_file=settings.initial_weights,
        progress=follow,
    )


def choose_crops(patch: PatchGrid, settings: RestorePatchSettings, size: int) -> list[Box]:
    """Place the parts of the patch to learn from."""
    bbox = patch.outer_bbox
    rng = np.random.default_rng([settings.seed, patch.tract, patch.patch])
    height, width = (min(side, size) for side in bbox.shape)
    crops = []
    for _ in range(settings.n_training_crops):
        y = int(rng.integers(bbox.y.start, bbox.y.stop - height + 1))
        x = int(rng.integers(bbox.x.start, bbox.x.stop - width + 1))
        crops.append(Box.factory[y : y + height, x : x + width])
    return crops
