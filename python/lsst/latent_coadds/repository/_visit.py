# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("CALEXP", "VisitRecord", "put_calexp", "register_visit")

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import astropy.units as u
from astropy.time import Time

from lsst.daf.butler import Butler, DatasetRef, DatasetType, DimensionRecord, Timespan
from lsst.images import VisitImage
from lsst.sphgeom import ConvexPolygon

from ._regions import covers, enclosing_region

CALEXP = "calexp"
"""Name of the dataset type of calibrated exposures."""


@dataclasses.dataclass(frozen=True)
class VisitRecord:
    """What a repository knows of one visit, which here is one exposure.

    Parameters
    ----------
    instrument : `str`
        Name of a registered instrument.
    visit : `int`
        ID of the visit and of its exposure.
    physical_filter : `str`
        Name of a registered filter.
    begin : `astropy.time.Time`
        When the shutter opened.
    exposure_time : `float`
        Seconds for which it stayed open.
    regions : mapping [`int`, `lsst.sphgeom.ConvexPolygon`]
        What each detector saw of the sky.  The join with patches uses it.
    day_obs : `int`, optional
        Night as YYYYMMDD; by default the date, in TAI, twelve hours before
        ``begin``.
    target_name, science_program : `str`, optional
        What was looked at, and for whom.
    has_simulated : `bool`, optional
        Whether the pixels are simulated.
    """

    instrument: str
    visit: int
    physical_filter: str
    begin: Time
    exposure_time: float
    regions: Mapping[int, ConvexPolygon]
    day_obs: int | None = None
    target_name: str = "unknown"
    science_program: str = "unknown"
    has_simulated: bool = False

    @property
    def night(self) -> int:
        """The night as YYYYMMDD (`int`)."""
        if self.day_obs is not None:
            return self.day_obs
        return int((self.begin.tai - 12 * u.hour).strftime("%Y%m%d"))

    @property
    def timespan(self) -> Timespan:
        """When the exposure was taken (`lsst.daf.butler.Timespan`)."""
        return Timespan(self.begin, self.begin + max(self.exposure_time, 1e-3) * u.s)


def register_visit(butler: Butler, record: VisitRecord) -> None:
    """Register a visit, its exposure and the regions of its detectors.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        A writeable client.
    record : `VisitRecord`
        The visit.  The instrument and the filter must be registered.

    Raises
    ------
    ValueError
        Raised if the repository has a visit of that ID with another filter
        or time, or the record has no regions.

    Notes
    -----
    Where the visit is there already, detectors are added to it, and regions
    grow where needed; a region never shrinks, because datasets of an earlier
    call may lie in it.
    """
    if not record.regions:
        raise ValueError(f"Visit {record.visit} has no detector regions; nothing could find it.")
    data_id: dict[str, Any] = {"instrument": record.instrument, "visit": record.visit}
    known = list(butler.registry.queryDimensionRecords("visit", **data_id, check=False))
    with butler.transaction():
        region = enclosing_region(record.regions.values())
        if known:
            _check_same(record, known[0])
            if not covers(known[0].region, region):
                grown = known[0].toDict() | {"region": enclosing_region([known[0].region, region])}
                butler.registry.syncDimensionData("visit", grown, update=True)
        else:
            _insert_observation(butler, record, region)
        for detector, detector_region in record.regions.items():
            _sync_region(butler, data_id | {"detector": int(detector)}, detector_region)


