# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restorers on rotated, distorted, dithered detectors, and on finer grids.

One table per case, one command::

    python benchmarks/geometry.py --seeds 2

``detectors`` compares exposures that were interpolated to the grid of the
latent image with exposures in their own pixels. ``undersampled`` has a seeing
of 0.4 arcsec, restored on the detectors' pixel scale and on one twice as
fine. ``two frames`` are two exposures with pixels of 0.4 arcsec.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import measure
import numpy as np
import torch
from measure import Result
from native_scenes import Layout, NativeScene, NativeSceneMaker
from scenes import SCALE
from table import make_rows

from lsst.latent_coadds.qa import format_table
from lsst.latent_coadds.restoration import restore

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Column:
    """One way to restore a case.

    Attributes
    ----------
    layout : `Layout`
        How the exposures lie.
    method : `str`
        The restorer.
    native : `bool`
        Whether exposures stay in their own pixels.
    n_exposures : `int`
        Number of exposures.
    separation : `float`
        Distance of the stars of a pair, in arcsec.
    """

    layout: Layout
    method: str = "imagemm"
    native: bool = True
    n_exposures: int = 10
    separation: float = 0.5

    @property
    def scale(self) -> float:
        """Size of a latent pixel in arcsec."""
        return self.layout.native_scale / self.layout.oversampling

    def maker(self, seed: int, width: float) -> NativeSceneMaker:
        """Return a maker of scenes of some width in arcsec."""
        return NativeSceneMaker(
            seed, self.layout, size=round(width / self.scale), n_exposures=self.n_exposures
        )

    def restore(self, scene: NativeScene) -> Result:
        """Restore a scene."""
        start = time.perf_counter()
        stack = scene.stack()
        if not self.native:
            stack = stack.register()
        restoration = restore(stack, self.method)
        return Result.from_restoration(restoration, time.perf_counter() - start)


_SHARP = Layout(seeing=(0.4, 0.4), psf_variation=0.0)
_COARSE = Layout(native_scale=0.4, seeing=(1.1, 1.4), gap=0.0)
CASES = {
    "detectors": {
        "direct": Column(Layout(), "direct", native=False),
        "registered": Column(Layout(), native=False),
        "native": Column(Layout()),
    },
    "undersampled": {
        "direct": Column(_SHARP, "direct", native=False, n_exposures=12, separation=0.3),
        "native": Column(_SHARP, n_exposures=12, separation=0.3),
        "native, r = 2": Column(
            dataclasses.replace(_SHARP, oversampling=2.0), n_exposures=12, separation=0.3
        ),
    },
    "two frames": {
        "direct": Column(_COARSE, "direct", native=False, n_exposures=2, separation=0.8),
        "native": Column(_COARSE, n_exposures=2, separation=0.8),
        "native, r = 2": Column(
            dataclasses.replace(_COARSE, oversampling=2.0), n_exposures=2, separation=0.8
        ),
    },
}


def judge_stars(column: Column, seed: int) -> Figures:
    """Isolated stars, and the sky between them, with cosmic rays."""
    scale = column.scale
    maker = column.maker(seed, 60.0 * column.layout.native_scale / SCALE)
    pitch = 6.0 * column.layout.native_scale / SCALE / scale
    stars = maker.stars(maker.grid(pitch, border=0.5 * pitch), (5, 7, 10, 20, 50, 100, 300, 1000))
    n_rays = 8 if column.n_exposures > 3 else 0
    scene = maker.draw(stars, n_rays=n_rays)
    result = column.restore(scene)
    rows, columns = np.nonzero(scene.hits)
    near = [(np.hypot(columns - x, rows - y) < 6.0).any() for x, y, _, _ in stars]
    return {
        "stars": measure.measure_stars(result, scene)[~np.array(near)].tolist(),
        "rms": measure.background_rms(result, scene, distance=0.4 * pitch) / scene.coadd_sigma,
        "seconds": result.seconds,
    }


def judge_pairs(column: Column, seed: int) -> Figures:
    """Pairs of equal stars of S/N 50."""
    scale = column.scale
    maker = column.maker(seed + 2000, 50.0 * column.layout.native_scale / SCALE)
    pitch = 5.0 * column.layout.native_scale / SCALE / scale
    centers = maker.grid(pitch, border=0.6 * pitch)
    angles = maker.rng.uniform(0, np.pi, len(centers))
    separation = column.separation / scale
    step = 0.5 * separation * np.column_stack([np.cos(angles), np.sin(angles)])
    stars = maker.stars(np.concatenate([centers - step, centers + step]), (50,))
    result = column.restore(maker.draw(stars, n_rays=0))
    split = measure.count_split_pairs(result, centers, angles, separation)
    return {"split": split, "pairs": len(centers)}


JUDGES = {"stars": judge_stars, "pairs": judge_pairs}


def judge(task: tuple[str, str, str, int]) -> tuple[str, str, str, Figures]:
    """Run one judge on one column of a case and one seed."""
    case, column, name, seed = task
    torch.set_num_threads(1)
    return case, column, name, JUDGES[name](CASES[case][column], seed)


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    tasks = [
        (case, column, name, seed)
        for case in arguments.cases
        for column in CASES[case]
        for name in JUDGES
        for seed in range(1, arguments.seeds + 1)
    ]
    raw: dict[str, dict[str, dict[str, list[Figures]]]] = {
        case: {name: {column: [] for column in CASES[case]} for name in JUDGES} for case in arguments.cases
    }
    with ProcessPoolExecutor(arguments.workers) as pool:
        for done, (case, column, name, figures) in enumerate(pool.map(judge, tasks), 1):
            raw[case][name][column].append(figures)
            print(f"[{done}/{len(tasks)}] {case}: {name}, {column}", flush=True)
    for case in arguments.cases:
        columns = list(CASES[case])
        print(f"\n{case}\n")
        print(format_table(["figure", "bound", *columns], make_rows(raw[case], columns)))


if __name__ == "__main__":
    main()
