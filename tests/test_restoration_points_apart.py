# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of the points that a network need not make."""

from __future__ import annotations

from typing import Any

import galsim
import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    ConvolutionOperator,
    ExposureStack,
    HuberFidelity,
    Restoration,
    RestorationError,
    gaussian_kernel,
    matching_kernels,
    restore,
)
from lsst.latent_coadds.restoration._blended_points import find_blended_points
from lsst.latent_coadds.restoration._collapse import check_not_empty
from lsst.latent_coadds.restoration._find_points import find_points
from lsst.latent_coadds.restoration._point_sources import MatchedFilter, PointSources
from lsst.latent_coadds.restoration._problem import TrainingProblem
from lsst.latent_coadds.restoration._proximal import NonNegativeQuadratic

SIZE, N_EXPOSURES, STAMP = 80, 5, 41
STARS = ((24.3, 27.7, 1000.0), (54.6, 29.2, 300.0), (27.1, 55.5, 30.0))
"""x, y, S/N."""

GALAXY = (56.0, 57.0)


class Scene:
    """Three stars and a galaxy through Moffat PSFs, and the truth at the target PSF."""

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        profiles = [galsim.Moffat(beta=3.2, fwhm=3.4 + 0.4 * t).shear(g1=0.02) for t in range(N_EXPOSURES)]
        stamps = [p.drawImage(nx=STAMP, ny=STAMP, scale=1.0).array.astype(float) for p in profiles]
        self.psf = np.stack([stamp / stamp.sum() for stamp in stamps])
        self.flux_error = float((self.psf**2).sum() ** -0.5)
        self.fluxes = [signal * self.flux_error for _, _, signal in STARS]
        sources = [
            (x, y, galsim.DeltaFunction(flux=f)) for (x, y, _), f in zip(STARS, self.fluxes, strict=True)
        ]
        galaxy = galsim.Exponential(half_light_radius=3.0, flux=300 * self.flux_error)
        sources.append((*GALAXY, galaxy))
        self.image = rng.normal(size=(N_EXPOSURES, SIZE, SIZE))
        for plane, profile, stamp in zip(self.image, profiles, stamps, strict=True):
            plane += self._draw(sources, profile / stamp.sum(), "auto")
        self.truth = self._draw(sources, galsim.Gaussian(fwhm=2.0), "no_pixel")

    @staticmethod
    def _draw(
        sources: list[tuple[float, float, galsim.GSObject]], psf: galsim.GSObject, method: str
    ) -> np.ndarray:
        plane = galsim.ImageD(SIZE, SIZE, scale=1.0)
        for x, y, profile in sources:
            place = galsim.PositionD(x + 1, y + 1)
            seen = galsim.Convolve(profile, psf)
            seen.drawImage(plane, center=place, add_to_image=True, method=method)
        return plane.array

    def stack(self) -> ExposureStack:
        """Return the exposures."""
        return ExposureStack(
            self.image, np.ones_like(self.image), np.ones(self.image.shape, dtype=bool), self.psf
        )

    def star_error(self, image: torch.Tensor, k: int, outer: float = 12.0, inner: float = 0.0) -> float:
        """Return the largest deviation from the truth around a star, in units of its peak."""
        x, y = STARS[k][:2]
        rows, columns = np.indices((SIZE, SIZE))
        distance = np.hypot(columns - x, rows - y)
        near = (distance < outer) & (distance >= inner)
        peak = self.fluxes[k] * 4.0 * np.log(2.0) / (np.pi * 2.0**2)
        return float(np.abs(image.numpy() - self.truth)[near].max() / peak)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def train(scene: Scene, **settings: Any) -> Restoration:
    return restore(
        scene.stack(), "astroclearnet", generator=torch.Generator().manual_seed(1), n_iter=40, **settings
    )


@pytest.fixture(scope="module")
def restoration(scene: Scene) -> Restoration:
    return train(scene, n_realizations=2)


def test_bright_star_has_the_target_psf_and_no_ring(scene: Scene, restoration: Restoration) -> None:
    """At S/N 1000 and 300; the network alone errs by several per cent in the core."""
    for k, bound in ((0, 0.005), (1, 0.015)):
        assert scene.star_error(restoration.image, k) < bound
    # Beyond the core nothing is left of the star: 0.2 % of its peak is the noise of the sky.
    assert scene.star_error(restoration.image, 0, inner=3.0) < 0.002
    alone = train(scene, point_threshold=0.0, n_realizations=0)
    assert scene.star_error(alone.image, 0) > 2.0 * scene.star_error(restoration.image, 0)


