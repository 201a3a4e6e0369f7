# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""All planes of a coadd as plain arrays, for its analysis."""

from __future__ import annotations

__all__ = ("CoaddPlanes",)

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from lsst.images import BoundsError, Box
from lsst.images.cells import CellCoadd

from ._masks import LEGACY_NAMES

_NAMES = {legacy: name for name, legacy in LEGACY_NAMES.items()}


@dataclasses.dataclass(frozen=True)
class CoaddPlanes:
    """A coadd in pixel coordinates of its own.

    Parameters
    ----------
    image, variance : `numpy.ndarray`, (H, W), float32
        Pixels in nJy, and their variances in nJy².
    mask : `dict` [`str`, `numpy.ndarray`]
        Boolean mask planes (H, W) by their names in lsst.images.
    noise : `numpy.ndarray`, (N, H, W), float32
        Noise realizations in nJy; there may be none.
    bbox : `lsst.images.Box`
        Tract pixels of the coadd.
    pixel_scale : `float`
        Side of a pixel in arcsec.
    find_kernel : `~collections.abc.Callable`
        Returns the centred PSF at a tract pixel x and y, `None` where there is
        none.
    """

    image: np.ndarray
    variance: np.ndarray
    mask: dict[str, np.ndarray]
    noise: np.ndarray
    bbox: Box
    pixel_scale: float
    find_kernel: Callable[[float, float], np.ndarray | None]

    @property
    def good(self) -> np.ndarray:
        """Pixels with data (`numpy.ndarray` [`bool`], (H, W))."""
        finite = np.isfinite(self.image)
        return finite & ~self.mask["NO_DATA"] if "NO_DATA" in self.mask else finite

    def kernel(self, x: float, y: float) -> np.ndarray | None:
        """Return the PSF at a pixel of the coadd.

        Parameters
        ----------
        x, y : `float`
            Position in pixels of the coadd's own, from its first one on.

        Returns
        -------
        kernel : `numpy.ndarray`, (k, k), or `None`
            The PSF, centred, with a sum of one; `None` where there is none.
        """
        kernel = self.find_kernel(x + self.bbox.x.start, y + self.bbox.y.start)
        if kernel is None:
            return None
        total = kernel.sum()
        return kernel / total if np.isfinite(total) and total > 0 else None

    @classmethod
    def from_coadd(cls, coadd: Any) -> Self:
        """Take the planes of a coadd.

        Parameters
        ----------
        coadd : `lsst.images.cells.CellCoadd` or `lsst.afw.image.ExposureF`
            The coadd; an ExposureF is calibrated to nJy by its photoCalib.
        """
        return cls._from_cells(coadd) if isinstance(coadd, CellCoadd) else cls._from_exposure_f(coadd)

    @classmethod
    def _from_cells(cls, coadd: CellCoadd) -> Self:
        shape = tuple(coadd.bbox.shape)

        def find_kernel(x: float, y: float) -> np.ndarray | None:
            try:
                return coadd.psf.compute_kernel_image(x=x, y=y).array
            except BoundsError:
                return None

        realizations = [noise.array for noise in coadd.noise_realizations or ()]
        return cls(
            image=coadd.image.array,
            variance=coadd.variance.array,
            mask={name: coadd.mask.get(name) for name in coadd.mask.schema.names},
            noise=np.stack(realizations) if realizations else np.zeros((0, *shape), dtype=np.float32),
            bbox=coadd.bbox,
            pixel_scale=_pixel_scale(coadd.sky_projection.pixel_to_sky, coadd.bbox),
            find_kernel=find_kernel,
        )

    @classmethod
    def _from_exposure_f(cls, exposure: Any) -> Self:
        from lsst.afw.detection import InvalidPsfError
        from lsst.geom import Point2D

        def find_kernel(x: float, y: float) -> np.ndarray | None:
            try:
                return exposure.getPsf().computeKernelImage(Point2D(x, y)).array
            except InvalidPsfError:
                return None

        scale = float(exposure.getPhotoCalib().getCalibrationMean())
        planes = exposure.mask.getMaskPlaneDict()
        bbox = Box.from_legacy(exposure.getBBox())
        center = Point2D(bbox.x.center, bbox.y.center)
        return cls(
            image=exposure.image.array * np.float32(scale),
            variance=exposure.variance.array * np.float32(scale**2),
            mask={
                _NAMES.get(name, name): (exposure.mask.array & (1 << bit)) != 0
                for name, bit in planes.items()
            },
            noise=np.zeros((0, *bbox.shape), dtype=np.float32),
            bbox=bbox,
            pixel_scale=float(exposure.getWcs().getPixelScale(center).asArcseconds()),
            find_kernel=find_kernel,
        )


def _pixel_scale(pixel_to_sky: Callable[..., Any], bbox: Box) -> float:
    """Return the side of a square as large as the central pixel, in arcsec."""
    x, y = float(bbox.x.center), float(bbox.y.center)
    middle, right, up = (pixel_to_sky(x=x + dx, y=y + dy) for dx, dy in ((0, 0), (1, 0), (0, 1)))
    east, north = zip(*(middle.spherical_offsets_to(other) for other in (right, up)), strict=True)
    (ax, bx), (ay, by) = ([float(angle.arcsec) for angle in pair] for pair in (east, north))
    return float(np.sqrt(abs(ax * by - bx * ay)))
