# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each part of the learned restorers is worth: one change at a time.

One table, one command::

    python benchmarks/ablation.py --seeds 2 --save ablation.json

What is already in the file given by ``--save`` is not trained again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import galsim
import measure
import numpy as np
import torch
from scenes import SCALE, Scene, SceneMaker
from torch import nn

from lsst.latent_coadds.qa import format_table, measure_star
from lsst.latent_coadds.restoration import _astroclearnet, _training, restore
from lsst.latent_coadds.restoration._learned import Inputs, LatentPredictor

Figures = dict[str, Any]
Patch = Callable[[], contextlib.AbstractContextManager[Any]]
LEVELS = (10, 20, 50, 100, 300)


@dataclasses.dataclass(frozen=True)
class Field:
    """A scene with stars, pairs of stars and galaxies.

    ``stars`` has rows of x, y, S/N, flux of isolated stars; ``centers`` (N, 2)
    and ``angles`` (N,) describe pairs; ``sky`` is the true latent image.
    """

    scene: Scene
    stars: np.ndarray
    centers: np.ndarray
    angles: np.ndarray
    galaxies: np.ndarray
    sky: np.ndarray


def make_field(seed: int, *, size: int = 208, separation: float = 0.5 / SCALE) -> Field:
    """Draw a field."""
    maker = SceneMaker(seed + 9000, size=size, n_exposures=8)
    positions = maker.grid(24.0)
    n = len(positions)
    centers, middles, places = positions[: n // 4], positions[n // 4 : 3 * n // 8], positions[3 * n // 8 :]
    angles = maker.rng.uniform(0, np.pi, len(centers))
    step = 0.5 * separation * np.column_stack([np.cos(angles), np.sin(angles)])
    pairs = maker.stars(np.concatenate([centers - step, centers + step]), (50,))
    stars = maker.stars(places, LEVELS)
    galaxies = []
    for index, (x, y) in enumerate(middles):
        profile = galsim.Exponential(
            half_light_radius=maker.rng.uniform(0.2, 0.6), flux=(40, 100, 300)[index % 3] * maker.flux_error
        )
        galaxies.append(
            (x, y, profile.shear(g1=maker.rng.uniform(-0.3, 0.3), g2=maker.rng.uniform(-0.3, 0.3)))
        )
    scene = maker.draw(np.concatenate([stars, pairs]), galaxies, n_rays=8)
    sky = galsim.ImageD(size, size, scale=SCALE)
    target = galsim.Gaussian(fwhm=2 * SCALE)
    for x, y, profile in galaxies:
        place = galsim.PositionD(x + 1, y + 1)
        galsim.Convolve(profile, target).drawImage(sky, center=place, add_to_image=True, method="no_pixel")
    return Field(scene, stars, centers, angles, middles, sky.array)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to restore: settings, and what the package does not have.

    ``decisive`` ones are always made with all seeds, others with one.
    """

    name: str
    method: str = "astroclearnet"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    patch: Patch = contextlib.nullcontext
    decisive: bool = False


class LinearPredictor(LatentPredictor):
    """The same without the asinh, in units of sigma."""

    def encode(self, data: torch.Tensor, seed: torch.Tensor | None = None) -> Inputs:
        """Return inputs that are proportional to the data."""
        inputs = super().encode(data, seed)
        return Inputs(torch.sinh(inputs.features), torch.sinh(inputs.exposures), inputs.base)

    def predict(self, network: nn.Module, inputs: Inputs, region: Any, turn: int = 0) -> torch.Tensor:
        """Return the latent image, of which the network adds a part."""
        features, exposures = (a[..., region[0], region[1]] for a in (inputs.features, inputs.exposures))
        signal = features[inputs.base] + network(features, exposures, self.pooling)
        return 0.5 * self.sigma * (signal + torch.sqrt(signal**2 + self.softness**2))


class HardPredictor(LatentPredictor):
    """The same with a ReLU for the smooth positive part."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{**keywords, "softness": 0.0})


class LastState(_training._State):
    """Keep the last step, whatever held-out pixels say."""

    def _judge(self, iteration: int) -> bool:
        self.best_loss, self.since = float("inf"), 0
        return super()._judge(iteration)


def predictor(cls: type[LatentPredictor]) -> Patch:
    """Take another predictor."""
    return lambda: mock.patch.object(_astroclearnet, "LatentPredictor", cls)


def optimizer(make: Callable[..., torch.optim.Optimizer]) -> Patch:
    """Take another optimiser; it gets parameters, rate and weight decay."""

    def made(network: nn.Module, rate: float, weight_decay: float) -> torch.optim.Optimizer:
        return make(network.parameters(), lr=rate, weight_decay=weight_decay)

    return lambda: mock.patch.object(_training, "_make_optimizer", made)


def options(**values: Any) -> Patch:
    """Change options of the training that are no settings."""
    original = _astroclearnet.training_options

    def changed(settings: Any) -> Any:
        return dataclasses.replace(original(settings), **values)

    return lambda: mock.patch.object(_astroclearnet, "training_options", changed)


def sgd(parameters: Iterator[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return gradient descent with momentum, at ten times the rate."""
    return torch.optim.SGD(parameters, lr=10 * lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def make_variants(n_steps: int) -> list[Variant]:
    """Return the rows of the table."""
    base = {"start": "random", "n_iter": n_steps, "learning_rate": 0.01}

    def change(
        name: str, patch: Patch = contextlib.nullcontext, *, decisive: bool = False, **settings: Any
    ) -> Variant:
        return Variant(f"– {name}", settings={**base, **settings}, patch=patch, decisive=decisive)

    return [
        Variant("`imagemm`", "imagemm", decisive=True),
        Variant(f"improved form from random weights, {n_steps} steps", settings=base, decisive=True),
        change("no known sources", implants=0.0, decisive=True),
        change("known sources with a weight of 30 in place of 3", implants=30.0),
        change("no turned and mirrored crops", options(turns=1)),
        change("no averaging of iterates", average=0.0),
        change("averaging over 300 steps in place of 100", average=0.9967),
        change(
            "last step in place of that which held-out pixels like best",
            lambda: mock.patch.object(_training, "_State", LastState),
        ),
        change("no asinh", predictor(LinearPredictor)),
        change("ReLU in place of a smooth positive part", predictor(HardPredictor)),
        change("skip from the coadd in place of a linear deconvolution", skip="coadd"),
        change(
            "GroupNorm in place of a normalisation of each pixel's channels",
            normalisation="group",
        ),
        change("no normalisation", normalisation="none"),
        change("depth 1 in place of 3", depth=1),
        change("width 32 in place of 16", width=32),
        change("learning rate 0.003 in place of 0.01", learning_rate=0.003),
        change("learning rate 0.03 in place of 0.01", learning_rate=0.03),
        change("SGD with momentum at a rate of 0.1 in place of AdamW", optimizer(sgd)),
        change("crops of 192 px in place of 128", crop=192),
        change("twice as many steps", n_iter=2 * n_steps),
        Variant("improved form from stored weights, 200 steps (the default)", decisive=True),
        Variant("– points left to the network", settings={"point_threshold": 0.0}, decisive=True),
        Variant("– 50 steps from stored weights", settings={"n_iter": 50}, decisive=True),
        Variant("– stored weights as they are", settings={"n_iter": 1, "learning_rate": 0.0}, decisive=True),
        Variant("published form, 400 steps", settings={"form": "published", "n_iter": 400}, decisive=True),
        Variant("`combined`", "combined", decisive=True),
    ]


def judge(variant: Variant, seed: int) -> Figures:
    """Restore a field and measure the result."""
    field = make_field(seed)
    scene = field.scene
    held = measure.hold_out(scene, 0.03, seed)
    start = time.process_time()
    with variant.patch():
        generator = torch.Generator().manual_seed(seed)
        stack = measure.make_stack(scene, ~held)
        restoration = restore(
            stack, variant.method, generator=generator, n_realizations=1, **variant.settings
        )
    seconds = time.process_time() - start
    result = measure.Result.from_restoration(restoration, seconds)
    held &= ~scene.hits
    truth = dataclasses.replace(restoration, _model=lambda t: torch.from_numpy(scene.clean[t]))
    losses = [measure.held_out_loss(r, scene, held) for r in (restoration, truth)]
    table = measure.measure_stars(result, dataclasses.replace(scene, stars=field.stars))
    width = [_width(result, x, y) for x, y, _, _ in field.stars]
    return {
        "excess": 1e4 * (losses[0] - losses[1]),
        "galaxies": _galaxy_error(field, result),
        "sky": measure.background_rms(result, scene, 12.0) / scene.coadd_sigma,
        "split": measure.count_split_pairs(result, field.centers, field.angles, 0.5 / SCALE),
        "pairs": len(field.centers),
        "stars": np.column_stack([table[:, :2], width]).tolist(),
        "seconds": seconds,
        "steps": restoration.n_iterations,
    }


def _width(result: measure.Result, x: float, y: float) -> float:
    middle = float(result.psf.shape[0] // 2)
    shape, target = measure_star(result.image, x, y), measure_star(result.psf, middle, middle)
    assert target is not None
    return np.nan if shape is None or np.hypot(shape.x - x, shape.y - y) > 2 else shape.fwhm / target.fwhm


def _galaxy_error(field: Field, result: measure.Result) -> float:
    """Return the rms error around galaxies in units of the coadd's noise."""
    y, x = np.mgrid[: field.sky.shape[0], : field.sky.shape[1]]
    near = np.any([np.hypot(x - a, y - b) < 7 for a, b in field.galaxies], axis=0)
    for a, b, *_ in field.scene.stars:
        near &= np.hypot(x - a, y - b) > 7
    return float(np.sqrt(np.mean((result.image - field.sky)[near] ** 2)) / field.scene.coadd_sigma)


def make_row(name: str, figures: list[Figures]) -> list[object]:
    """Return a row of the table: means over seeds, medians over stars."""
    mean = {key: np.mean([f[key] for f in figures]) for key in ("excess", "galaxies", "sky", "seconds")}
    table = np.concatenate([np.array(f["stars"], dtype=float) for f in figures])
    by_level = [table[table[:, 0] == level] for level in LEVELS]
    excess = " ".join(f"{f['excess']:.0f}" for f in figures)
    return [
        name,
        f"{mean['excess']:.0f}" + (f" ({excess})" if len(figures) > 1 else ""),
        f"{mean['galaxies']:.1f}",
        f"{mean['sky']:.2f}",
        " ".join(f"{np.nanmedian(rows[:, 2]):.2f}" for rows in by_level),
        " ".join(f"{100 * np.median(rows[:, 1]):+.1f}" for rows in by_level),
        f"{100 * sum(f['split'] for f in figures) / sum(f['pairs'] for f in figures):.0f}",
        f"{mean['seconds']:.0f}",
    ]


HEADER = [
    "",
    "excess",
    "galaxies",
    "sky rms / coadd",
    f"FWHM / target at S/N {', '.join(map(str, LEVELS))}",
    "flux bias %",
    "pairs split %",
    "CPU s",
]


def main() -> None:
    """Train everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", nargs="*", default=[], help="only rows whose name contains one of these")
    parser.add_argument("--decisive", action="store_true", help="only rows that decide something")
    parser.add_argument("--all-seeds", action="store_true", help="all seeds for all rows")
    parser.add_argument("--save", type=Path, help="JSON file for the raw measurements")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    variants = [
        v
        for v in make_variants(arguments.steps)
        if (not arguments.rows or any(r in v.name for r in arguments.rows))
        and (v.decisive or not arguments.decisive)
    ]
    raw: dict[str, dict[str, Figures]] = {}
    if arguments.save and arguments.save.exists():
        raw = json.loads(arguments.save.read_text())
    for variant in sorted(variants, key=lambda v: not v.decisive):
        done = raw.setdefault(variant.name, {})
        n_seeds = arguments.seeds if variant.decisive or arguments.all_seeds else 1
        for seed in range(1, n_seeds + 1):
            if str(seed) in done:
                continue
            done[str(seed)] = judge(variant, seed)
            print(seed, *make_row(variant.name, [done[str(seed)]]), sep=" | ", flush=True)
            if arguments.save:
                arguments.save.write_text(json.dumps(raw))
    rows = [make_row(v.name, list(raw[v.name].values())) for v in variants if raw.get(v.name)]
    print(format_table(HEADER, rows))


if __name__ == "__main__":
    main()
