# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("PlainExposure", "read_exposure", "read_header", "read_psf_stamp", "read_wcs")

import dataclasses
import warnings

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from ._constant import constant_areas
from ._errors import BadExposureError
from ._identity import Identity, celestial_wcs, read_identity, resolve_number
from ._manifest import ExposureSpec, PixelSource
from ._mask import excluded_pixels
from ._psf import PsfFit, psf_from_stamp


@dataclasses.dataclass
class PlainExposure:
    """An exposure as it came: arrays in counts.

    Parameters
    ----------
    spec : `ExposureSpec`
        What it was asked to be.
    identity : `Identity`
        Visit, detector, time, filter.
    header : `astropy.io.fits.Header`
        Header of the image with overrides applied.
    image : `numpy.ndarray`
        ``(H, W)`` float64; 0 where the file has no finite value.
    variance : `numpy.ndarray` or `None`
        ``(H, W)`` float64, counts squared.
    mask : `dict` [`str`, `numpy.ndarray`]
        Boolean ``(H, W)`` by mask plane.
    has_mask : `bool`
        Whether a mask came with it.
    wcs : `astropy.wcs.WCS`
        Celestial WCS.
    psf_stamp : `numpy.ndarray` or `None`
        Stamp of the PSF.
    zero_point, gain, read_noise, sky, saturation : `float` or `None`
        AB magnitude of one count, electrons per count, electrons, counts,
        counts of the image after the sky was subtracted.
    psf : `PsfFit`, optional
        PSF model that came with it.
    """

    spec: ExposureSpec
    identity: Identity
    header: fits.Header
    image: np.ndarray
    variance: np.ndarray | None
    mask: dict[str, np.ndarray]
    has_mask: bool
    wcs: WCS
    psf_stamp: np.ndarray | None
    zero_point: float | None
    gain: float | None
    read_noise: float | None
    sky: float | None
    saturation: float | None
    psf: PsfFit | None = None

    @property
    def name(self) -> str:
        """Label in reports and messages (`str`)."""
        return self.spec.name

    @property
    def bad(self) -> np.ndarray:
        """Pixels that any mask plane excludes, boolean ``(H, W)`` (`numpy.ndarray`)."""
        return excluded_pixels(self.mask, self.image.shape)


