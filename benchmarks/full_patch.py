# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore a full patch in tiles; torch and numpy alone.

    python benchmarks/full_patch.py
    python benchmarks/full_patch.py --size 4200 --exposures 33 --native --max-memory 4.5

The exposures are drawn as the tiles ask for them (which is not counted in the
time of the restoration), and the tiles are planned as the pipeline task does
it. Printed are the time per megapixel and exposure, the peak memory, and the
seams: around some tile borders the image is restored again, with the border in
the middle of a tile, and the difference is compared with the noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from typing import Any

import numpy as np
import torch
from streamed_scene import StreamedScene

from lsst.latent_coadds.restoration import (
    RemainingTime,
    Restoration,
    Window,
    choose_halo_width,
    choose_tile_size,
    estimate_memory,
    peak_memory,
    resident_memory,
    restore,
    stream_windows,
)

GIB = 2.0**30


class EnoughError(Exception):
    """As many tiles are done as were asked for."""


@dataclasses.dataclass
class Patch:
    """Pixel planes of a patch, and how long they took."""

    area: Window
    image: np.ndarray = dataclasses.field(init=False)
    variance: np.ndarray = dataclasses.field(init=False)
    tiles: list[Window] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    drawing: float = 0.0
    megapixels: float = 0.0
    worked: float = 0.0
    updates: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.image = np.full(self.area.shape, np.nan, dtype=np.float32)
        self.variance = np.full(self.area.shape, np.nan, dtype=np.float32)
        # As much as the pipeline's noise realizations, counts and masks take.
        self.others = np.ones((8, *self.area.shape), dtype=np.float32)


def clip(window: Window, area: Window) -> Window:
    """Return the part of a window that lies in an area."""
    return Window(
        max(window.y_start, area.y_start),
        min(window.y_stop, area.y_stop),
        max(window.x_start, area.x_start),
        min(window.x_stop, area.x_stop),
    )


def choose_halo(scene: StreamedScene) -> int:
    """Return the halo that the PSFs in the middle of the patch ask for."""
    middle = scene.area.x_stop // 2
    window = Window(middle - 32, middle + 32, middle - 32, middle + 32)
    stamps = [torch.from_numpy(scene.psf(t, window)[:1]) for t in range(len(scene.visits))]
    return choose_halo_width(torch.cat(stamps))


def restore_window(
    scene: StreamedScene, window: Window, halo: int, arguments: argparse.Namespace, settings: dict[str, Any]
) -> tuple[Restoration, tuple[slice, slice], float, float]:
    """Restore a window; return also its slices in the result, and times."""
    outer = window.padded(halo).snapped(2)
    start = time.perf_counter()
    stack = scene.stack(outer)
    drawn = time.perf_counter()
    generator = torch.Generator().manual_seed(1)
    result = restore(stack, arguments.method, device=arguments.device, generator=generator, **settings)
    return result, window.within(outer), drawn - start, time.perf_counter() - drawn


def restore_patch(
    scene: StreamedScene, tile_size: int, halo: int, arguments: argparse.Namespace, settings: dict[str, Any]
) -> Patch:
    """Restore the whole patch, tile by tile."""
    patch = Patch(scene.area)
    remaining = RemainingTime(scene.area.size)
    n_exposures = len(scene.visits)

    def work(window: Window) -> None:
        if len(patch.tiles) == arguments.tiles:
            raise EnoughError
        result, cut, drawing, seconds = restore_window(scene, window, halo, arguments, settings)
        target = window.within(scene.area)
        patch.image[target] = result.image[cut].numpy()
        patch.variance[target] = result.variance[cut].numpy()
        patch.tiles.append(window)
        patch.drawing += drawing
        patch.seconds += seconds
        patch.megapixels += window.size * n_exposures / 1e6
        patch.worked += window.padded(halo).size * n_exposures / 1e6
        patch.updates.append(int(result.n_iterations))
        remaining.add(window.size)
        print(
            f"tile {len(patch.tiles)}: {result.n_iterations} updates, {seconds:.1f} s; "
            f"{remaining.describe()}; peak {peak_memory() / GIB:.2f} GiB",
            flush=True,
        )

    def shrunk(size: int, message: str) -> None:
        print(f"out of memory ({message.splitlines()[0]}): tiles of {size} from here", flush=True)

    try:
        stream_windows(scene.area, tile_size, work, on_shrink=shrunk)
    except EnoughError:
        print(f"stopped after {len(patch.tiles)} tiles")
    return patch


