# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PatchResult", "RestorePatchSettings", "prepare_exposures", "restore_patch")

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lsst.images import Box
from lsst.images.cells import CellGrid

from ..adapters import (
    BadInputError,
    CellAccumulator,
    ExposureReader,
    PatchExposure,
    PatchGrid,
    PatchPlanes,
    Tile,
    choose_cell_shape,
    make_tiles,
    stack_tile,
)
from ..restoration import Restoration
from ._metrics import MetricsRecorder
from ._restorers import Restorer


@dataclasses.dataclass(frozen=True)
class RestorePatchSettings:
    """How a patch is worked on; see `BuildLatentCoaddConfig`."""

    bad_mask_planes: tuple[str, ...]
    saturated_mask_planes: tuple[str, ...]
    saturated_fraction: float
    tile_size: int
    halo: int
    cell_size: int
    warping_order: int
    max_invalid_fraction: float
    cache_memory: float
    n_training_crops: int
    training_crop_size: int
    initial_weights: str | None
    seed: int
    device: str


@dataclasses.dataclass
class PatchResult:
    """What the restoration of a patch gives.

    Attributes
    ----------
    planes : `lsst.latent_coadds.adapters.PatchPlanes`
        Pixel planes.
    cells : `lsst.latent_coadds.adapters.CellAccumulator`
        Weights of the exposures in the cells.
    psf : `numpy.ndarray`, (k, k), or `None`
        The PSF that was chosen, or `None` if it follows from the exposures.
    """

    planes: PatchPlanes
    cells: CellAccumulator
    psf: np.ndarray | None


def prepare_exposures(
    readers: Sequence[ExposureReader],
    patch: PatchGrid,
    settings: RestorePatchSettings,
    on_bad: Callable[[BadInputError], None],
) -> list[PatchExposure]:
    """Check the exposures and find what each contributes.

    Parameters
    ----------
    readers : `~collections.abc.Sequence` [`~lsst.latent_coadds.adapters.ExposureReader`]
        The exposures.
    patch : `~lsst.latent_coadds.adapters.PatchGrid`
        The patch.
    settings : `RestorePatchSettings`
        How to work.
    on_bad : `~collections.abc.Callable`
        Called with the error of each exposure that cannot be used.

    Returns
    -------
    exposures : `list` [`~lsst.latent_coadds.adapters.PatchExposure`]
        Those that overlap the patch and can be used, in the order of visit
        and detector.
    """
    exposures = []
    memory = 0.0
    for reader in sorted(readers, key=lambda reader: (reader.instrument, reader.visit, reader.detector)):
        try:
            exposure = PatchExposure(
                reader,
                patch,
                bad=settings.bad_mask_planes,
                saturated=settings.saturated_mask_planes,
                margin=settings.halo,
                order=settings.warping_order,
                max_invalid_fraction=settings.max_invalid_fraction,
            )
        except BadInputError as error:
            on_bad(error)
            continue
        if exposure.bbox is None:
            continue
        memory += exposure.cached_bytes / 2**30
        if memory > settings.cache_memory:
            exposure.drop_cache()
        exposures.append(exposure)
    return exposures


def restore_patch(
    exposures: Sequence[PatchExposure],
    patch: PatchGrid,
    restorer: Restorer,
    settings: RestorePatchSettings,
    metrics: MetricsRecorder,
    progress: Callable[[str], None],
) -> PatchResult:
    """Restore a patch tile by tile.

    Parameters
    ----------
    exposures : `~collections.abc.Sequence` [`~lsst.latent_coadds.adapters.PatchExposure`]
        Exposures of the patch.
    patch : `~lsst.latent_coadds.adapters.PatchGrid`
        The patch.
    restorer : `Restorer`
        What restores a stack.
    settings : `RestorePatchSettings`
        How to work.
    metrics : `MetricsRecorder`
        Receives the figures of each tile.
    progress : `~collections.abc.Callable`
        Called with a line about the state of the work.

    Returns
    -------
    result : `PatchResult`
        Pixel planes and cells of the patch.

    Raises
    ------
    lsst.latent_coadds.restoration.RestorationError
        If a fit diverges.
    """
    bbox = patch.outer_bbox
    grid = CellGrid(bbox=bbox, cell_shape=choose_cell_shape(bbox.shape, settings.cell_size))
    cells = CellAccumulator(grid, len(exposures))
    planes = PatchPlanes(bbox)
    psf: np.ndarray | None = None
    tiles = make_tiles(bbox, settings.tile_size)
    if restorer.trains_per_patch and (len(tiles) > 1 or settings.initial_weights):
        restorer = _train(exposures, patch, restorer, settings, tiles, metrics, progress)
    for number, inner in enumerate(tiles):
        started = time.perf_counter()
        tile = stack_tile(exposures, inner, settings.halo, edge_width=settings.warping_order)
        registration = time.perf_counter() - started
        if tile is None:
            planes.set_mask("NO_DATA", inner, np.ones(tuple(inner.shape), dtype=bool))
            continue
        where = f"tile {number + 1} of {len(tiles)} ({len(tile.members)} exposures)"
        restoration = restorer.restore(
            tile.stack,
            device=settings.device,
            generator=_make_generator(settings.seed, patch, number),
            progress=_describe_updates(where, progress),
        )
        _fill(planes, tile, restoration, settings.saturated_fraction)
        cells.add(tile)
        metrics.add_tile(tile, restoration, registration)
        if restorer.has_chosen_psf:
            psf = restoration.psf.numpy().astype(np.float64)
        progress(f"{where}: done, {restoration.n_iterations} updates")
    _mark_inexact_psf(planes, cells)
    return PatchResult(planes, cells, psf)


