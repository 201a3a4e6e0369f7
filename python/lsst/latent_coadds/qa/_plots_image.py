# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pictures of a coadd: to look at, and to blink."""

from __future__ import annotations

__all__ = ("Stretch", "detail_figure", "image_figure", "shrink")

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._artifacts import Artifact
from ._plot_style import ARTIFACT_COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Stretch:
    """An asinh stretch.

    Parameters
    ----------
    linear : `float`
        Pixel value up to which it is linear.
    brightest : `float`
        Pixel value that is white.
    """

    linear: float
    brightest: float

    @classmethod
    def of(cls, image: np.ndarray, noise: float) -> Stretch:
        """Return the stretch that shows noise, and stars, of an image."""
        finite = image[np.isfinite(image)]
        top = float(np.quantile(finite, 0.9995)) if finite.size else 1.0
        noise = noise if np.isfinite(noise) and noise > 0 else max(abs(top) / 100, 1e-30)
        return cls(1.5 * noise, max(top, 50 * noise))


def shrink(image: np.ndarray, largest: int) -> np.ndarray:
    """Average squares of pixels, so that an image becomes small enough.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        The image; NaNs do not count.
    largest : `int`
        Largest side of the result.

    Returns
    -------
    small : `numpy.ndarray`
        The image itself if it is small enough; rows and columns beyond a
        multiple of the square's side are left out.
    """
    step = -(-max(image.shape) // largest)
    if step == 1:
        return image
    height, width = (n // step * step for n in image.shape)
    blocks = image[:height, :width].reshape(height // step, step, width // step, step)
    count = np.isfinite(blocks).sum(axis=(1, 3))
    with np.errstate(invalid="ignore"):
        return np.nansum(blocks, axis=(1, 3)) / np.where(count, count, np.nan)


def image_figure(image: np.ndarray, stretch: Stretch, *, largest: int = 1000) -> Figure:
    """Show an image and nothing else, one dot a pixel.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        The image; NaN is shown in blue.
    stretch : `Stretch`
        How to show it.
    largest : `int`, optional
        Largest side in dots; smaller images are enlarged, larger ones
        averaged.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        Saved with its own resolution, a picture of whole pixels.
    """
    from matplotlib.colors import AsinhNorm

    small = shrink(image, largest)
    factor = max(1, largest // max(small.shape))
    height, width = (n * factor for n in small.shape)
    dpi = 100
    figure = new_figure((width / dpi, height / dpi), layout=None)
    figure.set_dpi(dpi)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    norm = AsinhNorm(linear_width=stretch.linear, vmin=-4 * stretch.linear, vmax=stretch.brightest)
    axes.imshow(small, origin="lower", norm=norm, cmap=_color_map(), interpolation="nearest", aspect="auto")
    return figure


def _color_map() -> Colormap:
    from matplotlib import colormaps

    return colormaps["gray"].with_extremes(bad=(0.1, 0.2, 0.5))


def detail_figure(
    images: Mapping[str, np.ndarray],
    places: Sequence[tuple[str, float, float]],
    stretch: Stretch,
    *,
    half: int = 24,
    artifacts: Sequence[Artifact] = (),
) -> Figure:
    """Show details of images of the same pixels side by side.

    Parameters
    ----------
    images : mapping [`str`, `numpy.ndarray`]
        Images of one shape ``(h, w)`` by their title.
    places : sequence of `tuple` [`str`, `float`, `float`]
        What each detail shows, and where its middle is.
    stretch : `Stretch`
        How to show them.
    half : `int`, optional
        Half the side of a detail in pixels.
    artifacts : sequence of `Artifact`, optional
        Places to mark.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        A row for each image, a column for each place.
    """
    from matplotlib.colors import AsinhNorm

    n_rows, n_columns = len(images), max(len(places), 1)
    figure = new_figure((1.9 * n_columns + 0.5, 2.0 * n_rows + 0.5))
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for row, (name, image) in enumerate(images.items()):
        norm = AsinhNorm(linear_width=stretch.linear, vmin=-4 * stretch.linear, vmax=stretch.brightest)
        for column in range(n_columns):
            ax = axes[row, column]
            ax.set(xticks=[], yticks=[])
            if column >= len(places):
                ax.set_axis_off()
                continue
            label, x, y = places[column]
            left, bottom = max(round(x) - half - 1, 0), max(round(y) - half - 1, 0)
            stamp = image[bottom : round(y) + half + 2, left : round(x) + half + 2]
            ax.imshow(
                stamp,
                origin="lower",
                norm=norm,
                cmap=_color_map(),
                interpolation="nearest",
                extent=(left - 0.5, left + stamp.shape[1] - 0.5, bottom - 0.5, bottom + stamp.shape[0] - 0.5),
            )
            for kind in {a.kind for a in artifacts}:
                near = [a for a in artifacts if a.kind == kind and max(abs(a.x - x), abs(a.y - y)) < half]
                ax.plot(
                    *([getattr(a, c) for a in near] for c in "xy"),
                    *("o",),
                    markerfacecolor="none",
                    markeredgecolor=ARTIFACT_COLORS[kind],
                    markersize=9,
                )
            ax.set(xlim=(x - half, x + half), ylim=(y - half, y + half))
            if row == 0:
                ax.set_title(label, fontsize=8)
            if column == 0:
                ax.set_ylabel(name)
    return figure
