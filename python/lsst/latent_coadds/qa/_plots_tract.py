# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plots of the patches of a tract."""

from __future__ import annotations

__all__ = ("tract_figure",)

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._patch_numbers import PATCH_NUMBERS
from ._plot_style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = ("concern", "chi2_worst", "star_fwhm", "depth", "flux_ratio", "n_inputs")


def tract_figure(analyses: Sequence[Mapping[str, Any]]) -> Figure:
    """Map the leading numbers over a tract.

    Parameters
    ----------
    analyses : sequence of mappings
        ``analysis`` of the patches: ``patch``, ``bbox``, ``concern`` and
        ``numbers``.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        A map for each number.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    figure = new_figure((12.0, 6.0))
    axes = figure.subplots(2, 3).ravel()
    for ax, name in zip(axes, _SHOWN, strict=True):
        values = np.array(
            [float(a["concern"] if name == "concern" else a["numbers"].get(name, np.nan)) for a in analyses]
        )
        rectangles = [
            Rectangle((a["bbox"]["x"][0], a["bbox"]["y"][0]), *(np.ptp(a["bbox"][c]) for c in "xy"))
            for a in analyses
        ]
        patches = PatchCollection(rectangles, cmap="cividis", edgecolor="0.5", linewidth=0.5)
        patches.set_array(np.ma.masked_invalid(values))
        info = PATCH_NUMBERS.get(name)
        decimals = 2 if info is None else info.decimals
        patches.set_clim(*_color_limits(values, 10.0**-decimals))
        ax.add_collection(patches)
        ax.autoscale_view()
        ax.set_aspect("equal")
        ax.set(xticks=[], yticks=[])
        title = "Worst deviation over its limit" if info is None else info.doc
        ax.set_title(title, fontsize=8)
        if len(analyses) <= 100:
            for analysis, value in zip(analyses, values, strict=True):
                x, y = (np.mean(analysis["bbox"][c]) for c in "xy")
                text = (
                    f"{analysis['patch']}\n{value:.{decimals}f}"
                    if np.isfinite(value)
                    else f"{analysis['patch']}\n–"
                )
                ax.text(
                    x,
                    y,
                    text,
                    ha="center",
                    va="center",
                    fontsize=6,
                    bbox={"alpha": 0.6, "fc": "w", "lw": 0, "pad": 1},
                )
        bar = figure.colorbar(patches, ax=ax, shrink=0.7, label="" if info is None else info.unit)
        bar.ax.ticklabel_format(useOffset=False)
    return figure


def _color_limits(values: np.ndarray, step: float) -> tuple[float, float]:
    """Return a range of colours in which what does not matter does not show."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return 0.0, 1.0
    middle, half = 0.5 * (known.min() + known.max()), 0.5 * max(float(np.ptp(known)), 4 * step)
    return float(middle - half), float(middle + half)
