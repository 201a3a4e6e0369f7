# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PatchPlanes", "Tile", "stack_tile", "to_box", "to_window")

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lsst.images import Box

from ..restoration import ExposureStack, FrameGeometry, NoGoodPixelsError, WholeField, Window
from ._patch_exposure import PatchExposure
from ._patch_psf import pad_kernels
from ._whole_field import make_whole_field

_FRAME = 8
"""Pixels that are not there around the exposures' own, so that what happens at
the edge of a detector does not depend on what else is in the stack.
"""

_NODE_STEP = 16
"""Spacing of the nodes of native mappings, in detector pixels."""


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
    """Exposures of a part of a patch.

    Attributes
    ----------
    inner : `lsst.images.Box`
        Pixels that the tile is to fill.
    outer : `lsst.images.Box`
        ``inner`` and a halo around it, from an even pixel on: the grid of the
        latent image.
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
        See `RegisteredExposure`, for each exposure; one for pixels that were
        not interpolated.
    psf_error : `tuple` [`float`]
        Largest error of each exposure's PSF as a polynomial of position, in
        units of its peak.
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
    psf_error: tuple[float, ...]


def to_box(window: Window) -> Box:
    """Return a window as a box."""
    return Box.factory[window.y_start : window.y_stop, window.x_start : window.x_stop]


def to_window(box: Box) -> Window:
    """Return a box as a window."""
    return Window(box.y.start, box.y.stop, box.x.start, box.x.stop)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """One exposure on a tile, whichever way it takes part."""

    member: int
    image: torch.Tensor
    variance: torch.Tensor
    usable: torch.Tensor
    start: tuple[int, int]
    covered: np.ndarray
    good: np.ndarray
    saturated: np.ndarray
    cosmic_ray: np.ndarray
    typical_variance: float
    pixel_variance_ratio: float
    psf: np.ndarray
    psf_error: float
    psf_reference: tuple[float, float]
    weight: float


def stack_tile(
    exposures: Sequence[PatchExposure],
    inner: Box,
    halo: int,
    *,
    native: bool = False,
    psf_degree: int = 2,
    edge_width: int = 5,
) -> Tile | None:
    """Bring the exposures of a tile together.

    Parameters
    ----------
    exposures : `~collections.abc.Sequence` [`PatchExposure`]
        Exposures of the patch.
    inner : `lsst.images.Box`
        Pixels that the tile is to fill.
    halo : `int`
        Width of the surrounding pixels that take part in the restoration.
    native : `bool`, optional
        Whether exposures keep their own pixels, or are interpolated onto the
        grid of the patch.
    psf_degree : `int`, optional
        Largest degree of the polynomials that stand for a PSF that varies.
    edge_width : `int`, optional
        Width of the band along a detector's edge that counts as its edge.

    Returns
    -------
    tile : `Tile` or `None`
        The stack, or `None` where no exposure has a good pixel.
    """
    outer = to_box(to_window(inner).padded(halo).snapped(2))
    take = _cut_out if native else _register
    pieces = []
    for member, exposure in enumerate(exposures):
        piece = take(member, exposure, outer, psf_degree)
        if piece is not None:
            pieces.append(piece)
    if not pieces:
        return None
    try:
        stack = _make_stack(pieces, exposures, outer, native, make_whole_field(exposures, psf_degree))
    except NoGoodPixelsError:
        return None
    covered = np.stack([piece.covered for piece in pieces])
    cut = inner.slice_within(outer)
    good = np.stack([piece.good[cut.y, cut.x] for piece in pieces])
    typical = np.array([piece.typical_variance for piece in pieces], dtype=np.float32)
    return Tile(
        inner=inner,
        outer=outer,
        stack=stack,
        members=tuple(piece.member for piece in pieces),
        covered=covered[:, cut.y, cut.x],
        saturated=np.stack([piece.saturated[cut.y, cut.x] for piece in pieces]),
        cosmic_ray=np.stack([piece.cosmic_ray[cut.y, cut.x] for piece in pieces]),
        sensor_edge=_sensor_edge(covered, edge_width)[cut.y, cut.x],
        good=good,
        weight=good / typical[:, None, None],
        pixel_variance_ratio=tuple(piece.pixel_variance_ratio for piece in pieces),
        psf_error=tuple(piece.psf_error for piece in pieces),
    )


def _register(member: int, exposure: PatchExposure, outer: Box, degree: int) -> _Piece | None:
    """Interpolate an exposure onto the grid of a tile."""
    found = exposure.register(outer)
    if found is None or not bool(found.good.any()):
        return None
    box = exposure.find_box(outer)
    assert box is not None, "A detector that was registered reaches the tile."
    psf, psf_error, psf_reference = exposure.psf.basis(outer, box, degree=degree, on_patch=exposure.bbox)
    return _Piece(
        member=member,
        image=found.image,
        variance=found.variance,
        usable=found.good,
        start=(outer.y.start, outer.x.start),
        covered=found.covered.numpy(),
        good=found.good.numpy(),
        saturated=found.saturated.numpy(),
        cosmic_ray=found.cosmic_ray.numpy(),
        typical_variance=float(found.variance[found.good].median()),
        pixel_variance_ratio=found.pixel_variance_ratio,
        psf=psf,
        psf_error=psf_error,
        psf_reference=psf_reference,
        weight=exposure.weight / exposure.area,
    )


def _cut_out(member: int, exposure: PatchExposure, outer: Box, degree: int) -> _Piece | None:
    """Take an exposure's own pixels on a tile."""
    found = exposure.cut_out(outer)
    if found is None or not found.pixels.good.any() or not found.good.any():
        return None
    pixels = found.pixels
    psf, psf_error, psf_reference = exposure.psf.basis(
        outer, pixels.bbox, degree=degree, on_patch=exposure.bbox
    )
    return _Piece(
        member=member,
        image=torch.from_numpy(pixels.image.copy()),
        variance=torch.from_numpy(pixels.variance.copy()),
        usable=torch.from_numpy(pixels.good.copy()),
        start=(pixels.bbox.y.start, pixels.bbox.x.start),
        covered=found.covered,
        good=found.good,
        saturated=found.saturated,
        cosmic_ray=found.cosmic_ray,
        # A pixel of the patch holds this many of the detector's.
        typical_variance=float(np.median(pixels.variance[pixels.good])) * found.area,
        pixel_variance_ratio=found.pixel_variance_ratio,
        psf=psf,
        psf_error=psf_error,
        psf_reference=psf_reference,
        weight=exposure.weight,
    )


