# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Train the weights that AstroClearNet begins with.

Two minutes of CPU time, from random weights, on simulated fields that no
other benchmark uses. Their stars stay in (``--points-apart`` takes them out,
as in the exposures that the weights are for): known sources reach a S/N of
500 only, and weights that have seen nothing brighter are worse in bright
galaxies and around stars on them::

    python benchmarks/stored_weights.py python/lsst/latent_coadds/resources/weights/astroclearnet.pt
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from ablation import make_field
from measure import make_stack

from lsst.latent_coadds.restoration import save_weights, train_weights


def main() -> None:
    """Train on several fields at once, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--fields", type=int, default=6)
    parser.add_argument("--points-apart", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()

    def progress(iteration: int, n_iter: int, objective: float) -> None:
        print(f"{iteration} of {n_iter}: {objective:.5f}, {time.process_time() - start:.0f} s", flush=True)

    stacks = [make_stack(make_field(11 + seed, size=168).scene) for seed in range(arguments.fields)]
    weights = train_weights(
        stacks,
        "astroclearnet",
        start="random",
        n_iter=arguments.steps,
        learning_rate=0.01,
        check_every=50,
        progress=progress,
        **({} if arguments.points_apart else {"point_threshold": 0.0}),
    )
    save_weights(weights, arguments.output)


if __name__ == "__main__":
    main()
