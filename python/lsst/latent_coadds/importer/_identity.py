# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("Identity", "celestial_wcs", "read_identity", "resolve_number")

import dataclasses
import math
import warnings
from datetime import UTC, datetime

from astropy.io.fits import Header
from astropy.time import Time
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from ._errors import BadExposureError
from ._manifest import ExposureSpec

_USUAL_KEYWORDS = {
    "zero_point": (),
    "gain": ("GAIN", "EGAIN"),
    "read_noise": ("RDNOISE", "READNOIS", "RON"),
    "sky": ("SKYDIP", "SKYLEVEL", "SKYVAL", "AVSKY"),
    "saturation": ("SATURATE", "SATLEVEL"),
    "exposure_time": ("EXPTIME", "EXPOSURE"),
}
_BANDS = "ugrizy"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What an exposure is, apart from its pixels.

    Parameters
    ----------
    visit, detector : `int`
        IDs.
    begin : `astropy.time.Time`
        When the shutter opened.
    exposure_time : `float`
        Seconds.
    physical_filter, band : `str`
        Names.
    """

    visit: int
    detector: int
    begin: Time
    exposure_time: float
    physical_filter: str
    band: str


def resolve_number(spec: ExposureSpec, header: Header, what: str) -> float | None:
    """Look up a quantity that is given as a number, a keyword, or by default.

    Parameters
    ----------
    spec : `ExposureSpec`
        The exposure.
    header : `astropy.io.fits.Header`
        Its header, with overrides applied.
    what : `str`
        Field of the spec, such as ``gain``.

    Returns
    -------
    value : `float` or `None`
        `None` if the spec does not give it and no usual keyword is present.

    Raises
    ------
    BadExposureError
        Raised if a keyword that was asked for is missing or no finite number.
    """
    given = getattr(spec, what)
    if given is None:
        given = next((keyword for keyword in _USUAL_KEYWORDS[what] if keyword in header), None)
        if given is None:
            return None
    value = given
    if isinstance(given, str):
        if given in header:
            value = header[given]
        elif not _is_number(given):
            raise BadExposureError(
                spec.name,
                f"the header has no keyword {given!r} for {what}; name another keyword or give a number.",
            )
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadExposureError(spec.name, f"{what} is {value!r} ({given}); it must be a number.") from None
    if math.isnan(number) or (math.isinf(number) and what != "saturation"):
        raise BadExposureError(
            spec.name, f"{what} is {number} ({given}); it must be finite. Give a number, or leave it out."
        )
    return number


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_identity(spec: ExposureSpec, header: Header) -> Identity:
    """Find out which exposure this is.

    Parameters
    ----------
    spec : `ExposureSpec`
        The exposure.
    header : `astropy.io.fits.Header`
        Its header, with overrides applied.

    Returns
    -------
    identity : `Identity`
        Visit, detector, time and filter.

    Raises
    ------
    BadExposureError
        Raised if the date, the filter or the band cannot be found.
    """
    begin = _resolve_date(spec, header)
    visit = _resolve_integer(spec, header, "visit")
    if visit is None:
        utc = begin.utc.to_datetime()
        seconds = utc.hour * 3600 + utc.minute * 60 + utc.second
        visit = int(utc.strftime("%Y%m%d")) * 100000 + seconds
    detector = _resolve_integer(spec, header, "detector")
    name = spec.filter if spec.filter is not None else "FILTER"
    physical_filter = str(header[name] if name in header else spec.filter or "").strip()
    if not physical_filter:
        raise BadExposureError(spec.name, "the header has no FILTER; give the filter's name or keyword.")
    band = spec.band or physical_filter[:1]
    if spec.band is None and (band not in _BANDS or physical_filter[1:2].isalpha()):
        raise BadExposureError(
            spec.name, f"no band can be told from the filter {physical_filter!r}; give the band."
        )
    exposure_time = resolve_number(spec, header, "exposure_time")
    if exposure_time is not None and exposure_time < 0.0:
        raise BadExposureError(
            spec.name, f"the exposure time is {exposure_time} s; it must not be negative. Give another."
        )
    return Identity(visit, detector or 0, begin, exposure_time or 0.0, physical_filter, band)


def _resolve_integer(spec: ExposureSpec, header: Header, what: str) -> int | None:
    given = getattr(spec, what)
    if given is None:
        return None
    value = header[given] if isinstance(given, str) and given in header else given
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise BadExposureError(
            spec.name, f"{what} is {value!r}, which is neither a number nor a keyword of the header."
        ) from None
    if number < 0:
        raise BadExposureError(spec.name, f"{what} is {number}; it must not be negative.")
    return number


def _resolve_date(spec: ExposureSpec, header: Header) -> Time:
    given = spec.date
    if given is None:
        given = next((k for k in ("DATE-OBS", "MJD-OBS", "MJD") if k in header), None)
    if given is None:
        raise BadExposureError(
            spec.name, "the header has neither DATE-OBS nor MJD-OBS; name the date's keyword or set DATE-OBS."
        )
    value = header[given] if isinstance(given, str) and given in header else given
    try:
        if spec.date_format is not None:
            return Time(_parse_beginning(str(value), spec.date_format), scale="utc")
        if isinstance(value, (int, float)):
            return Time(float(value), format="mjd", scale="utc")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            return Time(str(value), scale="utc")
    except ValueError as e:
        raise BadExposureError(
            spec.name,
            f"{value!r} is no date ({e}); give 'date' as a keyword, an ISO date or an MJD, "
            "with 'date_format' where it is written in another way.",
        ) from None


def _parse_beginning(text: str, pattern: str) -> datetime:
    """Parse a date that something else may follow."""
    try:
        return datetime.strptime(text, pattern).replace(tzinfo=UTC)
    except ValueError as e:
        _, found, rest = str(e).partition("unconverted data remains: ")
        if not found:
            raise
        return datetime.strptime(text.removesuffix(rest), pattern).replace(tzinfo=UTC)


def celestial_wcs(spec: ExposureSpec, header: Header, source: str) -> WCS:
    """Parse the celestial WCS of a header.

    Parameters
    ----------
    spec : `ExposureSpec`
        The exposure.
    header : `astropy.io.fits.Header`
        Header that has the WCS.
    source : `str`
        Where it came from, for the message.

    Returns
    -------
    wcs : `astropy.wcs.WCS`
        Two-dimensional celestial WCS.

    Raises
    ------
    BadExposureError
        Raised if there is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            wcs = WCS(header).celestial
            usable = wcs.has_celestial and wcs.pixel_n_dim == 2
    except Exception as e:
        raise BadExposureError(spec.name, f"the WCS of {source} cannot be read: {e}") from e
    if not usable:
        raise BadExposureError(
            spec.name,
            f"{source} has no celestial WCS (CTYPE1 = {header.get('CTYPE1')!r}); solve the astrometry first, "
            "or take the WCS from another file with 'wcs'.",
        )
    return wcs
