# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measurements against profiles that GalSim draws or that have a closed form."""

from __future__ import annotations

from pathlib import Path

import galsim
import numpy as np
import pytest

from lsst.latent_coadds.qa import (
    aperture_flux,
    aperture_weights,
    comparison_figure,
    find_isolated,
    flux_statistics,
    format_table,
    measure_star,
    psf_flux,
    radial_profile,
    ring_depth,
    robust_rms,
    shift_kernel,
    weighted_flux,
)


def draw(
    profile: galsim.GSObject, x: float, y: float, *, n: int = 81, method: str = "no_pixel", flux: float = 1.0
) -> np.ndarray:
    image = galsim.ImageD(galsim.BoundsI(0, n - 1, 0, n - 1), scale=1.0)
    profile.withFlux(flux).drawImage(image, center=(x, y), method=method)
    return image.array


@pytest.mark.parametrize("radius", [1.3, 4.0, 9.7])
@pytest.mark.parametrize("center", [(20.0, 20.0), (20.4, 19.7)])
def test_aperture_has_the_area_of_its_circle(radius: float, center: tuple[float, float]) -> None:
    weights = aperture_weights((41, 41), *center, radius)
    np.testing.assert_allclose(weights.sum(), np.pi * radius**2, rtol=1e-2)
    assert weights.min() >= 0
    assert weights.max() <= 1


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.31, -0.44), (0.5, 0.5)])
@pytest.mark.parametrize("fwhm", [2.0, 3.7])
def test_fluxes_of_a_star_anywhere_in_its_pixel(offset: tuple[float, float], fwhm: float) -> None:
    psf = galsim.Gaussian(fwhm=fwhm)
    kernel = draw(psf, 15, 15, n=31)
    x, y = 40 + offset[0], 41 + offset[1]
    image = draw(psf, x, y, flux=1234.0)
    rtol = 1e-3
    for radius in (2.0, 4.0, 8.0):
        np.testing.assert_allclose(aperture_flux(image, x, y, radius, psf=kernel), 1234, rtol=rtol)
    variance = np.linspace(1, 2, image.size).reshape(image.shape)
    np.testing.assert_allclose(psf_flux(image, x, y, kernel), 1234, rtol=rtol)
    np.testing.assert_allclose(psf_flux(image, x, y, kernel, variance=variance), 1234, rtol=rtol)
    weight = draw(galsim.Gaussian(fwhm=6.0), 18, 18, n=37)
    np.testing.assert_allclose(weighted_flux(image, x, y, weight, kernel), 1234, rtol=rtol)


def test_fluxes_are_nan_where_they_cannot_be_measured() -> None:
    image = np.zeros((40, 40))
    kernel = draw(galsim.Gaussian(fwhm=3), 7, 7, n=15)
    assert np.isnan(aperture_flux(image, 2, 20, 5))
    assert np.isnan(psf_flux(image, 20, 37, kernel))
    assert np.isnan(weighted_flux(image, 20, 37, kernel, kernel))
    image[20, 20] = np.nan
    assert np.isnan(aperture_flux(image, 21, 20, 5))
    assert measure_star(image, 21, 20) is None
    assert measure_star(image, 1, 1) is None


@pytest.mark.parametrize(("fwhm", "g"), [(2.0, (0.0, 0.0)), (1.7, (0.1, -0.05)), (5.0, (0.0, 0.2))])
def test_a_gaussian_is_moved_exactly(fwhm: float, g: tuple[float, float]) -> None:
    psf = galsim.Gaussian(fwhm=fwhm).shear(g1=g[0], g2=g[1])
    kernel, moved = (
        psf.drawImage(nx=41, ny=41, scale=1, method="no_pixel", offset=o).array.astype(float)
        for o in ((0, 0), (0.43, -0.3))
    )
    np.testing.assert_allclose(shift_kernel(kernel, 0.43, -0.3), moved, atol=1e-5 * moved.max())


@pytest.mark.parametrize("peak", [-1.0, 0.0, 1.0])
def test_any_kernel_is_moved_by_whole_pixels(peak: float) -> None:
    kernel = np.zeros((15, 15))
    kernel[7, 7], kernel[6, 8] = peak, 0.5
    np.testing.assert_allclose(shift_kernel(kernel, 2, -1), np.roll(kernel, (-1, 2), (0, 1)), atol=1e-12)


def test_shifting_a_kernel_moves_it() -> None:
    psf = galsim.Moffat(beta=3, fwhm=4)
    shifted = shift_kernel(draw(psf, 20, 20, n=41), 0.3, -0.25)
    np.testing.assert_allclose(shifted, draw(psf, 20.3, 19.75, n=41), atol=2e-5)


