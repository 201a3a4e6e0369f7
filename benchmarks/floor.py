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
at the least. The times are CPU times of one thread, so that other load on the
machine counts little; torch and numpy alone.
"""

from __future__ import annotations

import argparse
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


def time_look(stack: ExposureStack) -> float:
    """Return CPU seconds of the transforms of a look at the data."""
    margin = min(stack.psf.shape[-1] // 2, 16)
    operator = ConvolutionOperator(stack.psf, stack.shape, margin=margin)
    look = transforms(operator.fft_shape, stack.n_exposures, operator.chunk, "cpu")
    look()
    return statistics.median(clock(look) for _ in range(7))


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
    print(f"torch {torch.__version__}, one thread, {time.strftime('%Y-%m-%d')}")
    print("| side | T | look, ms | " + " | ".join(f"{m}, s (looks)" for m in arguments.methods) + " |")
    print("|---" * (3 + len(arguments.methods)) + "|")
    for size in arguments.sizes:
        for n_exposures in arguments.exposures:
            stack = make_stack(size, n_exposures)
            look = time_look(stack)
            cells = []
            for method in arguments.methods:
                seconds = clock(lambda method=method, stack=stack: restore(stack, method, device="cpu"))
                cells.append(f"{seconds:.2g} ({seconds / look:.0f})")
            print(f"| {size} | {n_exposures} | {1e3 * look:.1f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
