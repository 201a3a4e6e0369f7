# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""ImageMM against the truth of simulated scenes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    ExposureStack,
    restore,
)

galsim = pytest.importorskip("galsim")

SCALE = 0.168
SIZE = 200
SIGNAL_TO_NOISE = (20.0, 60.0, 200.0, 600.0)


@pytest.fixture(scope="module")
def scene() -> dict[str, Any]:
    """Make eight exposures of 25 stars, with cosmic rays in each."""
    rng = np.random.default_rng(42)
    n = 8
    psfs = [
        galsim.Moffat(beta=3.5, fwhm=fwhm).shear(g1=e, g2=-e)
        for fwhm, e in zip(np.linspace(0.6, 0.95, n), rng.uniform(-0.04, 0.04, n), strict=True)
    ]
    sigma = rng.uniform(0.2, 0.32, n)
    stamps = np.stack([p.drawImage(nx=41, ny=41, scale=SCALE).array for p in psfs]).astype(float)
    flux_error = ((stamps**2).sum(axis=(1, 2)) / sigma**2).sum() ** -0.5
    grid = np.arange(20.0, SIZE - 10, 40.0)
    stars = [
        (x + rng.uniform(-3, 3), y + rng.uniform(-3, 3), SIGNAL_TO_NOISE[i % 4])
        for i, (x, y) in enumerate((x, y) for y in grid for x in grid)
    ]
    image = rng.normal(size=(n, SIZE, SIZE)) * sigma[:, None, None]
    for t, psf in enumerate(psfs):
        plane = galsim.ImageD(SIZE, SIZE, scale=SCALE)
        for x, y, s in stars:
            bounds = galsim.BoundsI(int(x) - 25, int(x) + 27, int(y) - 25, int(y) + 27) & plane.bounds
            stamp = galsim.ImageD(bounds, scale=SCALE)
            psf.withFlux(s * flux_error).drawImage(image=stamp, center=galsim.PositionD(x + 1, y + 1))
            plane[bounds] += stamp
        image[t] += plane.array
        for x, y in rng.integers(2, SIZE - 2, size=(6, 2)):
            image[t, y, x : x + 2] += 10 ** rng.uniform(1, 3) * sigma[t]
    stack = ExposureStack(
        image,
        np.broadcast_to(sigma[:, None, None] ** 2, image.shape),
        np.ones(image.shape, dtype=bool),
        stamps,
    )
    return {"stack": stack, "stars": stars, "flux_error": flux_error, "result": restore(stack)}


def moments(image: np.ndarray, x: float, y: float, sigma: float) -> tuple[float, float]:
    """Return the flux in a 7 px box and the FWHM from weighted moments."""
    yy, xx = np.mgrid[: image.shape[0], : image.shape[1]]
    r2 = (xx - x) ** 2 + (yy - y) ** 2
    box = np.maximum(np.abs(xx - x), np.abs(yy - y)) < 3.5
    weighted = image * np.exp(-0.5 * r2 / sigma**2)
    # The product of two Gaussians: 1 / s^2 = 1 / w^2 + 1 / f^2.
    second = 0.5 * (weighted * r2).sum() / weighted.sum()
    return float(image[box].sum()), 2.3548 * np.sqrt(1.0 / max(1.0 / second - 1.0 / sigma**2, 1e-9))


@pytest.mark.parametrize(("low", "high", "bound"), [(50, 1000, 0.05), (10, 30, 0.15)])
def test_stars_have_the_target_fwhm(scene: dict[str, Any], low: float, high: float, bound: float) -> None:
    image = scene["result"].image.double().numpy()
    widths = [moments(image, x, y, 2.0)[1] for x, y, s in scene["stars"] if low < s < high]
    assert abs(np.median(widths) / 2.0 - 1.0) < bound


@pytest.mark.parametrize("s", SIGNAL_TO_NOISE[1:])
def test_flux_is_unbiased(scene: dict[str, Any], s: float) -> None:
    image = scene["result"].image.double().numpy()
    truth = s * scene["flux_error"]
    fluxes = np.array([moments(image, x, y, 2.0)[0] for x, y, other in scene["stars"] if other == s])
    # 1 % for the method, and what photon noise allows for so few stars.
    assert abs(np.median(fluxes) / truth - 1.0) < 0.01 + 2.5 / (s * len(fluxes) ** 0.5)


