# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of merit of every restorer on scenes with known truth.

One table, one command::

    python benchmarks/figures_of_merit.py --methods direct imagemm --seeds 3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import galsim
import measure
import numpy as np
import torch
from measure import Result
from scenes import SCALE, Scene, SceneMaker
from scipy.ndimage import binary_dilation

from lsst.latent_coadds.qa import format_table
from lsst.latent_coadds.restoration import SETTINGS_CLASSES, Restoration, restore

Figures = dict[str, Any]
PAIR_SEPARATION = 0.5 / SCALE


def run(method: str, scene: Scene, good: np.ndarray | None = None, **settings: Any) -> Restoration:
    """Restore a scene."""
    return restore(measure.make_stack(scene, good), method, device="auto", **settings)


def timed(method: str, scene: Scene) -> Result:
    """Restore a scene and keep the arrays."""
    start = time.perf_counter()
    restoration = run(method, scene)
    return Result.from_restoration(restoration, time.perf_counter() - start)


def judge_stars(method: str, seed: int) -> Figures:
    """Isolated stars of S/N 5 to 1000, and the empty sky between them."""
    maker = SceneMaker(seed, size=360)
    stars = maker.stars(maker.grid(36.0), (5, 7, 10, 20, 50, 100, 300, 1000))
    scene = maker.draw(stars)
    result = timed(method, scene)
    near_ray = _near_rays(scene, stars)
    return {
        "stars": measure.measure_stars(result, scene)[~near_ray].tolist(),
        "rms": measure.background_rms(result, scene) / scene.coadd_sigma,
        "seconds": result.seconds,
    }


def judge_faint(method: str, seed: int) -> Figures:
    """Many isolated stars of S/N 5 to 10."""
    maker = SceneMaker(seed + 1000, size=360)
    stars = maker.stars(maker.grid(24.0), (5, 7, 10))
    scene = maker.draw(stars, n_rays=0)
    return {"stars": measure.measure_stars(timed(method, scene), scene).tolist()}


def judge_pairs(method: str, seed: int) -> Figures:
    """Pairs of equal stars of S/N 50 that are 0.5 arcsec apart."""
    maker = SceneMaker(seed + 2000, size=300)
    centers = maker.grid(30.0)
    angles = maker.rng.uniform(0, np.pi, len(centers))
    step = 0.5 * PAIR_SEPARATION * np.column_stack([np.cos(angles), np.sin(angles)])
    scene = maker.draw(maker.stars(np.concatenate([centers - step, centers + step]), (50,)), n_rays=0)
    split = measure.count_split_pairs(timed(method, scene), centers, angles, PAIR_SEPARATION)
    return {"split": split, "pairs": len(centers)}


def judge_depth(method: str, seed: int, kind: str) -> Figures:
    """Completeness of faint point sources or small galaxies."""
    maker = SceneMaker(seed + 3000, size=360)
    positions = maker.grid(20.0, jitter=5.0)
    # For a galaxy S/N is that of a star of its flux.
    low, high = (2.0, 12.0) if kind == "points" else (4.0, 30.0)
    signal = np.exp(maker.rng.uniform(np.log(low), np.log(high), len(positions)))
    flux = signal * maker.flux_error
    if kind == "points":
        scene = maker.draw(np.column_stack([positions, signal, flux]), n_rays=0)
    else:
        galaxies = [(x, y, _small_galaxy(maker, f)) for (x, y), f in zip(positions, flux, strict=True)]
        scene = maker.draw(np.zeros((0, 4)), galaxies, n_rays=0)
    result = timed(method, scene)
    filters = (-1.0,) if method == "direct" else measure.FILTER_FWHM
    exclude = np.zeros(result.image.shape, dtype=bool)
    found = {}
    for fwhm in filters:
        values, false = measure.detect(measure.detection_image(result, fwhm), positions, exclude)
        found[str(fwhm)] = {"values": values.tolist(), "false": false.tolist()}
    return {"signal": signal.tolist(), "found": found}


def _small_galaxy(maker: SceneMaker, flux: float) -> galsim.GSObject:
    radius, shape = maker.rng.uniform(0.15, 0.35), maker.rng.uniform(-0.3, 0.3, 2)
    profile = galsim.Exponential(half_light_radius=radius, flux=flux)
    return profile.shear(g1=shape[0], g2=shape[1])


