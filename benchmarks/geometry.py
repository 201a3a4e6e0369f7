# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exposures in their own pixels, and finer grids, against interpolation beforehand.

One table per case, one command::

    python benchmarks/geometry.py --seeds 4 --save geometry.json

``detectors`` compares exposures that were interpolated to the grid of the
latent image with exposures in their own pixels: rotated, dithered, distorted
pairs of detectors with PSFs that vary by 10 %, bad columns and cosmic rays.
``undersampled`` has a seeing of 0.4 arcsec, restored on the detectors' pixel
scale and on one twice as fine. ``two frames`` are two exposures with pixels
of 0.4 arcsec. A file that was saved is gone on with.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from measure import Result
from native_scenes import Layout, NativeScene, NativeSceneMaker

from lsst.latent_coadds.qa import format_table
from lsst.latent_coadds.restoration import ExposureStack, Restoration, restore

Figures = dict[str, Any]

SIGNALS = (10, 20, 50, 50, 100, 100, 300, 300)
"""S/N of isolated stars."""


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

    @property
    def unit(self) -> float:
        """Latent pixels per 0.168 arcsec pixel, or what is as wide on coarser detectors."""
        return self.layout.native_scale / self.scale

    def maker(self, seed: int, width: float) -> NativeSceneMaker:
        """Return a maker of scenes of some width in native pixels."""
        size = round(width * self.unit)
        return NativeSceneMaker(seed, self.layout, size=size, n_exposures=self.n_exposures)

    def restore(self, scene: NativeScene) -> tuple[Result, Restoration, ExposureStack]:
        """Restore a scene."""
        stack = scene.stack()
        start = time.process_time()
        if not self.native:
            stack = stack.register()
        restoration = restore(stack, self.method)
        return Result.from_restoration(restoration, time.process_time() - start), restoration, stack


def _variants(layout: Layout, n_exposures: int, separation: float) -> dict[str, Column]:
    columns = {}
    for name, oversampling in (("", 1.0), (", r = 2", 2.0)):
        grid = dataclasses.replace(layout, oversampling=oversampling)
        for native in (False, True):
            label = ("native" if native else "registered") + name
            columns[label] = Column(grid, "imagemm", native, n_exposures, separation)
    return columns


CASES = {
    "detectors": {
        "plain": Column(Layout(), "direct", native=False),
        "registered": Column(Layout(), native=False),
        "native": Column(Layout()),
    },
    "undersampled": _variants(Layout(seeing=(0.4, 0.4), psf_variation=0.0, gap=0.0), 12, 0.3),
    "two frames": _variants(Layout(native_scale=0.4, seeing=(1.1, 1.4), gap=0.0), 2, 0.8),
}


def judge_stars(column: Column, seed: int) -> Figures:
    """Isolated stars, the sky between them, and the noise of the exposures."""
    maker = column.maker(seed, 240)
    pitch = 34.0 * column.unit
    stars = maker.stars(maker.grid(pitch, border=0.5 * pitch, jitter=3.0 * column.unit), SIGNALS)
    scene = maker.draw(stars, n_rays=8 if column.n_exposures > 3 else 0)
    result, restoration, stack = column.restore(scene)
    rows, columns = np.nonzero(scene.hits)
    near = [(np.hypot(columns - x, rows - y) < 6.0 * column.unit).any() for x, y, _, _ in stars]
    rms = measure.background_rms(result, scene, distance=0.4 * pitch)
    # Exposures end with the latent area here, and interpolation needs more around.
    border = round(8 * column.unit)
    coverage = restoration.n_image[border:-border, border:-border].float().mean() / column.n_exposures
    return {
        "stars": measure.measure_stars(result, scene)[~np.array(near)].tolist(),
        "rms": rms / scene.coadd_sigma,
        "predicted": float(np.sqrt(np.median(result.variance))) / rms,
        "correlation": correlate(restoration, stack),
        "chi2": float(np.nanmean(restoration.chi2.numpy())),
        "coverage": float(coverage),
        "iterations": restoration.n_iterations,
        "seconds": result.seconds,
    }


