# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("earlier_reference", "format_report", "merge_report", "report_path")

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

_COLUMNS: dict[str, tuple[Any, str | None, str]] = {
    "name": (str, None, ""),
    "visit": (int, None, ""),
    "detector": (int, None, ""),
    "date": (str, None, ""),
    "filter": (str, None, ""),
    "band": (str, None, ""),
    "status": (str, None, ""),
    "seeing": (float, "arcsec", ".3f"),
    "fwhm": (float, "pix", ".2f"),
    "psf_model": (str, None, ""),
    "psf_chi2": (float, None, ".2f"),
    "n_stars": (int, None, ""),
    "n_matched": (int, None, ""),
    "calibration": (str, None, ""),
    "flux_scale": (float, None, ".4f"),
    "flux_scale_error": (float, None, ".4f"),
    "flux_scale_applied": (bool, None, ""),
    "dx": (float, "pix", ".3f"),
    "dx_error": (float, "pix", ".3f"),
    "dy": (float, "pix", ".3f"),
    "dy_error": (float, "pix", ".3f"),
    "shift_applied": (bool, None, ""),
    "star_scatter": (float, "pix", ".3f"),
    "cosmic_ray": (float, None, ".5f"),
    "saturated": (float, None, ".5f"),
    "masked": (float, None, ".5f"),
    "variance_from": (str, None, ""),
    "noise_scale": (float, None, ".3f"),
    "background": (float, None, ".3f"),
    "zero_point": (float, "mag", ".3f"),
    "calibrated": (bool, None, ""),
    "wcs_error": (float, "pix", ".1e"),
}
_BLANK = {str: "", int: -1, float: float("nan"), bool: False}
_PRINTED = (
    "name visit status seeing fwhm psf_model psf_chi2 n_stars flux_scale flux_scale_error "
    "dx dx_error dy dy_error calibration cosmic_ray masked noise_scale"
).split()


def report_path(repo: str | Path, run: str) -> Path:
    """Where the report of a run is kept.

    Parameters
    ----------
    repo : `str` or `pathlib.Path`
        The repository.
    run : `str`
        Run collection.

    Returns
    -------
    path : `pathlib.Path`
        An ECSV file beside the repository's configuration.
    """
    return Path(repo) / f"import_{run.replace('/', '_')}.ecsv"


def earlier_reference(path: Path) -> tuple[str, int, int] | None:
    """Look up which exposure an earlier import took as the reference.

    Parameters
    ----------
    path : `pathlib.Path`
        The report of the run, which need not be there.

    Returns
    -------
    reference : `tuple` [`str`, `int`, `int`] or `None`
        Name, visit and detector; `None` if the report does not tell.
    """
    if not path.exists():
        return None
    for row in Table.read(path):
        if "calibration" in row.colnames and row["calibration"] == "reference":
            return str(row["name"]), int(row["visit"]), int(row["detector"])
    return None


def merge_report(rows: Iterable[Mapping[str, Any]], path: Path | None = None) -> Table:
    """Make the report table, keeping what an earlier one says of exposures not touched now.

    Parameters
    ----------
    rows : iterable of mapping
        One for each exposure.
    path : `pathlib.Path`, optional
        An earlier report.

    Returns
    -------
    table : `astropy.table.Table`
        All columns, one row for each exposure.
    """
    merged: dict[str, dict[str, Any]] = {}
    if path is not None and path.exists():
        merged = {str(row["name"]): dict(zip(row.colnames, row, strict=True)) for row in Table.read(path)}
    for row in rows:
        old = merged.get(row["name"], {})
        keep = old if row.get("status") == "present" else {}
        merged[row["name"]] = {**keep, **row}
    table = Table()
    for name, (kind, unit, layout) in _COLUMNS.items():
        values = [row.get(name, _BLANK[kind]) for row in merged.values()]
        values = [_BLANK[kind] if np.ma.is_masked(v) else kind(v) for v in values]
        table[name] = np.array(values, dtype=None if kind is not str else str)
        table[name].unit = unit
        if layout:
            table[name].format = layout
    return table


def format_report(table: Table) -> str:
    """Lay the main columns of a report out as text.

    Parameters
    ----------
    table : `astropy.table.Table`
        The report.

    Returns
    -------
    text : `str`
        A table of fixed width.
    """
    return "\n".join(table[_PRINTED].pformat(max_lines=-1, max_width=-1))
