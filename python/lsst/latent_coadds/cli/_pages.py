# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command that makes pages of a run's analysis."""

from __future__ import annotations

__all__ = ("command", "write_run_pages")

from pathlib import Path
from typing import Any

import click

from lsst.daf.butler import Butler, DatasetRef, MissingCollectionError
from lsst.daf.butler.registry import MissingDatasetTypeError

from ..qa import PatchPage, TractPage, write_pages

_PLOTS = ("image", "reference", "detail", "photometry", "star", "noise", "artifact", "fit")


@click.command("report")
@click.argument("repo", type=click.Path(path_type=str))
@click.argument("collection")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the pages; those of an earlier run there are replaced.",
)
@click.option(
    "-d", "--data-query", default="", help="Which patches, as for pipetask; by default all of the collection."
)
@click.option("--name", default="latent_coadd", show_default=True, help="Name of the coadd's dataset type.")
def command(repo: str, collection: str, output: Path, data_query: str, name: str) -> None:
    """Make HTML pages of the analysis in COLLECTION of REPO.

    They show each patch, those of the greatest concern first, and need
    neither a network nor a server: open index.html.
    """
    path = write_run_pages(repo, collection, output, where=data_query, name=name)
    click.echo(f"The pages begin at {path.resolve().as_uri()}")


def write_run_pages(
    repo: str, collection: str, output: Path, *, where: str = "", name: str = "latent_coadd"
) -> Path:
    """Gather what the analysis of a run wrote, and make pages of it.

    Parameters
    ----------
    repo : `str`
        Butler repository.
    collection : `str`
        Collection with the run's outputs.
    output : `pathlib.Path`
        Directory for the pages.
    where : `str`, optional
        Query expression that selects patches.
    name : `str`, optional
        Name of the coadd's dataset type.

    Returns
    -------
    path : `pathlib.Path`
        The page to begin with.

    Raises
    ------
    click.ClickException
        If there is nothing to show.
    """
    try:
        butler = Butler.from_config(repo, collections=collection, writeable=False)
    except FileNotFoundError as error:
        raise click.ClickException(f"{repo} is no Butler repository: {error}") from error
    analyses = _query(butler, f"{name}_analysis", collection, where)
    if not analyses:
        selected = f" where {where}" if where else ""
        raise click.ClickException(
            f"There is no {name}_analysis in {collection}{selected}. The analysis makes it: "
            "pipetask run … -p pipelines/latent_coadd_qa.yaml#latentCoaddQA."
        )
    plots = {plot: _by_patch(_query(butler, f"{name}_{plot}_plot", collection, where)) for plot in _PLOTS}
    summaries = _by_patch(_query(butler, f"{name}_summary_plot", collection, where))
    tracts: dict[tuple[Any, ...], list[PatchPage]] = {}
    for key, ref in sorted(_by_patch(analyses).items()):
        found = {plot: butler.getURI(refs[key]).read() for plot, refs in plots.items() if key in refs}
        tracts.setdefault((*key[:2], key[-1]), []).append(PatchPage(butler.get(ref), found))
    pages = []
    for (skymap, tract, band), patches in tracts.items():
        summary = summaries.get((skymap, tract, -1, band))
        data = None if summary is None else butler.getURI(summary).read()
        pages.append(TractPage(int(tract), str(band), data, patches))
    skymaps = ", ".join(sorted({str(key[0]) for key in tracts}))
    return write_pages(
        output,
        pages,
        title=f"Latent coadds in {collection}",
        description=f"Repository {repo}, sky map {skymaps}, dataset type {name}.",
    )


def _query(butler: Butler, dataset_type: str, collection: str, where: str) -> list[DatasetRef]:
    try:
        return butler.query_datasets(dataset_type, collection, where=where, explain=False, limit=None)
    except MissingDatasetTypeError:
        return []
    except MissingCollectionError as error:
        raise click.ClickException(
            f"{error}; butler query-collections lists those that there are."
        ) from error


def _by_patch(refs: list[DatasetRef]) -> dict[tuple[Any, ...], DatasetRef]:
    """Index datasets by sky map, tract, patch (-1 for none) and band."""
    return {
        (
            ref.dataId["skymap"],
            int(ref.dataId["tract"]),
            int(ref.dataId["patch"]) if "patch" in ref.dataId else -1,
            ref.dataId["band"],
        ): ref
        for ref in refs
    }
