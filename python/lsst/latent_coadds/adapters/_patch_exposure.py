# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PatchExposure",)

from collections.abc import Sequence

import numpy as np
import torch

from lsst.images import Box

from ..restoration import lanczos_resample
from ._cut_out import CutOut
from ._detector_pixels import DetectorPixels
from ._errors import BadInputError, InputProblem
from ._exposure_reader import ExposureReader
from ._patch_grid import PatchGrid
from ._patch_psf import PatchPsf
from ._pixel_mapping import PixelMapping
from ._registered_exposure import RegisteredExposure


class PatchExposure:
    """A detector image, made ready for the restoration of a patch.

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
        reader.check_grid(patch, self.mapping)
        self._is_aligned = reader.is_warp and patch.oversampling == 1
        self.psf = PatchPsf(reader, self.mapping, order)
        self._planes = (tuple(bad), tuple(saturated))
        self._order = order
        self._cached: DetectorPixels | None = None
        self.bbox = self._find_overlap(patch.outer_bbox.padded(margin))
        self.n_good = self.n_invalid = 0
        outer = patch.outer_bbox
        self.weight = 0.0
        """Inverse of the median variance of its good pixels on the patch."""
        self.area = float(abs(np.linalg.det(self.mapping.jacobian(outer.x.center, outer.y.center))))
        """Area in its pixels of a pixel of the patch."""
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

    def _detector_box(self, x: np.ndarray, y: np.ndarray, pad: int | None = None) -> Box | None:
        limits = self.reader.bbox
        inside = (
            (x > limits.x.start - 0.5)
            & (x < limits.x.stop - 0.5)
            & (y > limits.y.start - 0.5)
            & (y < limits.y.stop - 0.5)
        )
        if not inside.any():
            return None
        pad = self._order + 1 if pad is None else pad
        x0, x1 = int(np.floor(x[inside].min())) - pad, int(np.ceil(x[inside].max())) + pad + 1
        y0, y1 = int(np.floor(y[inside].min())) - pad, int(np.ceil(y[inside].max())) + pad + 1
        return Box.factory[
            max(y0, limits.y.start) : min(y1, limits.y.stop), max(x0, limits.x.start) : min(x1, limits.x.stop)
        ]

    def _validate(self, max_invalid_fraction: float) -> None:
        assert self.bbox is not None, "Only called where there is an overlap."
        pixels = self.reader.read(self.bbox, *self._planes)
        if pixels.no_data is not None and pixels.no_data.all():
            self.bbox = None
            return
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
        self.weight = 1.0 / float(np.median(pixels.variance[pixels.good]))
        # A PSF that fails is found before any work is done with the others.
        for y in (self.bbox.y.min, self.bbox.y.center, self.bbox.y.max):
            for x in (self.bbox.x.min, self.bbox.x.center, self.bbox.x.max):
                near_x, near_y = self.reader.locate_psf(float(x), float(y))
                self.reader.compute_psf_kernel(x=near_x, y=near_y)

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

    def reach(self, bbox: Box, n: int = 17) -> Box | None:
        """Return the same as `find_box`, roughly and at little cost."""
        x = np.linspace(bbox.x.start - 0.5, bbox.x.stop - 0.5, n)
        y = np.linspace(bbox.y.start - 0.5, bbox.y.stop - 0.5, n)
        spacing = max(bbox.x.size, bbox.y.size) // (n - 1)
        return self._detector_box(*self.mapping(*np.meshgrid(x, y)), pad=spacing)

    def find_box(self, bbox: Box) -> Box | None:
        """Return the detector pixels on a part of the tract, or `None`."""
        return self._detector_box(*self.mapping.grid(bbox), pad=1)

    def _read(self, needed: Box) -> DetectorPixels:
        if self._cached is not None and self._cached.bbox.contains(needed):
            return self._cached[needed]
        return self.reader.read(needed, *self._planes)

    def cut_out(self, bbox: Box) -> CutOut | None:
        """Take the pixels that lie on a part of the tract as they are.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Tract pixels.

        Returns
        -------
        cut_out : `CutOut` or `None`
            The pixels, or `None` if the detector does not reach there.
        """
        x, y = self.mapping.grid(bbox)
        needed = self._detector_box(x, y, pad=1)
        if needed is None:
            return None
        pixels = self._read(needed)
        limits = self.reader.bbox
        covered = (x > limits.x.start - 0.5) & (x < limits.x.stop - 0.5)
        covered &= (y > limits.y.start - 0.5) & (y < limits.y.stop - 0.5)
        nearest = _nearest(x - needed.x.start, y - needed.y.start, pixels.image.shape)
        if pixels.no_data is not None:
            covered &= ~pixels.no_data[nearest]
        return CutOut(
            pixels=pixels,
            area=float(_area(x, y).mean()),
            covered=covered,
            good=pixels.good[nearest] & covered,
            saturated=pixels.saturated[nearest] & covered,
            cosmic_ray=pixels.cosmic_ray[nearest] & covered,
            pixel_variance_ratio=self.reader.pixel_variance_ratio,
        )

    def _take(self, bbox: Box) -> RegisteredExposure | None:
        """Return pixels that are those of the patch already."""
        limits = self.reader.bbox
        y0, y1 = max(bbox.y.start, limits.y.start), min(bbox.y.stop, limits.y.stop)
        x0, x1 = max(bbox.x.start, limits.x.start), min(bbox.x.stop, limits.x.stop)
        if y0 >= y1 or x0 >= x1:
            return None
        needed = Box.factory[y0:y1, x0:x1]
        pixels = self._read(needed)
        place = needed.slice_within(bbox)
        covered = ~pixels.no_data if pixels.no_data is not None else np.ones_like(pixels.good)

        def put(plane: np.ndarray, fill: float = 0.0) -> torch.Tensor:
            whole = np.full(tuple(bbox.shape), fill, dtype=plane.dtype)
            whole[place.y, place.x] = plane
            return torch.from_numpy(whole)

        return RegisteredExposure(
            image=put(pixels.image),
            variance=put(pixels.variance, 1.0),
            good=put(pixels.good & covered),
            covered=put(covered),
            saturated=put(pixels.saturated & covered),
            cosmic_ray=put(pixels.cosmic_ray & covered),
            pixel_variance_ratio=self.reader.pixel_variance_ratio,
        )

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
        if self._is_aligned:
            return self._take(bbox)
        x, y = self.mapping.grid(bbox)
        needed = self._detector_box(x, y)
        if needed is None or self.bbox is None:
            return None
        pixels = self._read(needed)
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
        nearest = _nearest(x, y, pixels.image.shape)
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
        """Evaluate the PSF on the tract's pixel grid; see `PatchPsf.kernel`."""
        return self.psf.kernel(x, y, size)


def _nearest(x: np.ndarray, y: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.rint(y).astype(int).clip(0, shape[0] - 1), np.rint(x).astype(int).clip(0, shape[1] - 1)


def _area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the detector area of each tract pixel."""
    dx_dy, dx_dx = np.gradient(x)
    dy_dy, dy_dx = np.gradient(y)
    return np.abs(dx_dx * dy_dy - dx_dy * dy_dx)