def _make_stack(
    pieces: Sequence[_Piece],
    exposures: Sequence[PatchExposure],
    outer: Box,
    native: bool,
    field: WholeField | None,
) -> ExposureStack:
    shared: dict[str, Any] = {
        "names": tuple(exposures[piece.member].reader.name for piece in pieces),
        "origin": (outer.y.start, outer.x.start),
        "reference": np.array([piece.psf_reference for piece in pieces]),
        "weights": np.array([piece.weight for piece in pieces]),
        "field": field,
    }
    psf = torch.from_numpy(_stack_bases([piece.psf for piece in pieces])).to(torch.float32)
    if not native:
        image, variance, usable = (
            torch.stack([getattr(piece, name) for piece in pieces])
            for name in ("image", "variance", "usable")
        )
        return ExposureStack(image, variance, usable, psf, **shared)
    # Nodes stand at the same pixels of an exposure in all tiles.
    starts = [[(n - _FRAME) // _NODE_STEP * _NODE_STEP for n in piece.start] for piece in pieces]
    height, width = (
        max(
            p.start[axis] + p.image.shape[axis] + _FRAME - s[axis]
            for p, s in zip(pieces, starts, strict=True)
        )
        for axis in (0, 1)
    )
    image, variance = torch.zeros((len(pieces), height, width)), torch.ones((len(pieces), height, width))
    usable = torch.zeros((len(pieces), height, width), dtype=torch.bool)
    nodes = []
    for t, (piece, start) in enumerate(zip(pieces, starts, strict=True)):
        before = [p - s for p, s in zip(piece.start, start, strict=True)]
        stop = [b + n for b, n in zip(before, piece.image.shape, strict=True)]
        part = t, slice(before[0], stop[0]), slice(before[1], stop[1])
        image[part], variance[part], usable[part] = piece.image, piece.variance, piece.usable
        box = Box.from_shape((stop[0] + _FRAME, stop[1] + _FRAME), start=tuple(start))
        x, y = exposures[piece.member].mapping.nodes(box, (height, width), _NODE_STEP)
        nodes.append((x - outer.x.start, y - outer.y.start))
    node_x, node_y = (np.stack(coordinate) for coordinate in zip(*nodes, strict=True))
    frames = FrameGeometry((outer.y.size, outer.x.size), node_x, node_y, _NODE_STEP)
    return ExposureStack(image, variance, usable, psf, frames=frames, **shared)


def _stack_bases(bases: Sequence[np.ndarray]) -> np.ndarray:
    """Pad bases to common sizes, (T, J, k, k), or (T, k, k) if all are constant."""
    n_basis = max(len(basis) for basis in bases)
    padded = pad_kernels([np.concatenate([b, np.zeros((n_basis - len(b), *b.shape[1:]))]) for b in bases])
    return padded[:, 0] if n_basis == 1 else padded


def _sensor_edge(covered: np.ndarray, width: int) -> np.ndarray:
    """Return pixels within ``width`` of the end of an exposure's cover."""
    edge = np.zeros(covered.shape[1:], dtype=bool)
    for plane in covered:
        missing = torch.from_numpy(~plane).to(torch.float32)[None, None]
        near = torch.nn.functional.max_pool2d(missing, 2 * width + 1, 1, width)[0, 0] > 0
        edge |= near.numpy() & plane
    return edge
