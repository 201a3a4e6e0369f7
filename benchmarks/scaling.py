# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU time against the number of pixels and of exposures; torch and numpy alone.

    python benchmarks/scaling.py --save scaling.json --figure doc/images/scaling.png

Stars seen in many visits (`StreamedScene`) are restored with a fixed number of
updates, once more with none, and the difference is the time of the updates;
what remains is preparation, start and noise realizations. An exponent is the
slope of a straight line through the logarithms; 1 is linear. Sides are chosen
such that the transforms, which are padded to a good size, grow as the pixels
do. The figure needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streamed_scene import StreamedScene

from lsst.latent_coadds.restoration import Window, restore

SIDES = (256, 362, 512, 724, 1024)
COUNTS = (4, 8, 16, 32)

Figures = dict[str, dict[str, float]]


def measure(side: int, n_exposures: int, native: bool, n_updates: int, degree: int) -> dict[str, float]:
    """Return the CPU seconds of an update, and of all else.

    Parameters
    ----------
    side : `int`
        Side of the latent image in pixels.
    n_exposures : `int`
        Number of exposures.
    native : `bool`
        Whether they have pixels of their own.
    n_updates : `int`
        Updates to time.
    degree : `int`
        Largest degree of the polynomials of the PSFs.
    """
    scene = StreamedScene(max(side, 1024), n_exposures, native=native, degree=degree)
    stack = scene.stack(Window(0, side, 0, side))
    seconds = []
    # The first makes what later ones find in caches.
    for n in (1, 1, 1 + n_updates):
        begin = time.process_time()
        result = restore(
            stack,
            "imagemm",
            generator=torch.Generator().manual_seed(1),
            n_iter=n,
            tolerance=0.0,
            reject_sigma=0.0,
            # As many inner steps whatever the number of exposures.
            n_steps=10,
            n_realizations=0,
        )
        seconds.append(time.process_time() - begin)
        assert result.n_iterations == n
    update = (seconds[2] - seconds[1]) / n_updates
    return {"side": side, "exposures": n_exposures, "update": update, "rest": seconds[1] - update}


def exponent(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of log y against log x, and its error."""
    u, v = np.log(x), np.log(y)
    slope, offset = np.polyfit(u, v, 1)
    residual = v - slope * u - offset
    error = math.sqrt((residual**2).sum() / max(1, len(u) - 2) / ((u - u.mean()) ** 2).sum())
    return float(slope), error


def summarise(known: Figures) -> list[dict[str, Any]]:
    """Return each series with its exponent."""
    series = []
    for geometry in ("registered", "native"):
        for what, unit in (("side", "pixels"), ("exposures", "exposures")):
            entries = [f for key, f in known.items() if key.startswith(f"{geometry}/{what}/")]
            if len(entries) < 2:
                continue
            size = np.array([f[what] for f in entries]) ** (2 if what == "side" else 1)
            update = np.array([f["update"] for f in entries])
            work = np.array([f["side"] ** 2 * f["exposures"] for f in entries]) / 1e6
            slope, error = exponent(size, update)
            series.append(
                {
                    "geometry": geometry,
                    "unit": unit,
                    "size": size,
                    "update": update,
                    "exponent": slope,
                    "error": error,
                    "per_work": update / work,
                }
            )
    return series


def draw(series: list[dict[str, Any]], path: Path) -> None:
    """Plot the times with the lines through them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, unit in zip(axes, ("pixels", "exposures"), strict=True):
        for entry in series:
            if entry["unit"] != unit:
                continue
            native = entry["geometry"] == "native"
            size = entry["size"] / (1e6 if unit == "pixels" else 1)
            color = "C1" if native else "C0"
            slope = entry["exponent"]
            panel.plot(
                size,
                entry["update"],
                "o" if native else "s",
                color=color,
                label=f"{entry['geometry']}: exponent {slope:.2f}",
            )
            middle = np.exp(np.log(entry["update"]).mean()) * (size / np.exp(np.log(size).mean())) ** slope
            panel.plot(size, middle, color=color, linewidth=1)
        panel.set(xscale="log", yscale="log", xlabel="megapixels" if unit == "pixels" else unit)
        if unit == "exposures":
            counts = sorted({int(n) for entry in series if entry["unit"] == unit for n in entry["size"]})
            panel.set_xticks(counts, [str(n) for n in counts])
            panel.tick_params(axis="x", which="minor", labelbottom=False)
        panel.legend(frameon=False)
        panel.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("CPU seconds per update")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure what is not known yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--side", type=int, default=362, help="side where the number of exposures changes")
    parser.add_argument("--exposures", type=int, default=8, help="exposures where the side changes")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--degree", type=int, default=2, help="largest degree of the PSFs' polynomials")
    parser.add_argument("--save", type=Path, help="go on with this file")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known: Figures = {}
    if arguments.save and arguments.save.exists():
        known = json.loads(arguments.save.read_text())
    for geometry in ("registered", "native"):
        cases = [("side", side, side, arguments.exposures) for side in arguments.sides]
        cases += [("exposures", n, arguments.side, n) for n in arguments.counts]
        for what, value, side, n_exposures in cases:
            key = f"{geometry}/{what}/{value}"
            if key not in known:
                known[key] = measure(
                    side, n_exposures, geometry == "native", arguments.updates, arguments.degree
                )
                print(key, known[key], flush=True)
            if arguments.save:
                arguments.save.write_text(json.dumps(known, indent=1))
    series = summarise(known)
    for entry in series:
        print(f"\n{entry['geometry']}, {entry['unit']}: {entry['exponent']:.3f} ± {entry['error']:.3f}")
        for size, update, per in zip(entry["size"], entry["update"], entry["per_work"], strict=True):
            print(f"{size:10.0f} {1e3 * update:9.1f} ms, {1e3 * per:6.1f} ms per megapixel and exposure")
    if arguments.figure:
        draw(series, arguments.figure)


if __name__ == "__main__":
    main()
