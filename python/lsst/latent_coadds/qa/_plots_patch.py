# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plots of what was measured of a patch."""

from __future__ import annotations

__all__ = ("artifact_figure", "fit_figure", "noise_figure", "photometry_figure", "star_figure")

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ._coadd import CoaddLike
from ._noise import aperture_noise_ratio
from ._patch_analysis import PatchAnalysis
from ._plot_style import ARTIFACT_COLORS, LATENT, REFERENCE, new_figure
from ._plots_image import shrink
from ._sources import to_magnitude

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def photometry_figure(analysis: PatchAnalysis, names: tuple[str, str]) -> Figure:
    """Show flux ratios and counts against magnitude.

    Parameters
    ----------
    analysis : `PatchAnalysis`
        What was measured.
    names : `tuple` [`str`, `str`]
        What the coadd and the reference are called.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Two panels.
    """
    figure = new_figure((10.0, 3.8))
    left, right = figure.subplots(1, 2)
    sources = analysis.sources
    ratio = sources.flux / sources.reference_flux - 1
    for stars, label, style in ((False, "others", "x"), (True, "stars", "o")):
        use = (sources.is_star == stars) & np.isfinite(ratio)
        left.plot(sources.magnitude[use], 100 * ratio[use], style, markersize=4, label=label, alpha=0.8)
    left.axhline(0, color="gray", linewidth=0.8)
    left.set(
        xlabel="magnitude (AB)",
        ylabel=f"flux in {names[0]} / {names[1]} - 1 (%)",
        title=f"Lone sources, aperture of {sources.radius:.1f} px",
    )
    if np.isfinite(ratio).any():
        spread = 100 * np.nanquantile(np.abs(ratio), 0.9)
        left.set_ylim(-1.5 * max(spread, 1), 1.5 * max(spread, 1))
        left.legend()
    else:
        left.text(0.5, 0.5, "no reference, or no source", ha="center", transform=left.transAxes)
    coadds = [(names[0], analysis.figures, LATENT), (names[1], analysis.reference_figures, REFERENCE)]
    for name, figures, color in coadds:
        if figures is None:
            continue
        magnitude = to_magnitude(figures.detections.flux)
        magnitude = magnitude[np.isfinite(magnitude)]
        if magnitude.size:
            bins = np.arange(np.floor(magnitude.min()), np.ceil(magnitude.max()) + 0.5, 0.5)
            right.hist(
                magnitude,
                bins=bins,
                histtype="step",
                color=color,
                linewidth=1.5,
                label=f"{name}: {magnitude.size}",
            )
        right.axvline(figures.depth, color=color, linestyle=":", linewidth=1)
    right.set(xlabel="magnitude (AB)", ylabel="sources per half magnitude", title="Detections; dotted: depth")
    if right.get_legend_handles_labels()[0]:
        right.legend(loc="upper left")
    return figure


