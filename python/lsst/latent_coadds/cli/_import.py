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

from ..importer import (
    SETTING_RANGES,
    ImportSettings,
    format_report,
    import_exposures,
    read_manifest,
    specs_from_files,
)

_SOURCES = {
    "variance": "Variance plane: an HDU of the image's file, or PATH[HDU]; {dir} and {stem} are the image's.",
    "weight": "Inverse variance, 0 where bad, in the same way.",
    "mask": "Mask, in the same way; everything but 0 is bad unless the manifest has mask_bits.",
    "psf": "Stamp of the PSF, odd-sized, in the same way; stars: fit one, whatever the file has.",
    "wcs": "File or HDU whose header has the WCS to use instead of the image's.",
}
_QUANTITIES = {
    "zero_point": "AB magnitude of one count: a number or a header keyword.",
    "gain": "Electrons per count: a number or a keyword [default: GAIN].",
    "read_noise": "Electrons: a number or a keyword [default: RDNOISE].",
    "sky": "Counts per pixel that were subtracted: a number or a keyword [default: SKYDIP, SKYLEVEL].",
    "saturation": "Counts of the image: a number or a keyword [default: SATURATE, less the sky].",
    "exposure_time": "Seconds: a number or a keyword [default: EXPTIME].",
    "date": "When the exposure began: a keyword, ISO date or MJD [default: DATE-OBS, MJD-OBS].",
    "date_format": "strptime format of the beginning of the date.",
    "filter": "Keyword or name of the filter [default: FILTER].",
    "band": "Band [default: first letter of the filter].",
    "visit": "Keyword or number of the visit [default: from the date].",
    "detector": "Keyword or number of the detector [default: 0].",
}


def _options(function: Any) -> Any:
    """Add the options that mirror settings and exposure fields."""
    for name, text in reversed({"image": "HDU of the image.", **_SOURCES, **_QUANTITIES}.items()):
        function = click.option(f"--{name.replace('_', '-')}", name, default=None, help=text)(function)
    choices = {
        "flux_scale": (("apply", "report", "off"), "Differences of flux scale from the reference."),
        "registration": (("apply", "report", "off"), "Shifts of the stars against the reference."),
        "background": (("constant", "mesh", "off"), "Residual sky to subtract."),
        "cosmic_rays": (("auto", "always", "never"), "Look for cosmic rays; auto: where there is no mask."),
        "orientation": (("reference", "north"), "Orientation of a new sky map."),
        "psf_model": (("auto", "grid", "moffat"), "Piff model fitted to stars."),
    }
    for name, (values, text) in reversed(choices.items()):
        option = f"--{name.replace('_', '-')}"
        default = getattr(ImportSettings, name)
        function = click.option(
            option, name, type=click.Choice(values), default=None, help=f"{text} [default: {default}]"
        )(function)
    plain = {
        "instrument": (str, "Name of the camera in the repository."),
        "run": (str, "Run collection [default: INSTRUMENT/calexps]."),
        "skymap": (str, "Sky map to use, or to make if the repository lacks it."),
        "reference": (str, "Name of the exposure that sets flux scale and astrometry [default: the first]."),
        "mesh": (int, "Cell of the background mesh in pixels."),
        "min_snr": (float, "Least signal-to-noise ratio of a star for the PSF."),
        "min_stars": (int, "Matched stars below which nothing is applied."),
        "match_radius": (float, "Arcseconds within which stars are the same."),
        "nominal_zero_point": (float, "Magnitude of one count where none is given."),
        "cosmic_ray_threshold": (float, "Laplacian signal-to-noise ratio of a cosmic ray."),
        "cosmic_ray_contrast": (float, "Laplacian over fine structure of a cosmic ray."),
        "pixel_scale": (float, "Pixel of a new sky map in arcseconds [default: the reference's]."),
        "patch_size": (int, "Largest side of a new sky map's patches in pixels."),
        "border": (int, "Overlap border of a new sky map's patches in pixels."),
    }
    for name, (kind, text) in reversed(plain.items()):
        shape: Any = kind
        if name in SETTING_RANGES and SETTING_RANGES[name][1] is not None:
            _, low, exclusive = SETTING_RANGES[name]
            shape = (click.IntRange if kind is int else click.FloatRange)(min=low, min_open=exclusive)
        default = getattr(ImportSettings, name)
        shown = f" [default: {default}]" if default not in ("", None) else ""
        function = click.option(
            f"--{name.replace('_', '-')}", name, type=shape, default=None, help=text + shown
        )(function)
    return function


def _parse_set(values: tuple[str, ...]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for value in values:
        key, found, text = value.partition("=")
        if not found:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE.", param_hint="--set")
        try:
            result[key] = float(text)
        except ValueError:
            result[key] = text
    return result


@click.command("import")
@click.argument("repo", type=click.Path(file_okay=False, path_type=Path))
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--manifest", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="YAML with exposures."
)
@click.option(
    "--base",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the manifest's relative paths [default: the manifest's].",
)
@click.option("--set", "overrides", multiple=True, help="KEY=VALUE for the headers of all files; repeatable.")
@click.option("--replace", is_flag=True, help="Replace exposures that the run has, instead of skipping them.")
@_options
def command(
    repo: Path,
    files: tuple[Path, ...],
    manifest: Path | None,
    base: Path | None,
    overrides: tuple[str, ...],
    replace: bool,
    **options: Any,
) -> None:
    """Put FITS exposures into the Butler repository REPO.

    Each of FILES, or of the exposures in a manifest, becomes a calexp with
    a variance, a mask and a PSF model, on the flux scale and astrometry of
    a reference exposure.  Calexps that afw wrote are recognized, and bring
    all of these.  The report is printed, and kept as ECSV in REPO.
    """
    given = {key: value for key, value in options.items() if value is not None}
    names = set(ImportSettings.__dataclass_fields__)
    settings = {key: value for key, value in given.items() if key in names}
    fields = {key: value for key, value in given.items() if key not in names}
    if overrides:
        fields["set"] = _parse_set(overrides)
    if replace:
        settings["replace"] = True
    if bool(files) == (manifest is not None):
        raise click.UsageError("Give either FILES or --manifest.")
    try:
        if manifest is not None:
            kept, specs = read_manifest(manifest, fields, base=base)
            settings = {**kept, **settings}
        else:
            specs = specs_from_files(files, fields)
        result = import_exposures(repo, specs, ImportSettings.from_mapping(settings), progress=click.echo)
    except (ValueError, FileExistsError) as e:
        raise click.ClickException(str(e)) from e
    click.echo(f"\n{format_report(result.report)}\n")
    if result.n_patches:
        click.echo(f"Made a sky map with {result.n_patches} patch(es) in tract {result.tract}.")
    if not all(result.report["calibrated"]):
        click.echo("There is no zero point for some exposures: their nJy are nominal, not calibrated.")
    click.echo(f"Inputs for a pipeline: -i {','.join(result.collections)}\nThe report is {result.path}.")
    if result.failures:
        raise click.ClickException(f"{len(result.failures)} exposure(s) failed; they are named above.")
