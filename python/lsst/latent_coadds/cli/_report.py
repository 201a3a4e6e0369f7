# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("write_report",)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import QTable

from lsst.daf.butler import Butler

from ..qa import (
    aperture_flux,
    comparison_figure,
    find_isolated,
    flux_statistics,
    format_table,
    measure_star,
    psf_flux,
    ring_depth,
    robust_rms,
)
from ..simulation import SceneSettings, read_truth
from ._patch_view import PatchView, read_patch, show_exposure

_DATASET_TYPES = {"plain": "direct_coadd", "latent": "latent_coadd"}
_APERTURE = 7.0
_GALAXY_APERTURE = 10.0
_MAGNITUDE_EDGES = (19.0, 22.0, 23.5, 25.0)
_SNR_EDGES = (10.0, 30.0, 100.0, 300.0, 1e4)


def write_report(root: Path, settings: SceneSettings, collection: str) -> tuple[str, list[Path]]:
    """Compare both coadds of a simulated scene with the truth.

    Parameters
    ----------
    root : `pathlib.Path`
        Directory with ``repo`` and ``truth``; the report is written to it.
    settings : `SceneSettings`
        The scene.
    collection : `str`
        Collection of the coadds.

    Returns
    -------
    text : `str`
        Tables of figures.
    paths : `list` [`pathlib.Path`]
        Files that were written.
    """
    butler = Butler.from_config(root / "repo")
    stars: list[dict[Any, Any]] = []
    galaxies: list[dict[Any, Any]] = []
    backgrounds: dict[str, list[np.ndarray]] = {"plain": [], "latent": []}
    rows_chi2 = []
    paths = []
    for patch in settings.sky_map.tracts[0].patches:
        truth, catalog = read_truth(root / "truth", patch)
        views = {
            name: read_patch(butler, settings, patch, collection, dataset_type)
            for name, dataset_type in _DATASET_TYPES.items()
        }
        local = _local_catalog(catalog, views["plain"])
        stars += _measure_stars(views, local)
        galaxies += _measure_galaxies(views, truth, local)
        empty = _empty_sky(truth, settings)
        for name, view in views.items():
            backgrounds[name].append(view.image[empty & view.good])
        rows_chi2 += _chi2_rows(patch, views)
        path = root / f"comparison_patch_{patch}.png"
        _draw(butler, settings, patch, views, truth, local).savefig(path, dpi=100)
        paths.append(path)
    text = "\n".join(
        [
            "Stars without close neighbours, against the truth; S/N is the best that the exposures allow.",
            format_table(*_flux_table(stars)),
            "Galaxies without close neighbours, in the same aperture on the truth image:",
            format_table(*_galaxy_table(galaxies)),
            "The images:",
            format_table(*_image_table(stars, backgrounds, settings)),
            "Reduced chi-square by visit:",
            format_table(("patch", "visit", "plain", "latent"), rows_chi2, decimals=3),
        ]
    )
    (root / "figures.txt").write_text(text)
    return text, [*paths, root / "figures.txt"]


def _local_catalog(catalog: QTable, view: PatchView) -> QTable:
    """Add patch pixel coordinates, and whether a source stands alone."""
    local = catalog.copy()
    local["px"] = catalog["x"].to_value(u.pix) - view.bbox.x.start
    local["py"] = catalog["y"].to_value(u.pix) - view.bbox.y.start
    local["isolated"] = find_isolated(
        local["px"], local["py"], local["flux"].to_value(u.nJy), radius=14.0, fraction=0.02
    )
    return local


def _empty_sky(truth: np.ndarray, settings: SceneSettings) -> np.ndarray:
    faint = 0.02 * settings.sky_noise[0] * settings.counts_to_njy
    inside = np.zeros(truth.shape, dtype=bool)
    inside[20:-20, 20:-20] = True
    return inside & (truth < faint)


