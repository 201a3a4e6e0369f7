# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other codes on the same exposures, with the same measurements.

    pip install scikit-image deepinv starred-astro && pip install --no-deps setiastrosuitepro
    python benchmarks/peers.py --field small --save small.json --seeds 0 1 2
    python benchmarks/peers.py --save peers.json --seeds 0 1 2 --codes plain imagemm richardson_lucy

The small field is for all codes, the slow ones with as many steps as they
want. Every code gets the exposures, their variances and their PSFs, and returns
an image and what its PSF is. Codes that are not installed are left out;
``deconvolve`` needs a full stack. A code that pip cannot install joins by
``--extra FILE.py``, a module with a function ``restore(scene)`` that returns
an image with a Gaussian PSF of two pixels. CPU time and the peak of memory are
those of a process for each code.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import resource
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
from measure import Result
from peer_codes import CODES, TARGET, Code
from scenes import Scene, SceneMaker

from lsst.latent_coadds.qa import aperture_flux, format_table
from lsst.latent_coadds.restoration import gaussian_kernel

Figures = dict[str, Any]
PAIR_SEPARATION = 0.5 / 0.168
RADIUS = 3.0


@dataclasses.dataclass(frozen=True)
class Field:
    """What is drawn: width in pixels, exposures, pixels between stars, scenes, and where sky begins."""

    size: int
    exposures: int
    pitch: float
    scenes: tuple[str, ...]
    sky_distance: float


FIELDS = {
    "full": Field(200, 8, 33.0, ("stars", "rays", "pairs", "faint"), 14.0),
    "small": Field(96, 5, 24.0, ("stars", "rays", "pairs"), 11.0),
}


def make_scenes(field: Field, seed: int) -> dict[str, tuple[Scene, dict[str, Any]]]:
    """Draw the scenes of a seed: stars without and with rays, pairs, faint stars."""
    size, n_exposures = field.size, field.exposures
    maker = SceneMaker(seed + 7000, size=size, n_exposures=n_exposures)
    stars = maker.stars(maker.grid(field.pitch), (10, 20, 50, 100, 300))
    clean = maker.draw(stars, n_rays=0)
    hit, hits = add_rays(clean, np.random.default_rng(seed))
    maker = SceneMaker(seed + 8000, size=size, n_exposures=n_exposures)
    centers = maker.grid(27.0)
    angles = maker.rng.uniform(0, np.pi, len(centers))
    step = 0.5 * PAIR_SEPARATION * np.column_stack([np.cos(angles), np.sin(angles)])
    pairs = maker.draw(maker.stars(np.concatenate([centers - step, centers + step]), (50,)), n_rays=0)
    maker = SceneMaker(seed + 9000, size=size, n_exposures=n_exposures)
    positions = maker.grid(18.0, jitter=4.0)
    signal = np.exp(maker.rng.uniform(np.log(2.0), np.log(12.0), len(positions)))
    faint = maker.draw(np.column_stack([positions, signal, signal * maker.flux_error]), n_rays=0)
    return {
        "stars": (clean, {}),
        "rays": (hit, {"hits": hits}),
        "pairs": (pairs, {"centers": centers, "angles": angles}),
        "faint": (faint, {"signal": signal, "positions": positions}),
    }


def add_rays(scene: Scene, rng: np.random.Generator, per_exposure: int = 4) -> tuple[Scene, np.ndarray]:
    """Add unmasked tracks; return the scene, and their middles (N, 2)."""
    image, middles = scene.image.copy(), []
    for plane, sigma in zip(image, scene.sigma, strict=True):
        for _ in range(per_exposure):
            x, y = rng.integers(15, plane.shape[0] - 20, 2)
            length = rng.integers(1, 8)
            plane[y, x : x + length] += 10 ** rng.uniform(1.0, 3.0) * sigma
            middles.append((x + 0.5 * (length - 1), float(y)))
    return dataclasses.replace(scene, image=image), np.array(middles)


