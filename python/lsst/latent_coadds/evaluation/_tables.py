# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables of completeness, purity, bias, scatter and coverage."""

from __future__ import annotations

__all__ = ("Depth", "find_depths", "format_evaluation", "make_flux_table", "make_purity_table")

import dataclasses
from collections.abc import Sequence

import numpy as np
from astropy.table import Table, vstack

from ..qa import format_table, robust_rms
from ._evaluate import ImageResult, PatchResult

_IMAGES = ("plain", "latent")


@dataclasses.dataclass(frozen=True)
class Depth:
    """How deep a coadd goes, at one number of false detections.

    Parameters
    ----------
    image : `str`
        Which coadd.
    threshold : `float`
        Significance above which there are as many false detections as are
        allowed.
    magnitude : `float`
        Where nine of ten stars are found with that threshold; NaN if that
        is beyond the range of the sources.
    """

    image: str
    threshold: float
    magnitude: float


def _gather(results: Sequence[PatchResult], image: str, noise_only: bool) -> list[ImageResult]:
    return [
        found
        for result in results
        if result.noise_only == noise_only
        for found in result.images
        if found.name == image
    ]


def _edges(results: Sequence[PatchResult], n_bins: int) -> np.ndarray:
    magnitude = np.concatenate([image.sources["magnitude"] for r in results for image in r.images])
    if not magnitude.size:
        raise ValueError(
            "No source was injected: no place is free of sources and has data all around. Give a smaller "
            "spacing, or other patches."
        )
    return np.linspace(np.floor(10 * magnitude.min()) / 10, np.ceil(10 * magnitude.max()) / 10, n_bins + 1)


def make_flux_table(results: Sequence[PatchResult], *, threshold: float = 5.0, n_bins: int = 4) -> Table:
    """Summarize the sources that were injected into data.

    Parameters
    ----------
    results : sequence of `PatchResult`
        Rounds of patches.
    threshold : `float`, optional
        Significance of a detection.
    n_bins : `int`, optional
        Number of ranges of magnitude.

    Returns
    -------
    table : `astropy.table.Table`
        For each coadd, kind of source and range of true magnitudes: ``n``;
        ``completeness``; ``bias``, the median of flux over true flux less
        one, and its error; ``scatter``, the robust standard deviation of the
        same; ``best_scatter``, the median Cramér-Rao bound for lone sources
        of known shape; and how often intervals for 68 and 95 % hold the truth
        (``coverage_68``, ``coverage_95``). Fluxes are measured at the true
        positions, whether the source was detected or not.

    Raises
    ------
    ValueError
        If nothing was injected.
    """
    data = [result for result in results if not result.noise_only]
    edges = _edges(data, n_bins)
    rows = []
    for image in _IMAGES:
        sources = vstack(
            [found.sources for found in _gather(data, image, False)], metadata_conflicts="silent"
        )
        for kind, of_kind in (("star", sources["is_star"]), ("galaxy", ~sources["is_star"])):
            for low, high in zip(edges[:-1], edges[1:], strict=True):
                inside = of_kind & (sources["magnitude"] >= low) & (sources["magnitude"] < high)
                rows.append(
                    {
                        "image": image,
                        "kind": kind,
                        "low": low,
                        "high": high,
                        **_flux_row(sources[inside], threshold),
                    }
                )
    table = Table(rows=rows)
    for name in ("low", "high"):
        table[name].unit = "mag"
    return table


def _flux_row(sources: Table, threshold: float) -> dict[str, float]:
    n = len(sources)
    truth, flux = np.asarray(sources["flux"]), np.asarray(sources["measured_flux"])
    use = np.isfinite(flux)
    ratio = flux[use] / truth[use] - 1
    scatter = robust_rms(ratio) if ratio.size > 2 else np.nan
    found = float(np.mean(sources["snr"] >= threshold)) if n else np.nan
    row = {
        "n": n,
        "completeness": found,
        "completeness_error": _binomial_error(found, n),
        "bias": float(np.median(ratio)) if ratio.size else np.nan,
        # The median of Gaussian numbers is known 1.25 times worse than the mean.
        "bias_error": 1.253 * scatter / np.sqrt(ratio.size) if ratio.size > 2 else np.nan,
        "scatter": scatter,
        "best_scatter": float(np.median(sources["best_error"] / truth)) if n else np.nan,
    }
    for level in (68, 95):
        low, high = (np.asarray(sources[f"{end}_{level}"]) for end in ("low", "high"))
        held = (low <= truth) & (truth <= high)
        row[f"coverage_{level}"] = float(np.mean(held[use])) if use.any() else np.nan
        row[f"coverage_{level}_error"] = _binomial_error(row[f"coverage_{level}"], int(use.sum()))
    return row


def _binomial_error(p: float, n: int) -> float:
    """Return the error of a fraction, by Wilson's formula."""
    return float(np.sqrt(p * (1 - p) / n + 1 / (4 * n**2)) / (1 + 1 / n)) if n else np.nan


