# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("CalibrationConfig", "calibrate_patch")

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.table import Table

from ..adapters import PatchExposure, PatchGrid, Tile, make_calibration_table
from ..restoration import CalibrationSettings, ExposureCalibration, calibrate_exposures
from ._metrics import MetricsRecorder
from ._patch_settings import RestorePatchSettings
from ._reporter import Reporter
from ._restorers import make_config_class
from ._train import choose_crops

CalibrationConfig: Any = make_config_class(CalibrationSettings, "CalibrationConfig")
# A config is pickled by the name of its class.
CalibrationConfig.__module__ = __name__


def calibrate_patch(
    exposures: Sequence[PatchExposure],
    patch: PatchGrid,
    settings: RestorePatchSettings,
    calibration: CalibrationSettings,
    tile_size: int,
    metrics: MetricsRecorder,
    report: Reporter,
) -> tuple[ExposureCalibration, Table]:
    """Learn what is wrong with the exposures of a patch, from parts of it.

    Parameters
    ----------
    exposures : `~collections.abc.Sequence` [`~lsst.latent_coadds.adapters.PatchExposure`]
        Exposures of the patch.
    patch : `~lsst.latent_coadds.adapters.PatchGrid`
        The patch.
    settings : `RestorePatchSettings`
        How to work.
    calibration : `~lsst.latent_coadds.restoration.CalibrationSettings`
        What to learn.
    tile_size : `int`
        Largest side of what fits in memory.
    metrics : `MetricsRecorder`
        Receives the time that it took.
    report : `Reporter`
        Where to say how the work goes.

    Returns
    -------
    learned : `~lsst.latent_coadds.restoration.ExposureCalibration`
        What is to be applied to all tiles.
    table : `astropy.table.Table`
        The same for users; see `~lsst.latent_coadds.adapters.make_calibration_table`.
    """
    started = time.perf_counter()
    if max(patch.outer_bbox.shape) <= tile_size:
        boxes = [patch.outer_bbox]
    else:
        boxes = choose_crops(patch, settings, min(tile_size, settings.training_crop_size))
    tiles = [tile for box in boxes if (tile := settings.stack(exposures, box)) is not None]
    if not tiles:
        learned = ExposureCalibration.identity([])
        return learned, make_calibration_table(learned, [], {})

    def follow(i: int, n: int, chi2: float) -> None:
        report.progress(f"calibration of exposures: round {i} of {n}, chi2 of sources {chi2:.3f}")

    learned = calibrate_exposures(
        [tile.stack for tile in tiles], calibration, device=settings.device, progress=follow
    )
    if learned.reference == "none":
        report.warn("No source of the patch is bright enough to calibrate the exposures; see the settings.")
    readers = [exposure.reader for exposure in exposures]
    table = make_calibration_table(learned, readers, _collect_psfs(tiles))
    metrics.add_timing("calibration", time.perf_counter() - started)
    return learned, table


def _collect_psfs(tiles: Sequence[Tile]) -> dict[str, np.ndarray]:
    """Return the mean PSF of each exposure on the first part that it reaches."""
    psfs: dict[str, np.ndarray] = {}
    for tile in tiles:
        for name, psf in zip(tile.stack.names, tile.stack.mean_psf, strict=True):
            psfs.setdefault(name, psf.double().cpu().numpy())
    return psfs
