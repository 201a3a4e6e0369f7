# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("command",)

from pathlib import Path
from typing import Any

import click

from ..simulation import SceneSettings, simulate
from ._scene_options import scene_options


@click.command("simulate")
@click.argument("root", type=click.Path(file_okay=False, path_type=Path))
@scene_options
@click.option(
    "--bands",
    default=SceneSettings.bands[0],
    show_default=True,
    callback=lambda context, parameter, value: tuple(band.strip() for band in value.split(",")),
    help="Bands, which the visits take in turn, separated by commas.",
)
def command(root: Path, **scene: Any) -> None:
    """Make a Butler repository of simulated exposures in ROOT/repo.

    The true sky is kept in ROOT/truth.  A scene that was left half-made is
    completed.
    """
    try:
        simulate(root, SceneSettings(**scene))
    except (ValueError, FileExistsError) as e:
        raise click.ClickException(str(e)) from e
    click.echo(f"The repository is {root / 'repo'}, the truth is in {root / 'truth'}.")