def test_fluxes_and_galaxy_are_whole(scene: Scene, restoration: Restoration) -> None:
    rows, columns = np.indices((SIZE, SIZE))
    image = restoration.image.numpy()
    for x, y, signal in STARS:
        near = np.hypot(columns - x, rows - y) < 5.0
        assert image[near].sum() == pytest.approx(scene.truth[near].sum(), rel=0.002 + 3.0 / signal)
    near = np.hypot(columns - GALAXY[0], rows - GALAXY[1]) < 12.0
    assert image[near].sum() == pytest.approx(scene.truth[near].sum(), rel=0.05)
    np.testing.assert_allclose(restoration.chi2.numpy(), 1.0, atol=0.06)


def test_variance_of_a_point_is_that_of_its_flux(scene: Scene, restoration: Restoration) -> None:
    """The noise of a star's light is that of a fit of its flux and place, whatever its brightness."""
    x, y, _ = STARS[0]
    rows, columns = np.indices((SIZE, SIZE))
    near = np.hypot(columns - x, rows - y) < 4.0
    scatter = restoration.noise_realizations.numpy()[:, near].sum(axis=1)
    assert np.abs(scatter).max() < 4.0 * scene.flux_error
    peak = float(restoration.variance[round(y), round(x)].sqrt())
    assert 0.05 * scene.flux_error < peak < 1.0 * scene.flux_error


def draw_galaxies(
    galaxies: list[tuple[float, float, float, float]], stars: list[tuple[float, float, float]]
) -> tuple[ExposureStack, float]:
    """Return exposures of galaxies (x, y, half-light radius in px, S/N) and stars (x, y, S/N)."""
    rng = np.random.default_rng(3)
    image = rng.normal(size=(N_EXPOSURES, 2 * SIZE, 2 * SIZE))
    profiles = [galsim.Moffat(beta=3.2, fwhm=3.4 + 0.4 * t) for t in range(N_EXPOSURES)]
    psf = np.stack([p.drawImage(nx=STAMP, ny=STAMP, scale=1.0).array.astype(float) for p in profiles])
    inside = psf.sum(axis=(1, 2))
    psf /= inside[:, None, None]
    error = float((psf**2).sum() ** -0.5)
    sources = [
        (x, y, galsim.Exponential(half_light_radius=r, flux=s * error).shear(g1=0.2))
        for x, y, r, s in galaxies
    ]
    sources += [(x, y, galsim.DeltaFunction(flux=s * error)) for x, y, s in stars]
    for t, profile in enumerate(profiles):
        plane = galsim.ImageD(2 * SIZE, 2 * SIZE, scale=1.0)
        for x, y, source in sources:
            seen = galsim.Convolve(source, profile / inside[t])
            seen.drawImage(plane, center=galsim.PositionD(x + 1, y + 1), add_to_image=True)
        image[t] += plane.array
    return ExposureStack(image, np.ones_like(image), np.ones(image.shape, dtype=bool), psf), error


def find_points_apart(stack: ExposureStack, spread: float = 2.0) -> tuple[PointSources, PointSources]:
    """Return points of the first look and of the second, at places in the exposures."""
    operator = ConvolutionOperator(
        matching_kernels(stack.psf, spread).to(stack.image), stack.shape, margin=16
    )
    quadratic = NonNegativeQuadratic(operator, stack.exposure_weights())
    matched = MatchedFilter(quadratic, spread)
    fidelity = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), 3.0)
    first = find_points(stack, matched, fidelity, 4.0)
    second = find_blended_points(stack, matched, first, 3.0, 4.0)
    return tuple(PointSources(p.x - 16, p.y - 16, p.flux) for p in (first, second))  # type: ignore[return-value]


