# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of figures of merit, from the raw measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from measure import limiting_signal_to_noise

Raw = dict[str, dict[str, list[dict[str, Any]]]]


def make_rows(raw: Raw, methods: Sequence[str]) -> list[list[object]]:
    """Return a row for each figure, with a column for each restorer."""
    rows: list[list[object]] = []
    for name, build in (
        ("stars", _star_rows),
        ("faint", _faint_rows),
        ("pairs", _pair_rows),
        ("points", _depth_rows),
        ("galaxies", _depth_rows),
        ("artefacts", _artefact_rows),
        ("errors", _error_rows),
        ("held_out", _held_out_rows),
    ):
        if name in raw:
            columns = [build(raw[name][method], raw[name]) for method in methods]
            for index, (label, bound, _) in enumerate(columns[0]):
                label = f"{label} ({name})" if build is _depth_rows else label
                rows.append([label, bound, *(column[index][2] for column in columns)])
    return rows


Entries = list[tuple[str, str, str]]


def _gather(figures: list[dict[str, Any]]) -> np.ndarray:
    return np.concatenate([np.array(entry["stars"]).reshape(-1, 8) for entry in figures])


def _select(table: np.ndarray, low: float, high: float) -> np.ndarray:
    return table[(table[:, 0] >= low) & (table[:, 0] <= high)]


def _median(values: np.ndarray, unit: float = 100.0) -> str:
    values = values[np.isfinite(values)]
    if not len(values):
        return "-"
    error = 1.2533 * values.std() / np.sqrt(len(values))
    return f"{unit * np.median(values):+.2f} ± {unit * error:.2f}"


def _scatter(table: np.ndarray, signal: float, column: int = 1) -> str:
    """Scatter about the mean, over the Cramér–Rao bound."""
    values = table[table[:, 0] == signal, column] * signal
    spread = 1.4826 * np.median(np.abs(values - np.median(values)))
    return f"{values.std():.2f} ({spread:.2f})"


def _star_rows(figures: list[dict[str, Any]], _: Any) -> Entries:
    table = _gather(figures)
    rows = [
        ("flux bias %, S/N 20-300", "<= 0.5", _median(_select(table, 20, 300)[:, 1])),
        *(
            (f"  S/N {s}", "", _median(table[table[:, 0] == s, 1]))
            for s in (5, 7, 10, 20, 50, 100, 300, 1000)
        ),
        *(
            (f"scatter / bound (robust), S/N {s}", "<= 1.10", _scatter(table, s))
            for s in (5, 10, 20, 50, 100)
        ),
        *(
            (f"{name}: bias %, S/N {s}", "<= 1" if s >= 50 else "", _median(table[table[:, 0] == s, column]))
            for name, column in (("PSF flux", 6), ("weighted flux", 7))
            for s in (5, 10, 20, 50, 100, 300, 1000)
        ),
        *(
            (f"weighted flux: scatter / bound (robust), S/N {s}", "<= 1.10", _scatter(table, s, 7))
            for s in (5, 10, 20, 50, 100)
        ),
        ("FWHM / PSF - 1 %, S/N 50-1000", "<= 3", _median(_select(table, 50, 1000)[:, 2] - 1)),
        *((f"  S/N {s}", "", _median(table[table[:, 0] == s, 2] - 1)) for s in (50, 100, 300, 1000)),
        ("FWHM / PSF - 1 %, S/N 20", "<= 10", _median(_select(table, 20, 20)[:, 2] - 1)),
        ("centroid bias x, px", "<= 0.02", _median(_select(table, 50, 1000)[:, 3], 1)),
        ("centroid bias y, px", "<= 0.02", _median(_select(table, 50, 1000)[:, 4], 1)),
        ("sky rms / plain pixel rms", "<= 0.5", f"{np.mean([entry['rms'] for entry in figures]):.3f}"),
        ("seconds", "", f"{np.median([entry['seconds'] for entry in figures]):.1f}"),
    ]
    return rows


def _faint_rows(figures: list[dict[str, Any]], _: Any) -> Entries:
    table = _gather(figures)
    mean = 100 * np.average(table[:, 1], weights=table[:, 0])
    return [
        ("flux bias %, S/N 5-10 (median)", "<= 3", _median(table[:, 1])),
        ("flux bias %, S/N 5-10 (mean)", "", f"{mean:+.2f}"),
        *((f"  S/N {s}", "", _median(table[table[:, 0] == s, 1])) for s in (5, 7, 10)),
        *((f"scatter / bound (robust), faint S/N {s}", "<= 1.10", _scatter(table, s)) for s in (5, 7, 10)),
        *(
            (f"weighted flux: scatter / bound (robust), faint S/N {s}", "<= 1.10", _scatter(table, s, 7))
            for s in (5, 7, 10)
        ),
    ]


def _pair_rows(figures: list[dict[str, Any]], _: Any) -> Entries:
    split, pairs = (sum(entry[key] for entry in figures) for key in ("split", "pairs"))
    return [("close pairs split", ">= 90 %", f"{100 * split / pairs:.0f} % of {pairs}")]


def _limit(figures: list[dict[str, Any]]) -> tuple[float, str]:
    """Return the best limiting S/N over the filters, and the filter."""
    signal = np.concatenate([entry["signal"] for entry in figures])
    best = (np.inf, "")
    for name in figures[0]["found"]:
        values = np.concatenate([entry["found"][name]["values"] for entry in figures])
        false = np.concatenate([entry["found"][name]["false"] for entry in figures])
        best = min(best, (limiting_signal_to_noise(signal, values, false), name))
    return best


def _depth_rows(figures: list[dict[str, Any]], every: dict[str, list[dict[str, Any]]]) -> Entries:
    limit, name = _limit(figures)
    reference, _ = _limit(every["direct"])
    gain = -2.5 * np.log10(limit / reference)
    label = "own PSF" if float(name) < 0 else f"{float(name):g} px"
    return [("50 % depth against plain, mag", ">= -0.02", f"{gain:+.3f} (S/N {limit:.2f}, {label})")]


def _artefact_rows(figures: list[dict[str, Any]], _: Any) -> Entries:
    residual = np.concatenate([entry["residual"] for entry in figures])
    largest, most = residual.max(), np.percentile(residual, 99)
    return [("residual of rays and trail, sigma: 99 %, worst", "< 3", f"{most:.2f}, {largest:.2f}")]


def _error_rows(figures: list[dict[str, Any]], _: Any) -> Entries:
    table = _gather(figures)
    depth = table[:, 5][np.isfinite(table[:, 5])]
    return [
        ("flux bias %, 2 % and 0.1 px errors", "<= 1", _median(table[:, 1])),
        ("deepest ring %, same", "<= 5", f"{100 * np.max(depth):.2f}" if len(depth) else "-"),
    ]


def _held_out_rows(figures: list[dict[str, Any]], every: dict[str, list[dict[str, Any]]]) -> Entries:
    losses = [entry["loss"] for entry in figures]
    gains = [1e4 * (loss - entry["loss"]) for loss, entry in zip(losses, every["direct"], strict=True)]
    text = "  ".join(f"{gain:+.1f}" for gain in gains)
    if figures is every["direct"]:
        text = "  ".join(f"{loss:.4f}" for loss in losses)
    return [("held-out loss by seed, 1e-4 from ImageMM's best (first column)", "< 0", text)]
