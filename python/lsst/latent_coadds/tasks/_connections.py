# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("BuildLatentCoaddConnections",)

import dataclasses
from typing import TYPE_CHECKING

from lsst.pipe.base import PipelineTaskConnections, connectionTypes

if TYPE_CHECKING:
    from ._config import BuildLatentCoaddConfig


class BuildLatentCoaddConnections(
    PipelineTaskConnections,
    dimensions=("skymap", "tract", "patch", "band"),
    defaultTemplates={
        "input_name": "calexp",
        "warp_name": "deepCoadd_directWarp",
        "sky_map_name": "sky_map_geometry",
        "visit_summary_name": "finalVisitSummary",
        "visit_selection_name": "deepCoaddVisits",
        "output_name": "latent_coadd",
        "calibration_name": "latent_coadd_calibration",
    },
):
    """Datasets of `BuildLatentCoaddTask`."""

    calexps = connectionTypes.Input(
        doc="Calibrated detector images that overlap the patch.",
        name="{input_name}",
        storageClass="VisitImage",
        dimensions=("instrument", "visit", "detector"),
        multiple=True,
        deferLoad=True,
    )
    warps = connectionTypes.Input(
        doc="Images of single visits that were interpolated to the pixels of the patch already.",
        name="{warp_name}",
        storageClass="ExposureF",
        dimensions=("instrument", "skymap", "tract", "patch", "visit"),
        multiple=True,
        deferLoad=True,
    )
    sky_map = connectionTypes.Input(
        doc="Geometry of the tracts and patches.",
        name="{sky_map_name}",
        storageClass="StructuredDataDict",
        dimensions=("skymap",),
    )
    visit_summaries = connectionTypes.Input(
        doc="Final WCSs, PSFs, photometric calibrations and valid polygons of the detectors of each visit.",
        name="{visit_summary_name}",
        storageClass="ExposureCatalog",
        dimensions=("instrument", "visit"),
        multiple=True,
        deferLoad=True,
    )
    sky_corrections = connectionTypes.Input(
        doc="Backgrounds to subtract from the calexps.",
        name="skyCorr",
        storageClass="Background",
        dimensions=("instrument", "visit", "detector"),
        multiple=True,
        deferLoad=True,
    )
    backgrounds = connectionTypes.Input(
        doc="Backgrounds that were subtracted from the calexps, to be added again.",
        name="{input_name}Background",
        storageClass="Background",
        dimensions=("instrument", "visit", "detector"),
        multiple=True,
        deferLoad=True,
    )
    visit_selection = connectionTypes.Input(
        doc="Visits that are good enough for this patch, as the keys of a mapping.",
        name="{visit_selection_name}",
        storageClass="StructuredDataDict",
        dimensions=("instrument", "skymap", "tract", "patch", "band"),
        multiple=True,
    )
    known_calibration = connectionTypes.Input(
        doc="What was learned about the exposures before.",
        name="{calibration_name}",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract", "patch", "band"),
    )
    latent_coadd = connectionTypes.Output(
        doc="The restored patch, with its variance, mask, PSF and provenance.",
        name="{output_name}",
        storageClass="CellCoadd",
        dimensions=("skymap", "tract", "patch", "band"),
    )
    latent_coadd_n_image = connectionTypes.Output(
        doc="Number of exposures with a good pixel.",
        name="{output_name}_n_image",
        storageClass="ImageV2",
        dimensions=("skymap", "tract", "patch", "band"),
    )
    latent_coadd_metrics = connectionTypes.Output(
        doc="Residuals, iterations, flux closure, timings and rejected inputs.",
        name="{output_name}_metrics",
        storageClass="StructuredDataDict",
        dimensions=("skymap", "tract", "patch", "band"),
    )
    latent_coadd_calibration = connectionTypes.Output(
        doc="What was learned about the exposures: PSFs, flux scales, shifts and backgrounds.",
        name="{output_name}_calibration",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract", "patch", "band"),
    )

    def __init__(self, *, config: BuildLatentCoaddConfig) -> None:
        super().__init__(config=config)
        for name, storage_class in (
            ("calexps", config.input_storage_class),
            ("warps", config.input_storage_class),
            ("sky_map", config.sky_map_storage_class),
            ("latent_coadd", config.output_storage_class),
        ):
            setattr(self, name, dataclasses.replace(getattr(self, name), storageClass=storage_class))
        for name, used in (
            ("calexps", config.input_kind == "calexps"),
            ("warps", config.input_kind == "warps"),
            ("visit_summaries", config.use_visit_summary),
            ("sky_corrections", config.subtract_sky_correction),
            ("backgrounds", config.restore_background),
            ("visit_selection", config.use_visit_selection),
            ("known_calibration", config.exposure_calibration == "read"),
            ("latent_coadd_calibration", config.exposure_calibration == "learn"),
        ):
            if not used:
                delattr(self, name)
