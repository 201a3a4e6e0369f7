# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("identify_legacy", "is_afw_file", "read_legacy")

import dataclasses

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from ..legacy import LegacyExposure, LegacyFileError, is_legacy_exposure, read_legacy_exposure
from ._errors import BadExposureError
from ._exposure import PlainExposure, read_psf_stamp
from ._identity import Identity, read_identity
from ._manifest import ExposureSpec
from ._psf import PsfFit, kernel_fwhm

_NJY_ZERO_POINT = 31.4
_PLAIN_SOURCES = ("image", "variance", "weight", "mask", "wcs")


def is_afw_file(spec: ExposureSpec) -> bool:
    """Return whether an exposure is to be read as a file of afw.

    Parameters
    ----------
    spec : `ExposureSpec`
        One that names any HDU or other file, but for the PSF, is read as
        plain FITS.
    """
    return all(getattr(spec, source) is None for source in _PLAIN_SOURCES) and is_legacy_exposure(spec.file)


def _read(spec: ExposureSpec, *, with_pixels: bool) -> LegacyExposure:
    try:
        return read_legacy_exposure(
            spec.file, with_pixels=with_pixels, with_psf=with_pixels and spec.psf is None
        )
    except LegacyFileError as error:
        raise BadExposureError(spec.name, str(error)) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BadExposureError(
            spec.name, f"{spec.file} looks like a file of afw, and cannot be read as one: {error}"
        ) from error


def _identify(spec: ExposureSpec, legacy: LegacyExposure) -> Identity:
    """Take from the specification what it has, and the rest from the file."""
    known = legacy.identity
    header = fits.getheader(spec.file)
    if known.begin is not None:
        header["DATE-OBS"] = known.begin.utc.isot
    for keyword, value in (("EXPTIME", known.exposure_time), ("FILTER", known.physical_filter)):
        if value is not None:
            header[keyword] = value
    for keyword, value in spec.set.items():
        header[keyword] = value.isoformat() if hasattr(value, "isoformat") else value
    own = {
        name: getattr(known, name)
        for name in ("visit", "detector", "band")
        if getattr(spec, name) is None and getattr(known, name) is not None
    }
    return read_identity(dataclasses.replace(spec, **own), header)


def identify_legacy(spec: ExposureSpec) -> tuple[Identity, WCS, tuple[int, int]]:
    """Read which exposure a file of afw is.

    Parameters
    ----------
    spec : `ExposureSpec`
        The exposure.

    Returns
    -------
    identity : `Identity`
        Visit, detector, time and filter.
    wcs : `astropy.wcs.WCS`
        Its WCS.
    shape : `tuple` [`int`, `int`]
        Height and width.

    Raises
    ------
    BadExposureError
        Raised if something is missing or cannot be read.
    """
    legacy = _read(spec, with_pixels=False)
    return _identify(spec, legacy), legacy.wcs, legacy.shape


def read_legacy(spec: ExposureSpec) -> PlainExposure:
    """Read an exposure that afw wrote.

    Parameters
    ----------
    spec : `ExposureSpec`
        The exposure; its ``psf`` can be another stamp, or ``stars``.

    Returns
    -------
    exposure : `PlainExposure`
        In nJy, where the file has a photometric calibration.

    Raises
    ------
    BadExposureError
        Raised if something is missing or cannot be read.
    """
    legacy = _read(spec, with_pixels=True)
    good = np.isfinite(legacy.image) & np.isfinite(legacy.variance) & (legacy.variance > 0.0)
    if not good.any():
        raise BadExposureError(
            spec.name, "no pixel has a finite value and a positive variance; leave it out."
        )
    mask = dict(legacy.mask)
    mask["NO_DATA"] = mask.get("NO_DATA", np.zeros(legacy.shape, dtype=bool)) | ~good
    variance = np.where(good, legacy.variance, float(np.median(legacy.variance[good])))
    return PlainExposure(
        spec=spec,
        identity=_identify(spec, legacy),
        header=fits.getheader(spec.file),
        image=np.where(good, legacy.image, 0.0),
        variance=variance,
        mask=mask,
        has_mask=True,
        wcs=legacy.wcs,
        psf_stamp=read_psf_stamp(spec, legacy.shape),
        zero_point=_NJY_ZERO_POINT if legacy.calibrated else None,
        gain=None,
        read_noise=None,
        sky=None,
        saturation=None,
        psf=_wrap_psf(legacy),
    )


def _wrap_psf(legacy: LegacyExposure) -> PsfFit | None:
    if legacy.psf is None:
        return None
    fit = PsfFit(legacy.psf.psf, legacy.psf.stamp_size, float("nan"), legacy.psf.kind, 0, float("nan"))
    kernel = fit.kernel(0.5 * legacy.shape[1], 0.5 * legacy.shape[0])
    return dataclasses.replace(fit, fwhm=kernel_fwhm(kernel))
