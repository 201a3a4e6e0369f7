# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU time of whole restorations, in units of the transforms of one look at the data.

    python benchmarks/floor.py --sizes 128 256 512 --exposures 4 8 16

A look is 2 T + 2 real transforms of the padded size: what one gradient costs
at the least. Its operations (2.5 N log2 N per transform) and bytes (a pass per
axis, float32) are set against what the machine does in a product of matrices
and in a copy. The times are CPU times of one thread, so that other load on the
machine counts little; torch and numpy alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable

import torch
from speed import make_stack, transforms

from lsst.latent_coadds.restoration import SETTINGS_CLASSES, ConvolutionOperator, ExposureStack, restore


def clock(work: Callable[[], object]) -> float:
    """Return CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


@dataclasses.dataclass(frozen=True)
class Look:
    """The transforms of a look at the data: CPU seconds, operations and bytes."""

    seconds: float
    operations: float
    n_bytes: float

    @classmethod
    def of(cls, stack: ExposureStack) -> Look:
        """Time the transforms for a stack."""
        margin = min(stack.psf.shape[-1] // 2, 16)
        operator = ConvolutionOperator(stack.psf, stack.shape, margin=margin)
        work = transforms(operator.fft_shape, stack.n_exposures, operator.chunk, "cpu")
        work()
        n_pixels, n_transforms = math.prod(operator.fft_shape), 2 * stack.n_exposures + 2
        return cls(
            statistics.median(clock(work) for _ in range(7)),
            n_transforms * 2.5 * n_pixels * math.log2(n_pixels),
            n_transforms * 2 * 2 * 4 * n_pixels,
        )

    def describe(self) -> str:
        """Return milliseconds, billions of operations, and of bytes, per second."""
        rates = f"{1e-9 * self.operations / self.seconds:.0f}, {1e-9 * self.n_bytes / self.seconds:.1f}"
        return f"{1e3 * self.seconds:.1f} ({rates})"


def describe_machine() -> str:
    """Return what one thread of the machine does at best, in the same units."""
    matrix = torch.randn((1024, 1024))
    source, target = torch.randn((2, 1 << 25))
    product = min(clock(lambda: matrix @ matrix) for _ in range(5))
    copy = min(clock(lambda: target.copy_(source)) for _ in range(5))
    operations, n_bytes = 2e-9 * 1024**3 / product, 2e-9 * 4 * 2**25 / copy
    return f"{operations:.0f} GFLOP/s in a product of matrices, {n_bytes:.0f} GB/s in a copy"


def main() -> None:
    """Time all restorers and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 256, 512])
    parser.add_argument("--exposures", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--methods", nargs="*", default=list(SETTINGS_CLASSES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {time.strftime('%Y-%m-%d')}; {describe_machine()}")
    print(
        "| side | T | look, ms (GFLOP/s, GB/s) | "
        + " | ".join(f"{m}, s (looks)" for m in arguments.methods)
        + " |"
    )
    print("|---" * (3 + len(arguments.methods)) + "|")
    for size in arguments.sizes:
        for n_exposures in arguments.exposures:
            stack = make_stack(size, n_exposures)
            look = Look.of(stack)
            cells = []
            for method in arguments.methods:
                seconds = clock(lambda method=method, stack=stack: restore(stack, method, device="cpu"))
                cells.append(f"{seconds:.2g} ({seconds / look.seconds:.0f})")
            print(f"| {size} | {n_exposures} | {look.describe()} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
