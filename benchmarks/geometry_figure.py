# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Draw the picture of doc/geometry.md.

python benchmarks/geometry_figure.py doc/images/geometry.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from native_scenes import Layout, NativeScene, NativeSceneMaker

from lsst.latent_coadds.restoration import ExposureStack, restore

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_SHARP = {"seeing": (0.4, 0.4), "psf_variation": 0.0, "gap": 0.0}


def draw_pairs(oversampling: float) -> NativeScene:
    """Return pairs 0.3 arcsec apart on a grid, S/N 50, and a brighter row."""
    layout = Layout(**_SHARP, oversampling=oversampling)
    maker = NativeSceneMaker(5, layout, size=round(96 * oversampling), n_exposures=12)
    rng = np.random.default_rng(1)
    line = np.arange(14.0, 90.0, 17.0) + 0.5
    centers = np.array([(x, y) for y in line for x in line]) + rng.uniform(-1.5, 1.5, (len(line) ** 2, 2))
    angles = rng.uniform(0, np.pi, len(centers))
    step = 0.5 * 0.3 / layout.native_scale * np.column_stack([np.cos(angles), np.sin(angles)])
    both = np.concatenate([centers - step, centers + step])
    # The same place on the sky: pixel centres of the two grids differ.
    positions = (both + 0.5) * oversampling - 0.5
    return maker.draw(maker.stars(positions, (50,)), n_rays=0)


def draw_detectors() -> NativeScene:
    """Return stars on rotated detectors with bad columns."""
    maker = NativeSceneMaker(3, Layout(bad_columns=4), size=150, n_exposures=6)
    return maker.draw(maker.stars(maker.grid(30.0), (30, 100, 300)), n_rays=3)


def show(axis: Any, image: np.ndarray, title: str, scale: float | None = None, **options: Any) -> None:
    """Draw an image; with a scale, stretched by asinh."""
    if scale is not None:
        image = np.arcsinh(image / scale)
        options = {"vmin": -1.0, "vmax": float(np.arcsinh(np.nanmax(np.sinh(image)) * 0.8)), **options}
    artist = axis.imshow(image, origin="lower", interpolation="nearest", **options)
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
    if "cmap" in options and options["cmap"] != "gray":
        axis.figure.colorbar(artist, ax=axis, fraction=0.046)


def frame_image(stack: ExposureStack, t: int) -> np.ndarray:
    """Return an exposure with what is not good left blank."""
    image = torch.where(stack.good[t], stack.image[t], torch.nan).numpy()
    rows, columns = (np.flatnonzero(np.isfinite(image).any(axis=i)) for i in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def main() -> None:
    """Make the scenes, restore them and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    torch.set_num_threads(1)
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 7.2), constrained_layout=True)
    coarse, fine = draw_pairs(1.0), draw_pairs(2.0)
    stacks = [coarse.stack(0), fine.stack(0)]
    restored = [restore(stack, "imagemm", n_realizations=0).image.numpy() for stack in stacks]
    gray = {"cmap": "gray"}
    show(axes[0, 0], frame_image(stacks[0], 0), "one of 12 exposures, 0.168″ pixels", 0.4, **gray)
    show(axes[0, 1], restored[0], "restored at 0.168″", 0.1, **gray)
    show(axes[0, 2], restored[1], "restored at 0.084″", 0.03, **gray)
    stack = draw_detectors().stack()
    # Exposures end with the latent area here, and interpolation needs more around.
    counts = [s.n_image.numpy()[8:-8, 8:-8] for s in (stack.register(), stack)]
    show(axes[1, 0], frame_image(stack, 2), "a detector with bad columns", 0.4, **gray)
    limits = {"vmin": 2, "vmax": 6, "cmap": "viridis"}
    show(axes[1, 1], counts[0], "good exposures, registered", **limits)
    show(axes[1, 2], counts[1], "good exposures, in their own pixels", **limits)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
