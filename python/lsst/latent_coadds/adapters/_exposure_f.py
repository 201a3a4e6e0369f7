# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The output as an exposure of the afw stack."""

from __future__ import annotations

__all__ = ("make_exposure_f",)

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsst.images import MaskPlane
from lsst.images.cells import CellCoadd

from ._coadd import CellAccumulator
from ._masks import COADD_MASK_SCHEMA, LEGACY_NAMES
from ._patch_exposure import PatchExposure


def make_exposure_f(coadd: CellCoadd, exposures: Sequence[PatchExposure], cells: CellAccumulator) -> Any:
    """Convert the output to an exposure, with the inputs that it is made of.

    Parameters
    ----------
    coadd : `lsst.images.cells.CellCoadd`
        The output.
    exposures : `~collections.abc.Sequence` [`PatchExposure`]
        Exposures of the patch.
    cells : `CellAccumulator`
        Weights of the exposures.

    Returns
    -------
    exposure : `lsst.afw.image.ExposureF`
        Image, mask, variance, WCS, PSF, filter, photometric calibration and
        coadd inputs. Noise realizations do not fit into it.
    """
    planes = {
        LEGACY_NAMES.get(plane.name, plane.name): MaskPlane(plane.name, plane.description)
        for plane in COADD_MASK_SCHEMA
        if plane is not None
    }
    exposure = coadd.to_legacy(copy=True, plane_map=planes)
    # Measurement asks for this plane of the standard coadds.
    exposure.mask.addMaskPlane("BRIGHT_OBJECT")
    exposure.info.setCoaddInputs(_make_coadd_inputs(exposures, cells))
    return exposure


def _make_coadd_inputs(exposures: Sequence[PatchExposure], cells: CellAccumulator) -> Any:
    """List visits and detectors in the columns of the stack's own coadds."""
    from lsst.afw.image import CoaddInputs
    from lsst.afw.table import ExposureTable

    visit_schema = ExposureTable.makeMinimalSchema()
    visit_schema.addField("weight", type=float, doc="Weight of this visit in the coadd")
    visit_schema.addField("filter", type=str, size=32, doc="Physical filter of this visit")
    ccd_schema = ExposureTable.makeMinimalSchema()
    ccd_schema.addField("ccd", type=np.int32, doc="Number of the detector")
    ccd_schema.addField("visit", type=np.int64, doc="Visit of the detector")
    ccd_schema.addField("goodpix", type=np.int32, doc="Number of good pixels")
    ccd_schema.addField("weight", type=float, doc="Weight of this detector in the coadd")
    ccd_schema.addField("filter", type=str, size=32, doc="Physical filter of this visit")
    inputs = CoaddInputs(visit_schema, ccd_schema)
    area = cells.grid.cell_shape.x * cells.grid.cell_shape.y
    visits: dict[int, list[float]] = {}
    for t, exposure in enumerate(exposures):
        weights = cells.weight[t][cells.weight[t] > 0]
        if not len(weights):
            continue
        reader = exposure.reader
        n_good, parts = cells.unmasked[t].sum() * area, reader.parts()
        for part in parts:
            record = inputs.ccds.addNew()
            record.setId(part.detector)
            part.fill_record(record)
            record["ccd"], record["visit"] = part.detector, reader.visit
            # The good pixels of a warp are not known by detector.
            record["weight"], record["goodpix"] = float(weights.mean()), int(n_good / len(parts))
            record["filter"] = reader.physical_filter
        if reader.visit not in visits:
            visit = inputs.visits.addNew()
            visit.setId(reader.visit)
            reader.fill_record(visit)
            visit["filter"] = reader.physical_filter
        visits.setdefault(reader.visit, []).append(float(weights.mean()))
    for visit in inputs.visits:
        visit["weight"] = float(np.mean(visits[visit.getId()]))
    return inputs
