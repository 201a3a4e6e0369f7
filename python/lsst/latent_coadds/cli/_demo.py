# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("command",)

import time
from pathlib import Path
from typing import Any

import click

from ..simulation import SceneMismatchError, SceneSettings, simulate
from ._pipetask import run_command, run_pipeline
from ._report import write_report
from ._scene_options import scene_options


@click.command("demo")
@click.option(
    "-o",
    "--output",
    default="demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the repository, the truth and the comparison.",
)
@click.option(
    "-j", "--jobs", default=2, show_default=True, type=click.IntRange(min=1), help="Number of processes."
)
@click.option("--restorer", default="imagemm", show_default=True, help="Restorer of the latent coadd.")
@scene_options
def command(output: Path, jobs: int, restorer: str, **scene: Any) -> None:
    """Simulate exposures, restore them, and compare with the truth.

    What is there already is kept: a second run is fast, and one that was
    interrupted goes on.
    """
    started = time.monotonic()
    settings = SceneSettings(**scene)
    repo = output / "repo"
    _announce(1, "Simulated exposures of a known sky")
    try:
        simulate(output, settings)
    except (SceneMismatchError, FileExistsError) as e:
        raise click.ClickException(str(e)) from e
    click.echo(f"{settings.n_visits} visits of {settings.n_detectors} detectors are in {repo}.")
    collections = {"plain": "LatentSim/direct", "latent": f"LatentSim/{restorer}"}
    _announce(2, "Plain coadd, for comparison")
    run_pipeline(repo, settings, output=collections["plain"], restorer="direct", jobs=jobs)
    _announce(3, "Latent coadd")
    run_pipeline(repo, settings, output=collections["latent"], restorer=restorer, jobs=jobs)
    _announce(4, "Outputs")
    where = ",".join(collections.values())
    run_command(["butler", "query-datasets", repo, "latent_coadd*", "--collections", where])
    _announce(5, "Comparison with the truth")
    text, paths = write_report(output, settings, collections)
    click.echo(text)
    for path in paths:
        click.echo(f"Written: {path}")
    click.echo(f"Done in {time.monotonic() - started:.0f} s. The repository stays in {repo}.")


def _announce(number: int, text: str) -> None:
    click.secho(f"\n[{number}/5] {text}", bold=True)
