# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("ImportResult", "import_exposures")

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from astropy.table import Table

from lsst.daf.butler import Butler, MissingCollectionError
from lsst.images import Box
from lsst.images.psfs import PiffWrapper

from ..repository import (
    CALEXP,
    SKY_MAP_RUN,
    SkyMapGeometry,
    VisitRecord,
    box_region,
    make_or_open,
    make_visit_image,
    put_calexp,
    read_sky_map,
    register_instrument,
    register_sky_map,
    register_visit,
)
from ._candidates import Candidate, check_distinct, choose_reference, identify_exposures, read_any_exposure
from ._errors import BadExposureError, ManifestError
from ._manifest import ExposureSpec
from ._prepare import PreparedExposure, prepare_exposure
from ._report import merge_report, report_path
from ._settings import ImportSettings
from ._tract import cover_exposures

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImportResult:
    """What an import did.

    Parameters
    ----------
    report : `astropy.table.Table`
        One row for each exposure of the run; ``status`` is ``imported``,
        ``replaced``, ``present`` or ``failed``.
    failures : `dict` [`str`, `str`]
        Message by exposure.
    path : `pathlib.Path`
        Where the report was written.
    collections : `tuple` [`str`, ...]
        Collections that a pipeline needs as input.
    tract, n_patches : `int`
        Tract of a sky map that was made, and its number of patches; 0
        patches if an existing one was used.
    """

    report: Table
    failures: dict[str, str]
    path: Path
    collections: tuple[str, ...]
    tract: int
    n_patches: int