def _measure_stars(views: dict[str, PatchView], local: QTable) -> list[dict[Any, Any]]:
    """Measure all lone, unsaturated stars of a patch in every image."""
    plain = views["plain"]
    result = []
    for row in local[local["is_star"] & local["isolated"]]:
        x, y = float(row["px"]), float(row["py"])
        if not plain.contains_inner(x, y) or not plain.is_clean(x, y, 10):
            continue
        star: dict[Any, Any] = {"snr": float(row["snr"]), "truth": row["flux"].to_value(u.nJy)}
        for name, view in views.items():
            kernel = view.kernel(x, y)
            star[name, "aperture"] = aperture_flux(view.image, x, y, _APERTURE, psf=kernel)
            star[name, "psf"] = psf_flux(view.image, x, y, kernel)
            shape = measure_star(view.image, x, y)
            star[name, "fwhm"] = shape.fwhm if shape else np.nan
            star[name, "ring"] = np.nan
            if shape and star["snr"] > 300:
                star[name, "ring"] = ring_depth(
                    view.image, shape.x, shape.y, peak=shape.peak, fwhm=shape.fwhm, radius=18.0
                ).depth
        result.append(star)
    return result


def _measure_galaxies(views: dict[str, PatchView], truth: np.ndarray, local: QTable) -> list[dict[Any, Any]]:
    """Measure all lone galaxies of a patch in every image and in the truth."""
    result = []
    for row in local[~local["is_star"] & local["isolated"]]:
        x, y = float(row["px"]), float(row["py"])
        if not views["plain"].contains_inner(x, y) or not views["plain"].is_clean(x, y, 12):
            continue
        galaxy: dict[Any, Any] = {"mag": row["mag"].value}
        galaxy["truth"] = aperture_flux(truth, x, y, _GALAXY_APERTURE)
        for name, view in views.items():
            galaxy[name, "aperture"] = aperture_flux(view.image, x, y, _GALAXY_APERTURE)
        result.append(galaxy)
    return result


def _galaxy_table(galaxies: list[dict[Any, Any]]) -> tuple[Sequence[str], list[Sequence[object]]]:
    header = ("coadd", "magnitude", "galaxies", f"aperture {_GALAXY_APERTURE:g} px: bias %", "scatter %")
    rows: list[Sequence[object]] = []
    mag, truth = _column(galaxies, "mag"), _column(galaxies, "truth")
    for name in ("plain", "latent"):
        for s in flux_statistics(_column(galaxies, (name, "aperture")), truth, mag, _MAGNITUDE_EDGES):
            rows.append((name, f"{s.low:g} – {s.high:g}", s.n, 100 * s.bias, 100 * s.scatter))
    return header, rows


def _column(stars: list[dict[Any, Any]], key: Any) -> np.ndarray:
    return np.array([star[key] for star in stars], dtype=float)


def _flux_table(stars: list[dict[Any, Any]]) -> tuple[Sequence[str], list[Sequence[object]]]:
    header = (
        *("coadd", "S/N", "stars", f"aperture {_APERTURE:g} px: bias %", "scatter %"),
        *("PSF flux: bias %", "scatter %", "FWHM px"),
    )
    snr, truth = _column(stars, "snr"), _column(stars, "truth")
    rows: list[Sequence[object]] = []
    for name in ("plain", "latent"):
        by_aperture = flux_statistics(_column(stars, (name, "aperture")), truth, snr, _SNR_EDGES)
        by_psf = flux_statistics(_column(stars, (name, "psf")), truth, snr, _SNR_EDGES)
        fwhm = _column(stars, (name, "fwhm"))
        for a, p in zip(by_aperture, by_psf, strict=True):
            inside = (snr >= a.low) & (snr < a.high) & np.isfinite(fwhm)
            width = float(np.median(fwhm[inside])) if inside.any() else np.nan
            label = f"{a.low:g} – {a.high:g}" if a.high < _SNR_EDGES[-1] else f"> {a.low:g}"
            rows.append(
                (name, label, a.n, 100 * a.bias, 100 * a.scatter, 100 * p.bias, 100 * p.scatter, width)
            )
    return header, rows