def test_no_rings(scene: dict[str, Any]) -> None:
    image = scene["result"].image.double().numpy()
    yy, xx = np.mgrid[:SIZE, :SIZE]
    for x, y, s in scene["stars"]:
        if s > 100:
            radius = np.hypot(xx - x, yy - y)
            peak = image[radius < 2].max()
            ring = image[(radius > 4) & (radius < 16)]
            assert ring.min() > -0.05 * peak and np.median(ring) < 0.01 * peak


def test_sky_is_quiet_and_its_variance_true(scene: dict[str, Any]) -> None:
    result = scene["result"]
    coadd = restore(scene["stack"], "direct", clip=True)
    yy, xx = np.mgrid[:SIZE, :SIZE]
    sky = np.ones((SIZE, SIZE), dtype=bool)
    for x, y, _ in scene["stars"]:
        sky &= np.hypot(xx - x, yy - y) > 14
    sky = torch.as_tensor(sky)
    rms = float(result.image[sky].std())
    assert rms < 0.6 * float(coadd.image[sky].std())
    assert abs(float(result.image[sky].mean())) < 0.1 * rms
    # Places where a point may have been missed have more.
    assert float(result.variance[sky].median()) ** 0.5 == pytest.approx(rms, rel=0.15)
    assert 0.9 < float(result.chi2.mean()) < 1.05


def test_scatter_on_stars_is_predicted(scene: dict[str, Any]) -> None:
    result = scene["result"]
    image = result.image.double().numpy()
    stars = [star for star in scene["stars"] if 50 < star[2] < 300]
    actual = [moments(image, x, y, 2.0)[0] - s * scene["flux_error"] for x, y, s in stars]
    noise = result.noise_realizations.double().numpy()
    predicted = [moments(plane, x, y, 2.0)[0] for plane in noise for x, y, _ in stars]
    assert 0.6 < np.std(predicted) / np.std(actual) < 1.6


def matched_flux(image: np.ndarray, x: float, y: float, fwhm: float = 2.0) -> float:
    """Return the flux that a fit of the target PSF gives."""
    yy, xx = np.mgrid[: image.shape[0], : image.shape[1]]
    model = np.exp(-0.5 * ((xx - x) ** 2 + (yy - y) ** 2) * (2.35482 / fwhm) ** 2)
    return float((image * model).sum() * model.sum() / (model**2).sum())


def test_attached_psf_fits_stars_wherever_they_lie() -> None:
    size, pitch = 156, 36
    places = [(24 + pitch * i + i / 4, 24 + pitch * j + j / 4) for i in range(4) for j in range(4)]
    image, stamps = [], []
    for fwhm in (0.5, 0.65, 0.8):
        psf = galsim.Moffat(beta=3.5, fwhm=fwhm)
        plane = galsim.ImageD(size, size, scale=SCALE)
        for x, y in places:
            bounds = galsim.BoundsI(int(x) - 22, int(x) + 24, int(y) - 22, int(y) + 24) & plane.bounds
            stamp = galsim.ImageD(bounds, scale=SCALE)
            psf.withFlux(1e4).drawImage(stamp, center=galsim.PositionD(x + 1, y + 1))
            plane[bounds] += stamp
        image.append(plane.array)
        stamps.append(psf.drawImage(nx=41, ny=41, scale=SCALE).array.astype(float))
    ones = np.ones((3, size, size))
    result = restore(ExposureStack(np.stack(image), ones, ones > 0, np.stack(stamps)), n_realizations=0)
    fluxes = np.array([matched_flux(result.image.numpy(), x, y) for x, y in places]) / 1e4
    # Nothing non-negative is as narrow half-way between pixels as on one.
    assert abs(fluxes.mean() - 1.0) < 0.01
    assert abs(fluxes - 1.0).max() < 0.04
