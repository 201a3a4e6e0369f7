# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PatchResult", "prepare_exposures", "restore_patch")

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from astropy.table import Table

from lsst.images.cells import CellGrid

from ..adapters import (
    BadInputError,
    CellAccumulator,
    ExposureReader,
    PatchExposure,
    PatchGrid,
    PatchPlanes,
    choose_cell_shape,
    to_box,
    to_window,
)
from ..restoration import (
    CalibrationSettings,
    RemainingTime,
    Window,
    measure_point_error,
    stream_windows,
)
from ._calibrate_patch import calibrate_patch
from ._fill import fill_planes, mark_inexact_psf
from ._metrics import MetricsRecorder
from ._patch_settings import RestorePatchSettings
from ._reporter import Reporter
from ._restorers import Restorer
from ._tile_plan import explain_shrinking
from ._train import train_restorer

_SMALL_TILE = 128
"""Halos of smaller tiles take most of the time."""


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
    calibration : `astropy.table.Table` or `None`
        What was learned about the exposures, if that was asked for.
    """

    planes: PatchPlanes
    cells: CellAccumulator
    psf: np.ndarray | None
    calibration: Table | None = None


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
    report: Reporter,
    calibration: CalibrationSettings | None = None,
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
    report : `Reporter`
        Where to say how the work goes.
    calibration : `~lsst.latent_coadds.restoration.CalibrationSettings`, optional
        What to learn about the exposures first.

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
    result = PatchResult(PatchPlanes(bbox), CellAccumulator(grid, len(exposures)), None)
    area = to_window(bbox)
    plan = settings.plan(exposures, patch)
    tile_size = settings.tile_size or plan.tile_size()
    if not settings.tile_size and tile_size < min(_SMALL_TILE, *area.shape):
        report.warn(
            f"max_memory leaves room for tiles of {tile_size} pixels with halos of {settings.halo}, which is "
            "slow; allow more, or set tile_size."
        )
    metrics.describe_plan(tile_size=tile_size, halo=settings.halo)
    if calibration is not None:
        learned, result.calibration = calibrate_patch(
            exposures, patch, settings, calibration, tile_size, metrics, report
        )
        settings = dataclasses.replace(settings, learned=learned)
    if restorer.trains_per_patch and (max(area.shape) > tile_size or settings.initial_weights):
        restorer = train_restorer(exposures, patch, restorer, settings, tile_size, metrics, report)
    remaining = RemainingTime(area.size)

    def work(window: Window) -> None:
        _restore_tile(window, exposures, patch, restorer, settings, metrics, result, remaining, report)

    last = stream_windows(
        area,
        tile_size,
        work,
        fits=None if settings.tile_size else plan.fits,
        on_shrink=explain_shrinking(report.warn),
    )
    metrics.describe_plan(smallest_tile_size=last)
    mark_inexact_psf(result.planes, result.cells)
    return result


def _restore_tile(
    window: Window,
    exposures: Sequence[PatchExposure],
    patch: PatchGrid,
    restorer: Restorer,
    settings: RestorePatchSettings,
    metrics: MetricsRecorder,
    result: PatchResult,
    remaining: RemainingTime,
    report: Reporter,
) -> None:
    """Restore a tile and put it into the patch."""
    inner = to_box(window)
    started = time.perf_counter()
    tile = settings.stack(exposures, inner)
    registration = time.perf_counter() - started
    if tile is None:
        result.planes.set_mask("NO_DATA", inner, np.ones(tuple(inner.shape), dtype=bool))
        remaining.add(window.size)
        return
    where = f"tile at x={window.x_start}, y={window.y_start} ({len(tile.members)} exposures)"

    def follow(update: int, n_updates: int, objective: float) -> None:
        # Updates are most of the work, and often fewer than allowed.
        begun = 0.8 * window.size * update / n_updates
        report.progress(
            f"{where}: update {update} of {n_updates}, objective {objective:.6g}; {remaining.describe(begun)}"
        )

    # Before the restoration, whose memory is not free yet afterwards.
    point_error = measure_point_error(tile.stack).cpu().numpy()
    inside = inner.slice_within(tile.outer)
    restoration = restorer.restore(
        tile.stack,
        device=settings.device,
        generator=settings.make_generator(patch, window.y_start, window.x_start),
        progress=follow,
    )
    fill_planes(result.planes, tile, restoration, settings.saturated_fraction)
    result.cells.add(tile)
    metrics.add_tile(tile, restoration, registration)
    metrics.add_point_errors(point_error[inside.y, inside.x])
    if restorer.has_chosen_psf:
        result.psf = restoration.psf.numpy().astype(np.float64)
    remaining.add(window.size)
    report.progress(f"{where}: done, {restoration.n_iterations} updates; {remaining.describe()}")