def _image_table(
    stars: list[dict[Any, Any]], backgrounds: dict[str, list[np.ndarray]], settings: SceneSettings
) -> tuple[Sequence[str], list[Sequence[object]]]:
    header = ("coadd", "star FWHM px", "target px", "rings, % of peak", "empty sky: mean nJy", "rms nJy")
    rows: list[Sequence[object]] = []
    bright = _column(stars, "snr") > 100
    for name, sky in backgrounds.items():
        values = np.concatenate(sky)
        fwhm = _column(stars, (name, "fwhm"))[bright]
        rings = _column(stars, (name, "ring"))
        rows.append(
            (
                name,
                float(np.nanmedian(fwhm)) if np.isfinite(fwhm).any() else np.nan,
                settings.target_fwhm if name == "latent" else "its own",
                100 * float(np.nanmedian(rings)) if np.isfinite(rings).any() else np.nan,
                float(np.mean(values)) if values.size else np.nan,
                robust_rms(values),
            )
        )
    return header, rows


def _chi2_rows(patch: int, views: dict[str, PatchView]) -> list[Sequence[object]]:
    visits = {name: view.metrics["visits"] for name, view in views.items()}
    return [
        (patch, visit, *(float(visits[name].get(visit, {}).get("chi2", np.nan)) for name in views))
        for visit in sorted(visits["plain"])
    ]


def _draw(
    butler: Butler,
    settings: SceneSettings,
    patch: int,
    views: dict[str, PatchView],
    truth: np.ndarray,
    local: QTable,
) -> Any:
    exposure, seeing = show_exposure(butler, settings, patch)
    noise = robust_rms(views["plain"].image)
    return comparison_figure(
        {
            f"one exposure, seeing {seeing:.2f}″": exposure,
            "plain coadd": views["plain"].masked_image,
            "latent coadd": views["latent"].masked_image,
            f"truth, PSF of {settings.target_fwhm:g} px": truth,
        },
        noise=2 * noise,
        brightest=400 * noise,
        zooms=_choose_details(local, truth.shape),
        title=f"Patch {patch}: {settings.n_visits} visits, {settings.pixel_scale:g}″ pixels",
    )


def _choose_details(local: QTable, shape: tuple[int, int]) -> list[tuple[float, float]]:
    """Choose a close pair, a bright galaxy and a saturated star."""
    margin = 24
    x, y = np.asarray(local["px"]), np.asarray(local["py"])
    inside = (x > margin) & (y > margin) & (x < shape[1] - margin) & (y < shape[0] - margin)
    table = local[inside]
    flux = table["flux"].to_value(u.nJy)
    details = []
    separation = np.hypot(
        np.subtract.outer(np.asarray(table["px"]), np.asarray(table["px"])),
        np.subtract.outer(np.asarray(table["py"]), np.asarray(table["py"])),
    )
    fainter, brighter = np.minimum.outer(flux, flux), np.maximum.outer(flux, flux)
    alike = (brighter < 8 * fainter) & (brighter < 2e5)
    score = np.where((separation > 4) & (separation < 9) & alike, fainter, 0)
    if score.any():
        i, j = np.unravel_index(np.argmax(score), score.shape)
        details.append(((table["px"][i] + table["px"][j]) / 2, (table["py"][i] + table["py"][j]) / 2))
    for kind in (False, True):
        clear = np.array(
            [all(np.hypot(px - r["px"], py - r["py"]) > 40 for px, py in details) for r in table]
        )
        select = (np.asarray(table["is_star"]) == kind) & clear
        if select.any():
            row = table[select][np.argmax(flux[select])]
            details.append((float(row["px"]), float(row["py"])))
    return details
