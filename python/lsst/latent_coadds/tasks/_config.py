# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("BuildLatentCoaddConfig", "BuildLatentCoaddConnections")

from typing import Any

from lsst.pex.config import ChoiceField, Field, FieldValidationError, ListField, RangeField
from lsst.pipe.base import PipelineTaskConfig, PipelineTaskConnections, connectionTypes

from ..adapters import BAD_MASK_PLANES
from ._restorers import RestorerField, restorer_registry


class BuildLatentCoaddConnections(
    PipelineTaskConnections,
    dimensions=("skymap", "tract", "patch", "band"),
    defaultTemplates={"input_name": "calexp", "output_name": "latent_coadd"},
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
    sky_map = connectionTypes.Input(
        doc="Geometry of the tracts and patches.",
        name="sky_map_geometry",
        storageClass="StructuredDataDict",
        dimensions=("skymap",),
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


class BuildLatentCoaddConfig(PipelineTaskConfig, pipelineConnections=BuildLatentCoaddConnections):
    """Configuration of `BuildLatentCoaddTask`."""

    restorer: Any = RestorerField(
        doc="How the exposures become one image. Settings of each are in restorer[NAME].",
        registry=restorer_registry,
        default="imagemm",
    )
    device = ChoiceField[str](
        doc="Where to compute.",
        allowed={
            "auto": "a CUDA device if there is one, else the CPU",
            "cpu": "the CPU",
            "cuda": "a CUDA device; it is an error if there is none",
        },
        default="auto",
        optional=False,
    )
    bad_mask_planes = ListField[str](
        doc="Mask planes of the calexps whose pixels are not used.", default=list(BAD_MASK_PLANES)
    )
    saturated_mask_planes = ListField[str](
        doc="Mask planes of the calexps that say that a pixel is saturated.", default=["SATURATED"]
    )
    saturated_fraction = RangeField(
        dtype=float,
        doc="SATURATED is set where more than this fraction of the covering exposures is saturated.",
        default=0.1,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
    )
    bad_inputs = ChoiceField[str](
        doc="What to do with an exposure that cannot be used (no PSF, broken variance, wrong unit, ...).",
        allowed={
            "skip": "warn, list it in the metrics, and go on without it",
            "fail": "fail the quantum; other quanta carry on",
        },
        default="skip",
        optional=False,
    )
    max_invalid_fraction = RangeField(
        dtype=float,
        doc="An exposure is refused if more than this fraction of its unmasked pixels is not finite or has "
        "no positive variance; fewer such pixels are left out.",
        default=0.01,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
    )
    warping_order = RangeField(
        dtype=int,
        doc="Order of the Lanczos kernel that registers the exposures to the patch.",
        default=5,
        min=2,
        max=7,
        inclusiveMax=True,
    )
    tile_size = RangeField(
        dtype=int,
        doc="Largest side of the tiles in which a patch is restored, in pixels. The PSF of each exposure is "
        "taken to be constant over a tile.",
        default=600,
        min=32,
    )
    halo = RangeField(
        dtype=int,
        doc="Pixels around a tile that take part in its restoration and are then dropped.",
        default=48,
        min=0,
    )
    cell_size = RangeField(
        dtype=int,
        doc="Largest side of the cells of the output, in pixels; the largest divisor of the patch's side "
        "that does not exceed it is taken.",
        default=150,
        min=1,
    )
    cache_memory = RangeField(
        dtype=float,
        doc="Pixels of the exposures that are kept in memory between tiles, in GiB; others are read again.",
        default=2.0,
        min=0.0,
    )
    n_training_crops = RangeField(
        dtype=int,
        doc="For restorers with a network, where a patch has several tiles: number of random parts of the "
        "patch that its one network is trained on.",
        default=8,
        min=1,
    )
    training_crop_size = RangeField(
        dtype=int, doc="Side of these parts without the halo, in pixels.", default=256, min=32
    )
    initial_weights = Field[str](
        doc="For restorers with a network: file with the weights that training starts from, as written by "
        "lsst.latent_coadds.restoration.save_weights.",
        default=None,
        optional=True,
    )
    seed = Field[int](doc="Seed of all random numbers.", default=0)

    def validate(self) -> None:
        super().validate()
        if self.seed < 0:
            raise FieldValidationError(type(self).seed, self, "The seed must not be negative.")
        if not self.bad_mask_planes:
            raise FieldValidationError(
                type(self).bad_mask_planes, self, "Without a bad mask plane, saturated pixels would be used."
            )