def judge(code: Code, field: Field, seed: int, chosen: Sequence[str]) -> Figures:
    """Run a code on scenes of a seed, and measure."""
    figures: Figures = {}
    seconds, images = 0.0, {}
    for name, (scene, about) in make_scenes(field, seed).items():
        if name not in chosen:
            continue
        start = time.process_time()
        image, psf = code(scene)
        seconds += time.process_time() - start
        variance = np.full(image.shape, np.nan)
        result = images[name] = Result(np.asarray(image, dtype=float), variance, np.asarray(psf, float), 0.0)
        if name == "stars":
            figures["stars"] = measure.measure_stars(result, scene).tolist()
            rms = measure.background_rms(result, scene, field.sky_distance)
            figures["sky"] = rms / scene.coadd_sigma
        elif name == "rays" and "stars" in images:
            differences = [
                aperture_flux(result.image - images["stars"].image, x, y, RADIUS) / scene.flux_error
                for x, y in about["hits"]
            ]
            figures["rays"] = differences
        elif name == "pairs":
            # The threshold is that of the plain coadd, for all codes.
            result.variance[:] = scene.coadd_sigma**2
            figures["split"] = measure.count_split_pairs(
                result, about["centers"], about["angles"], PAIR_SEPARATION
            )
            figures["pairs"] = len(about["centers"])
        elif name == "faint":
            figures["faint"] = find_faint(result, about["positions"])
            figures["signal"] = about["signal"].tolist()
            figures["levels"] = scene.flux_error
    figures["seconds"] = seconds / len(images)
    figures["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return figures


def find_faint(result: Result, positions: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Detect at several smoothing lengths; the best is chosen afterwards."""
    none = np.zeros(result.image.shape, dtype=bool)
    found = {}
    for fwhm in (-1.0, *measure.FILTER_FWHM):
        image = measure.detection_image(result, fwhm)
        values, false = measure.detect(image, positions, none)
        found[str(fwhm)] = {"values": values.tolist(), "false": false.tolist()}
    return found


def summarise(name: str, entries: Sequence[Figures], plain: Sequence[Figures]) -> list[object]:
    """Return a row of the table, with a dash where a scene was left out."""
    stars, coadd = (np.concatenate([np.array(e["stars"]) for e in which]) for which in (entries, plain))
    bright = stars[(stars[:, 0] >= 50)]
    cells = [name]
    for signal in (10, 20, 50, 100, 300):
        cells.append(f"{100 * np.median(stars[stars[:, 0] == signal, 1]):+.1f}")
    ratios = [
        (stars[stars[:, 0] == s, 1] * s).std() / (coadd[coadd[:, 0] == s, 1] * s).std()
        for s in (10, 20, 50, 100)
    ]
    cells.append(f"{np.mean(ratios):.2f}")
    cells.append(f"{100 * (np.nanmedian(bright[:, 2]) - 1):+.0f}")
    cells.append(f"{100 * np.nanmax(stars[:, 5]):.1f}")
    cells.append(f"{np.mean([entry['sky'] for entry in entries]):.2f}")
    if all("split" in entry for entry in entries):
        split, pairs = (sum(entry[key] for entry in entries) for key in ("split", "pairs"))
        cells.append(f"{100 * split / pairs:.0f}")
    else:
        cells.append("-")
    if all("faint" in entry for entry in entries):
        cells.append(f"{-2.5 * np.log10(find_limit(entries) / find_limit(plain)):+.2f}")
    else:
        cells.append("-")
    if all("rays" in entry for entry in entries):
        rays = np.abs(np.concatenate([entry["rays"] for entry in entries]))
        cells.append(f"{np.median(rays):.1f}, {rays.max():.0f}")
    else:
        cells.append("-")
    cells.append(f"{np.mean([entry['seconds'] for entry in entries]):.1f}")
    cells.append(f"{max(entry['memory'] for entry in entries):.1f}")
    return cells


def find_limit(entries: Sequence[Figures]) -> float:
    """Return the S/N of half completeness at the best smoothing length."""
    signal = np.concatenate([entry["signal"] for entry in entries])
    limits = []
    for key in entries[0]["faint"]:
        values = np.concatenate([entry["faint"][key]["values"] for entry in entries])
        false = np.concatenate([entry["faint"][key]["false"] for entry in entries])
        if np.isfinite(values).any():
            limits.append(measure.limiting_signal_to_noise(signal, values, false))
    return min(limits)


HEADER = (
    "code",
    *(f"bias {s}" for s in (10, 20, 50, 100, 300)),
    "scatter",
    "FWHM %",
    "ring %",
    "sky",
    "pairs %",
    "depth",
    "rays",
    "CPU s",
    "GiB",
)


def load_extra(path: Path) -> Code:
    """Return the function of a module as a code."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, f"{path} is no Python module."
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    psf = gaussian_kernel(TARGET, 25).numpy()
    return lambda scene: (module.restore(scene), psf)


def find_code(name: str, extra: Path | None) -> Code:
    """Return a code by its name; ``name:steps`` is one with another number of steps."""
    if extra:
        return load_extra(extra)
    name, _, steps = name.partition(":")
    return functools.partial(CODES[name], n_iter=int(steps)) if steps else CODES[name]


def work(
    name: str, extra: Path | None, field: Field, seed: int, chosen: Sequence[str], connection: Any
) -> None:
    """Judge a code in this process, and send what was found."""
    try:
        connection.send(judge(find_code(name, extra), field, seed, chosen))
    except ImportError as error:
        connection.send(f"not installed ({error})")
    except Exception:
        connection.send(traceback.format_exc())


def run_apart(target: Callable[..., None], *arguments: Any) -> Any:
    """Call a function in a fresh process and return what it sends."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, sender))
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = "the process ended without an answer"
    process.join()
    return answer


def main() -> None:
    """Run all codes and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--codes", nargs="*", default=list(CODES), help=f"{', '.join(CODES)}; CODE:STEPS for other steps"
    )
    parser.add_argument("--field", choices=list(FIELDS), default="full")
    parser.add_argument("--extra", nargs="*", type=Path, default=[], help="modules with further codes")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--scenes", nargs="*", help="not all of those of the field")
    parser.add_argument("--save", type=Path, help="keep raw figures here; what is there is not made again")
    arguments = parser.parse_args()
    field = FIELDS[arguments.field]
    raw: dict[str, dict[str, Figures]] = {}
    if arguments.save and arguments.save.exists():
        raw = json.loads(arguments.save.read_text())
    todo: list[tuple[str, Path | None]] = [(name, None) for name in arguments.codes]
    todo += [(path.stem, path) for path in arguments.extra]
    for seed in arguments.seeds:
        for name, extra in todo:
            if str(seed) in raw.get(name, {}):
                continue
            answer = run_apart(work, name, extra, field, seed, arguments.scenes or field.scenes)
            if isinstance(answer, str):
                print(f"{name}, seed {seed}: {answer}", flush=True)
                continue
            raw.setdefault(name, {})[str(seed)] = answer
            print(f"{name}, seed {seed}: {answer['seconds']:.1f} s of CPU time per scene", flush=True)
            if arguments.save:
                arguments.save.write_text(json.dumps(raw))
    rows = []
    for name, entries in raw.items():
        shared = [seed for seed in entries if seed in raw.get("plain", {})]
        if not shared:
            continue  # Figures are relative to the plain coadd of the same seeds.
        rows.append(summarise(name, [entries[s] for s in shared], [raw["plain"][s] for s in shared]))
    print(format_table(HEADER, rows))


if __name__ == "__main__":
    main()