def make_purity_table(results: Sequence[PatchResult], *, threshold: float = 5.0, n_bins: int = 4) -> Table:
    """Summarize the detections where all sources are known.

    Parameters
    ----------
    results : sequence of `PatchResult`
        Rounds of patches, some of them in noise.
    threshold : `float`, optional
        Significance of a detection.
    n_bins : `int`, optional
        Number of ranges of magnitude.

    Returns
    -------
    table : `astropy.table.Table`
        For each coadd and range of measured magnitudes: the number of
        detections ``n``, their ``purity``, the part of them that belong to a
        source, its error, and the density of the others, ``false_density``.
    """
    noise = [result for result in results if result.noise_only]
    edges = _edges(results, n_bins)
    rows = []
    for image in _IMAGES:
        found = _gather(noise, image, True)
        if not found:
            continue
        area = sum(result.area for result in found)
        magnitude, snr, is_true = (
            np.concatenate([getattr(result.detected, name) for result in found])
            for name in ("magnitude", "snr", "is_true")
        )
        for low, high in zip([*edges[:-1], edges[-1]], [*edges[1:], np.inf], strict=True):
            inside = (snr >= threshold) & (magnitude >= low) & (magnitude < high)
            n = int(np.count_nonzero(inside))
            purity = float(np.mean(is_true[inside])) if n else np.nan
            rows.append(
                {
                    **{"image": image, "low": low, "high": high, "n": n, "purity": purity},
                    "purity_error": _binomial_error(purity, n),
                    "false_density": np.count_nonzero(inside & ~is_true) / area,
                }
            )
    table = Table(rows=rows, names=("image", "low", "high", "n", "purity", "purity_error", "false_density"))
    for name, unit in (("low", "mag"), ("high", "mag"), ("false_density", "arcmin-2")):
        table[name].unit = unit
    return table


def find_depths(
    results: Sequence[PatchResult], *, false_density: float = 1.0, completeness: float = 0.9
) -> list[Depth]:
    """Compare coadds at the same number of false detections.

    Parameters
    ----------
    results : sequence of `PatchResult`
        Rounds of patches, some of them in noise.
    false_density : `float`, optional
        False detections per square arcminute that are allowed.
    completeness : `float`, optional
        Part of the stars that must be found.

    Returns
    -------
    depths : `list` [`Depth`]
        For each coadd, if there are rounds in noise.
    """
    depths = []
    for image in _IMAGES:
        noise = _gather(results, image, True)
        data = _gather(results, image, False)
        if not noise or not data:
            continue
        area = sum(result.area for result in noise)
        false = np.sort(np.concatenate([r.detected.snr[~r.detected.is_true] for r in noise]))[::-1]
        allowed = int(false_density * area)
        lowest = [float(r.detected.snr.min()) for r in noise if len(r.detected.snr)]
        threshold = float(false[allowed]) if false.size > allowed else min(lowest, default=0.0)
        stars = vstack([r.sources[r.sources["is_star"]] for r in data], metadata_conflicts="silent")
        magnitude = _magnitude_at(
            np.asarray(stars["magnitude"]), np.asarray(stars["snr"]) > threshold, completeness
        )
        depths.append(Depth(image, threshold, magnitude))
    return depths


def _magnitude_at(magnitude: np.ndarray, found: np.ndarray, completeness: float) -> float:
    """Return where the found part falls through a level, by a logistic fit."""
    from scipy.optimize import minimize

    if found.all() or not found.any():
        return np.nan
    center = float(np.median(magnitude))

    def loss(p: np.ndarray) -> float:
        z = (magnitude - center - p[0]) * np.exp(p[1])
        return float(np.sum(np.logaddexp(0, np.where(found, z, -z)))) + 1e-3 * float(p[1] ** 2)

    fit = minimize(loss, [0.0, 1.0], method="Nelder-Mead")
    limit = float(center + fit.x[0] + np.log(1 / completeness - 1) / np.exp(fit.x[1]))
    return limit if magnitude.min() <= limit <= magnitude.max() else np.nan


def format_evaluation(results: Sequence[PatchResult], *, threshold: float = 5.0) -> str:
    """Lay out all tables as text.

    Parameters
    ----------
    results : sequence of `PatchResult`
        Rounds of patches.
    threshold : `float`, optional
        Significance of a detection.

    Returns
    -------
    text : `str`
        Tables with headings.
    """
    fluxes = make_flux_table(results, threshold=threshold)
    header = (
        *("image", "kind", "magnitude", "n", "found %", "bias %", "±", "scatter %", "best %"),
        *("68 % holds", "95 % holds"),
    )
    rows = [
        (
            *(row["image"], row["kind"], f"{row['low']:.1f} – {row['high']:.1f}", int(row["n"])),
            *(100 * float(row[name]) for name in ("completeness", "bias", "bias_error")),
            *(100 * float(row[name]) for name in ("scatter", "best_scatter")),
            *(100 * float(row[f"coverage_{level}"]) for level in (68, 95)),
        )
        for row in fluxes
    ]
    parts = [
        "Injected sources by their true magnitude. Fluxes: the PSF's amplitude for stars, an aperture for",
        "galaxies, at the true position; best: the Cramér-Rao bound of a lone source of known shape.",
        format_table(header, rows, decimals=1),
    ]
    purity = make_purity_table(results, threshold=threshold)
    if len(purity):
        rows = [
            (
                row["image"],
                f"{row['low']:.1f} – {row['high']:.1f}"
                if np.isfinite(row["high"])
                else f"> {row['low']:.1f}",
                int(row["n"]),
                100 * float(row["purity"]),
                float(row["false_density"]),
            )
            for row in purity
        ]
        parts += [
            f"Detections above {threshold:g} sigma, by their measured magnitude, where all else is noise:",
            format_table(("image", "magnitude", "n", "true %", "false / arcmin²"), rows, decimals=1),
        ]
    for depth in find_depths(results):
        parts.append(
            f"{depth.image}: with one false detection per square arcminute (above {depth.threshold:.1f}σ), "
            f"90 % of stars are found at {depth.magnitude:.2f} mag."
        )
    return "\n".join(parts) + "\n"
