# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Interpolation of a convolved latent image at the pixels of exposures."""

from __future__ import annotations

__all__ = ("FrameSampler",)

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch

from ._frames import FrameGeometry
from ._kernels import centred_rfft2

_ERROR = 5e-4
"""Interpolation error of a star, over its peak, that is aimed at."""

_CHOICES = (
    *((1.0, 4), (1.0, 6), (1.5, 4), (1.5, 5), (1.5, 6), (2.0, 4)),
    *((2.0, 5), (2.5, 4), (2.0, 6), (3.0, 4), (3.0, 6)),
)
"""Refinements of the grid of transforms and numbers of taps to choose from."""

_PHASE_BITS = 10
"""Positions are rounded to this power of two of a fine pixel."""

_PIECE_SIZE = 1 << 15
"""Pixels that are worked on at once, such that they stay in the cache."""


_Piece = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]
"""Numbers, areas, first taps, and weights in x and y of some pixels."""


@dataclasses.dataclass(frozen=True)
class _Sites:
    """Where the pixels of an exposure are, and how to interpolate there.

    ``oversampling`` is the refinement of the grid, and ``table`` has weights
    (taps, phases). ``pixels`` are flat numbers of pixels of the exposure,
    ``x`` and ``y`` where their first tap is on the fine grid, and ``area``
    their area in latent pixels.
    """

    oversampling: float
    table: torch.Tensor
    pixels: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    area: torch.Tensor