def _train(
    exposures: Sequence[PatchExposure],
    patch: PatchGrid,
    restorer: Restorer,
    settings: RestorePatchSettings,
    tiles: Sequence[Box],
    metrics: MetricsRecorder,
    progress: Callable[[str], None],
) -> Restorer:
    """Train one network for all tiles, on random parts of the patch."""
    started = time.perf_counter()
    stacks = []
    for box in _choose_crops(patch, tiles, settings):
        tile = stack_tile(exposures, box, settings.halo, edge_width=settings.warping_order)
        if tile is not None:
            stacks.append(tile.stack)
    if not stacks:
        return restorer
    trained = restorer.train(
        stacks,
        device=settings.device,
        generator=_make_generator(settings.seed, patch, len(tiles)),
        weights_file=settings.initial_weights,
        progress=_describe_updates(f"training on {len(stacks)} parts of the patch", progress),
    )
    metrics.add_timing("training", time.perf_counter() - started)
    return trained


def _choose_crops(patch: PatchGrid, tiles: Sequence[Box], settings: RestorePatchSettings) -> list[Box]:
    """Place the parts of the patch to train on; a single tile is one part."""
    if len(tiles) == 1:
        return list(tiles)
    bbox = patch.outer_bbox
    rng = np.random.default_rng([settings.seed, patch.tract, patch.patch])
    height, width = (min(size, settings.training_crop_size) for size in bbox.shape)
    crops = []
    for _ in range(settings.n_training_crops):
        y = int(rng.integers(bbox.y.start, bbox.y.stop - height + 1))
        x = int(rng.integers(bbox.x.start, bbox.x.stop - width + 1))
        crops.append(Box.factory[y : y + height, x : x + width])
    return crops


def _describe_updates(where: str, progress: Callable[[str], None]) -> Callable[[int, int, float], None]:
    def report(update: int, n_updates: int, objective: float) -> None:
        progress(f"{where}: update {update} of {n_updates}, objective {objective:.6g}")

    return report


def _make_generator(seed: int, patch: PatchGrid, number: int) -> torch.Generator:
    sequence = np.random.SeedSequence([seed, patch.tract, patch.patch, number])
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _fill(planes: PatchPlanes, tile: Tile, restoration: Restoration, saturated_fraction: float) -> None:
    """Copy the inner part of a restored tile into the patch."""
    cut = tile.inner.slice_within(tile.outer)
    target = tile.inner.slice_within(planes.bbox)
    n_image = restoration.n_image[cut.y, cut.x].numpy()
    empty = n_image == 0
    nan = np.float32(np.nan)
    planes.n_image[target.y, target.x] = n_image
    planes.image[target.y, target.x] = np.where(empty, nan, restoration.image[cut.y, cut.x].numpy())
    planes.variance[target.y, target.x] = np.where(empty, nan, restoration.variance[cut.y, cut.x].numpy())
    n_noise = len(restoration.noise_realizations)
    if n_noise and not len(planes.noise):
        planes.noise = np.full((n_noise, *planes.image.shape), nan, dtype=np.float32)
    if n_noise:
        noise = restoration.noise_realizations[:, cut.y, cut.x].numpy()
        planes.noise[:, target.y, target.x] = np.where(empty, nan, noise)
    n_covering = tile.covered.sum(axis=0)
    n_rejected = (tile.covered & ~tile.good).sum(axis=0)
    planes.rejected_fraction[target.y, target.x] = n_rejected / np.maximum(n_covering, 1)
    n_saturated = tile.saturated.sum(axis=0)
    planes.set_mask("NO_DATA", tile.inner, empty)
    planes.set_mask("REJECTED", tile.inner, n_rejected > 0)
    planes.set_mask("CLIPPED", tile.inner, restoration.mask["CLIPPED"][cut.y, cut.x].numpy())
    planes.set_mask("SATURATED", tile.inner, n_saturated > saturated_fraction * n_covering)
    planes.set_mask("COSMIC_RAY", tile.inner, tile.cosmic_ray.any(axis=0))
    planes.set_mask("SENSOR_EDGE", tile.inner, tile.sensor_edge)


def _mark_inexact_psf(planes: PatchPlanes, cells: CellAccumulator) -> None:
    """Mark pixels that not all exposures of their cell contribute to."""
    members = (cells.weight > 0).sum(axis=0).astype(np.int32)
    shape = cells.grid.cell_shape
    expected = np.kron(members, np.ones((shape.y, shape.x), dtype=np.int32))
    inexact = planes.n_image != expected
    for name in ("CLIPPED", "REJECTED"):
        inexact |= planes.mask.get(name, np.zeros_like(inexact))
    planes.set_mask("INEXACT_PSF", planes.bbox, inexact)
