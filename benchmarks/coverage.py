# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How often intervals of measurements contain the truth, by restorer.

Many small fields with known truth, one table per restorer, one command::

    python benchmarks/coverage.py --methods direct imagemm --fields 84

A field has isolated stars of S/N 5 to 100, galaxies, places of empty sky away
from all sources and between them, 8 to 10 exposures with a seeing of 0.5 to
1.0 arcsec, and masks. The truth of a restored image is the sky at the target
PSF; that of the plain coadd is the same coadd without noise. Needs torch and
numpy alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fourier_scenes import PROFILES, Field, FieldMaker

from lsst.latent_coadds.qa import aperture_weights, format_table, shift_kernel
from lsst.latent_coadds.restoration import ErrorModel, ExposureStack, Restoration, restore

SIGNAL_TO_NOISE = (0, 5, 10, 20, 50, 100)
"""Those of stars; where it is 0 there is none."""

LEVELS = (0.68, 0.95)
BOUNDS = (0.04, 0.025)

SKY = {0: (18.0, math.inf), -1: (8.0, 18.0)}
"""Distances in px from the nearest source of places in the sky, by what stands for their S/N."""

N_SKY = 16
"""Places of either kind in a field."""

HALF = 9
"""Half the width of the stamps that are measured on."""

MEASUREMENTS = ("nearest pixel", "pixel 1.4 px away", "aperture, 3 px", "PSF flux")

Row = tuple[str, int, str, float, float, list[bool], list[float], float]
"""Kind, S/N, measurement, error and bias of the interval in errors of a star,
whether it contains the truth, half widths, and the true error.
"""


def make_field(seed: int, size: int, profile: str = "Gaussian") -> tuple[Field, np.ndarray]:
    """Return a field, and what is to be measured: rows of sources and of sky.

    Some places of the grid have no source.
    """
    maker = FieldMaker(seed, size=size, n_exposures=8 + seed % 3, profile=profile)
    positions = maker.grid(24.0)
    n = len(positions) // 7
    targets = np.concatenate(
        [maker.galaxies(positions[:n], (20, 50, 100)), maker.stars(positions[n:], SIGNAL_TO_NOISE)]
    )
    sources = targets[targets[:, 2] > 0]
    sky = [find_sky(seed, size, sources, kind) for kind in SKY]
    return maker.draw(sources, maker.masks(3)), np.concatenate([sources, *sky])


def find_sky(seed: int, size: int, sources: np.ndarray, kind: int) -> np.ndarray:
    """Return rows of places in the sky, as far from sources as one of the `SKY` has it."""
    rng = np.random.default_rng([seed, kind + 1])
    line = np.arange(HALF + 5.0, size - HALF - 5.0, 6.0)
    places = np.array([(x, y) for y in line for x in line])
    places += rng.uniform(-0.5, 0.5, places.shape)
    distance = np.hypot(*(places[:, None, k] - sources[:, k] for k in (0, 1))).min(axis=1)
    least, most = SKY[kind]
    places = rng.permutation(places[(distance >= least) & (distance < most)])[:N_SKY]
    rows = np.zeros((len(places), 7))
    rows[:, :2], rows[:, 2] = places, kind
    return rows


def make_stack(field: Field) -> ExposureStack:
    """Return the exposures of a field."""
    return ExposureStack(field.image, field.variance, field.good, field.psf)


def true_image(method: str, field: Field, restoration: Restoration) -> np.ndarray:
    """Return what the image would be without errors."""
    if method != "direct":
        return field.truth()
    clean = ExposureStack(field.clean, field.variance, field.good, field.psf)
    return restore(clean, "direct").image.double().numpy()


def make_weights(x: float, y: float, psf: np.ndarray) -> dict[str, np.ndarray]:
    """Return the weights of all measurements of a source at (x, y) in a stamp."""
    shape = (2 * HALF + 1, 2 * HALF + 1)
    pixel, beside = np.zeros((2, *shape))
    pixel[HALF, HALF] = beside[HALF + 1, HALF + 1] = 1.0
    cut = psf.shape[0] // 2 - HALF
    kernel = np.pad(psf, max(0, -cut))[max(0, cut) :, max(0, cut) :][: shape[0], : shape[1]]
    model = shift_kernel(kernel, x - HALF, y - HALF)
    return dict(
        zip(
            MEASUREMENTS,
            (pixel, beside, aperture_weights(shape, x, y, 3.0), model / (model**2).sum()),
            strict=True,
        )
    )


