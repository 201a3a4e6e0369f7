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
from ._pages import write_run_pages
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
    help="Directory for the repository, the truth, the comparison and the pages.",
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
    collection = f"LatentSim/{restorer}"
    _announce(2, "Latent coadd, plain coadd for comparison, and their analysis")
    run_pipeline(repo, settings, output=collection, restorer=restorer, jobs=jobs)
    _announce(3, "Outputs")
    run_command(["butler", "query-datasets", repo, "*_coadd*", "--collections", collection])
    _announce(4, "Comparison with the truth")
    text, paths = write_report(output, settings, collection)
    click.echo(text)
    for path in paths:
        click.echo(f"Written: {path}")
    _announce(5, "Pages to look at")
    page = write_run_pages(str(repo), collection, output / "report")
    click.echo(f"Done in {time.monotonic() - started:.0f} s. The repository stays in {repo}.")
    click.echo(f"Open in a browser: {page.resolve().as_uri()}")


def _announce(number: int, text: str) -> None:
    click.secho(f"\n[{number}/5] {text}", bold=True)