class FrameSampler:
    """Interpolate images on the latent grid at the pixels of exposures.

    Parameters
    ----------
    frames : `FrameGeometry`
        Where the pixels are.
    frame_shape : `tuple` [ `int`, `int` ]
        Shape (h, w) of the exposures.
    psf : `torch.Tensor`, shape (T, k, k)
        PSFs on the latent grid; they say what the images are like. Their type
        and device are those of the images.

    Notes
    -----
    Images have been convolved with a PSF, and so they hold little power at
    high frequencies. Their transforms are padded with zeros to a finer grid,
    where few pixels are enough. The weights of these are the ones with the
    smallest squared error for the spectrum of the PSF, position by position;
    the cheapest combination that is accurate enough is taken for each
    exposure. A correction for the roll-off of a kernel, as in non-uniform
    Fourier transforms, would have nothing left to mend.
    """

    def __init__(self, frames: FrameGeometry, frame_shape: tuple[int, int], psf: torch.Tensor) -> None:
        self.frames = frames
        self.frame_shape = frame_shape
        self.gains = [float(torch.linalg.det(frames.affine(t)).abs()) for t in range(frames.n_exposures)]
        kernels = [_choose_kernel(_spectrum(psf[t]), gain) for t, gain in enumerate(self.gains)]
        self.padding = max(math.ceil(0.5 * len(table) / oversampling) + 1 for oversampling, table in kernels)
        self._sites = [self._locate(t, *kernel, psf) for t, kernel in enumerate(kernels)]
        self._recent: tuple[int, int, list[_Piece]] | None = None

    def areas(self, t: int) -> torch.Tensor:
        """Return the area in latent pixels of each pixel (h, w) of exposure ``t``, 0 off the latent area."""
        sites = self._sites[t]
        plane = sites.area.new_zeros(self.frame_shape[0] * self.frame_shape[1])
        plane[sites.pixels.long()] = sites.area
        return plane.reshape(self.frame_shape)

    def fine_shape(self, t: int, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the shape of the fine grid of exposure ``t`` for transforms of ``shape``."""
        factor = self._sites[t].oversampling
        return round(shape[0] * factor), round(shape[1] * factor)

    def _locate(self, t: int, oversampling: float, table: torch.Tensor, like: torch.Tensor) -> _Sites:
        """Return where the pixels on the latent area are."""
        inside = self.frames.covered(t, self.frame_shape).flatten()
        pixels = torch.nonzero(inside).flatten()
        area = self.frames.area(t, self.frame_shape).flatten()[pixels]
        # The first of an even number of taps is below the position by half of them less one.
        first = 0.5 * len(table) - 1.0
        x, y = (
            torch.round(
                ((position.flatten()[pixels] + self.padding) * oversampling - first) * (1 << _PHASE_BITS)
            ).to(torch.int32)
            for position in self.frames.positions(t, self.frame_shape)
        )
        numbers = pixels.to(torch.int32)
        numbers, x, y = (index.to(like.device) for index in (numbers, x, y))
        return _Sites(oversampling, table.to(like), numbers, x, y, area.to(like))

    def part(
        self, which: list[int], corner: tuple[int, int], shape: tuple[int, int]
    ) -> tuple[FrameSampler, list[tuple[int, int]], torch.Tensor]:
        """Return a sampler for a part of the latent area, in double precision and without ``frames``.

        Parameters
        ----------
        which : `list` [ `int` ]
            The exposures.
        corner, shape : `tuple` [ `int`, `int` ]
            Where (row, column) the part begins, even numbers, and its shape.

        Returns
        -------
        sampler : `FrameSampler`
            For cut-outs (n, h, w) of the exposures.
        corners : `list` [ `tuple` [ `int`, `int` ] ]
            Where these begin.
        inside : `torch.Tensor` of bool, shape (n, h, w)
            Pixels whose centres lie on the part.
        """
        found = [self._find(self._sites[t], corner, shape) for t in which]
        sides = [
            [int(p.max() - p.min()) + 1 if len(p) else 1 for p in rows_columns] for _, *rows_columns in found
        ]
        result = copy.copy(self)
        del result.frames
        result._recent = None
        result.gains = [self.gains[t] for t in which]
        result.frame_shape = height, width = max(s[0] for s in sides), max(s[1] for s in sides)
        result._sites, corners = [], []
        inside = torch.zeros((len(which), height * width), dtype=torch.bool, device=self._sites[0].x.device)
        for i, (t, (chosen, rows, columns)) in enumerate(zip(which, found, strict=True)):
            row, column = (
                min(int(p.min()) if len(p) else 0, n - m)
                for p, n, m in zip((rows, columns), self.frame_shape, result.frame_shape, strict=True)
            )
            sites = self._sites[t]
            by = [round(c * sites.oversampling * (1 << _PHASE_BITS)) for c in corner]
            pixels = (rows - row) * width + (columns - column)
            moved = (pixels, sites.x[chosen] - by[1], sites.y[chosen] - by[0], sites.area[chosen].double())
            result._sites.append(_Sites(sites.oversampling, sites.table.double(), *moved))
            inside[i, pixels.long()] = True
            corners.append((row, column))
        return result, corners, inside.reshape(-1, height, width)

    def _find(
        self, sites: _Sites, corner: tuple[int, int], shape: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return which pixels of an exposure are on a part, and their rows and columns."""
        first = 0.5 * len(sites.table) - 1.0
        chosen = torch.ones_like(sites.x, dtype=torch.bool)
        for taps, start, n in zip((sites.y, sites.x), corner, shape, strict=True):
            least, most = (
                ((edge - 0.5 + self.padding) * sites.oversampling - first) * (1 << _PHASE_BITS)
                for edge in (start, start + n)
            )
            chosen &= (taps > least) & (taps < most)
        pixels = sites.pixels[chosen]
        width = self.frame_shape[1]
        return chosen, torch.div(pixels, width, rounding_mode="floor"), pixels % width

    def _pieces(self, t: int, width: int) -> list[_Piece]:
        """Return what `_make_pieces` yields; a prediction and its gradient want the same."""
        if self._recent is None or self._recent[:2] != (t, width):
            self._recent = t, width, list(self._make_pieces(t, width))
        return self._recent[2]

    def _make_pieces(self, t: int, width: int) -> Iterator[_Piece]:
        """Yield pixels of an exposure, with the first tap and the weights in x and y."""
        sites = self._sites[t]
        mask = (1 << _PHASE_BITS) - 1
        for start in range(0, len(sites.pixels), _PIECE_SIZE):
            part = slice(start, start + _PIECE_SIZE)
            x, y = sites.x[part], sites.y[part]
            base = (y >> _PHASE_BITS) * width + (x >> _PHASE_BITS)
            phase_x, phase_y = x & mask, y & mask
            weights_x = [row.index_select(0, phase_x) for row in sites.table]
            weights_y = [row.index_select(0, phase_y) for row in sites.table]
            yield sites.pixels[part], sites.area[part], base, weights_x, weights_y

    def sample(self, fine: torch.Tensor, t: int) -> torch.Tensor:
        """Return exposure ``t`` (h, w) of an image on the fine grid; zero off the latent area."""
        width = fine.shape[-1]
        flat = fine.reshape(-1)
        result = flat.new_zeros(self.frame_shape[0] * self.frame_shape[1])
        for pixels, area, base, weights_x, weights_y in self._pieces(t, width):
            total = torch.zeros_like(area)
            for j, weight_y in enumerate(weights_y):
                row = torch.zeros_like(area)
                for i, weight_x in enumerate(weights_x):
                    row.addcmul_(flat[j * width + i :].index_select(0, base), weight_x)
                total.addcmul_(row, weight_y)
            result.index_add_(0, pixels, total.mul_(area))
        return result.reshape(self.frame_shape)

    def spread(self, data: torch.Tensor, t: int, shape: tuple[int, int]) -> torch.Tensor:
        """Apply the adjoint of `sample`: return an image of ``shape`` on the fine grid."""
        width = shape[1]
        flat, values = data.new_zeros(shape[0] * width), data.reshape(-1)
        for pixels, area, base, weights_x, weights_y in self._pieces(t, width):
            value = values.index_select(0, pixels).mul_(area)
            for j, weight_y in enumerate(weights_y):
                row = value * weight_y
                for i, weight_x in enumerate(weights_x):
                    flat[j * width + i :].index_add_(0, base, row * weight_x)
        return flat.reshape(shape)


class Sample(torch.autograd.Function):
    """`FrameSampler.sample`, with its adjoint as derivative."""

    @staticmethod
    def forward(ctx: Any, fine: torch.Tensor, sampler: FrameSampler, t: int) -> torch.Tensor:  # type: ignore[override]
        ctx.sampler, ctx.t, ctx.shape = sampler, t, fine.shape
        return sampler.sample(fine, t)

    @staticmethod
    def backward(ctx: Any, data: torch.Tensor) -> Any:  # type: ignore[override]
        return ctx.sampler.spread(data, ctx.t, ctx.shape), None, None


def refine(transform: torch.Tensor, shape: tuple[int, int], fine: tuple[int, int]) -> torch.Tensor:
    """Return images on a finer grid from transforms (..., n, m // 2 + 1) of ``shape``, even numbers."""
    if shape == fine:
        return torch.fft.irfft2(transform, s=shape, dim=(-2, -1))
    rows, columns = shape[0] // 2, shape[1] // 2
    padded = transform.new_zeros((*transform.shape[:-2], fine[0], columns + 1))
    padded[..., : rows + 1, :] = transform[..., : rows + 1, :]
    padded[..., fine[0] - rows :, :] = transform[..., rows:, :]
    # The highest frequency of an even grid stands for two. Without it the result would depend on the size
    # of the grid.
    for row in (rows, fine[0] - rows):
        padded[..., row, :] *= 0.5
    padded[..., columns] *= 0.5
    scale = fine[0] * fine[1] / (shape[0] * shape[1])
    return torch.fft.irfft(torch.fft.ifft(padded, dim=-2), n=fine[1], dim=-1) * scale


def coarsen(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Apply the adjoint of `refine`: return the transform for a grid of ``shape``."""
    fine = image.shape[-2:]
    if fine == shape:
        return torch.fft.rfft2(image, dim=(-2, -1))
    rows, columns = shape[0] // 2, shape[1] // 2
    seen = torch.fft.fft(torch.fft.rfft(image, dim=-1)[..., : columns + 1], dim=-2)
    result = torch.cat([seen[..., :rows, :], seen[..., fine[0] - rows :, :]], dim=-2)
    result[..., rows, :] += seen[..., rows, :]
    result[..., rows, :] *= 0.5
    return result


def _spectrum(psf: torch.Tensor, n: int = 128) -> torch.Tensor:
    """Return the amplitude of a PSF (k, k), the larger one along the axes, from frequency 0 to 1/2."""
    size = max(n, 2 * (psf.shape[-1] // 2 + 1))
    transfer = centred_rfft2(psf.double().cpu(), (size, size)).abs()
    return torch.maximum(transfer[0], transfer[: size // 2 + 1, 0])


def _choose_kernel(spectrum: torch.Tensor, gain: float) -> tuple[float, torch.Tensor]:
    """Return refinement and weights (taps, phases) of the cheapest good kernel."""

    def cost(choice: tuple[float, int]) -> float:
        # Transforms there and back, and gathering and scattering taps, in equal units.
        return choice[0] ** 2 + choice[1] ** 2 / gain

    best: tuple[float, tuple[float, int]] | None = None
    for choice in sorted(_CHOICES, key=cost):
        error = _design(spectrum, *choice, 16)[1]
        if best is None or error < best[0]:
            best = error, choice
        if error < _ERROR:
            break
    assert best is not None
    return best[1][0], _design(spectrum, *best[1], 1 << _PHASE_BITS)[0]


def _design(
    spectrum: torch.Tensor, oversampling: float, n_taps: int, n_phases: int
) -> tuple[torch.Tensor, float]:
    """Return the best weights (taps, phases) for a spectrum, and the largest error of a star."""
    frequency = torch.linspace(0.0, 0.5 / oversampling, len(spectrum), dtype=torch.float64)
    power = (spectrum**2 + 1e-8 * float(spectrum.max()) ** 2)[:, None, None]
    phase = torch.arange(n_phases, dtype=torch.float64) / n_phases
    # Relative to the first tap; see `FrameSampler._locate`.
    taps = torch.arange(n_taps, dtype=torch.float64)
    target = phase + 0.5 * n_taps - 1.0
    angle = 2.0 * math.pi * frequency[:, None, None]
    among = (power * torch.cos(angle * (taps[:, None] - taps))).sum(dim=0)
    across = torch.stack([(power[:, 0] * torch.cos(angle[:, 0] * (tap - target))).sum(dim=0) for tap in taps])
    among += 1e-12 * float(among[0, 0]) * torch.eye(n_taps, dtype=torch.float64)
    weights = torch.linalg.solve(among, across)
    if n_phases > 64:
        return weights, math.nan
    waves = torch.exp(1j * angle * (taps[:, None] - target))
    error = ((waves * weights).sum(dim=1) - 1.0).abs()
    return weights, float(((spectrum[:, None] * error).sum(dim=0) / spectrum.sum()).max())