def _read_hdu(source: PixelSource, name: str, what: str) -> tuple[np.ndarray | None, fits.Header]:
    """Read an HDU; data are `None` where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            with fits.open(source.file, memmap=False) as hdus:
                if source.hdu is not None:
                    hdu = hdus[source.hdu]
                else:
                    hdu = next((h for h in hdus if h.is_image and h.header.get("NAXIS", 0) > 0), hdus[0])
                header = hdu.header.copy()
                # A primary header holds what an extension inherits.
                if hdu is not hdus[0] and what == "image":
                    header.extend(hdus[0].header.cards, unique=True, update=False, strip=True)
                data = hdu.data if hdu.is_image else None
                return (None if data is None else np.array(data)), header
    except (KeyError, IndexError):
        raise BadExposureError(
            name, f"{source.file} has no HDU {source.hdu!r} for the {what}; list them with fitsinfo."
        ) from None
    except (OSError, TypeError, ValueError) as e:
        raise BadExposureError(name, f"the {what} {source} cannot be read as FITS: {e}") from e


def read_header(spec: ExposureSpec) -> tuple[fits.Header, tuple[int, int]]:
    """Read the header of an exposure's image, with overrides applied.

    Parameters
    ----------
    spec : `ExposureSpec`
        The exposure.

    Returns
    -------
    header : `astropy.io.fits.Header`
        The header.
    shape : `tuple` [`int`, `int`]
        Height and width.

    Raises
    ------
    BadExposureError
        Raised if the file cannot be read or its image is not
        two-dimensional.
    """
    source = spec.source("image")
    assert source is not None
    data, header = _read_hdu(source, spec.name, "image")
    data = _two_dimensional(data, spec.name, source, "image")
    for keyword, value in spec.set.items():
        header[keyword] = value.isoformat() if hasattr(value, "isoformat") else value
    return header, (data.shape[0], data.shape[1])


def read_wcs(spec: ExposureSpec, header: fits.Header) -> WCS:
    """Read the WCS of an exposure, from another file if the spec says so.

    Parameters
    ----------
    spec : `ExposureSpec`
        The exposure.
    header : `astropy.io.fits.Header`
        Header of its image.

    Returns
    -------
    wcs : `astropy.wcs.WCS`
        Celestial WCS.

    Raises
    ------
    BadExposureError
        Raised if there is none.
    """
    source = spec.source("wcs")
    if source is None:
        return celestial_wcs(spec, header, str(spec.source("image")))
    return celestial_wcs(spec, _read_hdu(source, spec.name, "WCS")[1], str(source))


def _two_dimensional(data: np.ndarray | None, name: str, source: PixelSource, what: str) -> np.ndarray:
    if data is None or np.squeeze(data).ndim != 2:
        shape = None if data is None else data.shape
        raise BadExposureError(
            name, f"the {what} {source} has shape {shape}; it must be two-dimensional. Name its HDU."
        )
    return np.squeeze(data)


def _read_plane(spec: ExposureSpec, what: str, shape: tuple[int, int]) -> np.ndarray | None:
    source = spec.source(what)
    if source is None:
        return None
    data = _two_dimensional(_read_hdu(source, spec.name, what)[0], spec.name, source, what)
    if what != "psf" and data.shape != shape:
        raise BadExposureError(
            spec.name,
            f"the {what} {source} has shape {data.shape}, the image {shape}; they must have the same pixels.",
        )
    return data


def read_exposure(spec: ExposureSpec) -> PlainExposure:
    """Read an exposure and all that came with it.

    Parameters
    ----------
    spec : `ExposureSpec`
        Where it is.

    Returns
    -------
    exposure : `PlainExposure`
        Arrays in counts.

    Raises
    ------
    BadExposureError
        Raised with the file and the remedy if something is missing or does
        not fit.
    """
    source = spec.source("image")
    assert source is not None
    data, _ = _read_hdu(source, spec.name, "image")
    header, shape = read_header(spec)
    image = _two_dimensional(data, spec.name, source, "image").astype(np.float64)
    finite = np.isfinite(image)
    if not finite.any():
        raise BadExposureError(spec.name, f"{source} has no finite pixel; leave this exposure out.")
    mask = _read_mask(spec, shape)
    has_mask = mask is not None
    planes = dict(mask or {})
    variance = _read_variance(spec, shape, planes)
    if not finite.all():
        planes["NO_DATA"] = planes.get("NO_DATA", np.zeros(shape, dtype=bool)) | ~finite
    image = np.where(finite, image, 0.0)
    if not has_mask and spec.weight is None and (padding := constant_areas(image)).any():
        planes["NO_DATA"] = planes.get("NO_DATA", np.zeros(shape, dtype=bool)) | padding
    return PlainExposure(
        spec=spec,
        identity=read_identity(spec, header),
        header=header,
        image=image,
        variance=variance,
        mask=planes,
        has_mask=has_mask,
        wcs=read_wcs(spec, header),
        psf_stamp=read_psf_stamp(spec, shape),
        zero_point=resolve_number(spec, header, "zero_point"),
        gain=resolve_number(spec, header, "gain"),
        read_noise=resolve_number(spec, header, "read_noise"),
        sky=resolve_number(spec, header, "sky"),
        saturation=_saturation(spec, header),
    )


def _saturation(spec: ExposureSpec, header: fits.Header) -> float | None:
    """Find the counts of saturation; the usual keywords mean those with the sky."""
    level = resolve_number(spec, header, "saturation")
    if level is None or spec.saturation is not None:
        return level
    return level - (resolve_number(spec, header, "sky") or 0.0)


def read_psf_stamp(spec: ExposureSpec, shape: tuple[int, int]) -> np.ndarray | None:
    """Read the stamp of the PSF that a specification names.

    Parameters
    ----------
    spec : `ExposureSpec`
        The exposure; with ``psf='stars'``, a PSF is fitted to stars.
    shape : `tuple` [`int`, `int`]
        Height and width of its image.

    Returns
    -------
    stamp : `numpy.ndarray` or `None`
        `None` if it names none.

    Raises
    ------
    BadExposureError
        Raised if the stamp cannot be used.
    """
    if spec.psf == "stars":
        return None
    stamp = _read_plane(spec, "psf", shape)
    if stamp is None:
        return None
    try:
        psf_from_stamp(stamp.astype(np.float64))
    except ValueError as e:
        raise BadExposureError(spec.name, f"the PSF {spec.source('psf')} cannot be used: {e}") from e
    return stamp.astype(np.float64)


def _read_mask(spec: ExposureSpec, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    data = _read_plane(spec, "mask", shape)
    if data is None:
        return None
    if not spec.mask_bits:
        return {"BAD": data != 0}
    if not np.issubdtype(data.dtype, np.integer):
        raise BadExposureError(
            spec.name, f"mask_bits need an integer mask; this one is {data.dtype}. Leave mask_bits out."
        )
    planes = {}
    for plane, bits in spec.mask_bits.items():
        value = np.bitwise_or.reduce([1 << int(b) for b in ([bits] if isinstance(bits, int) else bits)])
        planes[plane] = (data.astype(np.int64) & value) != 0
    return planes


def _read_variance(
    spec: ExposureSpec, shape: tuple[int, int], planes: dict[str, np.ndarray]
) -> np.ndarray | None:
    """Read the variance, or the weight; pixels without one become bad."""
    variance = _read_plane(spec, "variance", shape)
    if variance is None:
        weight = _read_plane(spec, "weight", shape)
        if weight is None:
            return None
        positive = np.isfinite(weight) & (weight > 0)
        variance = np.where(positive, 1.0 / np.where(positive, weight, 1.0), np.nan)
    variance = variance.astype(np.float64)
    good = np.isfinite(variance) & (variance > 0.0)
    if not good.any():
        raise BadExposureError(
            spec.name,
            "its variance (or weight) is positive nowhere; leave it out to have the variance "
            "from the header or the background.",
        )
    if not good.all():
        planes["BAD"] = planes.get("BAD", np.zeros(shape, dtype=bool)) | ~good
    return np.where(good, variance, float(np.median(variance[good])))
