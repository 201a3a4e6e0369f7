# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detector images of the afw stack, with their final calibrations."""

from __future__ import annotations

__all__ = ("ExposureFReader", "FinalCalibration")

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lsst.images import Box, DetectorFrame, SkyProjection, TractFrame

from ._detector_pixels import DetectorPixels
from ._errors import BadInputError, InputProblem, UnknownMaskPlaneError
from ._exposure_reader import ExposureReader
from ._masks import LEGACY_NAMES, STANDARD_MASK_PLANES


@dataclasses.dataclass(frozen=True)
class FinalCalibration:
    """Calibrations that replace those that a detector image carries.

    Attributes
    ----------
    summary : `lsst.afw.table.ExposureRecord`, optional
        Row of the visit summary; its WCS, PSF, photometric calibration and
        valid polygon replace the image's own.
    sky_correction : `lsst.afw.math.BackgroundList` or handle, optional
        Background to subtract, in the image's uncalibrated units.
    background : `lsst.afw.math.BackgroundList` or handle, optional
        Background that was subtracted and is to be added again.
    effective_time : `float`
        Mean effective exposure time of the visit's detectors that have a WCS,
        in seconds; NaN if it is not known.
    """

    summary: Any = None
    sky_correction: Any = None
    background: Any = None
    effective_time: float = math.nan

    @classmethod
    def from_summary(cls, summary: Any, detector: int, name: str, **backgrounds: Any) -> FinalCalibration:
        """Look a detector up in a visit summary.

        Parameters
        ----------
        summary : `lsst.afw.table.ExposureCatalog`
            The visit summary.
        detector : `int`
            Number of the detector.
        name : `str`
            The detector image, for the message.
        **backgrounds
            Other attributes.

        Raises
        ------
        BadInputError
            If the detector is not in the summary, or a calibration is missing.
        """
        row = summary.find(detector)
        if row is None:
            raise BadInputError(
                name,
                InputProblem.NO_CALIBRATION,
                "The visit summary has no row for this detector, which means that its calibration failed; "
                "nothing needs to be done unless this detector matters.",
            )
        photo_calib = row.getPhotoCalib()
        usable = photo_calib is not None and np.isfinite(photo_calib.getCalibrationMean())
        found = {"WCS": row.getWcs() is not None, "PSF": row.getPsf() is not None, "photoCalib": usable}
        missing = [what for what, is_there in found.items() if not is_there]
        if missing:
            raise BadInputError(
                name,
                InputProblem.NO_CALIBRATION,
                f"The visit summary has no usable {' and '.join(missing)} for this detector; "
                "nothing needs to be done unless this detector matters.",
            )
        return cls(summary=row, effective_time=_mean_effective_time(summary), **backgrounds)


def _mean_effective_time(summary: Any) -> float:
    if "effTime" not in summary.schema:
        return math.nan
    values = np.array([row["effTime"] for row in summary if row.getWcs() is not None])
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


