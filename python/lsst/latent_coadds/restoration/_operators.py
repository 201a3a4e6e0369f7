# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The forward model: one latent image seen through many PSFs."""

from __future__ import annotations

__all__ = ("ConvolutionOperator", "transform_shape")

from collections.abc import Iterator

import numpy as np
import torch

from ._frames import images_to_latent
from ._kernels import good_fft_size
from ._psf_basis import psf_basis_degree, psf_basis_terms
from ._sampling import FrameSampler, Sample, coarsen, refine


class ConvolutionOperator:
    """Convolve one latent image with a kernel per exposure.

    Parameters
    ----------
    kernels : `torch.Tensor`, shape (T, k, k) or (T, J, k, k)
        Kernels, k odd. With J of them the kernel of a source changes with its
        position: it is the sum of the kernels times the terms of
        `psf_basis_terms`.
    shape : `tuple` [ `int`, `int` ]
        Shape (H, W) of the area that data cover, on the latent grid.
    margin : `int`
        Pixels by which the latent image extends past that area on each
        side, so that sources outside of the frame can explain light inside.
    padding : `int`, optional
        Additional zeros, for a latent image that is itself a convolution and
        reaches past its own edge by this much.
    chunk : `int`, optional
        Largest number of exposures to transform at once; chosen from the size
        by default, so that the work space stays near 8 MiB on a CPU, and near
        256 MiB elsewhere.
    extent : `tuple` [ `int`, `int` ], optional
        Shape of the whole latent area where ``shape`` is a part of it: the
        terms of varying kernels refer to it.
    origin : `tuple` [ `int`, `int` ], optional
        Where (row, column) that part begins.
    sampler : `FrameSampler`, optional
        Interpolates at the pixels of exposures that are not on the latent
        grid; predictions then have the shape of its exposures.
    reference : `torch.Tensor`, shape (T, J), optional
        Terms of a typical kernel of each exposure, which `power` and
        `square_weight` are those of. By default `power` is the mean over the
        latent area.

    Notes
    -----
    Latent images have shape ``latent_shape`` = (H + 2 margin, W + 2 margin).
    The transforms are padded such that nothing wraps around into the data.
    Kernel transforms are kept, so ``forward`` of all exposures costs J + T
    real transforms (and one more for J > 1), and so does ``adjoint``.

    A term of a varying kernel is as a source's position has it, not the
    pixel's that sees it, as for a real PSF. Outside of the latent area it is
    that of the nearest pixel inside.
    """

    def __init__(
        self,
        kernels: torch.Tensor,
        shape: tuple[int, int],
        *,
        margin: int = 0,
        padding: int = 0,
        chunk: int | None = None,
        extent: tuple[int, int] | None = None,
        origin: tuple[int, int] = (0, 0),
        sampler: FrameSampler | None = None,
        reference: torch.Tensor | None = None,
    ) -> None:
        if kernels.ndim == 3:
            kernels = kernels[:, None]
        size = kernels.shape[-1]
        half = size // 2
        self.n_exposures, self.n_terms = kernels.shape[:2]
        self.kernels = kernels
        self.shape = shape
        self.margin = margin
        self.padding = padding
        self.extent = extent or shape
        self.origin = origin
        self.latent_shape = (shape[0] + 2 * margin, shape[1] + 2 * margin)
        self.sampler = sampler
        self.reference = reference
        self.data_shape = shape if sampler is None else sampler.frame_shape
        shift = -half - margin
        if sampler is not None:
            padding += 2 * sampler.padding
            shift += sampler.padding
        self.fft_shape = height, width = transform_shape(shape, margin, size, padding)
        padded = kernels.new_zeros((*kernels.shape[:2], *self.fft_shape))
        padded[..., :size, :size] = kernels
        # Pixel (0, 0) of the area with data is latent pixel (margin, margin).
        self._transfer = torch.fft.rfft2(torch.roll(padded, (shift, shift), dims=(-2, -1)))
        self._terms, self._moments = self._make_terms(self.extent, origin)
        pixels = height * width
        # A processor is fastest with what its caches hold; a sampler holds one exposure.
        space = 2**23 if kernels.device.type == "cpu" else 2**28
        if sampler is not None and kernels.device.type == "cpu":
            chunk = chunk or 1
        self.chunk = chunk or max(1, min(self.n_exposures, space // (8 * kernels.element_size() * pixels)))

    def _make_terms(
        self, extent: tuple[int, int], origin: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return terms beyond the first (J - 1, h, w), and mean products of all (J, J)."""
        degree = psf_basis_degree(self.n_terms)
        axes = []
        for n, m, whole, start in zip(self.latent_shape, self.fft_shape, extent, origin, strict=True):
            pixel = np.arange(m)
            # What lies before the first pixel is wrapped to the end.
            pixel[(n + m) // 2 :] -= m
            axes.append(((pixel - self.margin + start) * (2.0 / max(1, whole - 1)) - 1.0).clip(-1.0, 1.0))
        v, u = (a.reshape(-1) for a in np.meshgrid(*axes, indexing="ij"))
        terms = np.moveaxis(psf_basis_terms(u, v, degree), -1, 0).reshape(self.n_terms, *self.fft_shape)
        inside = terms[:, : self.latent_shape[0], : self.latent_shape[1]].reshape(self.n_terms, -1)
        real = self._transfer.real
        return torch.from_numpy(terms[1:]).to(real), torch.from_numpy(inside @ inside.T / inside.shape[1]).to(
            real
        )

    def chunks(self) -> Iterator[slice]:
        """Iterate over slices of exposures that are transformed together."""
        for start in range(0, self.n_exposures, self.chunk):
            yield slice(start, min(start + self.chunk, self.n_exposures))

    def transform(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of latent images ``(..., *latent_shape)``."""
        return torch.fft.rfft2(latent, s=self.fft_shape, dim=(-2, -1))

    def lift(self, transform: torch.Tensor) -> torch.Tensor:
        """Return padded transforms (J, ...) of a latent image times each term.

        All exposures share them: make them once, then `predict`.
        """
        if self.n_terms == 1:
            return transform[None]
        image = torch.fft.irfft2(transform, s=self.fft_shape, dim=(-2, -1))
        return torch.cat([transform[None], torch.fft.rfft2(self._terms * image, dim=(-2, -1))])

    def lower(self, lifted: torch.Tensor) -> torch.Tensor:
        """Apply the adjoint of `lift`."""
        if self.n_terms == 1:
            return lifted[0]
        images = torch.fft.irfft2(lifted[1:], s=self.fft_shape, dim=(-2, -1))
        return lifted[0] + torch.fft.rfft2((self._terms * images).sum(dim=0), dim=(-2, -1))

    def predict(self, lifted: torch.Tensor, which: slice) -> torch.Tensor:
        """Return exposures ``which`` ``(n, *data_shape)`` for a lifted latent image."""
        product = self._transfer[which, 0] * lifted[0]
        for j in range(1, self.n_terms):
            product = torch.addcmul(product, self._transfer[which, j], lifted[j])
        if self.sampler is not None:
            return self._sample(self.sampler, product, which)
        full = torch.fft.irfft2(product, s=self.fft_shape, dim=(-2, -1))
        return full[..., : self.shape[0], : self.shape[1]]

    def _sample(self, sampler: FrameSampler, product: torch.Tensor, which: slice) -> torch.Tensor:
        """Return exposures at their own pixels from transforms of convolved images."""
        images = []
        for t, transform in zip(range(which.start, which.stop), product, strict=True):
            fine = refine(transform, self.fft_shape, sampler.fine_shape(t, self.fft_shape))
            images.append(Sample.apply(fine, sampler, t))
        return torch.stack(images)

    def _spread(self, sampler: FrameSampler, data: torch.Tensor, which: slice) -> torch.Tensor:
        """Apply the adjoint of `_sample`."""
        transforms = []
        for t, plane in zip(range(which.start, which.stop), data, strict=True):
            fine = sampler.spread(plane, t, sampler.fine_shape(t, self.fft_shape))
            transforms.append(coarsen(fine, self.fft_shape))
        return torch.stack(transforms)

    def back_project(
        self, data: torch.Tensor, which: slice, *, into: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the adjoint of `predict` applied to exposures ``which``.

        What all exposures give is to be summed, then to be passed to `lower`.
        It is added to ``into`` in place where that is given.
        """
        if self.sampler is None:
            seen = torch.fft.rfft2(data, s=self.fft_shape, dim=(-2, -1))
        else:
            seen = self._spread(self.sampler, data, which)
        if into is None:
            into = seen.new_zeros((self.n_terms, *seen.shape[1:]))
        for plane, transfers in zip(seen, self._transfer[which], strict=True):
            into.addcmul_(plane, transfers.conj())
        return into

    def untransform(self, transform: torch.Tensor) -> torch.Tensor:
        """Return the latent image of a transform that was summed up."""
        full = torch.fft.irfft2(transform, s=self.fft_shape, dim=(-2, -1))
        return full[..., : self.latent_shape[0], : self.latent_shape[1]]

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Predict all exposures, ``(T, *data_shape)``, from a latent image."""
        lifted = self.lift(self.transform(latent))
        return torch.cat([self.predict(lifted, which) for which in self.chunks()])

    def adjoint(self, data: torch.Tensor) -> torch.Tensor:
        """Apply the adjoint of `forward` to exposures ``(T, *data_shape)``."""
        return self.untransform(self.adjoint_transform(data))

    def adjoint_transform(self, data: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of what `adjoint` returns, with what lies beyond the latent area."""
        total: torch.Tensor | None = None
        for which in self.chunks():
            total = self.back_project(data[which], which, into=total)
        assert total is not None
        return self.lower(total)

    def power(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the transform of the sum of weighted autocorrelations.

        Parameters
        ----------
        weights : `torch.Tensor`, shape (T,)
            Weight of each exposure.

        Notes
        -----
        For kernels that vary it is the mean over the latent area, or that of
        the typical kernels where these were given. Sampling at the pixels of
        exposures, and its adjoint, multiply a smooth image with the area of
        these pixels.
        """
        weights = weights * self.gains.to(weights)
        total = torch.zeros_like(self._transfer[0, 0].real)
        for t, (weight, transfers) in enumerate(zip(weights.tolist(), self._transfer, strict=True)):
            if self.reference is not None:
                typical = self._typical(t)
                total += weight * (typical.real**2 + typical.imag**2)
                continue
            for j, transfer in enumerate(transfers):
                mixed = (self._moments[j, :, None, None] * transfers).sum(dim=0)
                total += weight * (transfer.real * mixed.real + transfer.imag * mixed.imag)
        return total

    def _typical(self, t: int) -> torch.Tensor:
        """Return the transform of a typical kernel of exposure ``t``, by default the first term."""
        if self.reference is None:
            return self._transfer[t, 0]
        return torch.tensordot(self.reference[t].to(self._transfer), self._transfer[t], dims=1)

    def square_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the sum over pixels of weights times squared kernels.

        Parameters
        ----------
        weight : `torch.Tensor`, shape ``(T, *data_shape)``
            Weight of each pixel.

        Returns
        -------
        total : `torch.Tensor`, shape ``latent_shape``
            Diagonal of the curvature of a weighted sum of squares, for
            typical kernels, or the first terms of kernels that vary.
        """
        total = torch.zeros_like(self._transfer[0, 0])
        for t in range(self.n_exposures):
            which = slice(t, t + 1)
            kernel = torch.fft.irfft2(self._typical(t), s=self.fft_shape)
            square = torch.fft.rfft2(kernel.square_())
            if self.sampler is None:
                seen = torch.fft.rfft2(weight[t], s=self.fft_shape)
            else:
                # A pixel of the exposure has the light of as many latent pixels.
                seen = self._spread(self.sampler, weight[which] * self.sampler.areas(t), which)[0]
            total += seen * square.conj()
        return self.untransform(total)

    def areas(self, which: slice) -> torch.Tensor:
        """Return the areas in latent pixels of the pixels of exposures, (n, h, w) or (1, 1, 1)."""
        if self.sampler is None:
            return self._transfer.real.new_ones((1, 1, 1))
        return torch.stack([self.sampler.areas(t) for t in range(which.start, which.stop)])

    @property
    def gains(self) -> torch.Tensor:
        """Latent pixels per pixel of each exposure, shape (T,)."""
        ones = self._transfer.real.new_ones(self.n_exposures)
        return ones if self.sampler is None else ones.new_tensor(self.sampler.gains)

    def register(self, images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return exposures without gaps on the latent grid, (T, H, W); see `images_to_latent`."""
        return images_to_latent(None if self.sampler is None else self.sampler.frames, images, weights)

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
        y = torch.randn((self.n_exposures, *self.data_shape), generator=generator, dtype=torch.float64).to(
            real
        )
        left = (self.forward(x) * y).sum()
        right = (x * self.adjoint(y)).sum()
        scale = torch.linalg.vector_norm(self.forward(x)) * torch.linalg.vector_norm(y)
        return float((left - right).abs() / scale)


def transform_shape(shape: tuple[int, int], margin: int, size: int, padding: int) -> tuple[int, int]:
    """Return the shape of transforms of an area (H, W), for kernels of ``size`` pixels."""
    height, width = (good_fft_size(max(n + margin + max(margin, size // 2) + padding, size)) for n in shape)
    return height, width
