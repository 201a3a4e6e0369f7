# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("Resampled", "lanczos_resample", "resample_psf")

from typing import NamedTuple

import torch
from torch import Tensor


class Resampled(NamedTuple):
    """An exposure interpolated onto another pixel grid.

    Attributes
    ----------
    image : `torch.Tensor`, (H, W)
        Interpolated pixels, times ``area``; zero where ``good`` is false.
    variance : `torch.Tensor`, (H, W)
        Noise power per output pixel at the scales that a PSF passes; see
        the notes of `lanczos_resample`.
    good : `torch.Tensor` [`bool`], (H, W)
        Whether every input pixel with a weight that matters was good.
    covered : `torch.Tensor` [`bool`], (H, W)
        Whether the input, good or bad, reaches there.
    pixel_variance_ratio : `torch.Tensor`, (H, W)
        Variance of a single interpolated pixel over ``variance``: at most
        about one, and less where the interpolation smooths.
    """

    image: Tensor
    variance: Tensor
    good: Tensor
    covered: Tensor
    pixel_variance_ratio: Tensor


def _kernel_weights(fraction: Tensor, order: int, degree: int = 1) -> Tensor:
    """Return the weights of a moment-corrected 1-d Lanczos kernel.

    Parameters
    ----------
    fraction : `torch.Tensor`, (...)
        Fractional part of the coordinate, in [0, 1).
    order : `int`
        Order a of the kernel, sinc(d) sinc(d/a) for abs(d) < a.
    degree : `int`, optional
        Polynomials up to this degree are interpolated exactly.

    Returns
    -------
    weights : `torch.Tensor`, (2 a, ...)
        Weights of the pixels floor(x) - a + 1 ... floor(x) + a.

    Notes
    -----
    A Lanczos kernel that is merely normalised moves stars by up to 0.01
    pixels, depending on the fraction, because its first moment does not
    vanish. To each set of weights the window times a small polynomial in the
    distance is added, such that its moments are those of the identity.
    Correcting further moments makes the error of a star's shape larger.
    """
    n_table = 2048
    nodes = torch.linspace(0, 1, n_table + 1, dtype=torch.float64)
    taps = torch.arange(1 - order, order + 1, dtype=torch.float64)
    distance = taps - nodes[:, None]
    window = torch.sinc(distance / order) * (distance.abs() < order)
    lanczos = torch.sinc(distance) * window
    powers = (distance / order)[..., None] ** torch.arange(degree + 1)
    missing = -torch.einsum("nt,ntk->nk", lanczos, powers)
    missing[:, 0] += 1
    moments = torch.einsum("nt,ntj,ntk->njk", window, powers, powers)
    polynomial = torch.linalg.solve(moments, missing)
    table = (lanczos + window * torch.einsum("ntk,nk->nt", powers, polynomial)).to(fraction)
    position = fraction * n_table
    index = position.long().clamp(0, n_table - 1)
    step = (position - index)[..., None]
    return torch.lerp(table[index], table[index + 1], step).movedim(-1, 0)


def _fill_bad(image: Tensor, good: Tensor, n_pass: int = 3) -> Tensor:
    """Replace bad pixels by the mean of good neighbours, working inwards.

    The filled values only enter output pixels through weights too small to
    flag the pixel; they need to be bounded, not right.
    """
    values = torch.where(good, image, torch.zeros_like(image))
    known = good.to(image.dtype)
    for _ in range(n_pass):
        total = torch.nn.functional.avg_pool2d(values[None, None], 3, 1, 1)[0, 0]
        weight = torch.nn.functional.avg_pool2d(known[None, None], 3, 1, 1)[0, 0]
        reachable = (known == 0) & (weight > 0)
        values = torch.where(reachable, total / weight.clamp_min(1e-6), values)
        known = torch.where(reachable, torch.ones_like(known), known)
    return values


