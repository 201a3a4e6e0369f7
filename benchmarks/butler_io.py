# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of the time of `buildLatentCoadd` the Butler takes.

    make demo
    python benchmarks/butler_io.py demo/repo LatentSim/calexps,skymaps

All patches are restored into a new run of the repository, and the time inside
of the Butler's ``get`` and ``put`` is set against that of each quantum: files
and databases, compression and conversion included. One process, one thread.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import resources
from typing import Any

from lsst.daf.butler.direct_butler import DirectButler
from lsst.latent_coadds.tasks import BuildLatentCoaddTask
from lsst.pipe.base import Pipeline
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

PIPELINE = resources.files("lsst.latent_coadds") / "resources" / "pipelines" / "latent_coadd.yaml"


class Clock:
    """Wall and CPU seconds inside of some functions, but not of those that they call."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.calls: dict[str, int] = defaultdict(int)
        self._inside = False

    def watch(self, owner: type, name: str, *, outermost: bool = False) -> None:
        """Measure a method from now on; ``outermost`` ones may hold others."""
        method: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(method)
        def measured(*arguments: Any, **keywords: Any) -> Any:
            if self._inside and not outermost:
                return method(*arguments, **keywords)
            self._inside = not outermost
            start = time.perf_counter(), time.process_time()
            try:
                return method(*arguments, **keywords)
            finally:
                self._inside = False
                self.calls[name] += 1
                for i, now in enumerate((time.perf_counter(), time.process_time())):
                    self.seconds[name][i] += now - start[i]

        setattr(owner, name, measured)


def main() -> None:
    """Run the task and print the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repo")
    parser.add_argument("inputs", type=lambda text: text.split(","))
    parser.add_argument("--restorers", nargs="*", default=["imagemm", "direct"])
    parser.add_argument("--where", default="")
    arguments = parser.parse_args()
    clock = Clock()
    clock.watch(DirectButler, "get")
    clock.watch(DirectButler, "put")
    clock.watch(BuildLatentCoaddTask, "runQuantum", outermost=True)
    for restorer in arguments.restorers:
        clock.seconds.clear()
        clock.calls.clear()
        output = f"butler_io/{restorer}/{time.strftime('%Y%m%dT%H%M%S')}"
        butler = SimplePipelineExecutor.prep_butler(arguments.repo, inputs=arguments.inputs, output=output)
        pipeline = Pipeline.from_uri(str(PIPELINE))
        pipeline.addConfigOverride("buildLatentCoadd", "restorer.name", restorer)
        pipeline.addConfigOverride("buildLatentCoadd", "device", "cpu")
        executor = SimplePipelineExecutor.from_pipeline(
            pipeline, where=arguments.where, butler=butler, output=output
        )
        executor.run(register_dataset_types=True, save_versions=False)
        whole = clock.seconds["runQuantum"]
        print(
            f"{restorer}: {clock.calls['runQuantum']} quanta, {whole[0]:.1f} s, {whole[1]:.1f} s of the CPU"
        )
        for name in ("get", "put"):
            wall, cpu = clock.seconds[name]
            print(
                f"  {name}: {clock.calls[name]} calls, {wall:.2f} s ({100 * wall / whole[0]:.1f} %), "
                f"{cpu:.2f} s of the CPU ({100 * cpu / whole[1]:.1f} %)",
                flush=True,
            )


if __name__ == "__main__":
    main()
