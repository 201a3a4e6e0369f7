# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PatchExposure", "PixelMapping", "RegisteredExposure")

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from lsst.images import Box

from ..restoration import lanczos_resample, resample_psf
from ._errors import BadInputError, InputProblem
from ._exposure_reader import DetectorPixels, ExposureReader
from ._patch_grid import PatchGrid

_GRID_STEP = 16
"""Spacing, in pixels, of the positions where the WCSs are evaluated; bilinear
interpolation between them is good to some 1e-4 px for wide-field cameras.
"""


class PixelMapping:
    """Mapping from tract pixels to the pixels of a detector.

    Parameters
    ----------
    patch : `PatchGrid`
        Grid to map from.
    reader : `ExposureReader`
        Detector image to map to.
    """

    def __init__(self, patch: PatchGrid, reader: ExposureReader) -> None:
        self._transform = patch.sky_projection.pixel_to_sky_transform.then(
            reader.sky_projection.sky_to_pixel_transform, remember_components=False
        )

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map positions exactly.

        Parameters
        ----------
        x, y : `numpy.ndarray`
            Tract pixel coordinates.

        Returns
        -------
        x, y : `numpy.ndarray`
            Detector pixel coordinates.
        """
        mapped = self._transform.apply_forward(
            x=np.asarray(x, dtype=np.float64), y=np.asarray(y, dtype=np.float64)
        )
        return np.asarray(mapped.x), np.asarray(mapped.y)

    def inverse(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map detector pixel coordinates to tract pixel coordinates."""
        mapped = self._transform.apply_inverse(
            x=np.asarray(x, dtype=np.float64), y=np.asarray(y, dtype=np.float64)
        )
        return np.asarray(mapped.x), np.asarray(mapped.y)

    def grid(self, bbox: Box) -> tuple[np.ndarray, np.ndarray]:
        """Map every pixel of a box, by interpolation between exact positions.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Tract pixels to map.

        Returns
        -------
        x, y : `numpy.ndarray`, (H, W), float64
            Detector pixel coordinates of the pixel centres.
        """
        nodes_x = _nodes(bbox.x.start, bbox.x.stop)
        nodes_y = _nodes(bbox.y.start, bbox.y.stop)
        node_x, node_y = self(*np.meshgrid(nodes_x, nodes_y))
        to_rows = _interpolation_matrix(nodes_y, np.arange(bbox.y.start, bbox.y.stop))
        to_columns = _interpolation_matrix(nodes_x, np.arange(bbox.x.start, bbox.x.stop))
        return to_rows @ node_x @ to_columns.T, to_rows @ node_y @ to_columns.T

    def jacobian(self, x: float, y: float, step: float = 1.0) -> np.ndarray:
        """Return d(detector x, y) / d(tract x, y) at a position, (2, 2)."""
        xs = np.array([x + step, x - step, x, x])
        ys = np.array([y, y, y + step, y - step])
        mapped_x, mapped_y = self(xs, ys)
        return np.array(
            [
                [mapped_x[0] - mapped_x[1], mapped_x[2] - mapped_x[3]],
                [mapped_y[0] - mapped_y[1], mapped_y[2] - mapped_y[3]],
            ]
        ) / (2 * step)