def lanczos_resample(
    image: Tensor,
    variance: Tensor,
    good: Tensor,
    x: Tensor,
    y: Tensor,
    area: Tensor | float = 1.0,
    *,
    order: int = 5,
    threshold: float = 0.05,
    max_chunk_pixels: int = 1 << 16,
) -> Resampled:
    """Interpolate an exposure at given positions with a Lanczos kernel.

    Parameters
    ----------
    image, variance : `torch.Tensor`, (h, w)
        Input pixels and their variances; the noise is taken to be white.
    good : `torch.Tensor` [`bool`], (h, w)
        Pixels to use.
    x, y : `torch.Tensor`, (H, W)
        Where to interpolate: column and row in the input array, whose first
        pixel has its centre at (0, 0).
    area : `torch.Tensor`, (H, W), or `float`
        Area of an output pixel in input pixels, which conserves flux.
    order : `int`
        Order of the Lanczos kernel.
    threshold : `float`
        An output pixel is bad when the absolute weights of bad input pixels
        sum to more than this.
    max_chunk_pixels : `int`
        Output pixels that are worked on at once, which bounds memory.

    Returns
    -------
    resampled : `Resampled`
        The interpolated planes.

    Notes
    -----
    Interpolation correlates the noise of neighbouring pixels and lowers the
    variance of each; the noise *power* on scales larger than a pixel is that
    of the input per unit of its area. ``variance`` is therefore that of the
    input times ``area``, not summed with the squares of the weights: weights,
    coadd variances and aperture errors made from it are then right for
    anything as wide as a PSF.
    ``pixel_variance_ratio`` says by how much a single pixel scatters less.
    """
    area_map = torch.as_tensor(area, dtype=image.dtype, device=image.device).expand(x.shape)
    bad = (~good).to(image.dtype)
    planes = _Planes(
        image=_fill_bad(image, good),
        variance=_fill_bad(variance, good),
        bad=bad,
        near_bad=_dilate(bad, order, fill=0.0) > 0,
        near_edge=_dilate(torch.zeros_like(bad), order, fill=1.0) > 0,
    )
    pieces: list[Resampled] = []
    rows = max(1, max_chunk_pixels // max(1, x.shape[1]))
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        pieces.append(_resample_rows(planes, x[part], y[part], area_map[part], order, threshold))
    return Resampled(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


class _Planes(NamedTuple):
    """What `_resample_rows` needs of the input, (h, w) each."""

    image: Tensor
    variance: Tensor
    bad: Tensor
    near_bad: Tensor
    near_edge: Tensor


def _resample_rows(
    planes: _Planes, x: Tensor, y: Tensor, area: Tensor, order: int, threshold: float
) -> Resampled:
    height, width = planes.image.shape
    x_floor, y_floor = torch.floor(x), torch.floor(y)
    # Half a pixel beyond the outermost centres still lies on the detector.
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    weights_x = _kernel_weights((x - x_floor).to(area.dtype), order)
    weights_y = _kernel_weights((y - y_floor).to(area.dtype), order)
    column = x_floor.long().clamp(-1, width - 1)
    row = y_floor.long().clamp(-1, height - 1)
    corner = row.clamp_min(0), column.clamp_min(0)

    def share(plane: Tensor, where: Tensor, fill: float) -> Tensor:
        """Sum the absolute weights of a plane's pixels."""
        result = torch.zeros_like(area)
        weights = weights_x[:, where].abs(), weights_y[:, where].abs()
        result[where] = _gather_weighted(plane, row[where], column[where], *weights, fill=fill)
        return result

    outside = share(torch.zeros_like(planes.bad), planes.near_edge[corner], 1.0)
    covered = inside & (outside <= threshold)
    good = covered & (share(planes.bad, planes.near_bad[corner], 0.0) <= threshold)
    value = _gather_weighted(planes.image, row, column, weights_x, weights_y, fill=None)
    nearest = torch.round(y).long().clamp(0, height - 1), torch.round(x).long().clamp(0, width - 1)
    zero = torch.zeros_like(value)
    variance_ratio = weights_x.square().sum(dim=0) * weights_y.square().sum(dim=0)
    return Resampled(
        torch.where(good, value * area, zero),
        torch.where(good, planes.variance[nearest] * area, zero),
        good,
        covered,
        torch.where(good, variance_ratio * area, zero),
    )


def _dilate(plane: Tensor, radius: int, fill: float) -> Tensor:
    """Return the largest value within ``radius``; ``fill`` lies outside."""
    padded = torch.nn.functional.pad(plane[None, None], (radius,) * 4, value=fill)
    # Rows, then columns: the same for far fewer comparisons.
    rows = torch.nn.functional.max_pool2d(padded, (1, 2 * radius + 1), 1)
    return torch.nn.functional.max_pool2d(rows, (2 * radius + 1, 1), 1)[0, 0]


def _gather_weighted(
    plane: Tensor, row: Tensor, column: Tensor, weights_x: Tensor, weights_y: Tensor, fill: float | None
) -> Tensor:
    """Sum a plane with separable weights around given pixels.

    The taps of a row are neighbours in memory, so that they are gathered as
    one window of a strided view.
    """
    n_taps = len(weights_x)
    before = n_taps // 2
    # Without a value to fill in, the outermost pixels go on outside.
    framed = torch.nn.functional.pad(
        plane[None, None], (before,) * 4, mode="replicate" if fill is None else "constant", value=fill
    )[0, 0].contiguous()
    width = framed.shape[1]
    windows = framed.as_strided((framed.numel() - n_taps + 1, n_taps), (1, 1))
    # Tap 0 is pixel floor - order + 1, and the frame adds order = before.
    first = (row + 1) * width + column + 1
    taps_x = weights_x.movedim(0, -1)
    total = torch.zeros(row.shape, dtype=plane.dtype, device=plane.device)
    for j in range(n_taps):
        total += weights_y[j] * (windows[first + j * width] * taps_x).sum(dim=-1)
    return total


def resample_psf(kernel: Tensor, jacobian: Tensor, size: int, *, order: int = 5) -> Tensor:
    """Carry a PSF kernel image through a local affine mapping.

    Parameters
    ----------
    kernel : `torch.Tensor`, (k, k)
        PSF on the input grid, centred on the central pixel; k is odd.
    jacobian : `torch.Tensor`, (2, 2)
        ``d(x_in, y_in) / d(x_out, y_out)``.
    size : `int`
        Side of the output kernel, odd.
    order : `int`
        Order of the Lanczos kernel.

    Returns
    -------
    resampled : `torch.Tensor`, (size, size)
        PSF on the output grid, with a sum of one.

    Raises
    ------
    ValueError
        If a kernel has an even side, or the result has no positive sum.
    """
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0 or size % 2 == 0:
        raise ValueError(f"PSF kernels need an odd side; got {tuple(kernel.shape)} and {size}.")
    half = size // 2
    offset = torch.arange(-half, half + 1, dtype=kernel.dtype, device=kernel.device)
    dy, dx = torch.meshgrid(offset, offset, indexing="ij")
    jacobian = jacobian.to(kernel)
    x = jacobian[0, 0] * dx + jacobian[0, 1] * dy + kernel.shape[1] // 2
    y = jacobian[1, 0] * dx + jacobian[1, 1] * dy + kernel.shape[0] // 2
    # A zero frame lets the kernel's own edge pixels be interpolated.
    frame = order + 1
    framed = torch.nn.functional.pad(kernel, (frame, frame, frame, frame))
    ones = torch.ones_like(framed)
    result = lanczos_resample(
        framed, ones, ones.bool(), x + frame, y + frame, order=order, threshold=torch.inf
    )
    total = result.image.sum()
    if not bool(torch.isfinite(total)) or total <= 0:
        raise ValueError(f"The resampled PSF sums to {float(total)}; it must be positive and finite.")
    return result.image / total
