# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PatchPlanes", "Tile", "make_tiles", "stack_tile")

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from lsst.images import Box

from ..restoration import ExposureStack
from ._patch_exposure import PatchExposure


@dataclasses.dataclass
class PatchPlanes:
    """Pixel planes of a patch, filled tile by tile.

    Parameters
    ----------
    bbox : `lsst.images.Box`
        Tract pixels of the patch.
    """

    bbox: Box

    def __post_init__(self) -> None:
        shape = tuple(self.bbox.shape)
        self.image = np.full(shape, np.nan, dtype=np.float32)
        """Restored image (`numpy.ndarray`, (H, W), nJy)."""
        self.variance = np.full(shape, np.nan, dtype=np.float32)
        """Its variance (`numpy.ndarray`, (H, W), nJy²)."""
        self.n_image = np.zeros(shape, dtype=np.int32)
        """Number of exposures with a good pixel (`numpy.ndarray`, (H, W))."""
        self.rejected_fraction = np.zeros(shape, dtype=np.float32)
        """Fraction of covering exposures that were masked."""
        self.noise = np.zeros((0, *shape), dtype=np.float32)
        """Noise realizations (`numpy.ndarray`, (N, H, W), nJy); the first
        tile that has any says how many.
        """
        self.mask: dict[str, np.ndarray] = {}
        """Mask planes by name (`dict` [`str`, `numpy.ndarray`])."""

    def set_mask(self, name: str, box: Box, values: np.ndarray) -> None:
        """Set a mask plane within a box."""
        plane = self.mask.setdefault(name, np.zeros(tuple(self.bbox.shape), dtype=bool))
        slices = box.slice_within(self.bbox)
        plane[slices.y, slices.x] |= values


@dataclasses.dataclass(frozen=True)
class Tile:
    """Exposures registered to a part of a patch.

    Attributes
    ----------
    inner : `lsst.images.Box`
        Pixels that the tile is to fill.
    outer : `lsst.images.Box`
        ``inner`` and a halo around it: the grid of the stack.
    stack : `lsst.latent_coadds.restoration.ExposureStack`
        The exposures.
    members : `tuple` [`int`]
        Indices, among the patch's exposures, of the stack's exposures.
    covered, saturated, cosmic_ray : `numpy.ndarray` [`bool`], (T, h, w)
        Planes of each exposure on ``inner``.
    sensor_edge : `numpy.ndarray` [`bool`], (h, w)
        Pixels on ``inner`` near the edge of a detector.
    good : `numpy.ndarray` [`bool`], (T, h, w)
        Good pixels of each exposure on ``inner``.
    weight : `numpy.ndarray`, (T, h, w), float32
        Inverse of the exposure's median variance where it is good, in nJy⁻².
        One number per exposure, so that it does not depend on the sources.
    pixel_variance_ratio : `tuple` [`float`]
        See `RegisteredExposure`, for each exposure.
    """

    inner: Box
    outer: Box
    stack: ExposureStack
    members: tuple[int, ...]
    covered: np.ndarray
    saturated: np.ndarray
    cosmic_ray: np.ndarray
    sensor_edge: np.ndarray
    good: np.ndarray
    weight: np.ndarray
    pixel_variance_ratio: tuple[float, ...]


def make_tiles(bbox: Box, tile_size: int) -> list[Box]:
    """Divide a box into tiles of nearly equal size.

    Parameters
    ----------
    bbox : `lsst.images.Box`
        What to divide.
    tile_size : `int`
        Largest side of a tile.

    Returns
    -------
    tiles : `list` [`lsst.images.Box`]
        Tiles that cover the box without overlap, row by row.
    """
    edges_y = np.linspace(bbox.y.start, bbox.y.stop, -(-bbox.y.size // tile_size) + 1).round().astype(int)
    edges_x = np.linspace(bbox.x.start, bbox.x.stop, -(-bbox.x.size // tile_size) + 1).round().astype(int)
    return [
        Box.factory[int(y0) : int(y1), int(x0) : int(x1)]
        for y0, y1 in zip(edges_y[:-1], edges_y[1:], strict=True)
        for x0, x1 in zip(edges_x[:-1], edges_x[1:], strict=True)
    ]


def stack_tile(exposures: Sequence[PatchExposure], inner: Box, halo: int, edge_width: int = 5) -> Tile | None:
    """Register the exposures to a tile.

    Parameters
    ----------
    exposures : `~collections.abc.Sequence` [`PatchExposure`]
        Exposures of the patch.
    inner : `lsst.images.Box`
        Pixels that the tile is to fill.
    halo : `int`
        Width of the surrounding pixels that take part in the restoration.
    edge_width : `int`, optional
        Width of the band along a detector's edge that counts as its edge.

    Returns
    -------
    tile : `Tile` or `None`
        The stack, or `None` where no exposure has a good pixel.
    """
    outer = inner.padded(halo)
    members, registered, kernels = [], [], []
    for index, exposure in enumerate(exposures):
        piece = exposure.register(outer)
        if piece is None or not bool(piece.good.any()):
            continue
        rows, columns = np.nonzero(piece.covered.numpy())
        kernels.append(
            exposure.psf_kernel(outer.x.start + float(columns.mean()), outer.y.start + float(rows.mean()))
        )
        members.append(index)
        registered.append(piece)
    if not members:
        return None
    stack = ExposureStack(
        torch.stack([piece.image for piece in registered]),
        torch.stack([piece.variance for piece in registered]),
        torch.stack([piece.good for piece in registered]),
        torch.from_numpy(pad_kernels(kernels)).to(torch.float32),
        names=tuple(exposures[index].reader.name for index in members),
    )
    covered = torch.stack([piece.covered for piece in registered])
    cut = inner.slice_within(outer)
    good = stack.good[:, cut.y, cut.x]
    typical = torch.stack([piece.variance[piece.good].median() for piece in registered])
    weight = good.to(torch.float32) / typical[:, None, None]
    return Tile(
        inner=inner,
        outer=outer,
        stack=stack,
        members=tuple(members),
        covered=covered[:, cut.y, cut.x].numpy(),
        saturated=_cut(registered, "saturated", cut),
        cosmic_ray=_cut(registered, "cosmic_ray", cut),
        sensor_edge=_sensor_edge(covered, edge_width)[cut.y, cut.x].numpy(),
        good=good.numpy(),
        weight=weight.numpy(),
        pixel_variance_ratio=tuple(piece.pixel_variance_ratio for piece in registered),
    )


def pad_kernels(kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Pad kernels with odd sides to a common side, (T, k, k)."""
    size = max(max(kernel.shape) for kernel in kernels)
    padded = np.zeros((len(kernels), size, size))
    for index, kernel in enumerate(kernels):
        y0, x0 = (size - kernel.shape[0]) // 2, (size - kernel.shape[1]) // 2
        padded[index, y0 : y0 + kernel.shape[0], x0 : x0 + kernel.shape[1]] = kernel
    return padded


def _cut(registered: Sequence, plane: str, cut: Sequence[slice]) -> np.ndarray:
    return np.stack([getattr(piece, plane)[cut[0], cut[1]].numpy() for piece in registered])


def _sensor_edge(covered: torch.Tensor, width: int) -> torch.Tensor:
    """Return pixels within ``width`` of the end of an exposure's cover."""
    missing = (~covered).to(torch.float32)[:, None]
    near = torch.nn.functional.max_pool2d(missing, 2 * width + 1, 1, width)[:, 0] > 0
    return (near & covered).any(dim=0)
