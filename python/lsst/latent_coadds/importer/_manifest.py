# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("ExposureSpec", "PixelSource", "read_manifest", "specs_from_files")

import dataclasses
import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ._errors import ManifestError

_SUFFIXES = (".gz", ".fz", ".fits", ".fit", ".fts")


@dataclasses.dataclass(frozen=True)
class PixelSource:
    """Where an array is: a file and one of its HDUs.

    Parameters
    ----------
    file : `pathlib.Path`
        FITS file.
    hdu : `int` or `str`, optional
        Index or ``EXTNAME``; by default the first HDU with an image.
    """

    file: Path
    hdu: int | str | None = None

    @classmethod
    def parse(cls, text: str | int, image: Path, base: Path) -> PixelSource:
        """Read ``HDU``, ``path`` or ``path[HDU]``.

        Parameters
        ----------
        text : `str` or `int`
            An index or a name without dot or slash is an HDU of the image's
            file; anything else a path, with ``{dir}`` and ``{stem}``
            standing for those of the image.
        image : `pathlib.Path`
            The exposure's file.
        base : `pathlib.Path`
            Directory for relative paths.

        Returns
        -------
        source : `PixelSource`
            Where to read.
        """
        if isinstance(text, int) or text.lstrip("-").isdigit():
            return cls(image, int(text))
        if not any(c in text for c in "./[{"):
            return cls(image, text)
        path, _, hdu = text.partition("[")
        path = path.replace("{stem}", _stem(image)).replace("{dir}", str(image.parent))
        chosen: int | str | None = None
        if hdu:
            name = hdu.rstrip("]")
            chosen = int(name) if name.isdigit() else name
        return cls(base / path if path else image, chosen)

    def __str__(self) -> str:
        return str(self.file) if self.hdu is None else f"{self.file}[{self.hdu}]"


def _stem(path: Path) -> str:
    name = path.name
    while (suffix := Path(name).suffix) in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


@dataclasses.dataclass(frozen=True)
class ExposureSpec:
    """One exposure: where its arrays are, and what its header should say.

    Parameters
    ----------
    file : `pathlib.Path`
        FITS file of the image.
    base : `pathlib.Path`, optional
        Directory for relative paths of the other sources.
    name : `str`, optional
        Label in reports and messages; by default the file's stem.
    image : `int` or `str`, optional
        HDU of the image; by default the first one with an image.
    variance, weight, mask, psf : `str` or `int`, optional
        Sources as `PixelSource.parse` reads them. A weight is an inverse
        variance, 0 where a pixel is bad. The PSF can also be ``stars``: it
        is fitted to stars then, whatever the file has.
    wcs : `str` or `int`, optional
        Source of the WCS, if not the image's own header.
    mask_bits : mapping [`str`, `int` or `list` [`int`]], optional
        Bit numbers of the mask by the plane that they mean; without it,
        every value but 0 means ``BAD``.
    set : mapping, optional
        Header keywords that override those of the file.
    zero_point, gain, read_noise, sky, saturation, exposure_time : `float` or `str`, optional
        A number or a header keyword: AB magnitude of one count, electrons
        per count, electrons, counts per pixel that were subtracted, counts,
        seconds. By default the usual keywords where they are present;
        ``zero_point`` has none.
    date : `float` or `str`, optional
        When the exposure began: a keyword, an ISO date in UTC, or an MJD.
    date_format : `str`, optional
        `~datetime.datetime.strptime` format of the beginning of ``date``.
    filter, band : `str`, optional
        Keyword or name of the filter; the band.
    visit, detector : `int` or `str`, optional
        Number or keyword. By default the visit is made from the date.
    """

    file: Path
    base: Path = Path(".")
    name: str = ""
    image: int | str | None = None
    variance: str | int | None = None
    weight: str | int | None = None
    mask: str | int | None = None
    psf: str | int | None = None
    wcs: str | int | None = None
    mask_bits: Mapping[str, int | list[int]] = dataclasses.field(default_factory=dict)
    set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    zero_point: float | str | None = None
    gain: float | str | None = None
    read_noise: float | str | None = None
    sky: float | str | None = None
    saturation: float | str | None = None
    exposure_time: float | str | None = None
    date: float | str | None = None
    date_format: str | None = None
    filter: str | None = None
    band: str | None = None
    visit: int | str | None = None
    detector: int | str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", _stem(self.file))

    def source(self, what: str) -> PixelSource | None:
        """Where one of the arrays is.

        Parameters
        ----------
        what : `str`
            ``image``, ``variance``, ``weight``, ``mask``, ``psf`` or ``wcs``.

        Returns
        -------
        source : `PixelSource` or `None`
            `None` if the exposure comes without it.
        """
        if what == "image":
            return PixelSource(self.file, self.image)
        text = getattr(self, what)
        return None if text is None else PixelSource.parse(text, self.file, self.base)