def measure_seams(
    scene: StreamedScene,
    patch: Patch,
    halo: int,
    arguments: argparse.Namespace,
    settings: dict[str, Any],
    width: int = 128,
) -> np.ndarray:
    """Return the differences across tile borders, in units of the noise."""
    corners = sorted({(w.y_start, w.x_start) for w in patch.tiles if w.y_start > 0 and w.x_start > 0})
    rng = np.random.default_rng(7)
    chosen = rng.permutation(len(corners))[: arguments.seams]
    differences = []
    for row, column in (corners[i] for i in chosen):
        window = clip(Window(row - width, row + width, column - width, column + width), scene.area)
        result, cut, _, _ = restore_window(scene, window, halo, arguments, settings)
        target = window.within(scene.area)
        sigma = np.sqrt(patch.variance[target])
        differences.append(((result.image[cut].numpy() - patch.image[target]) / sigma).ravel())
    return np.concatenate(differences) if differences else np.zeros(0)


def parse() -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the arguments and the settings of the restorer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=700)
    parser.add_argument("--exposures", type=int, default=6)
    parser.add_argument("--native", action="store_true", help="exposures have pixels of their own")
    parser.add_argument("--method", default="imagemm")
    parser.add_argument("--degree", type=int, default=2, help="largest degree of the PSFs' polynomials")
    parser.add_argument("--variation", type=float, default=0.1, help="of the PSF's width over the patch")
    parser.add_argument("--partial", type=float, default=0.0, help="share of exposures that end in the patch")
    parser.add_argument("--max-memory", type=float, default=4.5, help="GiB")
    parser.add_argument("--tile", type=int, default=0, help="side of a tile; 0 chooses it from the memory")
    parser.add_argument("--tiles", type=int, default=-1, help="stop after this many tiles; -1 does all")
    parser.add_argument("--halo", type=int, default=-1, help="-1 takes it from the PSFs")
    parser.add_argument("--seams", type=int, default=2, help="number of tile corners to look at")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the restorer")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    settings = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in arguments.set)}
    return arguments, settings


def main() -> None:
    """Restore a patch and print the figures."""
    arguments, settings = parse()
    torch.set_num_threads(arguments.threads)
    scene = StreamedScene(
        arguments.size,
        arguments.exposures,
        native=arguments.native,
        seed=arguments.seed,
        variation=arguments.variation,
        degree=arguments.degree,
        partial=arguments.partial,
    )
    halo = arguments.halo if arguments.halo >= 0 else choose_halo(scene)
    # The planes of the output, all of which the pipeline keeps.
    budget = arguments.max_memory * GIB - resident_memory() - 40.0 * scene.area.size
    model = estimate_memory(arguments.method)
    # Frames that are turned are padded.
    n_planes = arguments.exposures * (1.3 if arguments.native else 1.0)
    tile_size = arguments.tile or choose_tile_size(budget, math.ceil(n_planes), halo, model)
    print(
        f"{arguments.method} on {arguments.device} with {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; {arguments.exposures} exposures of {arguments.size} x {arguments.size}; "
        f"tiles of {tile_size} + 2 x {halo}",
        flush=True,
    )
    start = time.perf_counter(), time.process_time()
    patch = restore_patch(scene, tile_size, halo, arguments, settings)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    figures = {
        "size": arguments.size,
        "exposures": arguments.exposures,
        "native": arguments.native,
        "method": arguments.method,
        "tile_size": tile_size,
        "halo": halo,
        "n_tiles": len(patch.tiles),
        "area_done": sum(window.size for window in patch.tiles) / scene.area.size,
        "restoration_seconds": patch.seconds,
        "drawing_seconds": patch.drawing,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "seconds_per_megapixel_exposure": patch.seconds / patch.megapixels,
        "seconds_per_worked_megapixel_exposure": patch.seconds / patch.worked,
        "updates": [min(patch.updates), max(patch.updates)],
        "peak_memory_gib": peak_memory() / GIB,
    }
    seams = measure_seams(scene, patch, halo, arguments, settings)
    seams = seams[np.isfinite(seams)]
    if len(seams):
        figures["seam_rms"] = float(np.sqrt(np.mean(seams**2)))
        for percentile in (50, 90, 99, 100):
            figures[f"seam_percentile_{percentile}"] = float(np.percentile(np.abs(seams), percentile))
    if arguments.device.startswith("cuda"):
        figures["device_memory_gib"] = torch.cuda.max_memory_allocated() / GIB
    for name, value in figures.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    if arguments.json:
        with open(arguments.json, "w") as stream:
            json.dump(figures, stream, indent=2)


if __name__ == "__main__":
    main()
