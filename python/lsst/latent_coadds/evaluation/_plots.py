# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A figure of an evaluation."""

from __future__ import annotations

__all__ = ("evaluation_figure",)

from typing import TYPE_CHECKING

import numpy as np
from astropy.table import Table

from ..qa import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"plain": "#D55E00", "latent": "#0072B2"}
_STYLES = {"star": "-", "galaxy": "--"}


def evaluation_figure(fluxes: Table, purity: Table, *, title: str = "") -> Figure:
    """Show an evaluation against magnitude.

    Parameters
    ----------
    fluxes, purity : `astropy.table.Table`
        See `make_flux_table` and `make_purity_table`.
    title : `str`, optional
        Title of the figure.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Completeness, purity, bias, scatter and coverage.
    """
    figure = new_figure((13.0, 7.0))
    axes = figure.subplots(2, 3).ravel()
    for image, color in _COLORS.items():
        for kind, style in _STYLES.items():
            table = fluxes[(fluxes["image"] == image) & (fluxes["kind"] == kind)]
            if not len(table):
                continue
            x = 0.5 * (np.asarray(table["low"]) + np.asarray(table["high"]))
            label = f"{image}, {kind}"
            settings = {"color": color, "linestyle": style, "label": label, "capsize": 2, "marker": "."}
            for ax, name in ((axes[0], "completeness"), (axes[2], "bias")):
                ax.errorbar(x, 100 * table[name], 100 * table[f"{name}_error"], **settings)
            axes[3].plot(x, 100 * table["scatter"], style, color=color, marker=".", label=label)
            if image == "plain":
                best = 100 * table["best_scatter"]
                axes[3].plot(x, best, style, color="gray", label=f"bound, {kind}")
            for ax, level in ((axes[4], 68), (axes[5], 95)):
                ax.errorbar(
                    x, 100 * table[f"coverage_{level}"], 100 * table[f"coverage_{level}_error"], **settings
                )
        found = purity[(purity["image"] == image) & np.isfinite(np.asarray(purity["high"], dtype=float))]
        if len(found):
            x = 0.5 * (np.asarray(found["low"]) + np.asarray(found["high"]))
            axes[1].errorbar(
                x,
                100 * found["purity"],
                100 * found["purity_error"],
                color=color,
                marker=".",
                capsize=2,
                label=image,
            )
    _finish(axes[0], "sources found (%)", "Completeness")
    _finish(axes[1], "detections that are true (%)", "Purity, in noise alone")
    _finish(axes[2], "flux / true flux - 1 (%)", "Bias (median)")
    axes[2].axhline(0, color="gray", linewidth=0.8)
    _finish(axes[3], "scatter of the flux (%)", "Scatter")
    axes[3].set_yscale("log")
    for ax, level in ((axes[4], 68), (axes[5], 95)):
        _finish(ax, "intervals that hold the truth (%)", f"Coverage of {level} % intervals")
        ax.axhline(level, color="gray", linewidth=0.8)
        ax.set_ylim(0, 104)
    axes[1].set_xlabel("measured magnitude (AB)")
    for ax in (axes[0], axes[1], axes[3]):
        ax.legend(fontsize=7)
    if title:
        figure.suptitle(title)
    return figure


def _finish(axes: Axes, label: str, title: str) -> None:
    axes.set(xlabel="true magnitude (AB)", ylabel=label, title=title)