_KEYS = {field.name for field in dataclasses.fields(ExposureSpec)} - {"base"}


_MAPPINGS = ("set", "mask_bits")
_TEXTS = ("file", "name", "band", "filter", "date_format")


def _check_type(key: str, value: Any, where: str) -> None:
    """Refuse what YAML made of a value that was meant otherwise."""
    if value is None and key not in ("file", *_MAPPINGS):
        return
    if key in _MAPPINGS:
        good, wanted = isinstance(value, Mapping), "a mapping"
    elif key in _TEXTS:
        good, wanted = isinstance(value, (str, Path)), "text (in quotes)"
    elif key == "date":
        good, wanted = isinstance(value, (str, int, float, datetime.date)), "a keyword, date or number"
    else:
        good, wanted = isinstance(value, (str, int, float)), "a number or text"
    if good and key == "mask_bits":
        bits = [b for v in value.values() for b in (v if isinstance(v, list) else [v])]
        good = all(isinstance(b, int) and 0 <= b < 63 for b in bits)
        wanted = "a mapping of planes to bit numbers from 0 to 62"
    if not good:
        raise ManifestError(f"{where}: {key} is {value!r}; it must be {wanted}.")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    """Take an empty entry of the manifest for an empty mapping."""
    if value is not None and not isinstance(value, Mapping):
        raise ManifestError(f"{where} is {value!r}; it must be a mapping.")
    return {str(k): v for k, v in (value or {}).items()}


def _make_spec(entry: Mapping[str, Any], base: Path, where: str) -> ExposureSpec:
    if unknown := set(entry) - _KEYS:
        raise ManifestError(f"{where}: unknown keys {sorted(unknown)}; the known ones are {sorted(_KEYS)}.")
    if "file" not in entry:
        raise ManifestError(f"{where}: it has no 'file'.")
    for key, value in entry.items():
        _check_type(key, value, where)
    return ExposureSpec(**{**entry, "file": base / entry["file"], "base": base})


def specs_from_files(
    files: Iterable[str | Path], options: Mapping[str, Any] | None = None
) -> list[ExposureSpec]:
    """Describe exposures that have everything in common but the file.

    Parameters
    ----------
    files : iterable of `str` or `pathlib.Path`
        FITS files.
    options : mapping, optional
        Fields of `ExposureSpec` for all of them.

    Returns
    -------
    specs : `list` [`ExposureSpec`]
        One for each file.
    """
    return [_make_spec({**(options or {}), "file": file}, Path("."), str(file)) for file in files]


def read_manifest(
    path: str | Path, options: Mapping[str, Any] | None = None, *, base: str | Path | None = None
) -> tuple[dict[str, Any], list[ExposureSpec]]:
    """Read a YAML manifest.

    Parameters
    ----------
    path : `str` or `pathlib.Path`
        File with up to three keys: ``settings`` (of the import as a whole),
        ``defaults`` (fields of `ExposureSpec` for every exposure) and
        ``exposures``, a list of mappings with ``file`` and whatever differs.
    options : mapping, optional
        Fields that win over the manifest's defaults, though not over an
        exposure's own.
    base : `str` or `pathlib.Path`, optional
        Directory for relative paths; by default the manifest's.

    Returns
    -------
    settings : `dict`
        The manifest's ``settings``.
    specs : `list` [`ExposureSpec`]
        The exposures.

    Raises
    ------
    ManifestError
        Raised if the manifest is not of this form.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as e:
        raise ManifestError(f"{path} cannot be read as a manifest: {e}") from e
    if not isinstance(content, dict) or not isinstance(content.get("exposures"), list):
        raise ManifestError(f"{path}: a manifest is a mapping with a list 'exposures'.")
    if unknown := set(content) - {"settings", "defaults", "exposures"}:
        raise ManifestError(f"{path}: unknown keys {sorted(unknown)}; use settings, defaults and exposures.")
    root = Path(base) if base is not None else path.parent
    defaults = {**_mapping(content.get("defaults"), f"{path}: defaults"), **(options or {})}
    specs = []
    for i, entry in enumerate(content["exposures"]):
        where = f"{path}: exposure {i}"
        entry = {"file": entry} if isinstance(entry, str) else _mapping(entry, where)
        merged = {**defaults, **entry}
        common, own = (_mapping(part.get("set"), f"{where}: set") for part in (defaults, entry))
        merged["set"] = {**common, **own}
        merged["mask_bits"] = merged.get("mask_bits") or {}
        specs.append(_make_spec(merged, root, where))
    return _mapping(content.get("settings"), f"{path}: settings"), specs
