# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("PatchView", "read_patch", "show_exposure")

import dataclasses
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

from lsst.daf.butler import Butler
from lsst.images import Box
from lsst.images.cells import CellCoadd

from ..repository import CALEXP
from ..simulation import CALEXP_RUN, SceneSettings, plan_pointings

_MARGIN = 24


@dataclasses.dataclass(frozen=True)
class PatchView:
    """A coadd of one patch, in the patch's own pixel coordinates.

    Parameters
    ----------
    coadd : `lsst.images.cells.CellCoadd`
        The coadd.
    metrics : `dict`
        Content of its metrics dataset.
    inner_bbox : `lsst.images.Box`
        Tract pixels that belong to this patch alone.
    """

    coadd: CellCoadd
    metrics: dict[str, Any]
    inner_bbox: Box

    @property
    def bbox(self) -> Box:
        """Tract pixels of the coadd (`lsst.images.Box`)."""
        return self.coadd.bbox

    @property
    def image(self) -> np.ndarray:
        """Pixels in nJy (`numpy.ndarray`)."""
        return self.coadd.image.array

    @property
    def good(self) -> np.ndarray:
        """Pixels with data (`numpy.ndarray` of `bool`)."""
        return ~self.coadd.mask.get("NO_DATA") & np.isfinite(self.image)

    @property
    def masked_image(self) -> np.ndarray:
        """Pixels in nJy, NaN where there are no data (`numpy.ndarray`)."""
        return np.where(self.good, self.image, np.nan)

    def contains_inner(self, x: float, y: float) -> bool:
        """Tell whether a position belongs to this patch alone, clear of edges."""
        inner, outer = self.inner_bbox, self.bbox
        tx, ty = x + outer.x.start, y + outer.y.start
        clear = _MARGIN <= x < outer.x.size - _MARGIN and _MARGIN <= y < outer.y.size - _MARGIN
        return clear and inner.x.start <= tx < inner.x.stop and inner.y.start <= ty < inner.y.stop

    def is_clean(self, x: float, y: float, radius: int) -> bool:
        """Tell whether no pixel about a position is saturated or without data."""
        rows = slice(round(y) - radius, round(y) + radius + 1)
        columns = slice(round(x) - radius, round(x) + radius + 1)
        saturated = self.coadd.mask.get("SATURATED")[rows, columns]
        return bool(self.good[rows, columns].all() and not saturated.any())

    def kernel(self, x: float, y: float) -> np.ndarray:
        """Return the PSF that the coadd carries, at a position."""
        tx, ty = x + self.bbox.x.start, y + self.bbox.y.start
        return self.coadd.psf.compute_kernel_image(x=tx, y=ty).array


def read_patch(
    butler: Butler, settings: SceneSettings, patch: int, collection: str, name: str = "latent_coadd"
) -> PatchView:
    """Read a coadd and its metrics.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        Client of the repository.
    settings : `SceneSettings`
        Its scene.
    patch : `int`
        ID of the patch.
    collection : `str`
        Where the coadd is.
    name : `str`, optional
        Name of its dataset type.

    Returns
    -------
    view : `PatchView`
        The coadd.
    """
    data_id = {"skymap": settings.skymap, "tract": 0, "patch": patch, "band": settings.band}
    return PatchView(
        butler.get(name, data_id, collections=collection),
        butler.get(f"{name}_metrics", data_id, collections=collection),
        settings.sky_map.tracts[0].patches[patch].inner_bbox,
    )


def show_exposure(butler: Butler, settings: SceneSettings, patch: int) -> tuple[np.ndarray, float]:
    """Put the visit with the median seeing onto a patch, to look at.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        Client of the repository.
    settings : `SceneSettings`
        Its scene.
    patch : `int`
        ID of the patch.

    Returns
    -------
    image : `numpy.ndarray`, ``(h, w)``
        All its detectors, resampled linearly, in nJy; NaN between them.
    seeing : `float`
        Full width at half maximum of its PSF in arcseconds.
    """
    pointings = sorted(plan_pointings(settings), key=lambda pointing: pointing.fwhm)
    middle = pointings[len(pointings) // 2]
    tract = settings.sky_map.tracts[0]
    box = tract.patches[patch].outer_bbox
    yy, xx = np.mgrid[box.y.start : box.y.stop, box.x.start : box.x.stop]
    sky = tract.wcs.pixel_to_world(xx, yy)
    image: np.ndarray = np.full(box.shape, np.nan)
    for detector in range(settings.n_detectors):
        data_id = {"instrument": settings.instrument, "visit": middle.visit, "detector": detector}
        exposure = butler.get(CALEXP, data_id, collections=CALEXP_RUN)
        x, y = middle.wcs(settings, detector).world_to_pixel(sky)
        value = map_coordinates(exposure.image.array, [y, x], order=1, cval=np.nan)
        image = np.where(np.isfinite(value), value, image)
    return image, middle.fwhm * settings.pixel_scale
