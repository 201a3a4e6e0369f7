# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("CALEXP_RUN", "SceneMismatchError", "simulate")

import dataclasses
import json
import logging
import os
from pathlib import Path

from tqdm import tqdm

from lsst.daf.butler import Butler
from lsst.images import Box
from lsst.latent_coadds.repository import (
    CALEXP,
    SimulatedInstrument,
    VisitRecord,
    box_region,
    make_or_open,
    put_calexp,
    register_instrument,
    register_sky_map,
    register_visit,
)

from ._catalog import make_catalog
from ._exposure import Pointing, plan_pointings, simulate_exposure
from ._settings import SceneSettings
from ._truth import expected_snr, write_truth

_LOG = logging.getLogger(__name__)

CALEXP_RUN = "LatentSim/calexps"
"""Run collection of the simulated exposures."""


class SceneMismatchError(ValueError):
    """A directory holds a scene that was made with other settings."""


def simulate(root: str | os.PathLike[str], settings: SceneSettings, *, progress: bool = True) -> Butler:
    """Make a repository of simulated exposures, with the truth beside it.

    Parameters
    ----------
    root : path
        Directory to hold ``repo`` (the Butler repository), ``truth`` and
        ``scene.json``.  A scene that was left half-made with the same
        settings is completed, and one that is complete is left as it is.
    settings : `SceneSettings`
        The scene.
    progress : `bool`, optional
        Whether to show a progress bar.

    Returns
    -------
    butler : `lsst.daf.butler.Butler`
        A writeable client of the repository.

    Raises
    ------
    SceneMismatchError
        Raised if the directory holds a scene made with other settings.
    """
    root = Path(root)
    _check_settings(root, settings)
    butler = make_or_open(root / "repo")
    register_instrument(
        butler,
        settings.instrument,
        range(settings.n_detectors),
        {physical: band for band, physical in settings.physical_filters.items()},
        instrument_class=SimulatedInstrument,
    )
    register_sky_map(butler, settings.sky_map)
    pointings = plan_pointings(settings)
    catalog = make_catalog(settings)
    for pointing in pointings:
        register_visit(butler, _visit_record(settings, pointing))
    todo = _missing(butler, settings, pointings)
    for pointing, detector in tqdm(
        todo, desc="simulating", unit="exposure", disable=not progress or not todo
    ):
        put_calexp(butler, simulate_exposure(settings, catalog, pointing, detector).visit_image, CALEXP_RUN)
    catalog["snr"] = expected_snr(settings, catalog, [p for p in pointings if p.band == settings.band])
    write_truth(root / "truth", settings, catalog)
    return butler


def _check_settings(root: Path, settings: SceneSettings) -> None:
    path = root / "scene.json"
    text = json.dumps(dataclasses.asdict(settings), indent=2) + "\n"
    if path.exists():
        if json.loads(path.read_text()) != json.loads(text):
            raise SceneMismatchError(
                f"{path} describes a scene with other settings; give another directory, or remove {root}."
            )
        return
    root.mkdir(parents=True, exist_ok=True)
    partial = root / "scene.json.partial"
    partial.write_text(text)
    os.replace(partial, path)


def _visit_record(settings: SceneSettings, pointing: Pointing) -> VisitRecord:
    width, height = settings.detector_size
    bbox = Box.from_shape((height, width))
    return VisitRecord(
        instrument=settings.instrument,
        visit=pointing.visit,
        physical_filter=settings.physical_filters[pointing.band],
        begin=pointing.begin,
        exposure_time=pointing.exposure_time,
        regions={d: box_region(pointing.wcs(settings, d), bbox) for d in range(settings.n_detectors)},
        target_name="simulated field",
        science_program="latent_coadds",
        has_simulated=True,
    )


def _missing(
    butler: Butler, settings: SceneSettings, pointings: list[Pointing]
) -> list[tuple[Pointing, int]]:
    butler.collections.register(CALEXP_RUN)
    if butler.registry.queryDatasetTypes(CALEXP):
        refs = butler.query_datasets(CALEXP, CALEXP_RUN, explain=False)
        stored = butler.stored_many(refs)
        done = {(r.dataId["visit"], r.dataId["detector"]) for r in refs if stored[r]}
        for ref in refs:
            if not stored[ref]:
                _LOG.warning("%s is registered, but its file is gone; making it again.", ref)
                butler.pruneDatasets([ref], disassociate=True, unstore=True, purge=True)
    else:
        done = set()
    return [(p, d) for p in pointings for d in range(settings.n_detectors) if (p.visit, d) not in done]
