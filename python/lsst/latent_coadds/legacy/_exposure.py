# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("LegacyExposure", "LegacyIdentity", "is_legacy_exposure", "read_legacy_exposure")

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.time import Time
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from ..adapters import LEGACY_NAMES
from ._archive import Archive
from ._bounded_field import evaluate_bounded_field
from ._errors import LegacyFileError
from ._polygon import is_inside
from ._psf import LegacyPsf, read_psf
from ._sky_wcs import fit_fits_wcs, read_sky_wcs

_AB_FLUX = 10.0 ** (0.4 * 31.4)
"""Flux of magnitude zero in nJy."""

_IMAGES_NAMES = {legacy: name for name, legacy in LEGACY_NAMES.items()}


@dataclasses.dataclass(frozen=True)
class LegacyIdentity:
    """What a file says that it is; `None` where it does not.

    Parameters
    ----------
    visit, detector : `int` or `None`
        IDs.
    begin : `astropy.time.Time` or `None`
        When the shutter opened.
    exposure_time : `float` or `None`
        Seconds.
    physical_filter, band : `str` or `None`
        Names.
    """

    visit: int | None
    detector: int | None
    begin: Time | None
    exposure_time: float | None
    physical_filter: str | None
    band: str | None


@dataclasses.dataclass
class LegacyExposure:
    """A detector image of afw.

    Parameters
    ----------
    identity : `LegacyIdentity`
        Which exposure it is.
    shape : `tuple` [`int`, `int`]
        Height and width.
    wcs : `astropy.wcs.WCS`
        In pixels of the image.
    wcs_error : `float`
        Largest error of that in pixels, against the exact WCS of the file;
        NaN if it has none.
    image, variance : `numpy.ndarray`, (H, W), `float64`
        In nJy if ``calibrated``, else in counts; empty where pixels were not
        asked for.
    mask : `dict` [`str`, `numpy.ndarray`]
        Boolean (H, W) by mask plane of `lsst.images`; pixels outside of the
        valid polygon are ``NO_DATA``.
    dropped_planes : `tuple` [`str`, ...]
        Planes of the file that visit images of `lsst.images` do not have.
    calibrated : `bool`
        Whether the file has a photometric calibration.
    psf : `LegacyPsf` or `None`
        The PSF, where it was asked for and the file has one.
    """

    identity: LegacyIdentity
    shape: tuple[int, int]
    wcs: WCS
    wcs_error: float
    image: np.ndarray
    variance: np.ndarray
    mask: dict[str, np.ndarray]
    dropped_planes: tuple[str, ...]
    calibrated: bool
    psf: LegacyPsf | None


def is_legacy_exposure(path: str | Path) -> bool:
    """Return whether a file looks like one of ``Exposure.writeFits``.

    Parameters
    ----------
    path : `str` or `pathlib.Path`
        Any file.
    """
    try:
        with fits.open(path, memmap=True) as hdus:
            kinds = {str(hdu.header.get("EXTTYPE", "")).strip() for hdu in hdus[1:5]}
            return "AR_HDU" in hdus[0].header and {"IMAGE", "MASK", "VARIANCE"} <= kinds
    except (OSError, IndexError):
        return False


