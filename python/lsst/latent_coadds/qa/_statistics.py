# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("FluxStatistics", "find_isolated", "flux_statistics", "format_table", "robust_rms")

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class FluxStatistics:
    """Fluxes against the truth in one range of signal-to-noise ratios.

    Parameters
    ----------
    low, high : `float`
        The range.
    n : `int`
        Number of sources.
    bias : `float`
        Median of ``flux / truth - 1``.
    scatter : `float`
        Robust standard deviation of the same; NaN for fewer than three.
    """

    low: float
    high: float
    n: int
    bias: float
    scatter: float


def robust_rms(values: np.ndarray) -> float:
    """Return the standard deviation that the median absolute deviation implies.

    Parameters
    ----------
    values : `numpy.ndarray`
        Numbers; NaNs do not count.

    Returns
    -------
    rms : `float`
        NaN if there are no numbers.
    """
    values = values[np.isfinite(values)]
    if values.size == 0:
        return np.nan
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def flux_statistics(
    flux: np.ndarray, truth: np.ndarray, snr: np.ndarray, edges: Sequence[float]
) -> list[FluxStatistics]:
    """Compare fluxes with the truth.

    Parameters
    ----------
    flux, truth : `numpy.ndarray`, ``(n,)``
        Measured and true fluxes; NaNs do not count.
    snr : `numpy.ndarray`, ``(n,)``
        Signal-to-noise ratio of each source.
    edges : sequence of `float`
        Limits of the ranges, ascending.

    Returns
    -------
    statistics : `list` [`FluxStatistics`]
        One for each range.
    """
    result = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        use = (snr >= low) & (snr < high) & np.isfinite(flux)
        ratio = flux[use] / truth[use] - 1
        result.append(
            FluxStatistics(
                low=low,
                high=high,
                n=int(use.sum()),
                bias=float(np.median(ratio)) if ratio.size else np.nan,
                scatter=robust_rms(ratio) if ratio.size > 2 else np.nan,
            )
        )
    return result


def find_isolated(
    x: np.ndarray, y: np.ndarray, flux: np.ndarray, *, radius: float, fraction: float
) -> np.ndarray:
    """Find sources without neighbours that matter.

    Parameters
    ----------
    x, y, flux : `numpy.ndarray`, ``(n,)``
        Positions in pixels and fluxes of all sources.
    radius : `float`
        How far away a source counts as a neighbour.
    fraction : `float`
        Neighbours together may have this part of the flux, at most.

    Returns
    -------
    isolated : `numpy.ndarray`, ``(n,)``, `bool`
        Sources that stand alone.
    """
    distance = np.hypot(x[:, None] - x[None, :], y[:, None] - y[None, :])
    near = (distance < radius) & ~np.eye(x.size, dtype=bool)
    return (near * flux[None, :]).sum(axis=1) <= fraction * flux


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, decimals: int = 2) -> str:
    """Lay a table out as text.

    Parameters
    ----------
    header : sequence of `str`
        Names of the columns.
    rows : sequence of sequences
        Their entries; a `float` is shown with ``decimals``.
    decimals : `int`, optional
        Digits after the decimal point.

    Returns
    -------
    text : `str`
        Lines of aligned columns.
    """
    cells = [list(header)] + [
        [("–" if np.isnan(v) else f"{v:.{decimals}f}") if isinstance(v, float) else str(v) for v in row]
        for row in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines) + "\n"