class ExposureFReader(ExposureReader):
    """Access to an `lsst.afw.image.Exposure`.

    Parameters
    ----------
    source : `lsst.afw.image.Exposure` or `lsst.daf.butler.DeferredDatasetHandle`
        The image, or a handle that reads it when needed.
    data_id : `~collections.abc.Mapping`
        See `ExposureReader`.
    dataset_type : `str`, optional
        See `ExposureReader`.
    calibration : `FinalCalibration`, optional
        What replaces the image's own calibrations.

    Notes
    -----
    Pixels are calibrated to nJy after all backgrounds were changed. The
    uncertainty of the flux scale does not go into the variance: it is common
    to all pixels, and no noise.
    """

    def __init__(
        self,
        source: Any,
        data_id: Mapping[str, Any],
        dataset_type: str = "calexp",
        calibration: FinalCalibration | None = None,
    ) -> None:
        super().__init__(data_id, dataset_type)
        self._source = source
        self._calibration = calibration or FinalCalibration()
        self._backgrounds: dict[str, Any] = {}
        self._bbox = Box.from_legacy(self._own("bbox", InputProblem.UNREADABLE))
        self._wcs = self._calibrated("getWcs", "wcs", InputProblem.NO_WCS)
        self._sky_projection = SkyProjection.from_legacy(self._wcs, self._make_frame())

    @property
    def bbox(self) -> Box:
        return self._bbox

    @property
    def sky_projection(self) -> SkyProjection[Any]:
        return self._sky_projection

    def _make_frame(self) -> DetectorFrame | TractFrame:
        """Return the frame of the pixels."""
        return DetectorFrame(
            instrument=self.instrument, visit=self.visit, detector=self.detector, bbox=self._bbox
        )

    @cached_property
    def psf(self) -> Any:
        """The PSF model (`lsst.afw.detection.Psf`)."""
        return self._calibrated("getPsf", "psf", InputProblem.NO_PSF)

    @cached_property
    def _photo_calib(self) -> Any:
        return self._calibrated("getPhotoCalib", "photoCalib", InputProblem.BAD_UNIT)

    @cached_property
    def _valid_polygon(self) -> Any:
        if self._calibration.summary is not None:
            return self._calibration.summary.getValidPolygon()
        return self._component("validPolygon")

    @property
    def effective_time(self) -> float:
        if self._calibration.summary is not None:
            return self._calibration.effective_time
        return super().effective_time

    def _read_statistics(self) -> Mapping[str, float]:
        row = self._calibration.summary
        if row is None:
            statistics = self._component("summaryStats")
            items = {} if statistics is None else dataclasses.asdict(statistics)
        else:
            items = {name: row[name] for name in row.schema.getNames()}
        return {name: float(value) for name, value in items.items() if isinstance(value, int | float)}

    def compute_psf_kernel(self, *, x: float, y: float) -> np.ndarray:
        from lsst.geom import Point2D

        psf = self.psf
        try:
            kernel = psf.computeKernelImage(Point2D(x, y)).array
        except Exception as error:
            raise self._psf_fails(x, y, error) from error
        return self._check_kernel(kernel)

    def read(self, bbox: Box, bad: Sequence[str], saturated: Sequence[str]) -> DetectorPixels:
        exposure = self._read_exposure(bbox)
        masked_image = exposure.maskedImage
        if self._calibration.background is not None:
            masked_image += self._background("background", bbox)
        if self._calibration.sky_correction is not None:
            masked_image -= self._background("sky_correction", bbox)
        mask = masked_image.mask
        masked = self._select(mask, bad) | self._outside_polygon(bbox)
        saturated_pixels = self._select(mask, saturated)
        cosmic_ray = self._select(mask, ("COSMIC_RAY",))
        calibrated = self._photo_calib.calibrateImage(masked_image)
        return DetectorPixels.from_planes(
            bbox,
            calibrated.image.array,
            calibrated.variance.array,
            masked=masked,
            saturated=saturated_pixels,
            cosmic_ray=cosmic_ray,
            no_data=self._select(mask, ("NO_DATA",)) if self.is_warp else None,
        )

    def fill_record(self, record: Any) -> None:
        summary = self._calibration.summary
        if summary is not None:
            visit_info, ap_corr_map = summary.getVisitInfo(), summary.getApCorrMap()
        else:
            visit_info, ap_corr_map = self._component("visitInfo"), self._component("apCorrMap")
        record.setBBox(self._bbox.to_legacy())
        record.setWcs(self._wcs)
        record.setPsf(self.psf)
        record.setPhotoCalib(self._photo_calib)
        record.setValidPolygon(self._valid_polygon)
        record.setVisitInfo(visit_info)
        record.setApCorrMap(ap_corr_map)

    def _read_exposure(self, bbox: Box) -> Any:
        legacy_box = bbox.to_legacy()
        try:
            if hasattr(self._source, "maskedImage"):
                # A copy: backgrounds are changed in place.
                return self._source[legacy_box].clone()
            return self._source.get(parameters={"bbox": legacy_box})
        except Exception as error:
            raise self._unreadable_pixels(error) from error

    def _background(self, which: str, bbox: Box) -> Any:
        """Return a part of a background as an image; files are read once."""
        try:
            if which not in self._backgrounds:
                source = getattr(self._calibration, which)
                self._backgrounds[which] = source.get() if hasattr(source, "dataId") else source
            return self._backgrounds[which].getImage()[bbox.to_legacy()]
        except Exception as error:
            raise BadInputError(
                self.name,
                InputProblem.NO_CALIBRATION,
                f"Its {which.replace('_', ' ')} cannot be read ({type(error).__name__}: {error}); make it "
                "again, or switch it off in the task's configuration.",
            ) from error

    def _outside_polygon(self, bbox: Box) -> np.ndarray:
        """Return the pixels that lie outside of the valid polygon."""
        polygon = self._valid_polygon
        if polygon is None:
            return np.zeros(tuple(bbox.shape), dtype=bool)
        return polygon.createImage(bbox.to_legacy()).array < 0.5

    def _select(self, mask: Any, names: Iterable[str]) -> np.ndarray:
        """Return where any of some planes is set, by either kind of name."""
        present = mask.getMaskPlaneDict()
        bits = 0
        for name in names:
            found = next((n for n in (LEGACY_NAMES.get(name, name), name) if n in present), None)
            if found is not None:
                bits |= mask.getPlaneBitMask(found)
            elif name not in STANDARD_MASK_PLANES and name not in LEGACY_NAMES.values():
                raise UnknownMaskPlaneError(self.name, name, present)
        return (mask.array & bits) != 0

    def _calibrated(self, getter: str, component: str, problem: InputProblem) -> Any:
        """Return a component of the visit summary, or else the image's own."""
        if self._calibration.summary is not None:
            return getattr(self._calibration.summary, getter)()
        return self._own(component, problem)

    def _own(self, component: str, problem: InputProblem) -> Any:
        value = self._component(component, problem)
        if value is None:
            raise BadInputError(
                self.name,
                problem,
                f"It carries no {component}; add one, take it from a visit summary by configuration, or "
                "leave the exposure out of the data query.",
            )
        return value

    def _component(self, component: str, problem: InputProblem = InputProblem.UNREADABLE) -> Any:
        try:
            if hasattr(self._source, "maskedImage"):
                if component == "bbox":
                    return self._source.getBBox()
                return getattr(self._source.info, f"get{component[0].upper()}{component[1:]}")()
            return self._source.get(component=component)
        except Exception as error:
            raise self._unreadable_component(component, problem, error) from error
