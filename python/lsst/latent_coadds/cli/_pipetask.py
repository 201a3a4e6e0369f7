# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("find_executable", "run_command", "run_pipeline")

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import click

from lsst.daf.butler import Butler, MissingCollectionError
from lsst.daf.butler.registry import MissingDatasetTypeError

from ..simulation import CALEXP_RUN, SceneSettings

_OUTPUTS = (
    *("latent_coadd", "latent_coadd_n_image", "latent_coadd_metrics"),
    *("direct_coadd", "direct_coadd_metrics", "latent_coadd_analysis"),
)


def find_executable(name: str) -> str:
    """Find a command of the environment that this Python belongs to.

    Parameters
    ----------
    name : `str`
        Name of the command.

    Returns
    -------
    path : `str`
        Where it is.

    Raises
    ------
    click.ClickException
        Raised if it is not there.
    """
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None:
        raise click.ClickException(
            f"The command {name} is missing; install the package with its demo extra: "
            "pip install 'lsst-latent-coadds[demo]'."
        )
    return path


def run_command(arguments: Sequence[str | os.PathLike[str]]) -> None:
    """Show a command and run it.

    Parameters
    ----------
    arguments : sequence of `str`
        The command and its arguments.

    Raises
    ------
    click.ClickException
        Raised if it fails.
    """
    words = [os.fspath(word) for word in arguments]
    click.secho(f"$ {' '.join(_quote(word) for word in words)}", bold=True)
    status = subprocess.run([find_executable(words[0]), *words[1:]], check=False).returncode
    if status:
        raise click.ClickException(f"{words[0]} failed with status {status}; see its messages above.")


def _quote(word: str) -> str:
    """Quote a word for a shell, legibly where it has single quotes itself."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def run_pipeline(repo: Path, settings: SceneSettings, *, output: str, restorer: str, jobs: int) -> None:
    """Build and analyze the coadds of a simulated scene, where they are missing.

    Parameters
    ----------
    repo : `pathlib.Path`
        The Butler repository.
    settings : `SceneSettings`
        Its scene.
    output : `str`
        Output collection.
    restorer : `str`
        Name of the restorer.
    jobs : `int`
        Number of processes.
    """
    butler = Butler.from_config(repo)
    state = _state(butler, settings, output)
    if state == "complete":
        click.echo(f"{output} is complete already.")
        return
    pipeline = resources.files("lsst.latent_coadds") / "resources" / "pipelines" / "latent_coadd_qa.yaml"
    query = f"skymap='{settings.skymap}' AND tract=0 AND band='{settings.band}'"
    command: list[str | os.PathLike[str]] = [
        *("pipetask", "run", "-b", repo, "-i", f"{CALEXP_RUN},skymaps", "-o", output),
        *("-p", _shorten(str(pipeline)), "-c", f"buildLatentCoadd:restorer.name={restorer}"),
        *("--register-dataset-types", "-d", query, "-j", str(jobs)),
    ]
    if state == "absent":
        run_command(command)
    else:
        try:
            run_command([*command, "--extend-run", "--skip-existing", "--clobber-outputs"])
        except click.ClickException:
            # A run cannot be extended by another version of the package.
            click.echo(f"The last run in {output} cannot be extended; a new one does what is missing.")
            run_command([*command, "--skip-existing-in", output])
    if _state(butler, settings, output) != "complete":
        raise click.ClickException(
            f"{output} is still incomplete. If files of the repository were removed by hand, remove it and "
            "start again; else the messages above say which patch failed."
        )


def _state(butler: Butler, settings: SceneSettings, output: str) -> str:
    """Say whether a collection is ``absent``, ``begun`` or ``complete``."""
    expected = set(settings.sky_map.tracts[0].patches)
    try:
        if not butler.collections.get_info(output).children:
            return "absent"
        for name in _OUTPUTS:
            refs = butler.query_datasets(name, output, explain=False)
            stored = butler.stored_many(refs)
            if {ref.dataId["patch"] for ref in refs if stored[ref]} != expected:
                return "begun"
        if not butler.query_datasets("latent_coadd_summary", output, explain=False):
            return "begun"
    except MissingCollectionError:
        return "absent"
    except MissingDatasetTypeError:
        return "begun"
    return "complete"


def _shorten(path: str) -> str:
    relative = os.path.relpath(Path(path).resolve())
    return relative if len(relative) < len(path) else path
