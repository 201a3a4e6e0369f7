# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("DetectorPixels",)

import dataclasses

import numpy as np

from lsst.images import Box


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
    no_data : `numpy.ndarray` [`bool`], (H, W), or `None`
        Pixels of a warp that no detector reaches; `None` where there are none.
    """

    bbox: Box
    image: np.ndarray
    variance: np.ndarray
    good: np.ndarray
    saturated: np.ndarray
    cosmic_ray: np.ndarray
    n_invalid: int
    no_data: np.ndarray | None = None

    @classmethod
    def from_planes(
        cls,
        bbox: Box,
        image: np.ndarray,
        variance: np.ndarray,
        *,
        masked: np.ndarray,
        saturated: np.ndarray,
        cosmic_ray: np.ndarray,
        no_data: np.ndarray | None = None,
    ) -> DetectorPixels:
        """Combine planes, and leave out what no mask plane rejects.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Where the pixels lie on the detector.
        image, variance : `numpy.ndarray`, (H, W)
            Pixels in nJy, and their variances in nJy squared; copied.
        masked : `numpy.ndarray` [`bool`], (H, W)
            Pixels that mask planes reject.
        saturated, cosmic_ray : `numpy.ndarray` [`bool`], (H, W)
            Pixels with those mask planes.
        no_data : `numpy.ndarray` [`bool`], (H, W), optional
            Pixels that no detector reaches.
        """
        image, variance = (np.array(plane, dtype=np.float32) for plane in (image, variance))
        valid = np.isfinite(image) & np.isfinite(variance) & (variance > 0)
        return cls(
            bbox=bbox,
            image=np.where(valid, image, np.float32(0)),
            variance=np.where(valid, variance, np.float32(1)),
            good=valid & ~masked,
            saturated=saturated,
            cosmic_ray=cosmic_ray,
            n_invalid=int(np.count_nonzero(~valid & ~masked)),
            no_data=no_data,
        )

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
            None if self.no_data is None else self.no_data[cut],
        )

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take (`int`)."""
        return sum(a.nbytes for a in (self.image, self.variance, self.good, self.saturated, self.cosmic_ray))
