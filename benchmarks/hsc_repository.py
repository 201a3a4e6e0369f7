# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write simulated calexps of HSC into a new repository; needs a full stack.

The repository has calexp, calexpBackground, skyCorr, finalVisitSummary,
visitSummary (or what base-v2 calls them; see ``NAMES``) and skyMap (named
``hsc_simulated``) in the collection HSC/defaults, and the truth in
``truth.npz``: ``ra``, ``dec``, ``flux`` (of the first band) and ``flux_BAND``.
"""

from __future__ import annotations

__all__ = ("DEFAULTS", "SKY_MAP", "write_repository")

import argparse
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from hsc_exposures import (
    CENTER,
    FILTERS,
    HscScene,
    SimulatedDetector,
    draw_catalog,
    make_background,
    make_sky_map,
    make_summary,
    make_visits,
)

from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan
from lsst.sphgeom import ConvexPolygon

SKY_MAP = "hsc_simulated"
DEFAULTS = "HSC/defaults"
RUN = "HSC/runs/simulated"
DAY = 20260301
DETECTOR = ("instrument", "visit", "detector")
DATASET_TYPES = {
    "calexp": (DETECTOR, "ExposureF"),
    "calexpBackground": (DETECTOR, "Background"),
    "skyCorr": (DETECTOR, "Background"),
    "finalVisitSummary": (DETECTOR[:2], "ExposureCatalog"),
    "visitSummary": (DETECTOR[:2], "ExposureCatalog"),
}
NAMES = {
    "DRP-full": {name: name for name in DATASET_TYPES},
    "base-v2": {
        "calexp": "preliminary_visit_image",
        "calexpBackground": "preliminary_visit_image_background",
        "skyCorr": "skyCorr",
        "finalVisitSummary": "visit_summary",
        "visitSummary": "preliminary_visit_summary",
    },
}
"""Names of the dataset types in the pipelines of drp_pipe."""


def write_repository(root: Path, scene: HscScene, names: str = "DRP-full") -> None:
    """Make a repository.

    Parameters
    ----------
    root : `pathlib.Path`
        Directory, which must not exist.
    scene : `HscScene`
        What to simulate.
    names : `str`, optional
        Key of ``NAMES``.
    """
    from lsst.obs.subaru import HyperSuprimeCam

    Butler.makeRepo(root)
    with Butler.from_config(root, writeable=True) as butler:
        instrument = HyperSuprimeCam()
        instrument.register(butler.registry)
        sky_map = make_sky_map(scene)
        sky_map.register(SKY_MAP, butler)
        butler.collections.register(RUN)
        types = {}
        for name, (dimensions, storage_class) in DATASET_TYPES.items():
            types[name] = DatasetType(
                NAMES[names][name], dimensions, storage_class, universe=butler.dimensions
            )
            butler.registry.registerDatasetType(types[name])
        insert = butler.registry.syncDimensionData
        insert("day_obs", {"instrument": "HSC", "id": DAY})
        insert("visit_system", {"instrument": "HSC", "id": 0, "name": "one-to-one"})
        catalog = draw_catalog(scene, sky_map)
        for visit, begin, detectors in make_visits(scene, catalog, instrument.getCamera()):
            _register_visit(insert, visit, Timespan(begin, begin + 150 * u.s), detectors)
            _put_visit(butler, visit, detectors, types)
        butler.collections.register(DEFAULTS, type=CollectionType.CHAINED)
        butler.collections.redefine_chain(DEFAULTS, [RUN, "skymaps"])
    fluxes = {f"flux_{band}": catalog[:, 2 + b] for b, band in enumerate(scene.bands)}
    np.savez(root / "truth.npz", ra=catalog[:, 0], dec=catalog[:, 1], flux=catalog[:, 2], **fluxes)


def _register_visit(insert: Any, visit: int, timespan: Timespan, detectors: list[SimulatedDetector]) -> None:
    """Insert the dimension records of a visit."""
    group, number = f"G{visit}", visit % 1000
    common = {
        "instrument": "HSC",
        "id": visit,
        "physical_filter": FILTERS[detectors[0].band],
        "day_obs": DAY,
        "exposure_time": 150.0,
        "observation_reason": "science",
        "target_name": "simulated",
        "science_program": "simulated",
        "azimuth": 0.0,
        "zenith_angle": 20.0,
        "timespan": timespan,
    }
    insert("group", {"instrument": "HSC", "name": group})
    exposure = {
        "group": group,
        "obs_id": f"HSCA{visit}",
        "dark_time": 150.0,
        "observation_type": "science",
        "seq_num": number,
        "seq_start": number,
        "seq_end": number,
        "tracking_ra": CENTER[0],
        "tracking_dec": CENTER[1],
        "sky_angle": 0.0,
        "has_simulated": True,
        "can_see_sky": True,
    }
    insert("exposure", common | exposure)
    corners = {d.number: [corner.getVector() for corner in d.corners] for d in detectors}
    region = ConvexPolygon.convexHull([corner for group in corners.values() for corner in group])
    insert("visit", common | {"name": f"v{visit}", "seq_num": number, "region": region})
    insert("visit_definition", {"instrument": "HSC", "exposure": visit, "visit": visit})
    insert("visit_system_membership", {"instrument": "HSC", "visit_system": 0, "visit": visit})
    for detector, points in corners.items():
        record = {"instrument": "HSC", "visit": visit, "detector": detector, "region": ConvexPolygon(points)}
        insert("visit_detector_region", record)


def _put_visit(
    butler: Butler, visit: int, detectors: list[SimulatedDetector], types: dict[str, DatasetType]
) -> None:
    data_id = {"instrument": "HSC", "visit": visit}
    for detector in detectors:
        where = data_id | {"detector": detector.number}
        butler.put(detector.exposure, types["calexp"], where, run=RUN)
        butler.put(detector.sky, types["skyCorr"], where, run=RUN)
        subtracted = make_background(100 * detector.noise, detector.exposure.getBBox())
        butler.put(subtracted, types["calexpBackground"], where, run=RUN)
    summary = make_summary(visit, detectors)
    for name in ("finalVisitSummary", "visitSummary"):
        butler.put(summary, types[name], data_id, run=RUN)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--bands", nargs="+", choices=FILTERS, default=HscScene.bands)
    parser.add_argument("--names", choices=NAMES, default="DRP-full", help="of the dataset types")
    parser.add_argument("--visits", type=int, default=HscScene.n_visits, help="of each band")
    parser.add_argument("--seed", type=int, default=HscScene.seed)
    parser.add_argument(
        "--fluxes", type=float, nargs=2, default=(HscScene.faintest, HscScene.brightest), metavar="NJY"
    )
    arguments = parser.parse_args()
    faintest, brightest = arguments.fluxes
    scene = HscScene(
        bands=tuple(arguments.bands),
        n_visits=arguments.visits,
        seed=arguments.seed,
        faintest=faintest,
        brightest=brightest,
    )
    write_repository(arguments.root, scene, arguments.names)
