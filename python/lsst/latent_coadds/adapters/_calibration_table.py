# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("make_calibration_table", "read_calibration_table")

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from astropy.table import Column, Table

from ..restoration import CALIBRATION_PARAMETERS, ExposureCalibration
from ._exposure_reader import ExposureReader
from ._patch_psf import pad_kernels

_DESCRIPTIONS = {
    "log_size": "logarithm of the factor by which the PSF is wider than the pipeline has it",
    "shear_1": "shear that stretches the PSF along x and shrinks it along y",
    "shear_2": "the same along the diagonal",
    "shift_x": "where sources appear, less where they should, in pixels of the coadd",
    "shift_y": "where sources appear, less where they should, in pixels of the coadd",
    "log_flux_scale": "logarithm of the fluxes of the exposure over the true ones",
    "log_wing": "logarithm of the factor by which the wings of the PSF are steeper",
    "log_size_x": "what log_size gains from the middle of the field to its edge along x",
    "log_size_y": "the same along y",
    "shear_1_x": "what shear_1 gains from the middle of the field to its edge along x",
    "shear_1_y": "the same along y",
    "shear_2_x": "what shear_2 gains from the middle of the field to its edge along x",
    "shear_2_y": "the same along y",
}
_REQUIRED = CALIBRATION_PARAMETERS[:6]
"""Columns that a table always has; others are zero where they are missing."""


def make_calibration_table(
    calibration: ExposureCalibration,
    readers: Sequence[ExposureReader],
    psfs: Mapping[str, np.ndarray],
) -> Table:
    """Write down what was learned about exposures.

    Parameters
    ----------
    calibration : `~lsst.latent_coadds.restoration.ExposureCalibration`
        What was learned.
    readers : `~collections.abc.Sequence` [`ExposureReader`]
        The exposures; those that the calibration does not know are left out.
    psfs : `~collections.abc.Mapping` [`str`, `numpy.ndarray`]
        PSF (k, k) of each exposure as the pipeline has it, somewhere on the
        patch, by the name of its reader.

    Returns
    -------
    table : `astropy.table.Table`
        A row for each exposure: ``instrument``, ``visit``, ``detector``,
        ``name``; ``reference`` and ``n_sources``, the same for all; each of
        ``CALIBRATION_PARAMETERS`` with its error (``..._error``), and that of its weighted mean over all
        exposures (``..._mean_error``, the same for all): what a coadd has of it; ``coadd_flux_error``, the
        relative error that fluxes of points in a coadd share because of that; ``field``, the middle (x, y)
        and half the width of the field in pixels of the tract; ``flux_scale``, ``background`` (nJy) and
        ``background_error``; ``kernel`` (m, m), which the PSF is convolved
        with before it is stretched; ``pipeline_psf`` and ``psf`` (k, k),
        before and after.
    """
    rows = [reader for reader in readers if reader.name in calibration.names]
    numbers = [calibration.names.index(reader.name) for reader in rows]
    table = Table(
        {
            "instrument": [reader.instrument for reader in rows],
            "visit": np.array([reader.visit for reader in rows], dtype=np.int64),
            "detector": np.array([reader.detector for reader in rows], dtype=np.int64),
            "name": [reader.name for reader in rows],
            # Parquet files of the Butler keep no metadata of a table.
            "reference": [calibration.reference] * len(rows),
            "n_sources": [calibration.n_sources] * len(rows),
        }
    )
    for i, name in enumerate(CALIBRATION_PARAMETERS):
        table[name] = Column(calibration.parameters[numbers, i].numpy(), description=_DESCRIPTIONS[name])
        table[f"{name}_error"] = calibration.errors[numbers, i].numpy()
        table[f"{name}_mean_error"] = np.full(len(rows), float(calibration.mean_errors[i]))
    table["coadd_flux_error"] = np.full(len(rows), calibration.flux_error)
    table["field"] = np.tile(np.array(calibration.field, dtype=np.float64), (len(rows), 1))
    table["flux_scale"] = calibration.flux_scale[numbers].numpy()
    table["background"] = Column(calibration.background[numbers].numpy(), unit="nJy")
    table["background_error"] = Column(calibration.background_error[numbers].numpy(), unit="nJy")
    table["kernel"] = calibration.kernels[numbers].numpy()
    before = [np.asarray(psfs[reader.name], dtype=np.float64) for reader in rows]
    after = [
        calibration.correct_psf(reader.name, torch.from_numpy(psf)).numpy()
        for reader, psf in zip(rows, before, strict=True)
    ]
    if rows:
        table["pipeline_psf"], table["psf"] = pad_kernels(before), pad_kernels(after)
    return table


def read_calibration_table(table: Table, readers: Sequence[ExposureReader] = ()) -> ExposureCalibration:
    """Return what a table says about exposures.

    Parameters
    ----------
    table : `astropy.table.Table`
        What `make_calibration_table` returned, or a dataset of it.
    readers : `~collections.abc.Sequence` [`ExposureReader`], optional
        Exposures to apply it to: rows of the same instrument, visit and
        detector get their names, which depend on the type of their dataset.

    Returns
    -------
    calibration : `~lsst.latent_coadds.restoration.ExposureCalibration`
        To be applied to a stack.

    Raises
    ------
    ValueError
        A column is missing; the message names it.
    """
    needed = ("name", "reference", "n_sources", *_REQUIRED, "background", "kernel")
    missing = [name for name in needed if name not in table.colnames]
    if missing:
        raise ValueError(
            f"The table has no column {', '.join(missing)}; it is not one of exposure calibrations."
        )
    known = {(str(r.instrument), int(r.visit), int(r.detector)): r.name for r in readers}
    names = [
        known.get((str(row["instrument"]), int(row["visit"]), int(row["detector"])), str(row["name"]))
        for row in table
    ]

    def column(name: str) -> torch.Tensor:
        values = np.asarray(table[name]) if name in table.colnames else np.zeros(len(table))
        return torch.from_numpy(np.array(values, dtype=np.float64))

    mean_errors = [column(f"{name}_mean_error") for name in CALIBRATION_PARAMETERS]
    field = np.asarray(table["field"][0]) if len(table) and "field" in table.colnames else (0.0, 0.0, 1.0)
    return ExposureCalibration(
        names=tuple(names),
        parameters=torch.stack([column(name) for name in CALIBRATION_PARAMETERS], dim=1),
        errors=torch.stack([column(f"{name}_error") for name in CALIBRATION_PARAMETERS], dim=1),
        background=column("background"),
        background_error=column("background_error"),
        kernels=column("kernel"),
        reference=str(table["reference"][0]) if len(table) else "none",
        n_sources=int(table["n_sources"][0]) if len(table) else 0,
        field=(float(field[0]), float(field[1]), float(field[2])),
        flux_error=float(column("coadd_flux_error")[0]) if len(table) else 0.0,
        mean_errors=torch.stack([values[0] if len(table) else values.sum() for values in mean_errors]),
    )
