# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time of the restorers as ratios, in one run; torch and numpy alone.

    python benchmarks/speed.py --size 512 --exposures 10
    python benchmarks/speed.py --size 4200 --exposures 33 --device cuda

An update of ImageMM is compared with the transforms that it cannot do
without (2 T + 2 real FFTs of the padded size), and the accelerated form with
the time that the published one takes to the same objective. Each pair is
timed in turn, several times, and the median ratio is printed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lsst.latent_coadds.restoration import (
    SETTINGS_CLASSES,
    ConvolutionOperator,
    ExposureStack,
    restore,
)


def moffat(size: int, fwhm: float, ellipticity: float, angle: float, beta: float = 3.0) -> np.ndarray:
    """Return a Moffat stamp with a sum of one."""
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    u = x * np.cos(angle) + y * np.sin(angle)
    v = (-x * np.sin(angle) + y * np.cos(angle)) * (1 + ellipticity) / (1 - ellipticity)
    radius = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    stamp = (1 + (u**2 + v**2) / radius**2) ** -beta
    return stamp / stamp.sum()


def make_stack(size: int, n_exposures: int, seed: int = 1, stamp: int = 41) -> ExposureStack:
    """Draw exposures of random stars at whole pixels."""
    rng = np.random.default_rng(seed)
    sky = np.zeros((size, size), dtype=np.float32)
    n_stars = max(20, size * size // 2000)
    rows, columns = rng.integers(0, size, (2, n_stars))
    np.add.at(sky, (rows, columns), (30 * rng.pareto(1.0, n_stars) + 3).clip(max=3e4))
    psf = np.stack(
        [
            moffat(stamp, rng.uniform(3.0, 6.0), rng.uniform(0, 0.06), rng.uniform(0, np.pi))
            for _ in range(n_exposures)
        ]
    ).astype(np.float32)
    transform = np.fft.rfft2(sky)
    image = np.empty((n_exposures, size, size), dtype=np.float32)
    for t in range(n_exposures):
        kernel = np.zeros_like(sky)
        kernel[:stamp, :stamp] = psf[t]
        kernel = np.roll(kernel, (-(stamp // 2), -(stamp // 2)), axis=(0, 1))
        image[t] = np.fft.irfft2(transform * np.fft.rfft2(kernel), s=sky.shape)
    image += 0.25 * rng.standard_normal(image.shape, dtype=np.float32)
    variance = np.full(image.shape, 0.0625, dtype=np.float32)
    return ExposureStack(image, variance, np.ones(image.shape, dtype=bool), psf)


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def clock(work: Callable[[], Any], device: str) -> float:
    """Return the seconds that some work takes."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def transforms(shape: tuple[int, int], n_exposures: int, chunk: int, device: str) -> Callable[[], None]:
    """Return the 2 T + 2 real transforms of an update, as the update batches them."""
    one = torch.randn(shape, device=device)
    many = torch.randn((chunk, *shape), device=device)

    def work() -> None:
        torch.fft.irfft2(torch.fft.rfft2(one), s=shape)
        for start in range(0, n_exposures, chunk):
            batch = many[: min(chunk, n_exposures - start)]
            torch.fft.irfft2(torch.fft.rfft2(batch), s=shape)

    return work


def update_seconds(stack: ExposureStack, device: str, form: str, n: int = 8) -> float:
    """Return the seconds of one update, without the start."""
    settings = {"form": form, "tolerance": 0.0, "n_realizations": 0, "reject_sigma": 0.0}
    history = restore(stack, "imagemm", device=device, n_iter=n, **settings).history
    return (history[-1]["seconds"] - history[0]["seconds"]) / (len(history) - 1)


def compare_forms(stack: ExposureStack, device: str, n_published: int) -> tuple[float, float, int]:
    """Time the published form, and the accelerated one to its objective.

    Both solve the same problem here: the bare latent image, without price.
    """
    common = {"target_fwhm": 0.0, "tolerance": 0.0, "n_realizations": 0}
    plain = {"smooth_scale": 0.0, "residual_damping": 0.0, "reject_sigma": 0.0, "pixel_spread": 0.0}
    results = {}
    for form, n_iter in (("published", n_published), ("accelerated", 40)):
        held = {}

        def work(form: str = form, n_iter: int = n_iter, held: dict[str, Any] = held) -> None:
            held["result"] = restore(
                stack, "imagemm", device=device, form=form, n_iter=n_iter, **common, **plain
            )

        seconds = clock(work, device)
        results[form] = (seconds, held["result"])
    goal = results["published"][1].history[-1]["objective"]
    history = results["accelerated"][1].history
    overhead = results["accelerated"][0] - history[-1]["seconds"]
    reached = next((entry for entry in history if entry["objective"] <= goal), None)
    if reached is None:
        return results["published"][0], float("inf"), -1
    return results["published"][0], overhead + reached["seconds"], reached["iteration"]


def main() -> None:
    """Time everything and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--exposures", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--published", type=int, default=200, help="updates of the published form")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--methods", nargs="*", default=list(SETTINGS_CLASSES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    stack = make_stack(arguments.size, arguments.exposures)
    megapixels = arguments.size**2 * arguments.exposures / 1e6
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; "
        f"{arguments.exposures} exposures of {arguments.size} x {arguments.size}"
    )
    margin = min(stack.psf.shape[-1] // 2, 16)
    operator = ConvolutionOperator(stack.psf.to(device), stack.shape, margin=margin)
    floor = transforms(operator.fft_shape, arguments.exposures, operator.chunk, device)
    floor()
    ratios = []
    for _ in range(arguments.repeats):
        bare = statistics.median(clock(floor, device) for _ in range(3))
        ratios.append([update_seconds(stack, device, f) / bare for f in ("published", "accelerated")])
    for index, form in enumerate(("published", "accelerated")):
        values = sorted(ratio[index] for ratio in ratios)
        print(
            f"update of the {form} form / its transforms: median {statistics.median(values):.2f} "
            f"({values[0]:.2f} to {values[-1]:.2f})"
        )
    forms = [compare_forms(stack, device, arguments.published) for _ in range(arguments.repeats)]
    shares = sorted(fast / slow for slow, fast, _ in forms)
    print(
        f"accelerated / published time to the objective of {arguments.published} published updates: "
        f"median {statistics.median(shares):.3f} ({shares[0]:.3f} to {shares[-1]:.3f}), "
        f"after {forms[0][2]} updates"
    )
    for method in arguments.methods:
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        seconds = clock(lambda method=method: restore(stack, method, device=device), device)
        line = f"{method}: {seconds:.2f} s, {seconds / megapixels:.3f} s per megapixel and exposure"
        if device.startswith("cuda"):
            line += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the device"
        print(line)
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
