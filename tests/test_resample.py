# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import galsim
import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import lanczos_resample, resample_psf

SCALE = 0.168


def _rotation(degrees: float, magnification: float = 1.0) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return magnification * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _star(fwhm: float) -> galsim.GSObject:
    # The pixel belongs to the profile, since it turns with the detector.
    return galsim.Convolve(galsim.Moffat(3.0, fwhm=fwhm).shear(g1=0.05), galsim.Pixel(SCALE))


def _draw(profile: galsim.GSObject, size: int, offset: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    image = profile.drawImage(nx=size, ny=size, scale=SCALE, method="no_pixel", offset=offset, dtype=float)
    return image.array


def _positions(jacobian: np.ndarray, size: int, center: float) -> tuple[torch.Tensor, torch.Tensor]:
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return (
        torch.from_numpy(jacobian[0, 0] * x + jacobian[0, 1] * y + center),
        torch.from_numpy(jacobian[1, 0] * x + jacobian[1, 1] * y + center),
    )


@pytest.mark.parametrize(("fwhm", "tolerance"), [(0.5, 0.006), (0.7, 0.002)])
def test_rotated_star_matches_galsim(fwhm: float, tolerance: float) -> None:
    jacobian = _rotation(33.0)
    offset = (0.3, -0.2)
    detector = torch.from_numpy(_draw(_star(fwhm) * 1000, 101, offset))
    ones = torch.ones_like(detector)
    result = lanczos_resample(detector, ones, ones.bool(), *_positions(jacobian, 61, 50.0))
    inverse = np.linalg.inv(jacobian)
    expected = _draw((_star(fwhm) * 1000).transform(*inverse.ravel()), 61, tuple(inverse @ np.array(offset)))
    assert np.abs(result.image.numpy() - expected).max() < tolerance * expected.max()
    assert result.good.all()


@pytest.mark.parametrize("magnification", [0.8, 1.0, 1.25])
def test_area_conserves_flux(magnification: float) -> None:
    jacobian = _rotation(-12.0, magnification)
    detector = torch.from_numpy(_draw(_star(0.8) * 1000, 151))
    ones = torch.ones_like(detector)
    positions = _positions(jacobian, 81, 75.0)
    result = lanczos_resample(detector, ones, ones.bool(), *positions, magnification**2)
    y, x = np.mgrid[:151, :151] - 75
    inside = float(detector.numpy()[np.hypot(x, y) < 39 * magnification].sum())
    y, x = np.mgrid[:81, :81] - 40
    assert float(result.image.numpy()[np.hypot(x, y) < 39].sum()) == pytest.approx(inside, rel=1e-3)


def test_psf_kernel_follows_the_affine() -> None:
    jacobian = _rotation(20.0, 1.1)
    kernel = _draw(_star(0.7), 51)
    result = resample_psf(torch.from_numpy(kernel), torch.from_numpy(jacobian), 41)
    expected = _draw(_star(0.7).transform(*np.linalg.inv(jacobian).ravel()), 41)
    expected /= expected.sum()
    assert float(result.sum()) == pytest.approx(1.0)
    assert np.abs(result.numpy() - expected).max() < 2e-3 * expected.max()


def test_identity_is_exact() -> None:
    image = torch.randn((20, 30), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    ones = torch.ones_like(image)
    result = lanczos_resample(image, ones, ones.bool(), x.double(), y.double())
    assert torch.allclose(result.image, image)
    assert result.covered.all()
    assert result.good.all()


def test_bad_pixels_and_edges() -> None:
    image = torch.ones((60, 60))
    good = torch.ones((60, 60), dtype=torch.bool)
    good[30, 30] = False
    image[30, 30] = torch.inf
    image = torch.where(good, image, torch.zeros(()))
    x, y = torch.meshgrid(torch.arange(-10.0, 70.0) + 0.4, torch.arange(-10.0, 70.0) + 0.4, indexing="xy")
    result = lanczos_resample(image, torch.ones_like(image), good, x, y)
    assert not result.covered[:8].any()
    assert not result.covered[:, -10:].any()
    assert not result.good[40, 40]
    assert result.covered[40, 40]
    assert result.good[50, 50]
    # Far enough from the bad pixel, and where it is filled, a constant stays.
    assert torch.allclose(result.image[result.good], torch.ones(()), atol=1e-5)
    assert (result.image[~result.good] == 0).all()


def test_variance_is_noise_power() -> None:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn((400, 400), generator=generator)
    ones = torch.ones_like(noise)
    y, x = torch.meshgrid(torch.arange(20.0, 380.0), torch.arange(20.0, 380.0), indexing="ij")
    result = lanczos_resample(noise, ones, ones.bool(), x + 0.5, y + 0.5)
    # Sums over 20 by 20 pixels scatter as the variance plane says, although
    # single pixels scatter less.
    sums = result.image.reshape(18, 20, 18, 20).sum(dim=(1, 3))
    assert float(sums.std()) / 20 == pytest.approx(1.0, abs=0.12)
    assert float(result.image.var()) == pytest.approx(float(result.pixel_variance_ratio.mean()), rel=0.03)
    assert float(result.image.var()) < 0.9
    assert float(result.variance.mean()) == 1.0


@pytest.mark.parametrize("spacing", [0.5, 0.9, 1.0, 1.05])
def test_noise_power_scales_with_area(spacing: float) -> None:
    # Sums over blocks wider than a PSF scatter as the variance plane says.
    noise = torch.randn((900, 900), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ones = torch.ones_like(noise)
    n, block = int(860 / spacing) // 16 * 16, 16
    line = torch.arange(n, dtype=torch.float64) * spacing + 20.3
    y, x = torch.meshgrid(line, line, indexing="ij")
    result = lanczos_resample(noise, ones, ones.bool(), x, y, spacing**2)
    sums = result.image.reshape(n // block, block, n // block, block).sum(dim=(1, 3))
    expected = block**2 * float(result.variance.mean())
    assert float(sums.var()) == pytest.approx(expected, rel=0.08)


def test_even_psf_is_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        resample_psf(torch.ones((10, 10)), torch.eye(2), 11)
    with pytest.raises(ValueError, match="positive"):
        resample_psf(-torch.ones((11, 11)), torch.eye(2), 11)
