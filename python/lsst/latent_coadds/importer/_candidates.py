# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("Candidate", "check_distinct", "choose_reference", "identify_exposures", "read_any_exposure")

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astropy.wcs import WCS

from ._errors import BadExposureError, ManifestError
from ._exposure import PlainExposure, read_exposure, read_header, read_wcs
from ._identity import Identity, read_identity
from ._legacy import identify_legacy, is_afw_file, read_legacy
from ._manifest import ExposureSpec
from ._report import earlier_reference
from ._settings import ImportSettings


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An exposure of which only the header was read.

    Parameters
    ----------
    spec : `ExposureSpec`
        Where it is.
    identity : `Identity`
        Which exposure it is.
    wcs : `astropy.wcs.WCS`
        Its WCS.
    shape : `tuple` [`int`, `int`]
        Height and width.
    """

    spec: ExposureSpec
    identity: Identity
    wcs: WCS
    shape: tuple[int, int]


def read_any_exposure(spec: ExposureSpec) -> PlainExposure:
    """Read an exposure, whether afw wrote it or not.

    Parameters
    ----------
    spec : `ExposureSpec`
        Where it is.

    Returns
    -------
    exposure : `PlainExposure`
        The exposure.

    Raises
    ------
    BadExposureError
        Raised with the file and the remedy if it cannot be used.
    """
    return read_legacy(spec) if is_afw_file(spec) else read_exposure(spec)


def identify_exposures(specs: Sequence[ExposureSpec], failures: dict[str, str]) -> list[Candidate]:
    """Read all headers first, so that what can be told early is.

    Parameters
    ----------
    specs : sequence of `ExposureSpec`
        The exposures.
    failures : `dict` [`str`, `str`]
        Receives the message for each that cannot be used.

    Returns
    -------
    candidates : `list` [`Candidate`]
        The others.

    Raises
    ------
    ManifestError
        Raised if there are no exposures at all.
    """
    if not specs:
        raise ManifestError("There are no exposures to import.")
    candidates = []
    for spec in specs:
        try:
            if is_afw_file(spec):
                candidates.append(Candidate(spec, *identify_legacy(spec)))
                continue
            header, shape = read_header(spec)
            candidates.append(Candidate(spec, read_identity(spec, header), read_wcs(spec, header), shape))
        except BadExposureError as e:
            failures[spec.name] = str(e)
    return candidates


def choose_reference(
    candidates: list[Candidate], settings: ImportSettings, failures: dict[str, str], path: Path
) -> Candidate:
    """Choose the exposure against which the others are calibrated.

    Parameters
    ----------
    candidates : `list` [`Candidate`]
        The exposures.
    settings : `ImportSettings`
        May name one.
    failures : `dict` [`str`, `str`]
        Messages of those that cannot be used.
    path : `pathlib.Path`
        Report of earlier calls, which says what the reference was.

    Returns
    -------
    reference : `Candidate`
        One of them.

    Raises
    ------
    BadExposureError
        Raised if the reference cannot be used.
    ManifestError
        Raised if the reference is none of them, or another one than before.
    """
    if not candidates:
        raise BadExposureError("no exposure can be used", "; ".join(failures.values()))
    earlier = earlier_reference(path)
    if earlier is not None and "apply" in (settings.flux_scale, settings.registration):
        name, *identity = earlier
        for candidate in candidates:
            same = [candidate.identity.visit, candidate.identity.detector] == identity
            if same and settings.reference in ("", candidate.spec.name):
                return candidate
        raise ManifestError(
            f"The exposures of the run {settings.run!r} are calibrated against {name!r} (visit "
            f"{identity[0]}, detector {identity[1]}). List its file again with the new ones and let it be "
            "the reference: it is not written again. Otherwise give another run."
        )
    if not settings.reference:
        return candidates[0]
    for candidate in candidates:
        if candidate.spec.name == settings.reference:
            return candidate
    if settings.reference in failures:
        raise BadExposureError("the reference cannot be used", failures[settings.reference])
    raise ManifestError(
        f"The reference {settings.reference!r} is none of the exposures "
        f"{[c.spec.name for c in candidates]}; give one of their names."
    )


def check_distinct(candidates: list[Candidate]) -> None:
    """Check that no two exposures claim to be the same.

    Parameters
    ----------
    candidates : `list` [`Candidate`]
        The exposures.

    Raises
    ------
    BadExposureError
        Raised with the second of the two.
    """
    seen: dict[Any, str] = {}
    for candidate in candidates:
        name, identity = candidate.spec.name, candidate.identity
        for key in (f"visit {identity.visit}, detector {identity.detector}", f"called {name}"):
            if key in seen:
                raise BadExposureError(
                    name,
                    f"{seen[key]} is {key} as well. If the header's date {identity.begin.isot} is wrong, "
                    "give each exposure its own: set DATE-OBS in the manifest, or give date (and "
                    "date_format), visit, detector or name.",
                )
            seen[key] = name
