# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("DetectorPixels", "ExposureReader", "VisitImageReader")

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import astropy.units as u
import numpy as np

from lsst.images import Box, DetectorFrame, SkyProjection, VisitImage
from lsst.images.psfs import PiffWrapper, PointSpreadFunction

from ._errors import BadInputError, InputProblem
from ._masks import select_mask_planes
from ._piff import draw_piff


@dataclasses.dataclass(frozen=True)
class DetectorPixels:
    """Pixels of a detector image, as plain arrays.

    Attributes
    ----------
    bbox : `lsst.images.Box`
        Where the pixels lie on the detector.
    image, variance : `numpy.ndarray`, (H, W), float32
        Pixels in nJy, and their variances in nJy squared.
    good : `numpy.ndarray` [`bool`], (H, W)
        Pixels to use.
    saturated, cosmic_ray : `numpy.ndarray` [`bool`], (H, W)
        Pixels with those mask planes.
    n_invalid : `int`
        Pixels that no mask plane rejects, but whose value or variance is not
        usable; they are not ``good``.
    """

    bbox: Box
    image: np.ndarray
    variance: np.ndarray
    good: np.ndarray
    saturated: np.ndarray
    cosmic_ray: np.ndarray
    n_invalid: int

    def __getitem__(self, bbox: Box) -> DetectorPixels:
        slices = bbox.slice_within(self.bbox)
        cut = (slices.y, slices.x)
        return DetectorPixels(
            bbox,
            self.image[cut],
            self.variance[cut],
            self.good[cut],
            self.saturated[cut],
            self.cosmic_ray[cut],
            self.n_invalid,
        )

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take (`int`)."""
        return sum(a.nbytes for a in (self.image, self.variance, self.good, self.saturated, self.cosmic_ray))


class ExposureReader(ABC):
    """Access to one detector image, of whichever type.

    Parameters
    ----------
    data_id : `~collections.abc.Mapping`
        At least ``instrument``, ``visit`` and ``detector``; also
        ``physical_filter`` and ``day_obs`` where known.
    dataset_type : `str`
        Name of the dataset type, for messages.
    """

    def __init__(self, data_id: Mapping[str, Any], dataset_type: str) -> None:
        self.instrument = str(data_id["instrument"])
        self.visit = int(data_id["visit"])
        self.detector = int(data_id["detector"])
        self.physical_filter = str(data_id.get("physical_filter", "unknown"))
        self.day_obs = int(data_id.get("day_obs", 0))
        self.dataset_type = dataset_type

    @property
    def name(self) -> str:
        """The dataset as a user would name it to the Butler (`str`)."""
        return (
            f"{self.dataset_type}@{{instrument: {self.instrument!r}, visit: {self.visit}, "
            f"detector: {self.detector}}}"
        )

    @property
    @abstractmethod
    def bbox(self) -> Box:
        """Bounding box of the image on the detector (`lsst.images.Box`)."""

    @property
    @abstractmethod
    def sky_projection(self) -> SkyProjection[DetectorFrame]:
        """Mapping from detector pixels to the sky."""

    @abstractmethod
    def compute_psf_kernel(self, *, x: float, y: float) -> np.ndarray:
        """Evaluate the PSF, centred on its central pixel.

        Parameters
        ----------
        x, y : `float`
            Position on the detector.

        Returns
        -------
        kernel : `numpy.ndarray`, (k, k), float64
            Kernel image on the detector's pixel grid, with an odd side.

        Raises
        ------
        BadInputError
            If there is no usable PSF at that position.
        """

    def draw_psf_kernel(self, *, x: float, y: float, jacobian: np.ndarray, size: int) -> np.ndarray | None:
        """Draw the PSF on another pixel grid, where the model can do so.

        Parameters
        ----------
        x, y : `float`
            Position on the detector.
        jacobian : `numpy.ndarray`, (2, 2)
            ``d(detector x, y) / d(x, y)`` of the grid to draw on.
        size : `int`
            Side of the kernel, odd.

        Returns
        -------
        kernel : `numpy.ndarray`, (size, size), float64, or `None`
            PSF, pixel response of the detector included; `None` where only
            kernel images on the detector's own grid are to be had.

        Raises
        ------
        BadInputError
            If there is no usable PSF at that position.
        """
        return None

    @abstractmethod
    def read(self, bbox: Box, bad: Sequence[str], saturated: Sequence[str]) -> DetectorPixels:
        """Read a part of the pixels.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Part to read, within `bbox`.
        bad : `~collections.abc.Sequence` [`str`]
            Mask planes of pixels not to use.
        saturated : `~collections.abc.Sequence` [`str`]
            Mask planes that say that a pixel is saturated.

        Returns
        -------
        pixels : `DetectorPixels`
            The pixels.

        Raises
        ------
        BadInputError
            If the pixels or their variances are not usable.
        UnknownMaskPlaneError
            If a plane does not exist.
        """

    def _check_kernel(self, kernel: np.ndarray) -> np.ndarray:
        kernel = np.asarray(kernel, dtype=np.float64)
        if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            raise BadInputError(
                self.name,
                InputProblem.NO_PSF,
                f"Its PSF kernel has an even side {kernel.shape}, so that it has no central pixel; "
                "write the PSF with an odd stamp size.",
            )
        total = kernel.sum()
        if not np.isfinite(total) or total <= 0:
            raise BadInputError(
                self.name,
                InputProblem.NO_PSF,
                f"Its PSF kernel sums to {total}, which is not positive; fit the PSF again.",
            )
        return kernel / total


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

    def _read_exposure(self, bbox: Box) -> VisitImage:
        try:
            if isinstance(self._source, VisitImage):
                return self._source[bbox]
            return self._source.get(parameters={"bbox": bbox})
        except Exception as error:
            raise BadInputError(
                self.name,
                InputProblem.UNREADABLE,
                f"Its pixels cannot be read ({type(error).__name__}: {error}); write the dataset again.",
            ) from error

    def _component(self, component: str, problem: InputProblem) -> Any:
        try:
            if isinstance(self._source, VisitImage):
                value = getattr(self._source, component)
            else:
                value = self._source.get(component=component)
        except Exception as error:
            raise BadInputError(
                self.name,
                problem,
                f"Its {component} cannot be read ({type(error).__name__}: {error}); "
                "write the dataset again, or leave the exposure out of the data query.",
            ) from error
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
    def sky_projection(self) -> SkyProjection[DetectorFrame]:
        return self._sky_projection

    def compute_psf_kernel(self, *, x: float, y: float) -> np.ndarray:
        psf = self.psf
        try:
            kernel = psf.compute_kernel_image(x=x, y=y).array
        except Exception as error:
            raise self._cannot_evaluate(x, y, error) from error
        return self._check_kernel(kernel)

    def draw_psf_kernel(self, *, x: float, y: float, jacobian: np.ndarray, size: int) -> np.ndarray | None:
        psf = self.psf
        if not isinstance(psf, PiffWrapper):
            return None
        try:
            kernel = draw_piff(psf, x, y, jacobian, size)
        except Exception as error:
            raise self._cannot_evaluate(x, y, error) from error
        return None if kernel is None else self._check_kernel(kernel)

    def _cannot_evaluate(self, x: float, y: float, error: Exception) -> BadInputError:
        return BadInputError(
            self.name,
            InputProblem.NO_PSF,
            f"Its PSF cannot be evaluated at x={x:.1f}, y={y:.1f} ({type(error).__name__}: {error}); "
            "fit the PSF again.",
        )

    def read(self, bbox: Box, bad: Sequence[str], saturated: Sequence[str]) -> DetectorPixels:
        exposure = self._read_exposure(bbox)
        if self._psf is None:
            self._psf = self._take_psf(exposure)
        exposure = self._to_njy(exposure)
        image = np.array(exposure.image.array, dtype=np.float32)
        variance = np.array(exposure.variance.array, dtype=np.float32)
        mask = exposure.mask
        masked = select_mask_planes(mask, bad, self.name)
        valid = np.isfinite(image) & np.isfinite(variance) & (variance > 0)
        return DetectorPixels(
            bbox=bbox,
            image=np.where(valid, image, np.float32(0)),
            variance=np.where(valid, variance, np.float32(1)),
            good=valid & ~masked,
            saturated=select_mask_planes(mask, saturated, self.name),
            cosmic_ray=select_mask_planes(mask, ("COSMIC_RAY",), self.name),
            n_invalid=int(np.count_nonzero(~valid & ~masked)),
        )

    def _to_njy(self, exposure: VisitImage) -> VisitImage:
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
