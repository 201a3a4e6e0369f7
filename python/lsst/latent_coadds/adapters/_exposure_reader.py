# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("ExposureReader", "InputPart", "name_exposure")

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from astropy.coordinates import SkyCoord

from lsst.images import Box, SkyProjection

from ._detector_pixels import DetectorPixels
from ._errors import BadInputError, InputProblem, UnknownStatisticError

if TYPE_CHECKING:
    from ._patch_grid import PatchGrid
    from ._pixel_mapping import PixelMapping


@dataclasses.dataclass(frozen=True)
class InputPart:
    """A detector that an exposure is made of, for the provenance.

    Attributes
    ----------
    detector : `int`
        Number of the detector.
    corners : `astropy.coordinates.SkyCoord`, (n,)
        Corners of what it covers.
    fill_record : `~collections.abc.Callable`
        As `ExposureReader.fill_record`, for this detector.
    """

    detector: int
    corners: SkyCoord
    fill_record: Callable[[Any], None]


_IDENTIFIERS = ("instrument", "visit", "detector", "skymap", "tract", "patch")


def name_exposure(dataset_type: str, data_id: Mapping[str, Any]) -> str:
    """Return the name of an exposure as a user would give it to the Butler.

    Parameters
    ----------
    dataset_type : `str`
        Name of the dataset type.
    data_id : `~collections.abc.Mapping`
        At least ``instrument`` and ``visit``, and ``detector`` or, for a
        warp, ``skymap``, ``tract`` and ``patch``.
    """
    named = {
        key: str(data_id[key]) if key in ("instrument", "skymap") else int(data_id[key])
        for key in _IDENTIFIERS
        if key in data_id
    }
    return f"{dataset_type}@{{{', '.join(f'{key}: {value!r}' for key, value in named.items())}}}"


class ExposureReader(ABC):
    """Access to one detector image or warp, of whichever type.

    Parameters
    ----------
    data_id : `~collections.abc.Mapping`
        At least what `name_exposure` needs; also ``physical_filter`` and
        ``day_obs`` where known.
    dataset_type : `str`
        Name of the dataset type, for messages.
    """

    is_warp: ClassVar[bool] = False
    """Whether the pixels are those of the patch already (`bool`)."""

    pixel_variance_ratio: float = 1.0
    """Variance of a pixel over the noise power, below one where pixels were
    interpolated (`float`).
    """

    def __init__(self, data_id: Mapping[str, Any], dataset_type: str) -> None:
        self.instrument = str(data_id["instrument"])
        self.visit = int(data_id["visit"])
        # A warp has no number of its own; see `parts`.
        self.detector = int(data_id.get("detector", 0))
        self.physical_filter = str(data_id.get("physical_filter", "unknown"))
        self.day_obs = int(data_id.get("day_obs", 0))
        self.dataset_type = dataset_type
        self._statistics: Mapping[str, float] | None = None
        self._name = name_exposure(dataset_type, data_id)

    @property
    def name(self) -> str:
        """The dataset as a user would name it to the Butler (`str`)."""
        return self._name

    @property
    @abstractmethod
    def bbox(self) -> Box:
        """Bounding box of the image on the detector (`lsst.images.Box`)."""

    @property
    @abstractmethod
    def sky_projection(self) -> SkyProjection[Any]:
        """Mapping from detector pixels to the sky."""

    def check_grid(self, patch: PatchGrid, mapping: PixelMapping) -> None:
        """Check that an image that should lie on the patch's pixels does so.

        Parameters
        ----------
        patch : `PatchGrid`
            The patch.
        mapping : `PixelMapping`
            Mapping from the patch's pixels to those of the image.

        Raises
        ------
        BadInputError
            If it does not.
        """
        return

    def locate_psf(self, x: float, y: float) -> tuple[float, float]:
        """Return the nearest position that has a PSF.

        Parameters
        ----------
        x, y : `float`
            Position on the image.

        Returns
        -------
        x, y : `float`
            The same position on a detector, which has a PSF everywhere.
        """
        return x, y

    def split(self) -> tuple[ExposureReader, ...]:
        """Return readers of the detectors that the image is made of."""
        return (self,)

    def parts(self) -> tuple[InputPart, ...]:
        """Return the detectors that the image is made of."""
        box = self.bbox
        corners = self.sky_projection.pixel_to_sky(
            x=np.array([box.x.min - 0.5, box.x.max + 0.5, box.x.max + 0.5, box.x.min - 0.5]),
            y=np.array([box.y.min - 0.5, box.y.min - 0.5, box.y.max + 0.5, box.y.max + 0.5]),
        )
        return (InputPart(self.detector, corners, self.fill_record),)

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

    def get_statistic(self, name: str) -> float:
        """Return a summary statistic.

        Parameters
        ----------
        name : `str`
            Its name in visit summaries, such as ``effTime`` or ``nPsfStar``.

        Returns
        -------
        value : `float`
            The value; NaN if the exposure has no statistics.

        Raises
        ------
        UnknownStatisticError
            If there are statistics, and none of that name.
        BadInputError
            If the statistics cannot be read.
        """
        if self._statistics is None:
            self._statistics = self._read_statistics()
        if not self._statistics:
            return math.nan
        if name not in self._statistics:
            raise UnknownStatisticError(self.name, name, self._statistics)
        return self._statistics[name]

    @property
    def effective_time(self) -> float:
        """Effective exposure time of the visit in seconds; NaN if it is not
        known (`float`).
        """
        return self.get_statistic("effTime")

    def _read_statistics(self) -> Mapping[str, float]:
        """Return the summary statistics, where there are any."""
        return {}

    def fill_record(self, record: Any) -> None:
        """Describe the image in a table of coadd inputs.

        Parameters
        ----------
        record : `lsst.afw.table.ExposureRecord`
            Receives bounding box, WCS and PSF, and what else is known.
        """
        record.setBBox(self.bbox.to_legacy())
        record.setWcs(self.sky_projection.to_legacy())

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

    def _unreadable_pixels(self, error: Exception) -> BadInputError:
        return BadInputError(
            self.name,
            InputProblem.UNREADABLE,
            f"Its pixels cannot be read ({type(error).__name__}: {error}); write the dataset again.",
        )

    def _unreadable_component(self, component: str, problem: InputProblem, error: Exception) -> BadInputError:
        return BadInputError(
            self.name,
            problem,
            f"Its {component} cannot be read ({type(error).__name__}: {error}); "
            "write the dataset again, or leave the exposure out of the data query.",
        )

    def _psf_fails(self, x: float, y: float, error: Exception) -> BadInputError:
        return BadInputError(
            self.name,
            InputProblem.NO_PSF,
            f"Its PSF cannot be evaluated at x={x:.1f}, y={y:.1f} ({type(error).__name__}: {error}); "
            "fit the PSF again, or leave the exposure out of the data query.",
        )

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