def correlate(restoration: Restoration, stack: ExposureStack) -> float:
    """Return the mean correlation of the residuals of neighbouring pixels."""
    values = []
    for t in range(stack.n_exposures):
        good = stack.good[t]
        residual = (stack.image[t] - restoration.model(t)) / stack.variance[t].sqrt()
        residual = torch.where(good, residual.clamp(-4.0, 4.0), torch.zeros_like(residual))
        power = (residual**2).sum() / good.sum().clamp_min(1)
        for axis in (0, 1):
            both = good & torch.roll(good, 1, axis)
            product = (residual * torch.roll(residual, 1, axis))[both]
            if len(product):
                values.append(float(product.mean() / power))
    return float(np.mean(values))


def judge_pairs(column: Column, seed: int) -> Figures:
    """Pairs of equal stars of S/N 50."""
    maker = column.maker(seed + 2000, 214)
    pitch = 27.0 * column.unit
    centers = maker.grid(pitch, border=0.6 * pitch, jitter=2.0 * column.unit)
    angles = maker.rng.uniform(0, np.pi, len(centers))
    separation = column.separation / column.scale
    step = 0.5 * separation * np.column_stack([np.cos(angles), np.sin(angles)])
    stars = maker.stars(np.concatenate([centers - step, centers + step]), (50,))
    result, _, _ = column.restore(maker.draw(stars, n_rays=0))
    split = measure.count_split_pairs(result, centers, angles, separation)
    return {"split": split, "pairs": len(centers)}


JUDGES: dict[str, Callable[[Column, int], Figures]] = {"stars": judge_stars, "pairs": judge_pairs}


def _median(values: np.ndarray) -> str:
    values = 100.0 * values[np.isfinite(values)]
    if not len(values):
        return "-"
    return f"{np.median(values):+.2f} ± {1.2533 * values.std() / np.sqrt(len(values)):.2f}"


def summarise(stars: list[Figures], pairs: list[Figures]) -> dict[str, str]:
    """Return the figures of a column as text."""
    rows = {}
    if stars:
        table = np.concatenate([np.array(entry["stars"]).reshape(-1, 8) for entry in stars])
        signal, error = table[:, 0], table[:, 1]
        rows["flux bias %, S/N 20-300"] = _median(error[signal >= 20])
        for s in (50, 100, 300):
            rows[f"  S/N {s}"] = _median(error[signal == s])
        for s in (20, 50, 100):
            rows[f"scatter / Cramér-Rao error, S/N {s}"] = f"{error[signal == s].std() * s:.2f}"
        rows["FWHM / PSF - 1 %, S/N 50-300"] = _median(table[signal >= 50, 2] - 1)
        rows["deepest ring %"] = f"{100 * np.nanmax(table[:, 5]):.2f}"
        for name, label in (
            ("rms", "sky rms / plain pixel rms"),
            ("predicted", "predicted noise / sky rms"),
            ("chi2", "chi2"),
            ("correlation", "correlation of neighbours' residuals"),
            ("coverage", "good exposures per pixel / exposures"),
            ("iterations", "updates"),
            ("seconds", "CPU seconds"),
        ):
            rows[label] = f"{np.mean([entry[name] for entry in stars]):.3g}"
    if pairs:
        split, total = (sum(entry[key] for entry in pairs) for key in ("split", "pairs"))
        rows["close pairs split"] = f"{100 * split / total:.0f} % of {total}"
    return rows


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--judges", nargs="+", default=list(JUDGES), choices=list(JUDGES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, Figures] = {}
    if arguments.save and arguments.save.exists():
        known = json.loads(arguments.save.read_text())
    for seed in range(1, arguments.seeds + 1):
        for case in arguments.cases:
            for name in arguments.judges:
                for column in CASES[case]:
                    key = f"{case}/{column}/{name}/{seed}"
                    if key not in known:
                        known[key] = JUDGES[name](CASES[case][column], seed)
                        print(key, flush=True)
                    if arguments.save:
                        arguments.save.write_text(json.dumps(known))
    for case in arguments.cases:
        columns = {}
        for column in CASES[case]:
            found = [
                [known[key] for key in known if key.startswith(f"{case}/{column}/{name}/")] for name in JUDGES
            ]
            columns[column] = summarise(*found)
        labels = next(iter(columns.values()))
        table = [[label, *(column.get(label, "") for column in columns.values())] for label in labels]
        print(f"\n{case}\n\n{format_table(['figure', *columns], table)}")


if __name__ == "__main__":
    main()
