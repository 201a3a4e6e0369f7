# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all plots of the analysis share."""

from __future__ import annotations

__all__ = ("ARTIFACT_COLORS", "new_figure")

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARTIFACT_COLORS = {
    "hole": "#0072B2",
    "ring": "#CC79A7",
    "streak": "#D55E00",
    "clump": "#E69F00",
    "excess": "#009E73",
    "deficit": "#56B4E9",
    "outlier": "#999999",
}
"""Colours of artefacts that readers with any colour vision can tell apart."""

LATENT, REFERENCE = "#0072B2", "#D55E00"
"""Colours of a coadd and of its reference in all plots."""


def new_figure(size: tuple[float, float], *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Make a figure that needs no display and no global state.

    Parameters
    ----------
    size : `tuple` [`float`, `float`]
        Width and height in inches.
    layout : `str` or `None`, optional
        Layout engine.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Without axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout, dpi=110)
    FigureCanvasAgg(figure)
    return figure