@pytest.mark.parametrize("fwhm", [1.9, 2.0, 4.5])
@pytest.mark.parametrize("g", [(0.0, 0.0), (0.12, -0.05)])
def test_star_shape(fwhm: float, g: tuple[float, float]) -> None:
    psf = galsim.Gaussian(fwhm=fwhm).shear(g1=g[0], g2=g[1])
    image = draw(psf, 40.3, 39.8, flux=500.0) + 2.0
    shape = measure_star(image, 40, 40)
    assert shape is not None
    np.testing.assert_allclose([shape.x, shape.y], [40.3, 39.8], atol=1e-3)
    np.testing.assert_allclose(shape.fwhm, fwhm, rtol=1e-3)
    np.testing.assert_allclose(shape.ellipticity, np.hypot(*g), atol=1e-3)
    np.testing.assert_allclose(shape.background, 2.0, atol=1e-3)
    np.testing.assert_allclose(shape.peak, 500 * psf.xValue(0, 0), rtol=1e-3)


@pytest.mark.parametrize("center", [(40.3, 29.8), (2.4, 1.6), (79.2, 58.5)])
def test_radial_profile_is_the_mean_of_all_pixels_in_a_ring(center: tuple[float, float]) -> None:
    rng = np.random.default_rng(3)
    image = rng.normal(size=(60, 81))
    image[rng.random(image.shape) < 0.05] = np.nan
    x, y = center
    distance = np.hypot(*(np.indices(image.shape) - np.array([y, x])[:, None, None]))
    radii, means = radial_profile(image, x, y, 15.0, step=1.5)
    for i, (radius, mean) in enumerate(zip(radii, means, strict=True)):
        inside = (distance >= 1.5 * i) & (distance < 1.5 * (i + 1)) & (distance < 15.0) & np.isfinite(image)
        np.testing.assert_allclose(
            [radius, mean], [distance[inside].mean(), image[inside].mean()], atol=1e-12
        )


def test_radial_profile_and_rings() -> None:
    image = draw(galsim.Gaussian(fwhm=2.5), 40, 40, flux=1000.0)
    radii, means = radial_profile(image, 40, 40, 20)
    assert np.all(np.diff(radii) > 0)
    assert np.all(np.diff(means) <= 1e-12)
    peak = image.max()
    assert ring_depth(image, 40, 40, peak=peak, fwhm=2.5).depth < 1e-6
    distance = np.hypot(*np.indices(image.shape) - 40.0)
    ringed = image - 0.04 * peak * np.exp(-0.5 * ((distance - 6) / 1.0) ** 2)
    depth = ring_depth(ringed, 40, 40, peak=peak, fwhm=2.5)
    np.testing.assert_allclose(depth.negative, 0.04, rtol=0.15)
    halo = image + 0.03 * peak * np.exp(-0.5 * ((distance - 8) / 1.0) ** 2)
    depth = ring_depth(halo, 40, 40, peak=peak, fwhm=2.5)
    np.testing.assert_allclose(depth.rise, 0.03, rtol=0.15)
    assert depth.negative < 1e-6
    with pytest.raises(ValueError, match="No room"):
        ring_depth(image, 40, 40, peak=peak, fwhm=19.0)


def test_robust_rms_ignores_outliers() -> None:
    values = np.random.default_rng(1).normal(0, 3, 20000)
    values[:200] = 1e6
    values[200:300] = np.nan
    np.testing.assert_allclose(robust_rms(values), 3, rtol=0.04)
    assert np.isnan(robust_rms(np.array([np.nan])))


def test_flux_statistics_by_range() -> None:
    snr = np.array([5.0, 20, 20, 20, 20, 500])
    truth = np.full(6, 100.0)
    flux = np.array([0.0, 101, 103, 102, np.nan, 90])
    low, high = flux_statistics(flux, truth, snr, [10, 100, 1000])
    assert (low.n, high.n) == (3, 1)
    np.testing.assert_allclose([low.bias, low.scatter, high.bias], [0.02, 0.014826, -0.1])
    assert np.isnan(high.scatter)


def test_isolated_sources() -> None:
    x, y = np.array([0.0, 5.0, 50.0]), np.zeros(3)
    flux = np.array([1000.0, 1.0, 10.0])
    assert find_isolated(x, y, flux, radius=10, fraction=0.01).tolist() == [True, False, True]
    assert find_isolated(x, y, flux, radius=10, fraction=1e-4).tolist() == [False, False, True]


def test_table() -> None:
    text = format_table(("name", "n", "bias"), [("plain", 3, 0.123456), ("latent", 12, np.nan)])
    assert text.splitlines() == [
        "name     n  bias",
        "------  --  ----",
        "plain    3  0.12",
        "latent  12     –",
    ]


def test_comparison_figure(tmp_path: Path) -> None:
    image = draw(galsim.Gaussian(fwhm=4), 40, 40, flux=1e4)
    image[:5] = np.nan
    figure = comparison_figure(
        {"one": image, "other": image * 2}, noise=1.0, brightest=500.0, zooms=[(40.0, 40.0)]
    )
    path = tmp_path / "figure.png"
    figure.savefig(path, dpi=40)
    assert path.stat().st_size > 1000
    norms = {axes.images[0].norm for axes in figure.axes if axes.images and axes.get_title()}
    assert len(norms) == 1
    with pytest.raises(ValueError, match="one shape"):
        comparison_figure({"one": image, "other": image[1:]}, noise=1.0, brightest=500.0)
