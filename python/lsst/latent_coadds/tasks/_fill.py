# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("fill_planes", "mark_inexact_psf")

import numpy as np

from ..adapters import CellAccumulator, PatchPlanes, Tile
from ..restoration import Restoration


def fill_planes(planes: PatchPlanes, tile: Tile, restoration: Restoration, saturated_fraction: float) -> None:
    """Copy the inner part of a restored tile into the patch."""
    cut = tile.inner.slice_within(tile.outer)
    target = tile.inner.slice_within(planes.bbox)
    n_image = restoration.n_image[cut.y, cut.x].numpy()
    empty = n_image == 0
    nan = np.float32(np.nan)
    planes.n_image[target.y, target.x] = n_image
    planes.image[target.y, target.x] = np.where(empty, nan, restoration.image[cut.y, cut.x].numpy())
    planes.variance[target.y, target.x] = np.where(empty, nan, restoration.variance[cut.y, cut.x].numpy())
    n_noise = len(restoration.noise_realizations)
    if n_noise and not len(planes.noise):
        planes.noise = np.full((n_noise, *planes.image.shape), nan, dtype=np.float32)
    if n_noise:
        noise = restoration.noise_realizations[:, cut.y, cut.x].numpy()
        planes.noise[:, target.y, target.x] = np.where(empty, nan, noise)
    n_covering = tile.covered.sum(axis=0)
    n_rejected = (tile.covered & ~tile.good).sum(axis=0)
    planes.rejected_fraction[target.y, target.x] = n_rejected / np.maximum(n_covering, 1)
    n_saturated = tile.saturated.sum(axis=0)
    planes.set_mask("NO_DATA", tile.inner, empty)
    planes.set_mask("REJECTED", tile.inner, n_rejected > 0)
    planes.set_mask("CLIPPED", tile.inner, restoration.mask["CLIPPED"][cut.y, cut.x].numpy())
    planes.set_mask("SATURATED", tile.inner, n_saturated > saturated_fraction * n_covering)
    planes.set_mask("COSMIC_RAY", tile.inner, tile.cosmic_ray.any(axis=0))
    planes.set_mask("SENSOR_EDGE", tile.inner, tile.sensor_edge)


def mark_inexact_psf(planes: PatchPlanes, cells: CellAccumulator) -> None:
    """Mark pixels that not all exposures of their cell contribute to."""
    members = (cells.weight > 0).sum(axis=0).astype(np.int32)
    shape = cells.grid.cell_shape
    expected = np.kron(members, np.ones((shape.y, shape.x), dtype=np.int32))
    inexact = planes.n_image != expected
    for name in ("CLIPPED", "REJECTED"):
        inexact |= planes.mask.get(name, np.zeros_like(inexact))
    planes.set_mask("INEXACT_PSF", planes.bbox, inexact)
