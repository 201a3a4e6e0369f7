# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU time and memory of the analysis of a large patch.

    make demo
    python benchmarks/analysis.py demo/repo LatentSim/imagemm --size 4200

A coadd of a repository and its reference are laid side by side until they fill
a patch of that size, with all their planes and noise realizations; then the
task runs as in a pipeline, and its plots are written.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsst.daf.butler import Butler
from lsst.images import Box
from lsst.latent_coadds.adapters import CoaddPlanes
from lsst.latent_coadds.restoration import peak_memory
from lsst.latent_coadds.tasks import AnalyzeLatentCoaddTask


def lay(plane: np.ndarray, size: int) -> np.ndarray:
    """Repeat a plane (..., h, w) until it fills a square."""
    repeats = [-(-size // n) for n in plane.shape[-2:]]
    return np.tile(plane, repeats)[..., :size, :size].copy()


def enlarge(coadd: CoaddPlanes, size: int) -> CoaddPlanes:
    """Return a patch that is filled with a coadd."""
    height, width = coadd.image.shape

    def find_kernel(x: float, y: float) -> np.ndarray | None:
        return coadd.kernel(x % width, y % height)

    return CoaddPlanes(
        image=lay(coadd.image, size),
        variance=lay(coadd.variance, size),
        mask={name: lay(plane, size) for name, plane in coadd.mask.items()},
        noise=lay(coadd.noise, size),
        bbox=Box.from_shape((size, size)),
        pixel_scale=coadd.pixel_scale,
        find_kernel=find_kernel,
    )


def read(arguments: argparse.Namespace) -> tuple[CoaddPlanes, CoaddPlanes, Mapping[str, Any]]:
    """Return the enlarged coadd and reference, and the metrics."""
    collections = [arguments.collection, *arguments.more]
    butler = Butler.from_config(arguments.repo, collections=collections)
    ref = butler.query_datasets("latent_coadd", find_first=True)[0]
    reference = butler.get(arguments.reference, dataId=ref.dataId)
    metrics = butler.get("latent_coadd_metrics", dataId=ref.dataId)
    planes = [CoaddPlanes.from_coadd(coadd) for coadd in (butler.get(ref), reference)]
    coadd, other = (enlarge(plane, arguments.size) for plane in planes)
    return coadd, other, metrics


def main() -> None:
    """Analyze a large patch and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repo")
    parser.add_argument("collection")
    parser.add_argument("more", nargs="*", help="further collections, such as that of the reference")
    parser.add_argument("--reference", default="direct_coadd")
    parser.add_argument("--size", type=int, default=4200)
    arguments = parser.parse_args()
    coadd, reference, metrics = read(arguments)
    print(f"{len(coadd.noise)} realizations; {peak_memory() / 2**30:.2f} GiB before the analysis")
    # The dataset that a task has read holds the realizations a second time.
    held = coadd.noise.copy()
    start = time.process_time()
    task = AnalyzeLatentCoaddTask()
    found = task.run(latent_coadd=coadd, latent_coadd_metrics=metrics, reference=reference)
    analyzed = time.process_time() - start
    figures = {name: plot for name, plot in found.getDict().items() if name.endswith("_plot")}
    for name, figure in figures.items():
        begun = time.process_time()
        figure.savefig(io.BytesIO(), format="png", dpi="figure")
        print(f"{name}: {time.process_time() - begun:.1f} s")
    numbers = found.analysis["numbers"]
    total = time.process_time() - start
    print(
        f"{arguments.size} x {arguments.size}, {numbers['n_detections']:.0f} detections, "
        f"{numbers['n_stars']:.0f} stars: {analyzed:.0f} s to analyze and draw, {total:.0f} s with plots "
        f"written, peak memory {peak_memory() / 2**30:.2f} GiB, with {held.nbytes / 2**30:.2f} GiB held twice"
    )


if __name__ == "__main__":
    main()