def star_figure(analysis: PatchAnalysis) -> Figure:
    """Show widths of stars, and what the PSF leaves of them.

    Parameters
    ----------
    analysis : `PatchAnalysis`
        What was measured.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Widths against magnitude, and a residual image for each range.
    """
    sources, stacks = analysis.sources, analysis.residuals
    n = max(len(stacks), 1)
    figure = new_figure((6.0 + 2.2 * n, 3.6))
    grid = figure.add_gridspec(1, n + 1, width_ratios=[5.0, *[2.0] * n])
    left = figure.add_subplot(grid[0])
    for stars, label, style, color in ((False, "others", "x", "0.6"), (True, "stars", "o", LATENT)):
        use = (sources.is_star == stars) & np.isfinite(sources.fwhm)
        left.plot(sources.magnitude[use], sources.fwhm[use], style, color=color, markersize=4, label=label)
    width = analysis.figures.psf_fwhm
    left.axhline(width, color="gray", linewidth=0.8, label="attached PSF")
    left.set(
        xlabel="magnitude (AB)", ylabel="FWHM (px)", ylim=(0.5 * width, 2.5 * width), title="Lone sources"
    )
    left.legend(loc="upper left")
    if not stacks:
        empty = figure.add_subplot(grid[1])
        empty.set_axis_off()
        empty.text(0.5, 0.5, "too few stars\nfor residuals", ha="center", va="center")
        return figure
    limit = 100 * max(stack.peak for stack in stacks)
    shown: list[Any] = []
    for i, stack in enumerate(stacks, start=1):
        ax = figure.add_subplot(grid[i])
        shown.append(ax)
        picture = ax.imshow(100 * stack.image, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set(xticks=[], yticks=[])
        ax.set_title(
            f"{stack.low:g}–{stack.high:g} mag, {stack.n} stars\nlargest {100 * stack.peak:.1f} %", fontsize=8
        )
    figure.colorbar(picture, ax=shown, label="star - PSF (% of peak)", shrink=0.7)
    return figure


def noise_figure(analysis: PatchAnalysis, names: tuple[str, str]) -> Figure:
    """Show how noise is correlated, and what that does to apertures.

    Parameters
    ----------
    analysis : `PatchAnalysis`
        What was measured.
    names : `tuple` [`str`, `str`]
        What the coadd and the reference are called.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Correlation along x and y, and noise of apertures.
    """
    figure = new_figure((10.0, 3.8))
    left, right = figure.subplots(1, 2)
    curves: list[tuple[str, np.ndarray | None, str, str]] = [
        (f"{names[0]}: empty sky", analysis.figures.sky_correlation, LATENT, "-"),
        (f"{names[0]}: noise realizations", analysis.figures.noise_correlation, LATENT, "--"),
    ]
    if analysis.reference_figures is not None:
        curves.append((f"{names[1]}: empty sky", analysis.reference_figures.sky_correlation, REFERENCE, "-"))
    for name, correlation, color, style in curves:
        if correlation is None or not np.isfinite(correlation).any():
            continue
        middle = len(correlation) // 2
        lags = np.arange(middle + 1)
        left.plot(lags, correlation[middle, middle:], style, color=color, label=name)
        left.plot(lags, correlation[middle:, middle], style, color=color, alpha=0.4)
        radii = np.linspace(1.0, 6.0, 11)
        ratios = [aperture_noise_ratio(correlation, radius) for radius in radii]
        right.plot(radii, ratios, style, color=color, label=name)
    left.axhline(0, color="gray", linewidth=0.8)
    left.set(
        xlabel="separation along x (faint: y) in px",
        ylabel="correlation",
        title="Noise of neighbouring pixels",
    )
    right.axhline(1, color="gray", linewidth=0.8)
    right.set(
        xlabel="radius of aperture (px)", ylabel="noise / that of white noise", title="Noise of apertures"
    )
    if left.get_legend_handles_labels()[0]:
        left.legend()
    return figure


def artifact_figure(coadd: CoaddLike, analysis: PatchAnalysis, *, largest: int = 700) -> Figure:
    """Map what was clipped or rejected, and what looks wrong.

    Parameters
    ----------
    coadd : `CoaddLike`
        The coadd.
    analysis : `PatchAnalysis`
        What was measured.
    largest : `int`, optional
        Largest side of the maps in pixels.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Mask planes with artefacts, and the disagreement with the reference.
    """
    panels = 2 if analysis.disagreement is not None else 1
    figure = new_figure((5.4 * panels, 5.6))
    axes = figure.subplots(1, panels, squeeze=False)[0]
    height, width = coadd.image.shape
    extent = (-0.5, width - 0.5, -0.5, height - 0.5)
    none = np.zeros(coadd.image.shape, dtype=bool)
    code = np.zeros(coadd.image.shape)
    for value, name in ((1.0, "REJECTED"), (2.0, "CLIPPED"), (3.0, "SATURATED"), (3.0, "NO_DATA")):
        code = np.where(coadd.mask.get(name, none), value, code)
    axes[0].imshow(
        shrink(code, largest),
        origin="lower",
        extent=extent,
        cmap="Greys",
        vmin=0,
        vmax=4,
        interpolation="nearest",
    )
    axes[0].set_title("grey: rejected, clipped, saturated or no data", fontsize=9)
    _mark_artifacts(axes[0], analysis)
    if analysis.disagreement is not None:
        picture = axes[1].imshow(
            shrink(analysis.disagreement, largest),
            **{"origin": "lower", "extent": extent, "cmap": "RdBu_r", "vmin": -8, "vmax": 8},
        )
        axes[1].set_title("blurred to the reference, minus it", fontsize=9)
        axes[1].set(xticks=[], yticks=[])
        figure.colorbar(picture, ax=axes[1], label="significance", shrink=0.6)
    return figure


def _mark_artifacts(axes: Axes, analysis: PatchAnalysis) -> None:
    for kind, color in ARTIFACT_COLORS.items():
        found = [a for a in analysis.artifacts if a.kind == kind]
        if found:
            axes.plot(
                *([getattr(a, c) for a in found] for c in "xy"),
                *("o",),
                markersize=7,
                markerfacecolor="none",
                markeredgecolor=color,
                label=f"{kind}: {len(found)}",
            )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="upper right", framealpha=0.8)
    axes.set(xlabel="x (px)", ylabel="y (px)")


def fit_figure(metrics: Mapping[str, Any]) -> Figure:
    """Show the residuals of the visits, and how the fit went.

    Parameters
    ----------
    metrics : `~collections.abc.Mapping`
        Metrics of the patch.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Reduced chi² by visit, and the objective of each tile.
    """
    figure = new_figure((10.0, 3.8))
    left, right = figure.subplots(1, 2)
    visits = metrics.get("visits", {})
    chi2 = [float(visit["chi2"]) for visit in visits.values()]
    left.plot(range(len(chi2)), chi2, "o", color=LATENT)
    left.axhline(1, color="gray", linewidth=0.8)
    few = len(chi2) <= 20
    left.set_xticks(range(len(chi2)) if few else [], list(visits) if few else [], rotation=60, fontsize=7)
    left.set(xlabel="visit", ylabel="reduced χ²", title="Residuals of the visits")
    drawn = False
    for tile in metrics.get("tiles", []):
        history = [entry for entry in tile.get("history", []) if "objective" in entry]
        if len(history) < 2:
            continue
        objective = np.array([float(entry["objective"]) for entry in history])
        steps = [entry.get("iteration", i) for i, entry in enumerate(history)]
        right.plot(steps, objective / objective.min() - 1, linewidth=0.8, color=LATENT, alpha=0.6)
        drawn = True
    right.set(xlabel="update", ylabel="objective / lowest - 1", title="History of the loss, by tile")
    if drawn:
        right.set_yscale("symlog", linthresh=1e-7)
    else:
        right.text(0.5, 0.5, "no history: nothing was iterated", ha="center", transform=right.transAxes)
    return figure
