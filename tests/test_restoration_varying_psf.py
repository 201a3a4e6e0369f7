# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of PSFs that change with position."""

from __future__ import annotations

import galsim
import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    ConvolutionOperator,
    ExposureStack,
    InvalidStackError,
    convolve,
    fit_psf_basis,
    gaussian_kernel,
    matching_kernels,
    psf_basis_terms,
    restore,
)

SIZE = 90
STAMP = 41


def psf_at(x: float, y: float, t: int) -> galsim.GSObject:
    """A PSF in pixels; its FWHM changes by 10 % over three times the field, not quite linearly."""
    u, v = 2 * x / (SIZE - 1) - 1, 2 * y / (SIZE - 1) - 1
    slope = (0.9, -0.5) if t == 0 else (-0.3, 1.0)
    across = (slope[0] * u + slope[1] * v) / 3.0
    fwhm = (4.0 + t) * (1 + 0.05 * across + 0.02 * across**2)
    return galsim.Moffat(beta=3.0, fwhm=fwhm).shear(g1=0.03 + 0.03 * across, g2=-0.02 * across)


def stamp_at(x: float, y: float, t: int) -> np.ndarray:
    return psf_at(x, y, t).drawImage(nx=STAMP, ny=STAMP, scale=1.0).array.astype(float)


def basis(t: int, degree: int = 2) -> np.ndarray:
    line = np.linspace(0, SIZE - 1, 4)
    points = np.array([(x, y) for y in line for x in line])
    stamps = np.stack([stamp_at(x, y, t) for x, y in points])
    stamps /= stamps.sum(axis=(1, 2), keepdims=True)
    return fit_psf_basis(stamps, *(2 * points / (SIZE - 1) - 1).T, degree=degree, tolerance=0.0)[0]


@pytest.mark.parametrize("n_terms", [1, 3, 6])
@pytest.mark.parametrize(("margin", "padding"), [(0, 0), (5, 3)])
def test_adjoint(n_terms: int, margin: int, padding: int) -> None:
    generator = torch.Generator().manual_seed(1)
    kernels = torch.randn((3, n_terms, 9, 9), generator=generator, dtype=torch.float64)
    operator = ConvolutionOperator(kernels, (20, 31), margin=margin, padding=padding, chunk=2)
    assert operator.adjointness_test(torch.Generator().manual_seed(2)) < 1e-12


def test_lift_and_lower_are_adjoint() -> None:
    generator = torch.Generator().manual_seed(1)
    kernels = torch.randn((2, 6, 7, 7), generator=generator, dtype=torch.float64)
    operator = ConvolutionOperator(kernels, (16, 18), margin=3, padding=4)
    x, *ys = torch.randn((7, *operator.fft_shape), generator=generator, dtype=torch.float64)
    y = torch.stack(ys)
    lifted = torch.fft.irfft2(operator.lift(torch.fft.rfft2(x)), s=operator.fft_shape)
    lowered = torch.fft.irfft2(operator.lower(torch.fft.rfft2(y)), s=operator.fft_shape)
    assert float((lifted * y).sum()) == pytest.approx(float((x * lowered).sum()), rel=1e-12)


def test_sum_of_shifted_kernels() -> None:
    """The kernel of a source is that of its own position, clamped outside."""
    generator = torch.Generator().manual_seed(3)
    kernels = torch.randn((2, 6, 5, 5), generator=generator, dtype=torch.float64)
    height, width, margin = 14, 17, 4
    operator = ConvolutionOperator(kernels, (height, width), margin=margin)
    for row, column in ((0, 0), (7, 9), (13, 16), (-3, 5), (15, 18)):
        latent = torch.zeros(operator.latent_shape, dtype=torch.float64)
        latent[row + margin, column + margin] = 1.0
        u = np.clip(2 * column / (width - 1) - 1, -1, 1)
        v = np.clip(2 * row / (height - 1) - 1, -1, 1)
        terms = torch.from_numpy(psf_basis_terms(np.array([u]), np.array([v]), 2)[0])
        expected = np.zeros((2, height + 20, width + 20))
        stamps = (terms[:, None, None] * kernels).sum(dim=1).numpy()
        expected[:, row + 8 : row + 13, column + 8 : column + 13] = stamps
        np.testing.assert_allclose(operator.forward(latent), expected[:, 10:-10, 10:-10], atol=1e-12)


def test_part_of_the_area() -> None:
    generator = torch.Generator().manual_seed(4)
    kernels = torch.randn((2, 3, 5, 5), generator=generator, dtype=torch.float64)
    whole = ConvolutionOperator(kernels, (20, 24))
    part = ConvolutionOperator(kernels, (10, 12), extent=(20, 24), origin=(6, 8))
    latent = torch.zeros((20, 24), dtype=torch.float64)
    latent[9:13, 11:17] = torch.randn((4, 6), generator=generator, dtype=torch.float64)
    seen = part.forward(latent[6:16, 8:20])
    torch.testing.assert_close(seen, whole.forward(latent)[:, 6:16, 8:20])