def test_stars_on_galaxies_are_points_where_galaxies_are_taken_away() -> None:
    stars = [(56.3, 49.8, 300.0), (104.4, 112.7, 100.0)]
    stack, error = draw_galaxies([(44.0, 44.0, 6.0, 1000.0), (116.0, 112.0, 4.0, 600.0)], stars)
    first, second = find_points_apart(stack)
    assert len(first) == 0
    assert len(second) == 2
    for x, y, signal in stars:
        # A few times its error on the sky: the galaxies make noise, too.
        near = torch.hypot(second.x - x, second.y - y) < 15.0 / signal
        assert int(near.sum()) == 1
        # Broad light keeps some of what it cannot tell from the star's.
        assert float(second.flux[near]) == pytest.approx(signal * error, abs=(3.0 + 0.03 * signal) * error)


def test_small_galaxies_are_no_points_on_galaxies() -> None:
    """Their cores are as narrow as stars, but have broad light around them."""
    places = [(x, y) for y in (24.0, 62.0, 98.0, 136.0) for x in (24.0, 62.0, 98.0, 136.0)]
    galaxies = [
        (x + 0.3, y - 0.2, (1.0, 1.5, 2.0, 3.0)[k % 4], (20.0, 50.0, 100.0, 300.0)[k // 4])
        for k, (x, y) in enumerate(places)
    ]
    stack, _ = draw_galaxies(galaxies, [])
    first, second = find_points_apart(stack)
    assert len(second) == 0
    # The faintest and smallest look like points to anyone.
    assert len(first) <= 6


def test_published_form_makes_all_light_itself(scene: Scene) -> None:
    settings: dict[str, Any] = {"form": "published", "n_iter": 3, "n_realizations": 0}
    one, two = (
        restore(
            scene.stack(),
            "astroclearnet",
            generator=torch.Generator().manual_seed(1),
            point_threshold=threshold,
            **settings,
        )
        for threshold in (0.0, 4.0)
    )
    torch.testing.assert_close(one.image, two.image, rtol=0, atol=0)


def test_outliers_beside_a_star_are_told_by_all_its_light() -> None:
    """What a PSF is wrong by, in the core of a bright star, is no outlier of an exposure."""
    kernels = gaussian_kernel(3.0, 11)[None].repeat(4, 1, 1)
    operator = ConvolutionOperator(kernels, (40, 40), margin=5)
    star = torch.zeros(operator.latent_shape, dtype=torch.float64)
    star[25, 25] = 10000.0
    light = operator.transform(star)
    left = torch.zeros((4, 40, 40), dtype=torch.float64)
    left[1] = 0.1 * operator.forward(star)[1]
    left[2, 5, 5] = 60.0
    term = HuberFidelity(left, torch.ones_like(left), 3.0)
    nothing = HuberFidelity(left, torch.zeros_like(left), 3.0)
    latent = torch.zeros_like(star)
    known = TrainingProblem(kernels, operator, term, nothing, light).find_outliers(latent, 6.0)
    unknown = TrainingProblem(kernels, operator, term, nothing).find_outliers(latent, 6.0)
    assert bool(known[2, 5, 5]) and not bool(known[1].any())
    assert bool(unknown[1, 20, 20])
    assert torch.equal(term.image, left)


def test_what_a_point_leaves_is_no_lost_source() -> None:
    """A network that returns nothing has collapsed if there is a source, but not beside a bright star."""
    kernels = gaussian_kernel(3.0, 11)[None].repeat(4, 1, 1)
    operator = ConvolutionOperator(kernels, (40, 40), margin=5)
    quadratic = NonNegativeQuadratic(operator, torch.ones(4, dtype=torch.float64))
    star, nothing = torch.zeros((2, *operator.latent_shape), dtype=torch.float64)
    star[25, 25] = 10000.0
    left = HuberFidelity(0.01 * operator.forward(star), torch.ones((4, 40, 40), dtype=torch.float64), 3.0)
    check_not_empty(
        TrainingProblem(kernels, operator, left, left, operator.transform(star)), quadratic, nothing
    )
    with pytest.raises(RestorationError, match="collapsed"):
        check_not_empty(TrainingProblem(kernels, operator, left, left), quadratic, nothing)


def test_combined_has_the_same_points(scene: Scene) -> None:
    result = restore(scene.stack(), "combined", network_steps=5, n_realizations=1)
    assert scene.star_error(result.image, 0) < 0.005 and scene.star_error(result.image, 1) < 0.015
    np.testing.assert_allclose(result.chi2.numpy(), 1.0, atol=0.06)
    assert bool(torch.isfinite(result.noise_realizations).all())