def _nodes(start: int, stop: int) -> np.ndarray:
    n_nodes = max(2, -(-(stop - start) // _GRID_STEP) + 1)
    return np.linspace(start - 0.5, stop - 0.5, n_nodes)


def _interpolation_matrix(nodes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    spacing = nodes[1] - nodes[0]
    index = np.clip(((positions - nodes[0]) / spacing).astype(int), 0, len(nodes) - 2)
    fraction = (positions - nodes[index]) / spacing
    matrix = np.zeros((len(positions), len(nodes)))
    matrix[np.arange(len(positions)), index] = 1 - fraction
    matrix[np.arange(len(positions)), index + 1] = fraction
    return matrix


@dataclasses.dataclass(frozen=True)
class RegisteredExposure:
    """A detector image on the pixel grid of a part of the patch.

    Attributes
    ----------
    image, variance : `torch.Tensor`, (H, W), float32
        Pixels in nJy per tract pixel, and the noise power per pixel.
    good : `torch.Tensor` [`bool`], (H, W)
        Pixels to use.
    covered : `torch.Tensor` [`bool`], (H, W)
        Pixels that lie on the detector, masked or not.
    saturated, cosmic_ray : `torch.Tensor` [`bool`], (H, W)
        Mask planes of the nearest detector pixel.
    pixel_variance_ratio : `float`
        Mean of the variance of one interpolated pixel over ``variance``.
    """

    image: torch.Tensor
    variance: torch.Tensor
    good: torch.Tensor
    covered: torch.Tensor
    saturated: torch.Tensor
    cosmic_ray: torch.Tensor
    pixel_variance_ratio: float


class PatchExposure:
    """A detector image, made ready to be registered to a patch.

    Parameters
    ----------
    reader : `ExposureReader`
        The detector image.
    patch : `PatchGrid`
        The patch.
    bad, saturated : `~collections.abc.Sequence` [`str`]
        Mask planes; see `ExposureReader.read`.
    margin : `int`
        How far beyond the patch data will be asked for, in tract pixels.
    order : `int`
        Order of the Lanczos kernel.
    max_invalid_fraction : `float`
        An exposure with a larger fraction of unmasked pixels without a
        usable value or variance is refused.

    Raises
    ------
    BadInputError
        If the exposure cannot be used.
    """

    def __init__(
        self,
        reader: ExposureReader,
        patch: PatchGrid,
        *,
        bad: Sequence[str],
        saturated: Sequence[str],
        margin: int,
        order: int = 5,
        max_invalid_fraction: float = 0.01,
    ) -> None:
        self.reader = reader
        self.mapping = PixelMapping(patch, reader)
        self._planes = (tuple(bad), tuple(saturated))
        self._order = order
        self._cached: DetectorPixels | None = None
        self.bbox = self._find_overlap(patch.outer_bbox.padded(margin))
        self.n_good = self.n_invalid = 0
        if self.bbox is not None:
            self._validate(max_invalid_fraction)

    def _find_overlap(self, region: Box) -> Box | None:
        """Return the detector pixels that the region needs, or None."""
        x, y = self.mapping.grid(region)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise BadInputError(
                self.reader.name,
                InputProblem.NO_WCS,
                "Its WCS maps the patch to non-finite positions; fit the astrometry again.",
            )
        return self._detector_box(x, y)

    def _detector_box(self, x: np.ndarray, y: np.ndarray) -> Box | None:
        limits = self.reader.bbox
        inside = (
            (x > limits.x.start - 0.5)
            & (x < limits.x.stop - 0.5)
            & (y > limits.y.start - 0.5)
            & (y < limits.y.stop - 0.5)
        )
        if not inside.any():
            return None
        pad = self._order + 1
        x0, x1 = int(np.floor(x[inside].min())) - pad, int(np.ceil(x[inside].max())) + pad + 1
        y0, y1 = int(np.floor(y[inside].min())) - pad, int(np.ceil(y[inside].max())) + pad + 1
        return Box.factory[
            max(y0, limits.y.start) : min(y1, limits.y.stop), max(x0, limits.x.start) : min(x1, limits.x.stop)
        ]

    def _validate(self, max_invalid_fraction: float) -> None:
        assert self.bbox is not None, "Only called where there is an overlap."
        pixels = self.reader.read(self.bbox, *self._planes)
        self._cached = pixels
        self.n_good, self.n_invalid = int(pixels.good.sum()), pixels.n_invalid
        if pixels.n_invalid > max_invalid_fraction * (self.n_good + pixels.n_invalid):
            raise BadInputError(
                self.reader.name,
                InputProblem.BAD_VARIANCE,
                f"{pixels.n_invalid} of {self.n_good + pixels.n_invalid} unmasked pixels are not finite or "
                "have a zero, negative or non-finite variance; mask them, or write the variance plane again.",
            )
        if self.n_good == 0:
            raise self.make_masked_error()
        # A PSF that fails is found before any work is done with the others.
        for y in (self.bbox.y.min, self.bbox.y.center, self.bbox.y.max):
            for x in (self.bbox.x.min, self.bbox.x.center, self.bbox.x.max):
                self.reader.compute_psf_kernel(x=float(x), y=float(y))

    def make_masked_error(self) -> BadInputError:
        """Return the error that says that nothing here can be used."""
        return BadInputError(
            self.reader.name,
            InputProblem.NO_GOOD_PIXELS,
            "Every pixel in the patch is masked; leave it out of the data query, or reject fewer planes.",
        )

    def covers(self, bbox: Box) -> bool:
        """Return whether the detector reaches a part of the tract.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Tract pixels.

        Returns
        -------
        covers : `bool`
            Whether any of its pixels, masked or not, lies there.
        """
        return self._detector_box(*self.mapping.grid(bbox)) is not None

    @property
    def cached_bytes(self) -> int:
        """Memory that the pixels held take (`int`)."""
        return 0 if self._cached is None else self._cached.nbytes

    def drop_cache(self) -> None:
        """Forget the pixels; they are read again where needed."""
        self._cached = None

    def register(self, bbox: Box) -> RegisteredExposure | None:
        """Interpolate the image onto a part of the tract's pixel grid.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Tract pixels to fill.

        Returns
        -------
        registered : `RegisteredExposure` or `None`
            The image there, or `None` if the detector does not reach it.
        """
        x, y = self.mapping.grid(bbox)
        needed = self._detector_box(x, y)
        if needed is None or self.bbox is None:
            return None
        if self._cached is not None and self._cached.bbox.contains(needed):
            pixels = self._cached[needed]
        else:
            pixels = self.reader.read(needed, *self._planes)
        x -= needed.x.start
        y -= needed.y.start
        resampled = lanczos_resample(
            torch.from_numpy(pixels.image.copy()),
            torch.from_numpy(pixels.variance.copy()),
            torch.from_numpy(pixels.good.copy()),
            torch.from_numpy(x),
            torch.from_numpy(y),
            torch.from_numpy(_area(x, y)).to(torch.float32),
            order=self._order,
        )
        height, width = pixels.image.shape
        nearest = np.rint(y).astype(int).clip(0, height - 1), np.rint(x).astype(int).clip(0, width - 1)
        covered = resampled.covered.numpy()
        ratio = resampled.pixel_variance_ratio[resampled.good]
        return RegisteredExposure(
            image=resampled.image,
            variance=resampled.variance,
            good=resampled.good,
            covered=resampled.covered,
            saturated=torch.from_numpy(pixels.saturated[nearest] & covered),
            cosmic_ray=torch.from_numpy(pixels.cosmic_ray[nearest] & covered),
            pixel_variance_ratio=float(ratio.mean()) if ratio.numel() else 1.0,
        )

    def psf_kernel(self, x: float, y: float, size: int | None = None) -> np.ndarray:
        """Evaluate the PSF on the tract's pixel grid.

        Parameters
        ----------
        x, y : `float`
            Position in tract pixels; outside of the detector, the nearest
            position on it is taken.
        size : `int`, optional
            Side of the kernel, odd. By default it holds the detector's
            kernel.

        Returns
        -------
        kernel : `numpy.ndarray`, (size, size), float64
            PSF with a sum of one.
        """
        box = self.reader.bbox
        detector_x, detector_y = self.mapping(np.array([x]), np.array([y]))
        detector_x = np.clip(detector_x, box.x.min, box.x.max)
        detector_y = np.clip(detector_y, box.y.min, box.y.max)
        kernel = self.reader.compute_psf_kernel(x=float(detector_x[0]), y=float(detector_y[0]))
        on_tract_x, on_tract_y = self.mapping.inverse(detector_x, detector_y)
        jacobian = self.mapping.jacobian(float(on_tract_x[0]), float(on_tract_y[0]))
        if size is None:
            scale = np.sqrt(abs(np.linalg.det(jacobian)))
            size = 2 * int(np.ceil((max(kernel.shape) // 2) / scale)) + 1
        try:
            resampled = resample_psf(
                torch.from_numpy(kernel), torch.from_numpy(jacobian), size, order=self._order
            )
        except ValueError as error:
            raise BadInputError(
                self.reader.name,
                InputProblem.NO_PSF,
                f"Its PSF cannot be carried to the patch at x={x:.1f}, y={y:.1f} ({error}); fit it again.",
            ) from error
        return resampled.numpy()


def _area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the detector area of each tract pixel."""
    dx_dy, dx_dx = np.gradient(x)
    dy_dy, dy_dx = np.gradient(y)
    return np.abs(dx_dx * dy_dy - dx_dy * dy_dx)
