# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Coefficients of one scale of the latent image."""

from __future__ import annotations

__all__ = ("Component",)

import math

import torch

from ._kernels import FWHM_PER_SIGMA, centred_rfft2, gaussian_kernel, value_at_origin
from ._operators import ConvolutionOperator

_COARSE_SCALE = 2.0
"""Gaussians of at least this standard deviation (px) stand on every second
pixel: their transform has fallen below 1e-2 where that grid ends.
"""


class Component:
    """Coefficients of one scale, on the latent grid or on every second pixel of it.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        The forward model.
    curvature : `torch.Tensor`
        Transform of the curvature, real.
    scale : `float`
        Standard deviation of its Gaussians in pixels; 0 is a point.
    start : `int`
        Where its coefficients begin among those of all components.
    origin : `tuple` [ `int`, `int` ]
        Where the latent image begins on the grid of all tiles.
    """

    def __init__(
        self,
        operator: ConvolutionOperator,
        curvature: torch.Tensor,
        scale: float,
        start: int,
        origin: tuple[int, int],
    ) -> None:
        self.step = 2 if scale >= _COARSE_SCALE else 1
        # Tiles that overlap have their coarse pixels at the same places.
        first = [-o % self.step for o in origin]
        self.places = (slice(first[0], None, self.step), slice(first[1], None, self.step))
        height, width = (-(-(n - f) // self.step) for n, f in zip(operator.latent_shape, first, strict=True))
        self.shape = (height, width)
        self.part = slice(start, start + self.shape[0] * self.shape[1])
        height, width = (n // self.step for n in operator.fft_shape)
        self.fft_shape = (height, width)
        size = min(2 * math.ceil(5.0 * scale) + 1, (min(operator.fft_shape) - 1) // 2 * 2 + 1)
        kernel = gaussian_kernel(FWHM_PER_SIGMA * scale, size).to(curvature.device)
        profile = centred_rfft2(kernel, operator.fft_shape).real.to(curvature)
        self.noise = float(value_at_origin(curvature * profile**2, operator.fft_shape).clamp_min(0.0).sqrt())
        self.largest = float(curvature[0, 0] * profile[0, 0] ** 2) / self.step**2
        self._above, self._below = (height + 1) // 2, height // 2
        self._columns = width // 2 + 1
        profile = self._low(profile).clone()
        if self.step > 1:
            # The highest frequency of an even grid stands for two.
            if height % 2 == 0:
                profile[self._above] = 0.0
            if width % 2 == 0:
                profile[:, -1] = 0.0
        self._profile = profile.to(torch.complex64 if profile.dtype == torch.float32 else torch.complex128)
        if any(first):
            rows = torch.fft.fftfreq(height, d=self.step, dtype=torch.float64)[:, None] * first[0]
            columns = torch.fft.rfftfreq(width, d=self.step, dtype=torch.float64)[None] * first[1]
            self._profile *= torch.exp(-2j * math.pi * (rows + columns)).to(self._profile)
        self._adjoint = self._profile.conj().resolve_conj()
        self._is_point = scale == 0.0

    def _low(self, transform: torch.Tensor) -> torch.Tensor:
        """Return the frequencies of a full transform that this grid has."""
        if self.step == 1:
            return transform
        return torch.cat(
            [transform[: self._above, : self._columns], transform[-self._below :, : self._columns]]
        )

    def add(self, z: torch.Tensor, total: torch.Tensor | None) -> torch.Tensor:
        """Add the padded transform of the light of coefficients (N,)."""
        own = torch.fft.rfft2(z[self.part].view(self.shape), s=self.fft_shape)
        if not self._is_point:
            own *= self._profile
        if self.step == 1:
            return own if total is None else total.add_(own)
        assert total is not None, "The first component has the full grid."
        total[: self._above, : self._columns] += own[: self._above]
        total[-self._below :, : self._columns] += own[self._above :]
        return total

    def project(self, transform: torch.Tensor, out: torch.Tensor) -> None:
        """Write the adjoint of `add` to coefficients (N,)."""
        low = self._low(transform)
        if not self._is_point:
            low = low * self._adjoint
        full = torch.fft.irfft2(low, s=self.fft_shape)
        part = out[self.part].view(self.shape)
        torch.mul(full[: self.shape[0], : self.shape[1]], 1.0 / self.step**2, out=part)

    def index(self, corner: tuple[int, int], shape: tuple[int, int]) -> torch.Tensor:
        """Return the numbers of the coefficients of a part of the latent image.

        Parameters
        ----------
        corner : `tuple` [ `int`, `int` ]
            Where (row, column) the part begins, even numbers.
        shape : `tuple` [ `int`, `int` ]
            Shape of its coefficients.
        """
        rows, columns = (
            torch.arange(n, device=self._profile.device) + c // self.step
            for n, c in zip(shape, corner, strict=True)
        )
        return (self.part.start + rows[:, None] * self.shape[1] + columns).reshape(-1)
