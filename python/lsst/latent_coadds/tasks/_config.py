# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("BuildLatentCoaddConfig",)

from typing import Any

from lsst.pex.config import (
    ChoiceField,
    ConfigField,
    DictField,
    Field,
    FieldValidationError,
    ListField,
    RangeField,
)
from lsst.pipe.base import PipelineTaskConfig

from ..adapters import BAD_MASK_PLANES, parse_oversampling
from ._calibrate_patch import CalibrationConfig
from ._connections import BuildLatentCoaddConnections
from ._fraction_field import FractionField
from ._restorers import RestorerField, restorer_registry


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
    quanta_per_device = RangeField(
        dtype=int,
        doc="How many processes may use one device of a machine at a time; others wait for it. 0: any "
        "number. By default 1 for a CUDA device and any number for the CPU.",
        default=None,
        optional=True,
        min=0,
    )
    device_lock_directory = Field[str](
        doc="Where the lock files of quanta_per_device are: on a disk of the machine itself, the same for "
        "all processes. By default the system's temporary directory.",
        default=None,
        optional=True,
    )
    input_kind = ChoiceField[str](
        doc="What the exposures are.",
        allowed={
            "calexps": "calibrated images of detectors",
            "warps": "images of visits that were interpolated to the pixels of the patch already, and are "
            "compared with their model there, whatever geometry says",
        },
        default="calexps",
        optional=False,
    )
    input_storage_class = ChoiceField[str](
        doc="Type of the calexps or warps.",
        allowed={
            "VisitImage": "that of lsst.images for calexps",
            "CellCoadd": "that of lsst.images for warps",
            "ExposureF": "that of lsst.afw for both; needs a full stack",
        },
        default="VisitImage",
        optional=False,
    )
    sky_map_storage_class = ChoiceField[str](
        doc="Type of the sky map.",
        allowed={
            "StructuredDataDict": "a sky_map_geometry, which needs no stack",
            "SkyMap": "an lsst.skymap.BaseSkyMap; needs a full stack",
        },
        default="StructuredDataDict",
        optional=False,
    )
    output_storage_class = ChoiceField[str](
        doc="Type of the latent coadd.",
        allowed={
            "CellCoadd": "that of lsst.images, which a full stack can also read as ExposureF",
            "ExposureF": "that of lsst.afw; needs a full stack",
        },
        default="CellCoadd",
        optional=False,
    )
    use_visit_summary = Field[bool](
        doc="Take WCS, PSF, photometric calibration and valid polygon from the visit summary. A detector "
        "for which one of them is missing is left out. For ExposureF only.",
        default=False,
    )
    subtract_sky_correction = Field[bool](
        doc="Subtract the sky correction (skyCorr) from the calexps. For ExposureF only.", default=False
    )
    restore_background = Field[bool](
        doc="Add the background that was subtracted from the calexps. For ExposureF only.", default=False
    )
    use_visit_selection = Field[bool](
        doc="Use only the visits that a selection task chose for the patch.", default=False
    )
    max_psf_fwhm = RangeField(
        dtype=float,
        doc="Leave out exposures whose PSF at the centre of the detector is wider, in arcsec (FWHM of a "
        "Gaussian with the adaptive moments). They are listed in the metrics.",
        default=None,
        optional=True,
        min=0.0,
    )
    max_psf_ellipticity = RangeField(
        dtype=float,
        doc="Leave out exposures whose PSF at the centre of the detector is more elliptical: "
        "sqrt((xx - yy)^2 + (2 xy)^2) / (xx + yy) of the adaptive moments.",
        default=None,
        optional=True,
        min=0.0,
        max=1.0,
        inclusiveMax=True,
    )
    min_effective_time = RangeField(
        dtype=float,
        doc="Leave out visits whose effective exposure time is shorter, in seconds: the mean effTime of the "
        "visit summary, or else effTime of the exposure's own summary statistics.",
        default=None,
        optional=True,
        min=0.0,
    )
    max_residual_ellipticity = RangeField(
        dtype=float,
        doc="Leave out exposures whose PSF model leaves a larger median ellipticity in its stars: "
        "hypot(psfStarDeltaE1Median, psfStarDeltaE2Median) of the summary statistics.",
        default=None,
        optional=True,
        min=0.0,
    )
    visit_summary_min_values = DictField[str, float](
        doc="Leave out exposures for which one of these columns of the visit summary (or of the exposure's "
        "own summary statistics) is smaller, or NaN. Warps have none: their detectors were chosen already.",
        default={},
    )
    visit_summary_max_values = DictField[str, float](
        doc="Leave out exposures for which one of these columns is larger, or NaN.",
        default={},
    )
    exclude_detectors = ListField[int](doc="Detectors that are never used.", default=[])
    exposure_calibration = ChoiceField[str](
        doc="Whether PSFs, flux scales, registrations and backgrounds of the exposures are corrected.",
        allowed={
            "off": "they are right",
            "learn": "they are learned together with the sky, and written as a dataset; see calibration",
            "read": "such a dataset is read",
        },
        default="off",
        optional=False,
    )
    calibration: Any = ConfigField(
        dtype=CalibrationConfig,
        doc="What is learned if exposure_calibration is 'learn', and with which priors.",
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
        doc="Order of the Lanczos kernel that registers the exposures to the patch, or that made the warps, "
        "whose noise power follows from it.",
        default=5,
        min=2,
        max=7,
        inclusiveMax=True,
    )
    geometry = ChoiceField[str](
        doc="On which pixels the exposures are compared with their model.",
        allowed={
            "auto": "native for imagemm, and registered for other restorers unless they say otherwise",
            "registered": "on those of the patch, to which the exposures are interpolated first",
            "native": "on the detectors' own: nothing is interpolated, and the noise stays as it is",
        },
        default="auto",
        optional=False,
    )
    oversampling = FractionField(
        dtype=str,
        doc="How many pixels of the output lie along one pixel of the sky map: a number or a fraction from 1 "
        "to 4, such as '1', '3/2' or '2'. The edges of patches must lie between pixels of the output. "
        "Sizes of tiles, and target_fwhm of the restorers, are in pixels of the output.",
        default="1",
    )
    psf_degree = RangeField(
        dtype=int,
        doc="Largest degree of the polynomials of position that stand for a PSF over a tile; a lower one is "
        "taken where it reproduces the PSF to 0.05 % of its peak. 0 makes it constant.",
        default=2,
        min=0,
        max=3,
        inclusiveMax=True,
    )
    max_memory = RangeField(
        dtype=float,
        doc="Memory that the process should stay below, in GiB. Tiles are made as large as this permits. By "
        "default what the quantum was granted (--memory-per-quantum), or 4 where it was granted no amount.",
        default=None,
        optional=True,
        min=0.5,
    )
    max_device_memory = RangeField(
        dtype=float,
        doc="The same for the memory of a CUDA device; 0 takes four fifths of what is free when a patch "
        "begins.",
        default=0.0,
        min=0.0,
    )
    tile_size = RangeField(
        dtype=int,
        doc="Largest side of the tiles in which a patch is restored, in pixels of the output. By default it "
        "follows from max_memory and the number of exposures, and is 1024 at most.",
        default=None,
        optional=True,
        min=32,
    )
    halo = RangeField(
        dtype=int,
        doc="Pixels around a tile that take part in its restoration and are then dropped. By default it "
        "follows from the PSFs.",
        default=None,
        optional=True,
        min=0,
    )
    cell_size = RangeField(
        dtype=int,
        doc="Largest side of the cells of the output, in pixels of the sky map; the largest divisor of the "
        "patch's side that does not exceed it is taken.",
        default=150,
        min=1,
    )
    cache_memory = RangeField(
        dtype=float,
        doc="Pixels of the exposures that are kept in memory between tiles, in GiB; others are read again. A "
        "quarter of max_memory at most.",
        default=1.0,
        min=0.0,
    )
    n_training_crops = RangeField(
        dtype=int,
        doc="For restorers with a network, where a patch has several tiles: number of random parts of the "
        "patch that its one network is trained on; fewer where max_memory has no room for so many.",
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
        try:
            parse_oversampling(self.oversampling)
        except ValueError as error:
            raise FieldValidationError(type(self).oversampling, self, str(error)) from error
        if self.seed < 0:
            raise FieldValidationError(type(self).seed, self, "The seed must not be negative.")
        if self.input_storage_class != "ExposureF":
            for name in ("use_visit_summary", "subtract_sky_correction", "restore_background"):
                if getattr(self, name):
                    raise FieldValidationError(
                        type(self)._fields[name],
                        self,
                        "Only ExposureF inputs are calibrated anew; set input_storage_class to 'ExposureF'.",
                    )
        self._validate_input_kind()
        if self.exposure_calibration != "off" and self.restorer.name == "direct":
            raise FieldValidationError(
                type(self).exposure_calibration,
                self,
                "The plain coadd has the PSFs of the pipeline; choose a restorer that models the exposures.",
            )
        if not self.bad_mask_planes:
            raise FieldValidationError(
                type(self).bad_mask_planes, self, "Without a bad mask plane, saturated pixels would be used."
            )

    def _validate_input_kind(self) -> None:
        """Check that the options fit calexps, or warps."""
        suited = ("CellCoadd" if self.input_kind == "warps" else "VisitImage", "ExposureF")
        if self.input_storage_class not in suited:
            raise FieldValidationError(
                type(self).input_storage_class,
                self,
                f"With input_kind={self.input_kind!r} it is one of {', '.join(suited)}.",
            )
        if self.input_kind == "warps":
            if self.min_effective_time is not None:
                raise FieldValidationError(
                    type(self).min_effective_time,
                    self,
                    "Warps have no summary statistics; switch it off, or use a visit selection.",
                )
            for name in ("use_visit_summary", "subtract_sky_correction", "restore_background"):
                if getattr(self, name):
                    raise FieldValidationError(
                        type(self)._fields[name],
                        self,
                        "Warps are calibrated already; switch it off, or set input_kind to 'calexps'.",
                    )
