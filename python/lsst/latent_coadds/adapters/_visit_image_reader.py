# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("VisitImageReader",)

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import astropy.units as u
import numpy as np

from lsst.images import Box, SkyProjection, VisitImage
from lsst.images.psfs import PiffWrapper, PointSpreadFunction

from ._detector_pixels import DetectorPixels
from ._errors import BadInputError, InputProblem
from ._exposure_reader import ExposureReader
from ._masks import select_mask_planes
from ._piff import draw_piff


class VisitImageReader(ExposureReader):
    """Access to an `lsst.images.VisitImage`.

    Parameters
    ----------
    source : `lsst.images.VisitImage` or `lsst.daf.butler.DeferredDatasetHandle`
        The image, or a handle that reads it when needed.
    data_id : `~collections.abc.Mapping`
        See `ExposureReader`.
    dataset_type : `str`, optional
        See `ExposureReader`.
    """

    _image_class: ClassVar[Any] = VisitImage

    def __init__(self, source: Any, data_id: Mapping[str, Any], dataset_type: str = "calexp") -> None:
        super().__init__(data_id, dataset_type)
        self._source = source
        self._bbox = self._component("bbox", InputProblem.UNREADABLE)
        self._sky_projection = self._component("sky_projection", InputProblem.NO_WCS)
        self._psf: PointSpreadFunction | None = None

    @property
    def psf(self) -> PointSpreadFunction:
        """The PSF model (`lsst.images.psfs.PointSpreadFunction`)."""
        if self._psf is None:
            # With a cut-out of one pixel: lsst.images caches the last
            # dataset's tree, and Piff consumes it when the component alone
            # is read, so that a second read of the same dataset would fail.
            self._psf = self._take_psf(self._read_exposure(Box.from_shape((1, 1), start=self._bbox.start)))
        return self._psf

    def _take_psf(self, exposure: VisitImage) -> PointSpreadFunction:
        try:
            psf = exposure.psf
        except Exception as error:
            raise BadInputError(
                self.name,
                InputProblem.NO_PSF,
                f"Its PSF cannot be read ({type(error).__name__}: {error}); fit the PSF again, or leave the "
                "exposure out of the data query.",
            ) from error
        if psf is None:
            raise BadInputError(
                self.name, InputProblem.NO_PSF, "It carries no PSF; fit one, or leave the exposure out."
            )
        return psf

    def _read_exposure(self, bbox: Box) -> Any:
        try:
            if isinstance(self._source, self._image_class):
                return self._source[bbox]
            return self._source.get(parameters={"bbox": bbox})
        except Exception as error:
            raise self._unreadable_pixels(error) from error

    def _component(self, component: str, problem: InputProblem) -> Any:
        try:
            if isinstance(self._source, self._image_class):
                value = getattr(self._source, component)
            else:
                value = self._source.get(component=component)
        except Exception as error:
            raise self._unreadable_component(component, problem, error) from error
        if value is None:
            raise BadInputError(
                self.name,
                problem,
                f"It carries no {component}; add one, or leave the exposure out of the data query.",
            )
        return value

    @property
    def bbox(self) -> Box:
        return self._bbox

    @property
    def sky_projection(self) -> SkyProjection[Any]:
        return self._sky_projection

    def compute_psf_kernel(self, *, x: float, y: float) -> np.ndarray:
        psf = self.psf
        try:
            kernel = psf.compute_kernel_image(x=x, y=y).array
        except Exception as error:
            raise self._psf_fails(x, y, error) from error
        return self._check_kernel(kernel)

    def draw_psf_kernel(self, *, x: float, y: float, jacobian: np.ndarray, size: int) -> np.ndarray | None:
        psf = self.psf
        if not isinstance(psf, PiffWrapper):
            return None
        try:
            kernel = draw_piff(psf, x, y, jacobian, size)
        except Exception as error:
            raise self._psf_fails(x, y, error) from error
        return None if kernel is None else self._check_kernel(kernel)

    def _read_statistics(self) -> Mapping[str, float]:
        statistics = self._component("summary_stats", InputProblem.UNREADABLE)
        return {name: float(value) for name, value in statistics if isinstance(value, int | float)}

    def fill_record(self, record: Any) -> None:
        super().fill_record(record)
        record.setPsf(self.psf.to_legacy())

    def read(self, bbox: Box, bad: Sequence[str], saturated: Sequence[str]) -> DetectorPixels:
        exposure = self._read_exposure(bbox)
        self._keep(exposure)
        exposure = self._to_njy(exposure)
        mask = exposure.mask
        return DetectorPixels.from_planes(
            bbox,
            exposure.image.array,
            exposure.variance.array,
            masked=select_mask_planes(mask, bad, self.name),
            saturated=select_mask_planes(mask, saturated, self.name),
            cosmic_ray=select_mask_planes(mask, ("COSMIC_RAY",), self.name),
            no_data=select_mask_planes(mask, ("NO_DATA",), self.name) if self.is_warp else None,
        )

    def _keep(self, exposure: Any) -> None:
        """Keep what came with some pixels."""
        if self._psf is None:
            self._psf = self._take_psf(exposure)

    def _to_njy(self, exposure: Any) -> Any:
        if exposure.unit == u.nJy:
            return exposure
        try:
            return exposure.convert_unit(u.nJy, copy="as-needed")
        except Exception as error:
            raise BadInputError(
                self.name,
                InputProblem.BAD_UNIT,
                f"Its unit {exposure.unit} cannot be converted to nJy ({error}); calibrate it, or give it "
                "a photometric_scaling.",
            ) from error
