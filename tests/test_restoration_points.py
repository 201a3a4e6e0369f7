# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Point sources that are fitted apart from the latent image."""

from __future__ import annotations

import galsim
import numpy as np
import pytest
import torch

from lsst.latent_coadds.qa import aperture_weights
from lsst.latent_coadds.restoration import ExposureStack, restore

SIZE = 96
SIGMA = 0.25
WIDTHS = (0.6, 0.7, 0.8, 0.95)
"""Seeing in arcsec; pixels have 0.168."""


def draw(
    sources: list[tuple[float, float, galsim.GSObject]], seed: int = 1, strip: bool = False
) -> tuple[ExposureStack, float]:
    """Return exposures of GalSim sources with elliptical Moffat PSFs, and the error of a star's flux."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(len(WIDTHS), SIZE, SIZE)) * SIGMA
    stamps = []
    for t, fwhm in enumerate(WIDTHS):
        seeing = galsim.Moffat(beta=3.0, fwhm=fwhm, trunc=3.2).shear(g1=0.03, g2=-0.02)
        stamps.append(seeing.drawImage(nx=41, ny=41, scale=0.168, dtype=float).array)
        for x, y, profile in sources:
            offset = (x - (SIZE - 1) / 2, y - (SIZE - 1) / 2)
            light = galsim.Convolve(profile, seeing) * (1.0 / stamps[-1].sum())
            image[t] += light.drawImage(nx=SIZE, ny=SIZE, scale=0.168, offset=offset, dtype=float).array
        stamps[-1] /= stamps[-1].sum()
    good = np.ones(image.shape, dtype=bool)
    if strip:
        good[1, 40:60], good[2, :, 36:52] = False, False
    error = float((np.square(stamps).sum(axis=(1, 2)) / SIGMA**2).sum() ** -0.5)
    return ExposureStack(image, np.full(image.shape, SIGMA**2), good, np.stack(stamps)), error


def point(flux: float) -> galsim.GSObject:
    return galsim.DeltaFunction(flux=flux)


def target(x: float, y: float, flux: float) -> np.ndarray:
    """Return a star at the target PSF, in closed form."""
    row, column = np.mgrid[:SIZE, :SIZE]
    variance = (2.0 / 2.35482) ** 2
    distance = (column - x) ** 2 + (row - y) ** 2
    return flux * np.exp(-0.5 * distance / variance) / (2.0 * np.pi * variance)


@pytest.mark.parametrize("strip", [False, True])
def test_a_star_is_the_target_psf_at_its_place_between_pixels(strip: bool) -> None:
    _, error = draw([])
    stars = [(24.3, 30.6, 1000.0), (44.5, 50.5, 100.0), (70.8, 66.2, 30.0)]
    stack, _ = draw([(x, y, point(s * error)) for x, y, s in stars], strip=strip)
    image = restore(stack, "imagemm", n_realizations=0).image.numpy()
    truth = sum(target(x, y, s * error) for x, y, s in stars)
    y, x = np.mgrid[:SIZE, :SIZE]
    for px, py, s in stars:
        near = np.hypot(x - px, y - py) < 5.0
        # The error of the flux in an aperture, where the strips leave half of the data or all.
        noise = 1.3 * error * (1.42 if strip and s == 100.0 else 1.0)
        assert image[near].sum() == pytest.approx(s * error, abs=4.0 * noise + 0.005 * s * error)
        # What is left of it is the error of its flux and of its place: a few sigma in S/N.
        assert np.abs(image - truth)[near].max() < (0.8 + 0.002 * s) * error
        # Nothing like a ring.
        ring = (np.hypot(x - px, y - py) > 3.0) & (np.hypot(x - px, y - py) < 7.0)
        assert np.abs(image - truth)[ring].max() < 0.2 * error + 0.001 * s * error


@pytest.mark.parametrize(("dx", "dy"), [(0.3, 0.2), (0.5, 0.45)])
def test_a_very_bright_star_between_pixels_leaves_nothing_beside_it(dx: float, dy: float) -> None:
    """How points are put between pixels errs by less than 0.03 % of the peak."""
    _, error = draw([])
    px, py, flux = 47.0 + dx, 46.0 + dy, 20000.0 * error
    stack, _ = draw([(px, py, point(flux))])
    image = restore(stack, "imagemm", n_realizations=0).image.numpy()
    difference, peak = image - target(px, py, flux), target(0.0, 0.0, flux)[0, 0]
    y, x = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(x - px, y - py)
    assert np.abs(difference[(distance > 3.0) & (distance < 14.0)]).max() < 3e-4 * peak
    assert np.abs(difference[distance < 3.0]).max() < 2e-3 * peak


def test_galaxies_and_pairs_are_no_points() -> None:
    _, error = draw([])
    galaxy = galsim.Gaussian(sigma=0.3, flux=60.0 * error)
    pair = [(68.0, 66.0, point(50.0 * error)), (70.2, 68.0, point(50.0 * error))]
    stack, _ = draw([(28.0, 30.0, galaxy), *pair])
    plain, points = (
        restore(stack, "imagemm", n_realizations=0, point_threshold=t).image.numpy() for t in (0.0, 3.5)
    )
    # Both are made of pixels in either way.
    for row, column in ((30, 28), (67, 69)):
        part = (slice(row - 8, row + 9), slice(column - 8, column + 9))
        assert np.abs(plain - points)[part].max() < 0.1 * plain[part].max()
    assert points[66, 68] > 1.3 * points[67, 69] and points[68, 70] > 1.3 * points[67, 69]


def test_the_sky_has_no_specks_and_faint_stars_stay() -> None:
    _, error = draw([])
    places = [
        (x + 0.37 * (k % 3), y + 0.41 * (k % 2), 8.0)
        for k, (x, y) in enumerate((x, y) for x in (18.0, 42.0, 66.0) for y in (20.0, 44.0, 68.0))
    ]
    stack, _ = draw([(x, y, point(s * error)) for x, y, s in places], seed=5)
    image = restore(stack, "imagemm", n_realizations=0).image.numpy()
    specks = restore(stack, "imagemm", n_realizations=0, point_threshold=0.0, sky_penalty=0.0).image.numpy()
    y, x = np.mgrid[:SIZE, :SIZE]
    sky = np.min([np.hypot(x - px, y - py) for px, py, _ in places], axis=0) > 8.0
    assert image[sky].std() < 0.75 * specks[sky].std()
    fluxes = [(aperture_weights(image.shape, px, py, 3.0) * image).sum() / error for px, py, _ in places]
    assert np.mean(fluxes) == pytest.approx(8.0, abs=1.2)
    assert min(fluxes) > 4.0


def test_realizations_err_as_stars_do() -> None:
    """The flux of a star in a realization scatters by the Cramér-Rao error."""
    _, error = draw([])
    stack, _ = draw([(47.4, 46.7, point(40.0 * error))], seed=7)
    result = restore(stack, "imagemm", n_realizations=48, generator=torch.Generator().manual_seed(2))
    kernel = target(47.4, 46.7, 1.0)
    fluxes = (result.noise_realizations.numpy() * kernel).sum(axis=(1, 2)) / (kernel**2).sum() / error
    # 48 of them know it to a tenth; places err too, which costs the fit some flux.
    assert 0.7 < fluxes.std() < 1.5
    assert abs(fluxes.mean()) < 0.8


def test_undersampled_psfs_leave_stars_to_the_pixels() -> None:
    psf = np.zeros((2, 5, 5))
    psf[:, 2, 2] = 1.0
    image = np.zeros((2, 32, 32))
    image[:, 16, 16] = 100.0
    stack = ExposureStack(image, np.ones_like(image), np.ones(image.shape, dtype=bool), psf)
    with_points, without = (
        restore(stack, "imagemm", n_realizations=0, target_fwhm=0.0, point_threshold=t).image
        for t in (3.5, 0.0)
    )
    assert torch.equal(with_points, without)


def test_stars_that_are_clearly_apart_are_points_both() -> None:
    """Two stars 1.3 FWHM apart have the target PSF each, and nothing between them."""
    _, error = draw([])
    stars = [(44.3, 46.6, 120.0), (50.6, 49.7, 60.0)]
    stack, _ = draw([(x, y, point(s * error)) for x, y, s in stars])
    image = restore(stack, "imagemm", n_realizations=0).image.numpy()
    truth = sum(target(x, y, s * error) for x, y, s in stars)
    y, x = np.mgrid[:SIZE, :SIZE]
    near = np.min([np.hypot(x - px, y - py) for px, py, _ in stars], axis=0) < 8.0
    # Made of pixels, the pair would be 0.4 to 0.6 sigma off.
    assert np.sqrt(((image - truth)[near] ** 2).mean()) < 0.25 * error


@pytest.mark.parametrize("distance", [6.0, 6.5])
def test_a_faint_candidate_leaves_a_bright_star_a_point(distance: float) -> None:
    _, error = draw([])
    stack, _ = draw([(44.3, 46.6, point(100.0 * error)), (44.3 + distance, 46.6, point(4.5 * error))])
    image = restore(stack, "imagemm", n_realizations=0).image.numpy()
    y, x = np.mgrid[:SIZE, :SIZE]
    core = np.hypot(x - 44.3, y - 46.6) < 2.5
    # Made of pixels, the star would be 3.9 off.
    assert np.abs(image - target(44.3, 46.6, 100.0 * error))[core].max() < 2.0 * error


def test_a_fit_goes_on_where_one_place_has_not_settled() -> None:
    _, error = draw([])
    blend = [(46.4, 46.7, point(300.0 * error)), (48.9, 49.2, point(200.0 * error))]
    stack, _ = draw(blend)
    loose = {"n_realizations": 0, "tolerance": 1.0, "n_block": 10}
    updates = [restore(stack, "imagemm", settled=s, **loose).n_iterations for s in (0.0, 1e6, 1e-9)]
    assert updates[0] == updates[1] == 10
    assert updates[2] == 100