def import_exposures(
    repo: str | Path,
    specs: Sequence[ExposureSpec],
    settings: ImportSettings | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> ImportResult:
    """Make a Butler repository from plain FITS exposures, or add to one.

    Parameters
    ----------
    repo : `str` or `pathlib.Path`
        Repository, made if it is not there.
    specs : sequence of `ExposureSpec`
        The exposures.
    settings : `ImportSettings`, optional
        What holds for all of them.
    progress : callable, optional
        Called with a line of text for each exposure.

    Returns
    -------
    result : `ImportResult`
        What was done.

    Raises
    ------
    BadExposureError
        Raised, before anything is written, if the reference cannot be used
        or two exposures claim to be the same.
    ManifestError
        Raised if the settings contradict the exposures.

    Notes
    -----
    All exposures of a run are calibrated against one reference: to add to a
    run, list its reference again, which is then not written again.

    An exposure is written when everything about it is known. One that cannot
    be used is reported as failed, and the others carry on; a second call
    then skips those that are present. Nothing that the repository holds is
    changed, unless ``replace`` is set.
    """
    settings = settings or ImportSettings()
    tell = progress or _LOG.info
    failures: dict[str, str] = {}
    candidates = identify_exposures(specs, failures)
    path = report_path(repo, settings.run)
    first = choose_reference(candidates, settings, failures, path)
    check_distinct(candidates)
    reference = prepare_exposure(read_any_exposure(first.spec), settings)
    butler = make_or_open(repo)
    try:
        ordered = [first, *(c for c in candidates if c is not first)]
        n_patches, outside = _register(butler, ordered, settings)
        rows: list[dict[str, Any]] = [{"name": k, "status": "failed"} for k in failures]
        for candidate in candidates:
            row = _import_one(butler, candidate, reference, settings, failures, outside)
            rows.append(row)
            tell(_line(row, failures))
    finally:
        butler.close()
    report = merge_report(rows, path)
    report.write(path, format="ascii.ecsv", overwrite=True)
    return ImportResult(report, failures, path, (settings.run, SKY_MAP_RUN), 0, n_patches)


def _line(row: dict[str, Any], failures: dict[str, str]) -> str:
    if row["status"] in ("failed", "present"):
        return failures.get(row["name"], f"{row['name']}: present already, skipped")
    return (
        f"{row['name']}: {row['status']} as visit {row['visit']}, seeing {row['seeing']:.2f} arcsec, "
        f"flux scale {row['flux_scale']:.4f}, shift ({row['dx']:+.3f}, {row['dy']:+.3f}) px "
        f"({row['calibration']})"
    )


def _register(
    butler: Butler, candidates: list[Candidate], settings: ImportSettings
) -> tuple[int, frozenset[str]]:
    """Register instrument and sky map; the first candidate is the reference.

    Returns the number of new patches, and the names of what lies outside of
    an existing sky map.
    """
    try:
        register_instrument(
            butler,
            settings.instrument,
            {c.identity.detector for c in candidates},
            {c.identity.physical_filter: c.identity.band for c in candidates},
        )
    except ValueError as e:
        raise ManifestError(f"{e} Otherwise give another instrument name.") from e
    if list(butler.registry.queryDimensionRecords("skymap", skymap=settings.skymap, check=False)):
        return 0, _outside(read_sky_map(butler, settings.skymap), candidates)
    geometry = cover_exposures(
        settings.skymap,
        [(c.wcs, c.shape) for c in candidates],
        patch_size=settings.patch_size,
        border=settings.border,
        scale=settings.pixel_scale,
        orientation=settings.orientation,
    )
    register_sky_map(butler, geometry)
    return sum(len(tract.patches) for tract in geometry.tracts.values()), frozenset()


def _outside(sky_map: SkyMapGeometry, candidates: list[Candidate]) -> frozenset[str]:
    """Names of the exposures that no tract overlaps; not all may be."""
    names = set()
    tracts = [tract.region() for tract in sky_map.tracts.values()]
    for candidate in candidates:
        region = box_region(candidate.wcs, Box.from_shape(candidate.shape))
        if all(region.isDisjointFrom(tract) for tract in tracts):
            names.add(candidate.spec.name)
    if len(names) < len(candidates):
        return frozenset(names)
    raise ManifestError(
        f"No exposure overlaps the sky map {sky_map.name!r} that the repository has; "
        "give another name of a sky map, which is then made to cover them."
    )


def _is_present(butler: Butler, candidate: Candidate, settings: ImportSettings) -> bool:
    if not list(butler.registry.queryDatasetTypes(CALEXP)):
        return False
    identity = candidate.identity
    try:
        ref = butler.find_dataset(
            CALEXP,
            instrument=settings.instrument,
            visit=identity.visit,
            detector=identity.detector,
            collections=settings.run,
        )
    except MissingCollectionError:
        return False
    return ref is not None


def _import_one(
    butler: Butler,
    candidate: Candidate,
    reference: PreparedExposure,
    settings: ImportSettings,
    failures: dict[str, str],
    outside: frozenset[str],
) -> dict[str, Any]:
    """Prepare and write an exposure; return its row of the report."""
    name = candidate.spec.name
    try:
        present = _is_present(butler, candidate, settings)
        if present and not settings.replace:
            return {"name": name, "visit": candidate.identity.visit, "status": "present"}
        if name in outside:
            raise BadExposureError(
                name,
                f"it lies outside of the sky map {settings.skymap!r} that the repository has, so that no "
                "patch would use it; give another name of a sky map, which is then made to cover it.",
            )
        if candidate.spec is reference.exposure.spec:
            prepared = reference
        else:
            prepared = prepare_exposure(read_any_exposure(candidate.spec), settings, reference)
        _check_calibration(prepared, reference, settings)
        _write(butler, prepared, settings)
    except BadExposureError as e:
        failures[name] = str(e)
    except ValueError as e:
        # The repository's own refusals, such as another time for this visit.
        failures[name] = f"{name}: {e}"
    else:
        return prepared.row | {"status": "replaced" if present else "imported"}
    row = {"name": name, "visit": candidate.identity.visit, "detector": candidate.identity.detector}
    is_reference = candidate.spec is reference.exposure.spec
    return row | {"status": "failed", "calibration": "reference" if is_reference else ""}


def _check_calibration(
    prepared: PreparedExposure, reference: PreparedExposure, settings: ImportSettings
) -> None:
    if prepared.row["flux_scale_applied"]:
        return
    if prepared.row["calibrated"] != reference.row["calibrated"]:
        have, lack = ("the reference", "it") if reference.row["calibrated"] else ("it", "the reference")
        raise BadExposureError(
            prepared.exposure.name,
            f"{have} has a zero point and {lack} has none, so that their units differ, and no flux scale was "
            f"applied ({prepared.row['n_matched']} matched stars). Give it a zero point.",
        )


def _write(butler: Butler, prepared: PreparedExposure, settings: ImportSettings) -> None:
    identity = prepared.exposure.identity
    bbox = Box.from_shape(prepared.image.shape)
    visit_image = make_visit_image(
        prepared.image,
        prepared.variance,
        prepared.mask,
        prepared.wcs,
        PiffWrapper(prepared.psf.psf, bbox, prepared.psf.stamp_size),
        instrument=settings.instrument,
        visit=identity.visit,
        detector=identity.detector,
        physical_filter=identity.physical_filter,
        band=identity.band,
        exposure_time=identity.exposure_time,
        begin=identity.begin,
        metadata={f"import_{k}": v for k, v in prepared.row.items()},
    )
    record = VisitRecord(
        instrument=settings.instrument,
        visit=identity.visit,
        physical_filter=identity.physical_filter,
        begin=identity.begin,
        exposure_time=identity.exposure_time,
        regions={identity.detector: box_region(prepared.wcs, bbox)},
    )
    register_visit(butler, record)
    put_calexp(butler, visit_image, settings.run, if_exists="replace" if settings.replace else "error")
