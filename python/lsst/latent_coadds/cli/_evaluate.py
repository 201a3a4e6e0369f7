# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command that injects sources and says what becomes of them."""

from __future__ import annotations

__all__ = ("command",)

import time
from pathlib import Path

import click

from ..evaluation import (
    EvaluationSettings,
    FieldError,
    FieldSpec,
    evaluate,
    evaluation_figure,
    format_evaluation,
    make_flux_table,
    make_purity_table,
)
from ..evaluation._field import PIPELINE

_DEFAULT = EvaluationSettings()


@click.command("evaluate")
@click.argument("repo", type=click.Path(path_type=str))
@click.argument("collections")
@click.option(
    *("-o", "--output"),
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for tables and the figure.",
)
@click.option("-d", "--data-query", default="", help="Which patches, as for pipetask; by default all.")
@click.option("-p", "--pipeline", default=PIPELINE, show_default=True, help="Pipeline with the task.")
@click.option("--label", default="buildLatentCoadd", show_default=True, help="Label of the task in it.")
@click.option(
    *("-c", "--config", "overrides"),
    multiple=True,
    help="NAME=VALUE of the task's configuration, such as restorer.name=combined; repeatable.",
)
@click.option(
    *("-j", "--jobs"), default=1, show_default=True, type=click.IntRange(min=1), help="Number of processes."
)
@click.option(
    "--rounds",
    default=_DEFAULT.n_rounds,
    show_default=True,
    type=click.IntRange(min=1),
    help="How often sources are injected into each patch.",
)
@click.option(
    "--noise-rounds",
    default=_DEFAULT.n_noise_rounds,
    show_default=True,
    type=click.IntRange(min=0),
    help="How often they are injected into noise instead, for the purity.",
)
@click.option("--brightest", type=float, help="Magnitude of the brightest [default: 3.5 above the depth].")
@click.option("--faintest", type=float, help="Magnitude of the faintest [default: 1 below the depth].")
@click.option(
    "--spacing",
    default=_DEFAULT.spacing,
    show_default=True,
    type=click.FloatRange(min=5),
    help="Least distance between injected sources, in pixels.",
)
@click.option(
    "--threshold",
    default=_DEFAULT.threshold,
    show_default=True,
    type=click.FloatRange(min=3.5),
    help="Significance of a detection.",
)
@click.option("--seed", default=_DEFAULT.seed, show_default=True, type=click.IntRange(min=0))
def command(
    repo: str,
    collections: str,
    output: Path,
    data_query: str,
    pipeline: str,
    label: str,
    overrides: tuple[str, ...],
    jobs: int,
    rounds: int,
    noise_rounds: int,
    brightest: float | None,
    faintest: float | None,
    spacing: float,
    threshold: float,
    seed: int,
) -> None:
    """Inject sources of known flux into exposures, and restore them.

    The exposures of REPO in COLLECTIONS (with commas between them) stay as
    they are: copies in memory get stars and galaxies, and the plain and the
    latent coadd of them are compared with what was injected.
    """
    started = time.monotonic()
    parsed = []
    for text in overrides:
        name, found, value = text.partition("=")
        if not found:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE.", param_hint="--config")
        parsed.append((name, value))
    spec = FieldSpec(repo, tuple(collections.split(",")), data_query, pipeline, label, tuple(parsed))
    settings = EvaluationSettings(
        n_rounds=rounds,
        n_noise_rounds=noise_rounds,
        threshold=threshold,
        spacing=spacing,
        brightest=brightest,
        faintest=faintest,
        seed=seed,
    )
    try:
        results = evaluate(spec, settings, n_jobs=jobs, progress=click.echo)
        text = format_evaluation(results, threshold=threshold)
    except (FieldError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    output.mkdir(parents=True, exist_ok=True)
    fluxes, purity = (
        make_flux_table(results, threshold=threshold),
        make_purity_table(results, threshold=threshold),
    )
    for name, table in (("fluxes", fluxes), ("purity", purity)):
        table.meta.update({"repo": repo, "collections": collections, "data_query": data_query, "seed": seed})
        table.meta.update({"threshold": threshold, "config": list(overrides), "rounds": rounds})
        table.write(output / f"{name}.ecsv", format="ascii.ecsv", overwrite=True)
    evaluation_figure(
        fluxes, purity, title=f"{repo}: {', '.join(overrides) or 'default configuration'}"
    ).savefig(output / "evaluation.png")
    (output / "evaluation.txt").write_text(text, encoding="utf-8")
    click.echo(f"\n{text}")
    for name in ("fluxes.ecsv", "purity.ecsv", "evaluation.png", "evaluation.txt"):
        click.echo(f"Written: {output / name}")
    click.echo(f"Done in {time.monotonic() - started:.0f} s.")
