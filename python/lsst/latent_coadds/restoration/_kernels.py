# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small convolution kernels: PSFs, target PSFs, and what joins them."""

from __future__ import annotations

__all__ = (
    "convolve",
    "gaussian_kernel",
    "good_fft_size",
    "matching_kernels",
    "remaining_kernel",
    "taper_window",
)

import functools
import math

import torch

FWHM_PER_SIGMA = math.sqrt(8.0 * math.log(2.0))
"""FWHM of a Gaussian over its standard deviation."""


@functools.cache
def good_fft_size(n: int) -> int:
    """Return the smallest even number from ``n`` on without a prime above 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and n % 2 == 0:
            return n
        n += 1


def gaussian_kernel(fwhm: float, size: int, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return a round Gaussian, sampled at pixel centres.

    Parameters
    ----------
    fwhm : `float`
        Full width at half maximum in pixels; 0 gives a delta function.
    size : `int`
        Odd width of the stamp.
    dtype : `torch.dtype`, optional
        Type of the result.

    Returns
    -------
    kernel : `torch.Tensor`, shape (size, size)
        Sums to one.
    """
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    if fwhm > 0.0:
        profile = torch.exp(-0.5 * (offset * (FWHM_PER_SIGMA / fwhm)) ** 2)
    else:
        profile = (offset == 0).to(torch.float64)
    kernel = profile[:, None] * profile[None, :]
    return (kernel / kernel.sum()).to(dtype)


def remaining_kernel(fwhm: float, spread: float) -> torch.Tensor:
    """Return the kernel that completes one sampled Gaussian to another.

    Parameters
    ----------
    fwhm : `float`
        FWHM of the Gaussian to reach, in pixels.
    spread : `float`
        FWHM of the Gaussian that there is, in pixels; smaller than ``fwhm``.

    Returns
    -------
    kernel : `torch.Tensor`, shape (k, k)
        float64, with a sum of one.

    Notes
    -----
    A quotient of discrete transforms. A Gaussian with the difference of the
    variances would not do: narrow Gaussians lose up to a third of their
    variance when they are sampled.
    """
    half = math.ceil(4.0 * fwhm)
    n = 4 * half
    wide, narrow = (centred_rfft2(gaussian_kernel(f, n - 1), (n, n)).real for f in (fwhm, spread))
    quotient = torch.roll(torch.fft.irfft2(wide / narrow, s=(n, n)), (half, half), dims=(-2, -1))
    kernel = quotient[: 2 * half + 1, : 2 * half + 1]
    return kernel / kernel.sum()


def taper_window(size: int, width: int) -> torch.Tensor:
    """Return a square window (size, size) that is 1 and falls to 0 outside.

    The fall is a half cosine in radius over the last ``width`` pixels before
    the inscribed circle that touches the edge plus one pixel.
    """
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    radius = torch.hypot(offset[:, None], offset[None, :])
    outer = size // 2 + 1.0
    phase = ((radius - (outer - width)) / width).clamp(0.0, 1.0)
    return 0.5 + 0.5 * torch.cos(math.pi * phase)


def centred_rfft2(kernel: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Transform stamps (..., k, k) with their centre at the origin."""
    k = kernel.shape[-1]
    padded = kernel.new_zeros((*kernel.shape[:-2], *shape))
    padded[..., :k, :k] = kernel
    return torch.fft.rfft2(torch.roll(padded, (-(k // 2), -(k // 2)), dims=(-2, -1)))


def value_at_origin(transform: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return the value at the origin of what was transformed with rfft2.

    Of an autocorrelation, that is the sum of squares.
    """
    return torch.fft.irfft2(transform, s=shape)[0, 0]


def matching_kernels(
    psf: torch.Tensor, fwhm: float, *, regularisation: float = 0.01, reference: torch.Tensor | None = None
) -> torch.Tensor:
    """Return kernels that turn a Gaussian of width ``fwhm`` into each PSF.

    Parameters
    ----------
    psf : `torch.Tensor`, shape (T, k, k) or (T, J, k, k)
        PSFs that sum to one, or basis images of which the first does.
    fwhm : `float`
        FWHM of the target Gaussian in pixels; 0 returns the tapered PSFs.
    regularisation : `float`, optional
        Amplitude of the target's transform (1 at zero frequency) below which
        the division is damped.
    reference : `torch.Tensor`, shape (T, J), optional
        Terms of the kernels that are normalised; by default the first ones.

    Returns
    -------
    kernels : `torch.Tensor`, shape of ``psf``
        float64; each PSF's sums to the PSF inside of the taper, just below
        one. They have small negative lobes.

    Notes
    -----
    The stamps are first tapered at their edge, and the quotients again: a
    step at the edge of a truncated stamp is a broad-band signal, which the
    division would turn into a ring around every bright star.
    """
    size = psf.shape[-1]
    if size < 3:
        return psf.to(torch.float64)
    window = taper_window(size, max(1, min(4, size // 6))).to(psf.device)
    stamps = psf.to(torch.float64) * window
    if fwhm <= 0.0:
        return stamps
    n = good_fft_size(4 * size)
    target = centred_rfft2(gaussian_kernel(fwhm, n - 1).to(psf.device), (n, n)).real
    source = centred_rfft2(stamps, (n, n))
    quotient = torch.fft.irfft2(source * target / (target**2 + regularisation**2), s=(n, n))
    half = size // 2
    quotient = torch.roll(quotient, (half, half), dims=(-2, -1))[..., :size, :size] * window
    before, after = (a.sum(dim=(-2, -1), keepdim=True) for a in (stamps, quotient))
    if psf.ndim == 4:
        share = torch.eye(psf.shape[1])[:1] if reference is None else reference
        before, after = (
            (share.to(a)[:, :, None, None] * a).sum(dim=1, keepdim=True) for a in (before, after)
        )
    return quotient * (before / after)


def convolve(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Convolve images (..., H, W) with one kernel (k, k); zero outside."""
    height, width = image.shape[-2:]
    shape = (good_fft_size(height + kernel.shape[-1]), good_fft_size(width + kernel.shape[-1]))
    transfer = centred_rfft2(kernel.to(image), shape)
    full = torch.fft.irfft2(torch.fft.rfft2(image, s=shape, dim=(-2, -1)) * transfer, s=shape, dim=(-2, -1))
    return full[..., :height, :width]
