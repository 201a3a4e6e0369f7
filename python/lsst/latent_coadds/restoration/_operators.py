# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The forward model: one latent image seen through many PSFs."""

from __future__ import annotations

__all__ = ("ConvolutionOperator",)

from collections.abc import Iterator

import torch

from ._kernels import good_fft_size


class ConvolutionOperator:
    """Convolve one latent image with a kernel per exposure.

    Parameters
    ----------
    kernels : `torch.Tensor`, shape (T, k, k)
        Kernels, k odd.
    shape : `tuple` [ `int`, `int` ]
        Shape (H, W) of an exposure.
    margin : `int`
        Pixels by which the latent image extends past the exposures on each
        side, so that sources outside of the frame can explain light inside.
    padding : `int`, optional
        Additional zeros, for a latent image that is itself a convolution and
        reaches past its own edge by this much.
    chunk : `int`, optional
        Largest number of exposures to transform at once; chosen from the size
        by default, so that the work space stays near 256 MiB.

    Notes
    -----
    Latent images have shape ``latent_shape`` = (H + 2 margin, W + 2 margin).
    The transforms are padded such that nothing wraps around into the data.
    Kernel transforms are kept, so ``forward`` of all exposures costs 1 + T
    real transforms, and so does ``adjoint``.
    """

    def __init__(
        self,
        kernels: torch.Tensor,
        shape: tuple[int, int],
        *,
        margin: int = 0,
        padding: int = 0,
        chunk: int | None = None,
    ) -> None:
        size = kernels.shape[-1]
        half = size // 2
        self.n_exposures = kernels.shape[0]
        self.shape = shape
        self.margin = margin
        self.latent_shape = (shape[0] + 2 * margin, shape[1] + 2 * margin)
        height, width = (good_fft_size(max(n + margin + max(margin, half) + padding, size)) for n in shape)
        self.fft_shape = (height, width)
        padded = kernels.new_zeros((kernels.shape[0], *self.fft_shape))
        padded[:, :size, :size] = kernels
        # Data pixel (0, 0) is latent pixel (margin, margin).
        shift = -half - margin
        self._transfer = torch.fft.rfft2(torch.roll(padded, (shift, shift), dims=(-2, -1)))
        pixels = self.fft_shape[0] * self.fft_shape[1]
        self.chunk = chunk or max(1, min(self.n_exposures, 2**28 // (8 * kernels.element_size() * pixels)))

    def chunks(self) -> Iterator[slice]:
        """Iterate over slices of exposures that are transformed together."""
        for start in range(0, self.n_exposures, self.chunk):
            yield slice(start, min(start + self.chunk, self.n_exposures))

    def transform(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of latent images (..., *latent_shape)."""
        return torch.fft.rfft2(latent, s=self.fft_shape, dim=(-2, -1))

    def predict(self, transform: torch.Tensor, which: slice) -> torch.Tensor:
        """Return exposures ``which`` (n, H, W) for a transformed latent image."""
        full = torch.fft.irfft2(self._transfer[which] * transform, s=self.fft_shape, dim=(-2, -1))
        return full[..., : self.shape[0], : self.shape[1]]

    def back_project(self, data: torch.Tensor, which: slice) -> torch.Tensor:
        """Return the transform of the adjoint applied to exposures ``which``."""
        return (torch.fft.rfft2(data, s=self.fft_shape, dim=(-2, -1)) * self._transfer[which].conj()).sum(
            dim=0
        )

    def untransform(self, transform: torch.Tensor) -> torch.Tensor:
        """Return the latent image of a transform that was summed up."""
        full = torch.fft.irfft2(transform, s=self.fft_shape, dim=(-2, -1))
        return full[..., : self.latent_shape[0], : self.latent_shape[1]]

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Predict all exposures, (T, H, W), from a latent image."""
        transform = self.transform(latent)
        return torch.cat([self.predict(transform, which) for which in self.chunks()])

    def adjoint(self, data: torch.Tensor) -> torch.Tensor:
        """Apply the adjoint of `forward` to exposures (T, H, W)."""
        total: torch.Tensor | float = 0.0
        for which in self.chunks():
            total = total + self.back_project(data[which], which)
        assert isinstance(total, torch.Tensor)
        return self.untransform(total)

    def power(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the transform of the sum of weighted autocorrelations.

        Parameters
        ----------
        weights : `torch.Tensor`, shape (T,)
            Weight of each exposure.
        """
        total = torch.zeros_like(self._transfer[0].real)
        for weight, transfer in zip(weights.tolist(), self._transfer, strict=True):
            total += weight * (transfer.real**2 + transfer.imag**2)
        return total

    def crop(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the part (..., H, W) of latent images that has data."""
        m = self.margin
        return latent[..., m : m + self.shape[0], m : m + self.shape[1]]

    def extend(self, image: torch.Tensor) -> torch.Tensor:
        """Return latent images that repeat the edge of (..., H, W) images."""
        m = self.margin
        if m == 0:
            return image.clone()
        flat = image.reshape(-1, 1, *self.shape)
        flat = torch.nn.functional.pad(flat, (m, m, m, m), mode="replicate")
        return flat.reshape(*image.shape[:-2], *self.latent_shape)

    def adjointness_test(self, generator: torch.Generator) -> float:
        """Return the relative difference of <A x, y> and <x, A' y>.

        Parameters
        ----------
        generator : `torch.Generator`
            Source of the random ``x`` and ``y``, on the CPU.
        """
        real = self._transfer.real
        x = torch.randn(self.latent_shape, generator=generator, dtype=torch.float64).to(real)
        y = torch.randn((self.n_exposures, *self.shape), generator=generator, dtype=torch.float64).to(real)
        left = (self.forward(x) * y).sum()
        right = (x * self.adjoint(y)).sum()
        scale = torch.linalg.vector_norm(self.forward(x)) * torch.linalg.vector_norm(y)
        return float((left - right).abs() / scale)