def put_calexp(
    butler: Butler,
    visit_image: VisitImage,
    run: str,
    *,
    dataset_type: str = CALEXP,
    if_exists: Literal["skip", "replace", "error"] = "skip",
) -> DatasetRef:
    """Write a calibrated exposure.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        A writeable client.
    visit_image : `lsst.images.VisitImage`
        The exposure; its frame says which visit and detector it is.
    run : `str`
        Run collection, made where needed.
    dataset_type : `str`, optional
        Name of the dataset type, registered where needed.
    if_exists : `str`, optional
        What to do if the run has this exposure: ``"skip"`` keeps what is
        there, ``"replace"`` replaces it, ``"error"`` raises.

    Returns
    -------
    ref : `lsst.daf.butler.DatasetRef`
        The dataset in the run.

    Raises
    ------
    FileExistsError
        Raised if the run has this exposure and ``if_exists`` is ``"error"``.
    ValueError
        Raised if the exposure's frame lacks a visit, or ``if_exists`` is
        unknown.
    """
    if if_exists not in ("skip", "replace", "error"):
        raise ValueError(f"if_exists must be 'skip', 'replace' or 'error', not {if_exists!r}.")
    frame = visit_image.sky_projection.pixel_frame
    if frame.visit is None:
        raise ValueError("The exposure's DetectorFrame has no visit; make it with make_visit_image.")
    data_id = {"instrument": frame.instrument, "visit": frame.visit, "detector": frame.detector}
    definition = DatasetType(
        dataset_type, {"instrument", "visit", "detector"}, "VisitImage", universe=butler.dimensions
    )
    butler.registry.registerDatasetType(definition)
    butler.collections.register(run)
    ref = butler.find_dataset(definition, data_id, collections=run)
    if ref is not None and if_exists == "skip":
        return ref
    if ref is not None and if_exists == "error":
        raise FileExistsError(f"{run} already has {dataset_type} of {data_id}; choose another run.")
    if ref is not None:
        butler.pruneDatasets([ref], disassociate=True, unstore=True, purge=True)
    return butler.put(visit_image, definition, data_id, run=run)


def _check_same(record: VisitRecord, known: DimensionRecord) -> None:
    if known.physical_filter != record.physical_filter:
        raise ValueError(
            f"Visit {record.visit} of {record.instrument} is in {known.physical_filter!r} in this "
            f"repository, not {record.physical_filter!r}: give the new exposure another visit ID."
        )
    shift = abs((known.timespan.begin.tai - record.begin.tai).to_value(u.s))
    if shift > 1.0:
        raise ValueError(
            f"Visit {record.visit} of {record.instrument} began {shift:.0f} s from {record.begin.isot} "
            "in this repository: give the new exposure another visit ID."
        )


def _sync_region(butler: Butler, data_id: dict[str, Any], region: ConvexPolygon) -> None:
    known = list(butler.registry.queryDimensionRecords("visit_detector_region", **data_id, check=False))
    if not known:
        butler.registry.insertDimensionData("visit_detector_region", data_id | {"region": region})
    elif not covers(known[0].region, region):
        grown = data_id | {"region": enclosing_region([known[0].region, region])}
        butler.registry.syncDimensionData("visit_detector_region", grown, update=True)


def _insert_observation(butler: Butler, record: VisitRecord, region: ConvexPolygon) -> None:
    night = str(record.night)
    noon = Time(f"{night[:4]}-{night[4:6]}-{night[6:]}T12:00:00", format="isot", scale="tai")
    here: dict[str, Any] = {"instrument": record.instrument}
    registry = butler.registry
    registry.insertDimensionData(
        "day_obs",
        here | {"id": record.night, "timespan": Timespan(noon, noon + 1 * u.day)},
        skip_existing=True,
    )
    name = str(record.visit)
    registry.insertDimensionData("group", here | {"name": name}, skip_existing=True)
    common = here | {
        "id": record.visit,
        "physical_filter": record.physical_filter,
        "day_obs": record.night,
        "exposure_time": record.exposure_time,
        "observation_reason": "science",
        "seq_num": record.visit % 100000,
        "target_name": record.target_name,
        "science_program": record.science_program,
        "timespan": record.timespan,
    }
    exposure = {
        "obs_id": name,
        "group": name,
        "observation_type": "science",
        "dark_time": record.exposure_time,
        "has_simulated": record.has_simulated,
        "can_see_sky": True,
    }
    registry.insertDimensionData("exposure", common | exposure)
    registry.insertDimensionData("visit", common | {"name": name, "region": region})
    registry.insertDimensionData("visit_definition", here | {"exposure": record.visit, "visit": record.visit})
    system = min(r.id for r in registry.queryDimensionRecords("visit_system", **here))
    registry.insertDimensionData(
        "visit_system_membership", here | {"visit": record.visit, "visit_system": system}
    )
