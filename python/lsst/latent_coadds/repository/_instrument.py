# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("PlainInstrument", "SimulatedInstrument", "register_instrument")

from collections.abc import Iterable, Mapping
from typing import Any

from lsst.daf.butler import Butler, Formatter, FormatterV2, Registry
from lsst.pipe.base import Instrument
from lsst.utils.introspection import get_full_type_name

# The limits are fixed, and not taken from the data, so that an instrument
# can be registered again later with more detectors and visits.
_ID_MAX = 10**12
_DETECTOR_MAX = 1000
_VISIT_SYSTEM = {"id": 0, "name": "one-to-one"}


class PlainInstrument(Instrument):
    """An instrument that is known by its detectors and filters alone.

    Notes
    -----
    The record of any instrument without a package of its own may name this
    class.  The name of the camera lives in that record, so `getName` is only
    the prefix for collections that nobody has named.
    """

    @classmethod
    def getName(cls) -> str:
        return "Plain"

    def register(self, registry: Registry, *, update: bool = False) -> None:
        _sync_instrument(registry, self.getName(), type(self))

    def getRawFormatter(self, dataId: Any) -> type[Formatter | FormatterV2]:
        raise NotImplementedError("This instrument has calibrated exposures only, and no raw files.")


class SimulatedInstrument(PlainInstrument):
    """The camera of the simulated scenes."""

    @classmethod
    def getName(cls) -> str:
        return "LatentSim"


def register_instrument(
    butler: Butler,
    name: str,
    detectors: Mapping[int, str] | Iterable[int],
    filters: Mapping[str, str],
    *,
    instrument_class: type[Instrument] = PlainInstrument,
) -> None:
    """Register an instrument with its detectors and filters.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        A writeable client.
    name : `str`
        Name of the instrument, at most 32 characters.
    detectors : mapping [`int`, `str`] or iterable of `int`
        Full name of each detector by its ID, or the IDs alone.
    filters : mapping [`str`, `str`]
        Band of each physical filter.
    instrument_class : `type`, optional
        Class that the record names, if the repository does not have this
        instrument yet.

    Raises
    ------
    ValueError
        Raised if the repository already has a detector or filter of that
        name with another meaning.
    """
    if not isinstance(detectors, Mapping):
        detectors = {int(i): f"detector_{int(i):03d}" for i in detectors}
    with butler.transaction():
        _sync_instrument(butler.registry, name, instrument_class)
        _add_detectors(butler, name, detectors)
        _add_filters(butler, name, filters)


def _sync_instrument(registry: Any, name: str, instrument_class: type[Instrument]) -> None:
    if not list(registry.queryDimensionRecords("instrument", instrument=name, check=False)):
        registry.insertDimensionData(
            "instrument",
            {
                "name": name,
                "class_name": get_full_type_name(instrument_class),
                "visit_max": _ID_MAX,
                "exposure_max": _ID_MAX,
                "detector_max": _DETECTOR_MAX,
                "visit_system": _VISIT_SYSTEM["id"],
            },
        )
    if not list(registry.queryDimensionRecords("visit_system", instrument=name)):
        registry.insertDimensionData("visit_system", {"instrument": name, **_VISIT_SYSTEM})


def _add_detectors(butler: Butler, instrument: str, detectors: Mapping[int, str]) -> None:
    known = {
        r.id: r.full_name for r in butler.registry.queryDimensionRecords("detector", instrument=instrument)
    }
    for detector_id, full_name in detectors.items():
        if detector_id not in known:
            row = {
                "instrument": instrument,
                "id": int(detector_id),
                "full_name": full_name,
                "name_in_raft": full_name,
                "purpose": "SCIENCE",
            }
            butler.registry.insertDimensionData("detector", row)
        elif known[detector_id] != full_name and full_name != f"detector_{detector_id:03d}":
            raise ValueError(
                f"Detector {detector_id} of {instrument} is {known[detector_id]!r} in this repository, "
                f"not {full_name!r}: use the name that is there, or another instrument name."
            )


def _add_filters(butler: Butler, instrument: str, filters: Mapping[str, str]) -> None:
    records = butler.registry.queryDimensionRecords("physical_filter", instrument=instrument)
    known = {r.name: r.band for r in records}
    for name, band in filters.items():
        if name not in known:
            butler.registry.insertDimensionData(
                "physical_filter", {"instrument": instrument, "name": name, "band": band}
            )
        elif known[name] != band:
            raise ValueError(
                f"Filter {name!r} of {instrument} has band {known[name]!r} in this repository, not {band!r}."
            )
