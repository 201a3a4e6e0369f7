# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("LocalWindow", "group_windows", "plan_windows")

import dataclasses
import math
from collections.abc import Sequence

import torch

from ._operators import ConvolutionOperator, transform_shape

_CELL = 8
"""Pixels per side of the cells in which places are gathered."""

_FAINT = 1e-7
"""Share of the squared kernels beyond which data need not be looked at."""

_REACH = 3.0
"""How far, in sigma of broad components, data are looked at."""

_WORTH = 0.5
"""Pixels of all windows over those of the whole image up to which windows are worth their while."""

_Box = tuple[int, int, int, int]
"""First row, end of the rows, first column, and end of the columns."""


@dataclasses.dataclass(frozen=True)
class LocalWindow:
    """A part of the latent area, with all data that see a box in it.

    Attributes
    ----------
    corner : `tuple` [ `int`, `int` ]
        Where (row, column) it begins on the area with data, even numbers.
    shape : `tuple` [ `int`, `int` ]
        Its shape.
    box : `tuple` [ `slice`, `slice` ]
        Rows and columns of the box in the latent image of the window, which begins by the margin earlier.
    """

    corner: tuple[int, int]
    shape: tuple[int, int]
    box: tuple[slice, slice]


def plan_windows(
    operator: ConvolutionOperator, places: torch.Tensor, scale: float, gap: int, *, at_any_cost: bool = False
) -> list[LocalWindow] | None:
    """Return windows around places.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        The forward model.
    places : `torch.Tensor`, shape ``latent_shape``
        Positive at the places.
    scale : `float`
        Standard deviation of the widest components of the latent image in pixels.
    gap : `int`
        Places that are as near to each other as this (px) share a window.
    at_any_cost : `bool`, optional
        Whether to return windows however many they are.

    Returns
    -------
    windows : `list` [ `LocalWindow` ] or `None`
        `None` if they would cost half as much as the whole image, or more;
        at any cost, all but single ones of which that is true.
    """
    largest = _WORTH * math.prod(operator.fft_shape)
    if int((places > 0.0).sum()) >= largest and not at_any_cost:
        return None
    reach = _kernel_reach(operator.kernels) + math.ceil(_REACH * scale)
    windows = [_surround(operator, box, reach) for box in _gather(places > 0.0, gap)]
    size, padding = operator.kernels.shape[-1], operator.padding
    if operator.sampler is not None:
        padding += 2 * operator.sampler.padding
    pixels = [math.prod(transform_shape(window.shape, operator.margin, size, padding)) for window in windows]
    if at_any_cost:
        return [window for window, n in zip(windows, pixels, strict=True) if n < largest]
    return windows if sum(pixels) < largest else None


def group_windows(operator: ConvolutionOperator, windows: Sequence[LocalWindow]) -> list[list[LocalWindow]]:
    """Return windows in groups, of which the data of each are few enough to be held together."""
    groups: list[list[LocalWindow]] = []
    largest, held = _WORTH * math.prod(operator.shape), 0
    for window in windows:
        pixels = math.prod(window.shape)
        if not groups or held + pixels > largest:
            groups.append([])
            held = 0
        groups[-1].append(window)
        held += pixels
    return groups


def _surround(operator: ConvolutionOperator, box: _Box, reach: int) -> LocalWindow:
    corner, shape, inside = [], [], []
    for (first, end), n in zip((box[:2], box[2:]), operator.shape, strict=True):
        start = max(0, min(first - operator.margin - reach, n - 1)) // 2 * 2
        corner.append(start)
        shape.append(max(start + 1, min(n, end - operator.margin + reach)) - start)
        inside.append(slice(first - start, end - start))
    return LocalWindow((corner[0], corner[1]), (shape[0], shape[1]), (inside[0], inside[1]))


def _kernel_reach(kernels: torch.Tensor) -> int:
    """Return the half-width of the square that holds all but a faint part of the squared kernels."""
    square = kernels.square().sum(dim=(0, 1))
    half = square.shape[-1] // 2
    distance = (torch.arange(square.shape[-1], device=square.device) - half).abs()
    radius = torch.maximum(distance[:, None], distance[None])
    light = square.new_zeros(half + 1).index_add_(0, radius.reshape(-1), square.reshape(-1))
    beyond = light.flip(0).cumsum(0).flip(0) / light.sum()
    return int((beyond > _FAINT).sum())


def _gather(places: torch.Tensor, gap: int) -> list[_Box]:
    """Return disjoint boxes around groups of flagged pixels that are further apart than the gap."""
    rows, columns = (p.tolist() for p in torch.nonzero(places).T)
    cells: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, column in zip(rows, columns, strict=True):
        cells.setdefault((row // _CELL, column // _CELL), []).append((row, column))
    boxes = []
    while cells:
        pending, pixels = [next(iter(cells))], []
        while pending:
            y, x = pending.pop()
            pixels += cells.pop((y, x), [])
            pending += [c for i in (-1, 0, 1) for j in (-1, 0, 1) if (c := (y + i, x + j)) in cells]
        row, column = zip(*pixels, strict=True)
        boxes.append((min(row), max(row) + 1, min(column), max(column) + 1))
    return _merge(boxes, gap)


def _merge(boxes: list[_Box], gap: int) -> list[_Box]:
    """Join boxes until all are further apart than the gap."""
    merged: list[_Box] = []
    pending = list(boxes)
    while pending:
        a = pending.pop()
        near = (
            b
            for b in merged
            if a[0] < b[1] + gap and b[0] < a[1] + gap and a[2] < b[3] + gap and b[2] < a[3] + gap
        )
        other = next(near, None)
        if other is None:
            merged.append(a)
            continue
        merged.remove(other)
        least = min(a[0], other[0]), min(a[2], other[2])
        most = max(a[1], other[1]), max(a[3], other[3])
        pending.append((least[0], most[0], least[1], most[1]))
    return merged