def judge(
    image: np.ndarray,
    truth: np.ndarray,
    psf: np.ndarray,
    errors: ErrorModel,
    targets: np.ndarray,
    unit: float,
) -> list[Row]:
    """Measure all targets and compare the intervals with the truth."""
    rows: list[Row] = []
    for x, y, s, _, xx, _, _ in targets:
        kind = "galaxy" if xx > 0 else "star" if s > 0 else "sky"
        corner = (round(y) - HALF, round(x) - HALF)
        cut = (slice(corner[0], corner[0] + 2 * HALF + 1), slice(corner[1], corner[1] + 2 * HALF + 1))
        for name, weights in make_weights(x - corner[1], y - corner[0], psf).items():
            true = float((weights * truth[cut]).sum())
            intervals = [errors.interval(weights, level, corner=corner) for level in LEVELS]
            first = intervals[0]
            if not np.isfinite(first.error):
                continue
            hit = [bool(i.low <= true <= i.high) for i in intervals]
            width = [0.5 * (i.high - i.low) / unit for i in intervals]
            off = (first.estimate - true) / unit
            rows.append((kind, int(s), name, first.error / unit, first.bias / unit, hit, width, off))
    return rows


def run_field(task: tuple[str, int, int, int, str, bool]) -> tuple[str, list[Row], list[float]]:
    """Restore one field and judge it; also return CPU times."""
    method, seed, size, n, profile, compare = task
    torch.set_num_threads(1)
    field, targets = make_field(seed, size, profile)
    stack = make_stack(field)
    settings: dict[str, Any] = {} if method == "direct" else {"n_realizations": n}
    start = time.process_time()
    restoration = restore(stack, method, generator=torch.Generator().manual_seed(seed), **settings)
    seconds = [time.process_time() - start]
    if compare:
        start = time.process_time()
        restore(stack, method, **({} if method == "direct" else {"n_realizations": 0}))
        seconds.append(time.process_time() - start)
    image = restoration.image.double().numpy()
    truth = true_image(method, field, restoration)
    errors = ErrorModel.from_restoration(restoration)
    rows = judge(image, truth, restoration.psf.double().numpy(), errors, targets, field.flux_error)
    return method, rows, seconds


def describe(kind: str, s: int) -> str:
    """Return the name of what was measured."""
    if kind != "sky":
        return f"{kind} {s}"
    return "sky" if s == 0 else "sky, {:.0f}-{:.0f} px from sources".format(*SKY[s])


def tabulate(rows: list[Row]) -> str:
    """Return a table of coverage."""
    cells: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row[2], row[0], row[1]].append(row)
    lines = []
    order = {"sky": 0, "star": 1, "galaxy": 2}
    for key in sorted(cells, key=lambda k: (MEASUREMENTS.index(k[0]), order[k[1]], k[2])):
        name, kind, s = key
        hits = np.array([row[5] for row in cells[key]], dtype=float)
        widths = np.array([row[6] for row in cells[key]])
        off = np.array([row[7] for row in cells[key]])
        n = len(hits)
        entries = []
        for k, level in enumerate(LEVELS):
            share = hits[:, k].mean()
            mark = "" if abs(share - level) <= BOUNDS[k] else " *"
            entries.append(f"{100 * share:.1f} ± {100 * np.sqrt(level * (1 - level) / n):.1f}{mark}")
        spread = np.sqrt((off**2).mean())
        half = np.sqrt((widths[:, 0] ** 2).mean())
        lines.append(
            [name, describe(kind, s), n, *entries, f"{off.mean():+.3f}"] + [f"{spread:.3f}", f"{half:.3f}"]
        )
    header = ["measurement", "of", "n", "68 %", "95 %", "mean error", "rms error", "half width"]
    return format_table(header, lines)


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["direct", "imagemm"])
    parser.add_argument("--fields", type=int, default=84, help="number of fields")
    parser.add_argument("--first", type=int, default=0, help="seed of the first field")
    parser.add_argument("--size", type=int, default=160, help="width of a field in pixels")
    parser.add_argument("--profile", choices=list(PROFILES), default="Gaussian", help="of galaxies")
    parser.add_argument("--realizations", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--save", type=Path, help="JSON file for the raw figures")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.fields)
    tasks = [
        (method, seed, arguments.size, arguments.realizations, arguments.profile, seed < arguments.first + 5)
        for method in arguments.methods
        for seed in seeds
    ]
    rows: dict[str, list[Row]] = defaultdict(list)
    seconds: dict[str, list[list[float]]] = defaultdict(list)
    with ProcessPoolExecutor(arguments.workers) as pool:
        for method, found, times in pool.map(run_field, tasks):
            rows[method] += found
            if len(times) == 2:
                seconds[method].append(times)
    for method in arguments.methods:
        whole, bare = np.median(np.array(seconds[method]), axis=0)
        print(
            f"{method}: {arguments.fields} fields of {arguments.size} px, seeds {seeds.start} to "
            f"{seeds.stop - 1}, N = {arguments.realizations}; {whole:.2f} s of CPU time per field, of which "
            f"the uncertainty takes {(whole - bare) / bare:.2f} times what the restoration takes."
        )
        print("Errors and widths are in Cramér-Rao errors of a star's flux; * is outside of the bounds.\n")
        print(tabulate(rows[method]))
    if arguments.save:
        arguments.save.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