def judge_artefacts(method: str, seed: int) -> Figures:
    """Rays and a trail in one exposure each, against masking them."""
    maker = SceneMaker(seed + 4000, size=256)
    stars = maker.stars(maker.grid(40.0), (20, 100))
    clean = maker.draw(stars, n_rays=0)
    image = clean.image.copy()
    rows = np.arange(256)
    columns = (40 + 0.6 * rows).astype(int)
    for width in range(-2, 3):
        image[3][rows, columns + width] += 40 * clean.sigma[3] * np.exp(-0.5 * (width / 1.2) ** 2)
    maker.rng = np.random.default_rng(seed)
    for _ in range(8):
        x, y = maker.rng.integers(20, 236, 2)
        image[5][y, x : x + maker.rng.integers(1, 8)] += 10 ** maker.rng.uniform(1, 3) * clean.sigma[5]
    hit = image != clean.image
    dirty = dataclasses.replace(clean, image=image, hits=hit.any(axis=0))
    # Against the same exposures with those pixels masked, and not against
    # clean ones: what the lost pixels knew is lost either way.
    with_hits = timed(method, dirty)
    masked = Result.from_restoration(run(method, clean, ~binary_dilation(hit, np.ones((1, 3, 3)))), 0.0)
    residual = np.abs(with_hits.image - masked.image)[dirty.hits] / np.sqrt(with_hits.variance[dirty.hits])
    return {"residual": np.sort(residual).tolist()}


def judge_errors(method: str, seed: int) -> Figures:
    """Two of ten exposures off by 2 % in flux and 0.1 px in place."""
    maker = SceneMaker(seed + 5000, size=256, flux_scale_error=0.02, shift=0.1)
    scene = maker.draw(maker.stars(maker.grid(36.0), (100, 300, 1000)), n_rays=0)
    return {"stars": measure.measure_stars(timed(method, scene), scene).tolist()}


def judge_held_out(method: str, seed: int) -> Figures:
    """Loss on pixels that the fit has not seen, in a mixed scene."""
    maker = SceneMaker(seed + 6000, size=256)
    positions = maker.grid(26.0)
    half = len(positions) // 2
    stars = maker.stars(positions[:half], (5, 10, 20, 50, 100, 300))
    fluxes = maker.flux_error * np.exp(maker.rng.uniform(np.log(10), np.log(300), len(positions) - half))
    galaxies = [(x, y, _small_galaxy(maker, f)) for (x, y), f in zip(positions[half:], fluxes, strict=True)]
    scene = maker.draw(stars, galaxies)
    held = measure.hold_out(scene, seed=seed)
    variants: list[dict[str, Any]] = [{}]
    if method == "direct":
        # The reference: ImageMM without a prior, at its own best iteration.
        method = "imagemm"
        bare = {"smooth_scale": 0.0, "residual_damping": 0.0, "tolerance": 0.0}
        variants = [{**bare, "n_iter": n} for n in (1, 2, 3, 5, 8, 15, 40)]
        variants += [{"form": "published", "tolerance": 0.0, "n_iter": n} for n in (40, 80, 160, 320)]
    losses = []
    for variant in variants:
        restoration = run(method, scene, ~held, **{"n_realizations": 0, **variant})
        losses.append(measure.held_out_loss(restoration, scene, held))
    return {"loss": min(losses), "all": losses}


def _near_rays(scene: Scene, stars: np.ndarray, distance: float = 6.0) -> np.ndarray:
    rows, columns = np.nonzero(scene.hits)
    return np.array([(np.hypot(columns - x, rows - y) < distance).any() for x, y, _, _ in stars])


JUDGES: dict[str, Callable[[str, int], Figures]] = {
    "stars": judge_stars,
    "faint": judge_faint,
    "pairs": judge_pairs,
    "points": lambda method, seed: judge_depth(method, seed, "points"),
    "galaxies": lambda method, seed: judge_depth(method, seed, "galaxies"),
    "artefacts": judge_artefacts,
    "errors": judge_errors,
    "held_out": judge_held_out,
}


def judge(task: tuple[str, str, int]) -> tuple[str, str, int, Figures]:
    """Run one judge on one restorer and one seed."""
    name, method, seed = task
    torch.set_num_threads(1)
    return name, method, seed, JUDGES[name](method, seed)


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS_CLASSES))
    parser.add_argument("--judges", nargs="+", default=list(JUDGES), choices=list(JUDGES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--save", type=Path, help="JSON file for the raw measurements")
    arguments = parser.parse_args()
    methods = list(dict.fromkeys(["direct", *arguments.methods]))
    tasks = [(n, m, s) for n in arguments.judges for m in methods for s in range(1, arguments.seeds + 1)]
    raw: dict[str, dict[str, list[Figures]]] = {n: {m: [] for m in methods} for n in arguments.judges}
    with ProcessPoolExecutor(arguments.workers) as pool:
        for done, (name, method, seed, figures) in enumerate(pool.map(judge, tasks), 1):
            raw[name][method].append(figures)
            print(f"[{done}/{len(tasks)}] {name} {method} seed {seed}", flush=True)
    if arguments.save:
        arguments.save.write_text(json.dumps(raw))
    from table import make_rows

    print(format_table(["figure", "bound", *methods], make_rows(raw, methods)))


if __name__ == "__main__":
    main()