@pytest.mark.parametrize("t", [0, 1])
def test_against_drawn_stars(t: int) -> None:
    """A quadratic basis is right to 0.1 % of the peak, one PSF for all is not."""
    positions = [(12, 15), (44, 45), (70, 20), (25, 74), (74, 73)]
    errors = {}
    for degree in (0, 2):
        operator = ConvolutionOperator(torch.from_numpy(basis(t, degree))[None], (SIZE, SIZE), margin=4)
        worst = 0.0
        for x, y in positions:
            latent = torch.zeros(operator.latent_shape, dtype=torch.float64)
            latent[y + 4, x + 4] = 1.0
            drawn = galsim.ImageD(SIZE, SIZE, scale=1.0)
            psf_at(x, y, t).drawImage(image=drawn, center=galsim.PositionD(x + 1, y + 1))
            box = np.s_[max(0, y - 15) : y + 16, max(0, x - 15) : x + 16]
            truth = drawn.array / stamp_at(x, y, t).sum()
            worst = max(worst, np.abs(operator.forward(latent)[0].numpy() - truth)[box].max() / truth.max())
        errors[degree] = worst
    assert errors[2] < 1e-3 < errors[0]


def test_division_acts_on_each_basis_image() -> None:
    psf = torch.from_numpy(np.stack([basis(0), basis(1)]))
    kernels = matching_kernels(psf, 2.0)
    terms = torch.from_numpy(psf_basis_terms(np.array([0.7]), np.array([-0.4]), 2)[0])[:, None, None]
    at_place = (terms * kernels).sum(dim=1)
    again = convolve(at_place, gaussian_kernel(2.0, 21))
    expected = (terms * psf).sum(dim=1)
    assert float((again - expected).abs().max() / expected.max()) < 2e-3
    assert float(at_place.sum(dim=(-2, -1)).min()) == pytest.approx(1.0, abs=0.01)


def draw(flux: float, positions: np.ndarray, noise: float, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    planes = []
    for t in range(2):
        plane = galsim.ImageD(SIZE, SIZE, scale=1.0)
        for x, y in positions:
            profile = psf_at(x, y, t).withFlux(flux / stamp_at(x, y, t).sum())
            profile.drawImage(image=plane, center=galsim.PositionD(x + 1, y + 1), add_to_image=True)
        planes.append(plane.array + rng.normal(size=(SIZE, SIZE)) * noise)
    return np.stack(planes)


def test_restored_stars_have_one_width() -> None:
    positions = np.array([(16.0, 18.0), (70.0, 22.0), (20.0, 71.0), (72.0, 70.0), (45.0, 44.0)])
    image = draw(2000.0, positions, 0.3)
    ones = np.ones(image.shape)
    psf = np.stack([basis(0), basis(1)])
    result = restore(ExposureStack(image, 0.09 * ones, ones > 0, psf), "imagemm", n_realizations=1)
    fluxes = []
    for x, y in positions.astype(int):
        box = result.image[y - 7 : y + 8, x - 7 : x + 8].double()
        fluxes.append(float(box.sum()) / 2000.0)
    np.testing.assert_allclose(fluxes, 1.0, atol=0.015)
    assert float(result.chi2.max()) < 1.1


def test_autograd_passes() -> None:
    generator = torch.Generator().manual_seed(6)
    kernels = torch.randn((2, 3, 5, 5), generator=generator, dtype=torch.float64)
    operator = ConvolutionOperator(kernels, (12, 14), margin=2)
    latent = torch.randn(operator.latent_shape, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn((2, 12, 14), generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((operator.forward(latent) * weights).sum(), latent)
    torch.testing.assert_close(gradient, operator.adjoint(weights))


def test_basis_is_checked_and_normalised() -> None:
    image = np.ones((2, 8, 8))
    psf = np.stack([basis(0), basis(1)]) * 3.0
    psf[:, 2] += 0.001
    stack = ExposureStack(image, image, image > 0, psf)
    sums = stack.psf.sum(dim=(-2, -1))
    torch.testing.assert_close(sums[:, 0], torch.ones(2, dtype=sums.dtype))
    assert float(sums[:, 1:].abs().max()) < 1e-6
    assert stack.mean_psf.shape == (2, STAMP, STAMP)
    with pytest.raises(InvalidStackError, match="5 basis images"):
        ExposureStack(image, image, image > 0, psf[:, :5])


def test_typical_kernels_make_the_curvature() -> None:
    """Where typical places are given, curvature and mean PSF are those of parts alike."""
    image = np.ones((2, SIZE, SIZE))
    psf = np.stack([basis(0), basis(1)])
    places = np.array([[0.4, -1.2], [-0.3, 0.8]])
    stack = ExposureStack(image, image, image > 0, psf, reference=places, weights=[2.0, 0.5])
    stamps = [
        np.tensordot(psf_basis_terms(places[t, :1], places[t, 1:], 2)[0], psf[t], axes=1) for t in (0, 1)
    ]
    for t in (0, 1):
        np.testing.assert_allclose(stack.mean_psf[t].numpy(), stamps[t], atol=1e-7)
    assert stack.exposure_weights().tolist() == [2.0, 0.5]
    operator, fixed = (
        ConvolutionOperator(kernels, stack.shape, reference=reference)
        for kernels, reference in ((stack.psf, stack.reference_terms), (stack.mean_psf, None))
    )
    weights = stack.exposure_weights()
    for seen, expected in (
        (operator.power(weights), fixed.power(weights)),
        (operator.square_weight(stack.image), fixed.square_weight(stack.image)),
    ):
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    moved = stack.to(device="cpu", dtype=torch.float32)
    assert moved.exposure_weights().tolist() == [2.0, 0.5]
    assert moved.reference is stack.reference
    with pytest.raises(InvalidStackError, match="reference has shape"):
        ExposureStack(image, image, image > 0, psf, reference=places[:1])
    with pytest.raises(InvalidStackError, match="weights has shape"):
        ExposureStack(image, image, image > 0, psf, weights=[1.0, np.nan])
