# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("comparison_figure",)

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

# Matplotlib is in an extra; tasks may use the rest of this package without.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure


def comparison_figure(
    images: Mapping[str, np.ndarray],
    *,
    noise: float,
    brightest: float,
    zooms: Sequence[tuple[float, float]] = (),
    zoom_size: int = 44,
    title: str = "",
    unit: str = "nJy per pixel",
) -> Figure:
    """Show images of the same piece of sky side by side.

    Parameters
    ----------
    images : mapping [`str`, `numpy.ndarray`]
        Images of one shape ``(h, w)`` by their title; NaN is shown in blue.
    noise : `float`
        Pixel value up to which the stretch is linear.
    brightest : `float`
        Pixel value that is white.
    zooms : sequence of `tuple` [`float`, `float`], optional
        Positions x and y of details, each of which gets a row of its own.
    zoom_size : `int`, optional
        Side of a detail in pixels.
    title : `str`, optional
        Title of the figure.
    unit : `str`, optional
        What the pixel values are.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        All panels have the same asinh stretch and the same limits.

    Raises
    ------
    ValueError
        Raised if there are no images, or their shapes differ.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import AsinhNorm
    from matplotlib.figure import Figure

    shapes = {image.shape for image in images.values()}
    if len(shapes) != 1:
        raise ValueError(f"The images must share one shape; got {sorted(shapes)}.")
    norm = AsinhNorm(linear_width=noise, vmin=-5 * noise, vmax=brightest)
    n_columns, n_rows = len(images), 1 + len(zooms)
    height, width = shapes.pop()
    panel = 4.0
    heights = [panel * height / width, *[panel] * len(zooms)]
    figure = Figure(figsize=(panel * n_columns + 1.2, sum(heights) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, squeeze=False, height_ratios=heights)
    for column, (name, image) in enumerate(images.items()):
        _show(axes[0, column], image, norm)
        axes[0, column].set_title(name)
        for row, (x, y) in enumerate(zooms, start=1):
            _show(axes[row, column], image, norm)
            limits = [(c - zoom_size / 2, c + zoom_size / 2) for c in (x, y)]
            axes[row, column].set(xlim=limits[0], ylim=limits[1])
            _mark(axes[0, column], limits, str(row))
            if column == 0:
                axes[row, column].set_ylabel(f"detail {row}")
    mappable = ScalarMappable(norm=norm, cmap=_color_map())
    figure.colorbar(mappable, ax=axes, shrink=0.6, label=f"{unit}, one asinh stretch for all", pad=0.01)
    if title:
        figure.suptitle(title)
    return figure


def _color_map() -> Colormap:
    from matplotlib import colormaps

    return colormaps["gray"].with_extremes(bad=(0.1, 0.2, 0.5))


def _show(axes: Axes, image: np.ndarray, norm: Normalize) -> None:
    axes.imshow(image, origin="lower", norm=norm, cmap=_color_map(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _mark(axes: Axes, limits: Sequence[tuple[float, float]], label: str) -> None:
    (x0, x1), (y0, y1) = limits
    axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="tab:orange", linewidth=1.0)
    axes.text(x1, y1, label, color="tab:orange", va="bottom", ha="left", clip_on=True)