def read_legacy_exposure(
    path: str | Path, *, with_pixels: bool = True, with_psf: bool = True
) -> LegacyExposure:
    """Read a detector image that afw wrote.

    Parameters
    ----------
    path : `str` or `pathlib.Path`
        The file.
    with_pixels, with_psf : `bool`, optional
        Whether to read the pixels and the PSF.

    Returns
    -------
    exposure : `LegacyExposure`
        What is in the file.

    Raises
    ------
    LegacyFileError
        If a part is missing, or in a form that is not read; says what to do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        with fits.open(path, memmap=False) as hdus:
            planes = {str(hdu.header.get("EXTTYPE", "")).strip(): hdu for hdu in hdus[1:]}
            archive = Archive(hdus)
            header = planes["IMAGE"].header
            shape = (int(header["NAXIS2"]), int(header["NAXIS1"]))
            origin = (-round(header.get("LTV1", 0.0)), -round(header.get("LTV2", 0.0)))
            wcs, wcs_error = _read_wcs(header, archive, shape, origin)
            result = LegacyExposure(
                identity=_read_identity(hdus[0].header, archive),
                shape=shape,
                wcs=wcs,
                wcs_error=wcs_error,
                image=np.zeros((0, 0)),
                variance=np.zeros((0, 0)),
                mask={},
                dropped_planes=(),
                calibrated=False,
                psf=None,
            )
            if with_pixels:
                _read_pixels(result, planes, hdus[0].header, archive, origin)
            if with_psf and (psf := archive.find("PSF")) is not None:
                result.psf = read_psf(psf, archive, origin)
    return result


def _read_wcs(
    header: fits.Header, archive: Archive, shape: tuple[int, int], origin: tuple[int, int]
) -> tuple[WCS, float]:
    header_wcs = WCS(header).celestial if "CTYPE1" in header else None
    exact = archive.find("SKYWCS")
    if exact is not None:
        return fit_fits_wcs(read_sky_wcs(exact), shape, origin, header_wcs=header_wcs)
    if header_wcs is None or not header_wcs.has_celestial:
        raise LegacyFileError("it has no WCS, neither in its header nor as an object; leave it out.")
    return header_wcs, float("nan")


def _read_identity(header: fits.Header, archive: Archive) -> LegacyIdentity:
    def first(*keywords: str) -> Any:
        return next((header[keyword] for keyword in keywords if keyword in header), None)

    detector = first("LSST BUTLER DATAID DETECTOR", "DET-ID")
    if detector is None and (found := archive.find("DETECTOR")) is not None:
        detector = next((row["id"] for table in found.tables for row in table if "id" in row), None)
    label = archive.find("FILTER")
    names = {} if label is None else label.row
    exposure_time = first("EXPTIME")
    return LegacyIdentity(
        visit=_to_integer(first("LSST BUTLER DATAID VISIT", "IDNUM")),
        detector=_to_integer(detector),
        begin=_read_begin(header, exposure_time),
        exposure_time=None if exposure_time is None else float(exposure_time),
        physical_filter=_name(names, "physical") or first("FILTER"),
        band=_name(names, "band"),
    )


def _to_integer(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None


def _name(names: dict[str, Any], key: str) -> str | None:
    return str(names[key]).strip() if names.get(f"{key}_exists") else None


def _read_begin(header: fits.Header, exposure_time: float | None) -> Time | None:
    """Return the beginning; the headers of afw have the middle."""
    scale = str(header.get("TIMESYS", "UTC")).strip().lower()
    try:
        if "DATE-AVG" in header and exposure_time is not None:
            middle = Time(str(header["DATE-AVG"]), scale=scale)
            return (middle - 0.5 * float(exposure_time) * u.s).utc
        if "DATE-OBS" in header:
            return Time(str(header["DATE-OBS"]), scale=scale).utc
    except ValueError:
        return None
    return None


def _read_pixels(
    result: LegacyExposure,
    planes: dict[str, Any],
    primary: fits.Header,
    archive: Archive,
    origin: tuple[int, int],
) -> None:
    result.image = np.array(planes["IMAGE"].data, dtype=np.float64)
    result.variance = np.array(planes["VARIANCE"].data, dtype=np.float64)
    result.mask, result.dropped_planes = _read_mask(planes["MASK"])
    x = np.arange(result.shape[1]) + origin[0]
    y = np.arange(result.shape[0]) + origin[1]
    scale = _read_calibration(primary, planes["IMAGE"].header, archive, x, y)
    if scale is not None:
        result.calibrated = True
        result.image *= scale
        result.variance *= np.square(scale)
    polygon = archive.find("VALID_POLYGON")
    if polygon is not None:
        vertices = np.array([(row["vertices_x"], row["vertices_y"]) for row in polygon.tables[0]])
        outside = ~is_inside(vertices, x, y)
        result.mask["NO_DATA"] = result.mask.get("NO_DATA", np.zeros(result.shape, dtype=bool)) | outside


def _read_mask(hdu: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Read the planes by the names of `lsst.images`."""
    data = np.asarray(hdu.data).astype(np.int64)
    planes: dict[str, np.ndarray] = {}
    dropped = []
    for keyword, bit in hdu.header.items():
        if not keyword.startswith("MP_"):
            continue
        legacy = keyword.removeprefix("MP_")
        name = _IMAGES_NAMES.get(legacy, legacy)
        if name not in LEGACY_NAMES:
            dropped.append(legacy)
            continue
        planes[name] = planes.get(name, False) | ((data & (1 << int(bit))) != 0)
    return planes, tuple(sorted(dropped))


def _read_calibration(
    primary: fits.Header, header: fits.Header, archive: Archive, x: np.ndarray, y: np.ndarray
) -> np.ndarray | float | None:
    """Return nJy per count, over the image where that varies."""
    found = archive.find("PHOTOCALIB")
    if found is None:
        found = archive.find("CALIB")
    if found is None:
        if (flux := primary.get("FLUXMAG0", header.get("FLUXMAG0"))) is not None:
            return _check_mean(_AB_FLUX / float(flux))
        return 1.0 if str(header.get("BUNIT", "")).strip() == "nJy" else None
    row = found.row
    if "fluxmag0" in row:
        return _check_mean(_AB_FLUX / float(row["fluxmag0"]))
    if not int(row.get("version", 0)):
        raise LegacyFileError("its PhotoCalib is of the version of 2018, in maggies; write it again.")
    mean = _check_mean(float(row["calibrationMean"]))
    if row["isConstant"]:
        return mean
    return evaluate_bounded_field(archive.get(int(row["field"])), archive, x, y)


def _check_mean(mean: float) -> float:
    if not (np.isfinite(mean) and mean > 0.0):
        raise LegacyFileError(
            f"its photometric calibration is {mean} nJy per count, which means that the calibration failed; "
            "leave the exposure out."
        )
    return mean
