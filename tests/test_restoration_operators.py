# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of kernels, operators and the data term."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    ConvolutionOperator,
    HuberFidelity,
    convolve,
    gaussian_kernel,
    good_fft_size,
    matching_kernels,
    remaining_kernel,
)
from lsst.latent_coadds.restoration._holes import fill_holes

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random_kernels(n: int, k: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand((n, k, k), generator=torch.Generator().manual_seed(1), dtype=dtype)


def slow_convolution(latent: np.ndarray, kernel: np.ndarray, margin: int) -> np.ndarray:
    """Convolve by shifting and adding; nothing outside of the latent image."""
    half = kernel.shape[0] // 2
    padded = np.pad(latent, half)
    height, width = latent.shape
    total = np.zeros_like(latent)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            y, x = kernel.shape[0] - 1 - i, kernel.shape[1] - 1 - j
            total += kernel[i, j] * padded[y : y + height, x : x + width]
    return total[margin : height - margin, margin : width - margin]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "k", "margin"), [((20, 31), 9, 0), ((20, 31), 9, 4), ((9, 8), 21, 6)])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_adjoint(device: str, shape: tuple[int, int], k: int, margin: int, chunk: int) -> None:
    operator = ConvolutionOperator(random_kernels(3, k).to(device), shape, margin=margin, chunk=chunk)
    assert operator.adjointness_test(torch.Generator().manual_seed(2)) < 1e-12


@pytest.mark.parametrize(("margin", "k"), [(0, 9), (3, 9), (8, 9), (2, 25)])
def test_forward_does_not_wrap(margin: int, k: int) -> None:
    kernels = random_kernels(2, k)
    operator = ConvolutionOperator(kernels, (17, 22), margin=margin)
    latent = torch.rand(
        operator.latent_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    for t in range(2):
        expected = slow_convolution(latent.numpy(), kernels[t].numpy(), margin)
        np.testing.assert_allclose(operator.forward(latent)[t].numpy(), expected, atol=1e-12)


def test_crop_undoes_extend() -> None:
    operator = ConvolutionOperator(random_kernels(1, 5), (6, 7), margin=2)
    image = torch.arange(42.0).reshape(6, 7)
    assert operator.extend(image).shape == operator.latent_shape
    torch.testing.assert_close(operator.crop(operator.extend(image)), image)


def test_good_fft_size() -> None:
    assert [good_fft_size(n) for n in (1, 7, 31, 97, 1021)] == [2, 8, 32, 100, 1024]


def test_gaussian_kernel_has_its_width() -> None:
    kernel = gaussian_kernel(4.0, 41)
    offset = torch.arange(41, dtype=torch.float64) - 20
    variance = float((kernel.sum(dim=0) * offset**2).sum())
    assert math.sqrt(variance * 8.0 * math.log(2.0)) == pytest.approx(4.0, rel=1e-6)
    assert float(kernel[20, 22] / kernel[20, 20]) == pytest.approx(0.5)


@pytest.mark.parametrize("fwhm", [3.0, 4.5, 6.0])
def test_matching_kernels_make_moffats(fwhm: float) -> None:
    beta = 3.0
    alpha = fwhm / (2.0 * math.sqrt(2.0 ** (1.0 / beta) - 1.0))
    offset = torch.arange(41, dtype=torch.float64) - 20
    psf = (1.0 + (offset[:, None] ** 2 + offset[None, :] ** 2) / alpha**2) ** -beta
    psf = (psf / psf.sum())[None]
    kernels = matching_kernels(psf, 2.0)
    again = convolve(kernels, gaussian_kernel(2.0, 21))
    assert float((again - psf).abs().max() / psf.max()) < 2e-3
    assert float(kernels.sum()) == pytest.approx(1.0, abs=0.01)
    assert float(kernels.clamp_max(0.0).sum()) > -0.01


def test_delta_psf_is_kept() -> None:
    delta = torch.zeros((1, 1, 1)) + 1.0
    torch.testing.assert_close(matching_kernels(delta, 0.0), delta.double())
    wide = torch.zeros((1, 11, 11))
    wide[0, 5, 5] = 1.0
    torch.testing.assert_close(matching_kernels(wide, 0.0), wide.double())


@pytest.mark.parametrize("delta", [0.5, 3.0])
def test_huber_gradient(delta: float) -> None:
    generator = torch.Generator().manual_seed(4)
    data, model = torch.randn((2, 3, 5, 6), generator=generator, dtype=torch.float64) * 4.0
    inverse_sigma = torch.rand((3, 5, 6), generator=generator, dtype=torch.float64)
    inverse_sigma[0, 2] = 0.0
    fidelity = HuberFidelity(data, inverse_sigma, delta)
    model.requires_grad_()
    value = fidelity.value(fidelity.residual(model, slice(0, 3)))
    (expected,) = torch.autograd.grad(value, model)
    got, gradient = fidelity.value_and_gradient(model.detach().clone(), slice(0, 3))
    torch.testing.assert_close(got, value.detach())
    torch.testing.assert_close(gradient, expected)
    assert bool((gradient[0, 2] == 0).all())
    r = np.abs(((model.detach() - data) * inverse_sigma).numpy())
    closed = np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).sum()
    assert float(got) == pytest.approx(closed)


def test_huber_weight() -> None:
    fidelity = HuberFidelity(torch.zeros(1, 1, 3), torch.ones(1, 1, 3), 2.0)
    weight = fidelity.weight(torch.tensor([[[1.0, -4.0, 200.0]]]))
    torch.testing.assert_close(weight, torch.tensor([[[1.0, 0.5, 0.01]]]))


def test_holes_are_filled_with_the_star_behind() -> None:
    psf = gaussian_kernel(4.0, 31)
    scene = torch.zeros((64, 64), dtype=torch.float64)
    scene[30, 33] = 5000.0
    image = convolve(scene, psf)
    variance = torch.full_like(image, 0.01)
    variance[27:34, 30:37] = torch.inf
    holed = torch.where(torch.isfinite(variance), image, torch.zeros_like(image))
    filled = fill_holes(holed, variance, psf)
    assert float((filled - image).abs().max() / image.max()) < 0.1
    torch.testing.assert_close(filled[:20], image[:20])


@pytest.mark.parametrize(("fwhm", "spread"), [(2.0, 0.0), (2.0, 1.18), (2.0, 1.4), (3.0, 1.0)])
def test_remaining_kernel_completes_a_sampled_gaussian(fwhm: float, spread: float) -> None:
    narrow = torch.nn.functional.pad(gaussian_kernel(spread, 9), (20, 20, 20, 20))
    completed = convolve(narrow, remaining_kernel(fwhm, spread))
    expected = gaussian_kernel(fwhm, 49)
    assert float((completed - expected).abs().max()) < 1e-5 * float(expected.max())
