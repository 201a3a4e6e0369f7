# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Analysis without truth, on scenes whose truth has a closed form."""

from __future__ import annotations

import dataclasses

import galsim
import numpy as np
import pytest
import sep
from scipy.ndimage import gaussian_filter

from lsst.latent_coadds.qa import (
    PATCH_NUMBERS,
    PatchLimits,
    Stretch,
    analyze_patch,
    aperture_noise_ratio,
    artifact_figure,
    autocorrelation,
    coverage,
    detail_figure,
    detect_sources,
    filter_with_psf,
    find_clusters,
    find_isolated_detections,
    fit_figure,
    flux_noise_map,
    image_figure,
    linear_flux_error,
    match_positions,
    match_psf,
    noise_figure,
    photometry_figure,
    shrink,
    star_figure,
    tract_figure,
)

SIGMA = 2.0
POSITIONS = np.array([(40.3, 50.1), (110.0, 60.6), (60.2, 130.4), (150.7, 140.2), (100.4, 105.0)])
FLUXES = np.array([20000.0, 8000.0, 4000.0, 1500.0, 600.0])
METRICS = {
    "n_inputs": 3,
    "n_offered": 4,
    "rejected_inputs": {"calexp@x": "no PSF"},
    "visits": {"1": {"chi2": 1.01}, "2": {"chi2": 1.25}, "3": {"chi2": 0.99}},
    "n_iterations": 3,
    "flux_closure": {"sigma": 0.5},
    "timings": {"total": 12.0},
    "tiles": [{"history": [{"iteration": i, "objective": 100.0 / (i + 1)} for i in range(5)]}],
}


def draw_kernel(fwhm: float, size: int = 25) -> np.ndarray:
    return (
        galsim.Gaussian(fwhm=fwhm).drawImage(nx=size, ny=size, scale=1, method="no_pixel", dtype=float).array
    )


@dataclasses.dataclass
class Coadd:
    """Stars of a Gaussian PSF on white noise."""

    fwhm: float
    sigma: float = SIGMA
    star_fwhm: float | None = None
    scale: float = 1.0
    seed: int = 1
    size: int = 200
    pixel_scale: float = 0.2

    def __post_init__(self) -> None:
        image = galsim.ImageD(self.size, self.size, xmin=0, ymin=0, scale=1.0)
        for (x, y), flux in zip(POSITIONS, FLUXES, strict=True):
            star = galsim.Gaussian(fwhm=self.star_fwhm or self.fwhm, flux=self.scale * flux)
            star.drawImage(image, center=galsim.PositionD(x, y), method="no_pixel", add_to_image=True)
        noise = np.random.default_rng(self.seed).normal(0, self.sigma, image.array.shape)
        self.image = image.array + noise
        self.variance = np.full(image.array.shape, self.sigma**2)
        self.mask = {
            name: np.zeros(image.array.shape, dtype=bool) for name in ("NO_DATA", "SATURATED", "CLIPPED")
        }
        self.noise = np.zeros((0, *image.array.shape))

    @property
    def good(self) -> np.ndarray:
        return ~self.mask["NO_DATA"] & np.isfinite(self.image)

    def kernel(self, x: float, y: float) -> np.ndarray | None:
        return draw_kernel(self.fwhm)


def test_matched_filter_gives_fluxes_and_their_noise() -> None:
    coadd = Coadd(3.5)
    psf = coadd.kernel(0, 0)
    flux = filter_with_psf(coadd.image, psf)
    noise = flux_noise_map(coadd.variance, psf)
    np.testing.assert_allclose(noise, SIGMA / np.sqrt(np.sum(psf**2)), rtol=1e-10)
    np.testing.assert_allclose(flux[61, 110], FLUXES[1], rtol=0.1)
    np.testing.assert_allclose(np.std(flux[150:, :100]), noise[0, 0], rtol=0.15)


def test_correlated_noise_is_known_from_its_realizations() -> None:
    rng = np.random.default_rng(3)
    noise = gaussian_filter(rng.normal(size=(4, 220, 220)), (0, 1.5, 1.5))[:, 10:-10, 10:-10]
    psf = draw_kernel(3.0)
    truth = np.std(filter_with_psf(noise, psf)[:, 12:-12, 12:-12])
    variance = np.full(noise.shape[1:], np.var(noise))
    assert flux_noise_map(variance, psf)[0, 0] < 0.6 * truth
    np.testing.assert_allclose(np.median(flux_noise_map(variance, psf, noise)), truth, rtol=0.12)
    np.testing.assert_allclose(
        np.median(flux_noise_map(variance, psf, noise, negative=True)), truth, rtol=0.12
    )
    # A source that raises the variance does not hide itself.
    spot = variance.copy()
    spot[95:104, 95:104] *= 50
    np.testing.assert_allclose(flux_noise_map(spot, psf)[100, 100], flux_noise_map(variance, psf)[0, 0])
    variance[:20] = np.nan
    assert np.isinf(flux_noise_map(variance, psf)[:20]).all()


def test_detections_are_those_of_another_program() -> None:
    coadd = Coadd(3.5)
    psf = coadd.kernel(0, 0)
    found = detect_sources(coadd.image, psf, flux_noise_map(coadd.variance, psf))
    assert len(found) == len(FLUXES)
    index = match_positions(found.x, found.y, POSITIONS[:, 0], POSITIONS[:, 1], 1.0)
    np.testing.assert_array_equal(index, np.arange(len(FLUXES)))
    np.testing.assert_allclose(found.x[:3], POSITIONS[:3, 0], atol=0.1)
    np.testing.assert_allclose(found.flux[:3], FLUXES[:3], rtol=0.1)
    other = sep.extract(coadd.image, 5.0, var=coadd.variance, filter_kernel=psf)
    assert (match_positions(other["x"], other["y"], found.x, found.y, 1.0) >= 0).all()
    holes = detect_sources(-coadd.image, psf, flux_noise_map(coadd.variance, psf), negative=True)
    np.testing.assert_allclose(holes.flux, found.flux)


def test_flux_of_a_detection_does_not_depend_on_its_place_in_a_pixel() -> None:
    image = np.zeros((60, 100))
    places = [(15.0, 15.0), (40.5, 15.0), (65.3, 15.4), (15.5, 40.5), (40.25, 40.0), (65.5, 40.2)]
    for x, y in places:
        psf = galsim.Gaussian(fwhm=2.0, flux=100.0)
        # Positions count from the middle of the first pixel.
        image += psf.drawImage(
            nx=100, ny=60, scale=1.0, method="no_pixel", offset=(x - 49.5, y - 29.5), dtype=float
        ).array
    found = detect_sources(image, draw_kernel(2.0), np.ones(image.shape), threshold=95.0)
    index = match_positions(found.x, found.y, *np.array(places).T, 0.05)
    assert sorted(index) == list(range(len(places)))
    np.testing.assert_allclose(found.flux, 100.0, rtol=0.02)


def test_isolated_detections() -> None:
    coadd = Coadd(3.5)
    psf = coadd.kernel(0, 0)
    found = detect_sources(coadd.image, psf, flux_noise_map(coadd.variance, psf))
    assert find_isolated_detections(found, radius=20, fraction=0.01).all()
    alone = find_isolated_detections(found, radius=60, fraction=0.1)
    assert alone.tolist() == [True, True, False, True, False]
    assert match_positions(np.zeros(1), np.zeros(1), np.zeros(0), np.zeros(0), 1.0).tolist() == [-1]


@pytest.mark.parametrize("holes", [False, True])
def test_autocorrelation_of_smoothed_noise(holes: bool) -> None:
    sigma = 1.4
    noise = gaussian_filter(
        np.random.default_rng(5).normal(size=(6, 300, 300)), (0, sigma, sigma), mode="wrap"
    )
    good = np.ones(noise.shape[1:], dtype=bool)
    if holes:
        good = np.random.default_rng(6).random(good.shape) < 0.4
    correlation = autocorrelation(noise, good, max_lag=6)
    lag = np.arange(-6, 7)
    expected = np.exp(-(np.hypot(lag[:, None], lag[None, :]) ** 2) / (4 * sigma**2))
    np.testing.assert_allclose(correlation, expected, atol=0.025)
    ratio = aperture_noise_ratio(expected, 1.0)
    np.testing.assert_allclose(aperture_noise_ratio(correlation, 1.0), ratio, rtol=0.02)
    assert 1.5 < ratio < np.sqrt(4 * np.pi * sigma**2)
    white = (lag[:, None] == 0) & (lag[None, :] == 0)
    np.testing.assert_allclose(aperture_noise_ratio(white.astype(float), 4.0), 1.0, rtol=1e-6)
    assert np.isnan(autocorrelation(noise, np.zeros_like(good), max_lag=2)).all()


def test_error_of_a_sum_over_correlated_pixels() -> None:
    sigma = 1.2
    noise = gaussian_filter(
        np.random.default_rng(7).normal(size=(40, 240, 240)), (0, sigma, sigma), mode="wrap"
    )
    weights = draw_kernel(3.0, 21)
    sums = filter_with_psf(noise, weights) * np.sum(weights**2)
    correlation = autocorrelation(noise[:4], np.ones(noise.shape[1:], dtype=bool), max_lag=8)
    variance = np.full(weights.shape, np.var(noise))
    error = linear_flux_error(weights, variance, correlation)
    np.testing.assert_allclose(error, np.std(sums[:, 20:-20, 20:-20]), rtol=0.05)
    np.testing.assert_allclose(linear_flux_error(weights, 4 * variance, correlation), 2 * error)
    np.testing.assert_allclose(
        linear_flux_error(weights, variance), np.sqrt(np.var(noise) * np.sum(weights**2))
    )


def test_coverage_of_gaussian_intervals() -> None:
    rng = np.random.default_rng(8)
    error = rng.uniform(1, 3, 20000)
    truth = rng.uniform(10, 20, error.size)
    flux = truth + error * rng.normal(size=error.size)
    flux[0] = np.nan
    for n_sigma, expected in ((1.0, 0.6827), (1.96, 0.95)):
        fraction, uncertainty = coverage(flux, truth, error, n_sigma=n_sigma)
        assert abs(fraction - expected) < 4 * uncertainty
        np.testing.assert_allclose(uncertainty, np.sqrt(expected * (1 - expected) / error.size), rtol=0.05)
    assert np.isnan(coverage(flux[:1], truth[:1], error[:1], n_sigma=1)).all()
    assert coverage(truth[:5], truth[:5], error[:5], n_sigma=1)[1] > 0.05


def test_blurring_to_another_psf() -> None:
    sharp, blurred = Coadd(2.0, sigma=0.0), Coadd(4.2, sigma=0.0)
    matched = match_psf(sharp, blurred, block=90)
    np.testing.assert_allclose(matched, blurred.image, atol=2e-3 * blurred.image.max())
    np.testing.assert_allclose(matched.sum(), sharp.image.sum(), rtol=1e-3)
    with pytest.raises(ValueError, match="no common pixels"):
        match_psf(sharp, Coadd(4.0, size=100))


def test_clusters_and_their_shapes() -> None:
    plane = np.zeros((60, 60), dtype=bool)
    plane[10, 5:30:2] = True
    plane[40:44, 20:24] = True
    plane[55, 55] = True
    found = find_clusters(plane)
    assert [(a.kind, a.value) for a in found] == [("clump", 16.0), ("streak", 13.0)]
    np.testing.assert_allclose([found[1].x, found[1].y], [17, 10])
    assert find_clusters(np.zeros_like(plane)) == []


def test_what_is_right_is_of_no_concern() -> None:
    latent, plain = Coadd(2.0, seed=2), Coadd(4.2, sigma=1.0)
    analysis = analyze_patch(
        latent, METRICS | {"visits": {"1": {"chi2": 1.01}}, "rejected_inputs": {}}, plain
    )
    numbers = analysis.numbers
    assert analysis.concern < 1, analysis.checks
    assert set(numbers) <= set(PATCH_NUMBERS)
    assert numbers["n_detections"] == len(FLUXES)
    np.testing.assert_allclose(numbers["star_fwhm"], 2.0, rtol=0.02)
    np.testing.assert_allclose(numbers["psf_fwhm"], 2.0, rtol=1e-3)
    np.testing.assert_allclose(numbers["reference_psf_fwhm"], 4.2, rtol=1e-3)
    np.testing.assert_allclose(numbers["flux_ratio"], 1.0, atol=0.02)
    np.testing.assert_allclose(numbers["sky_rms"], SIGMA, rtol=0.03)
    np.testing.assert_allclose(numbers["sky_rms_over_sigma"], 1.0, rtol=0.03)
    np.testing.assert_allclose(numbers["sky_spread_over_noise"], 1.0, rtol=0.03)
    np.testing.assert_allclose(numbers["aperture_noise_ratio"], 1.0, atol=0.1)
    np.testing.assert_allclose(numbers["area"], (200 * 0.2 / 60) ** 2)
    psf = draw_kernel(2.0)
    depth = 31.4 - 2.5 * np.log10(5 * SIGMA / np.sqrt(np.sum(psf**2)))
    # The reference says where the sky is, which has sources of its own by chance.
    np.testing.assert_allclose(numbers["depth"], depth, atol=0.1)
    assert analysis.artifacts == []


def spoil_width(coadd: Coadd) -> None:
    coadd.image = Coadd(2.0, star_fwhm=2.4).image


def spoil_flux(coadd: Coadd) -> None:
    coadd.image = Coadd(2.0, scale=0.9).image


def lose_source(coadd: Coadd) -> None:
    coadd.image[120:140, 50:70] = 0


def dig_hole(coadd: Coadd) -> None:
    coadd.image[150:153, 60:63] -= 30 * SIGMA


def spoil_variance(coadd: Coadd) -> None:
    coadd.variance /= 4


def mask_a_quarter(coadd: Coadd) -> None:
    coadd.mask["NO_DATA"][:50] = True
    coadd.image[:50] = np.nan


@pytest.mark.parametrize(
    ("spoil", "name", "kind"),
    [
        (spoil_width, "star_fwhm", None),
        (spoil_flux, "flux_ratio", None),
        (lose_source, "disagreement_density", "deficit"),
        (dig_hole, "hole_density", "hole"),
        (spoil_variance, "variance_ratio", None),
        (mask_a_quarter, "no_data", None),
    ],
)
def test_what_is_wrong_is_found(spoil: object, name: str, kind: str | None) -> None:
    latent = Coadd(2.0, seed=2)
    spoil(latent)
    limits = PatchLimits(hole_density=1.0, disagreement_density=1.0)
    analysis = analyze_patch(latent, {"visits": {"1": {"chi2": 1.0}}}, Coadd(4.2, sigma=1.0), limits=limits)
    failed = [check.name for check in analysis.checks if not check.passed]
    assert name in failed
    if kind is not None:
        assert kind in {artifact.kind for artifact in analysis.artifacts}


def test_metrics_are_checked() -> None:
    analysis = analyze_patch(Coadd(2.0), METRICS)
    failed = {check.name: check.value for check in analysis.checks if not check.passed}
    assert failed == {"chi2": 1.25, "rejected_inputs": 0.25}
    assert analysis.concern == pytest.approx(2.5)
    assert "flux_ratio" not in analysis.numbers


def test_nothing_to_see() -> None:
    latent = Coadd(2.0)
    latent.mask["NO_DATA"][:] = True
    analysis = analyze_patch(latent, {})
    assert analysis.numbers["no_data_fraction"] == 1
    assert [check.name for check in analysis.checks if not check.passed] == ["no_data"]
    for figure in (star_figure(analysis), photometry_figure(analysis, ("a", "b")), fit_figure({})):
        assert figure.axes


def test_coarser_reference() -> None:
    """Positions and apertures are carried over to other pixels."""

    @dataclasses.dataclass
    class Coarse(Coadd):
        def __post_init__(self) -> None:
            super().__post_init__()
            image = galsim.ImageD(100, 100, xmin=0, ymin=0, scale=1.0)
            for (x, y), flux in zip((POSITIONS + 0.5) / 2 - 0.5, FLUXES, strict=True):
                star = galsim.Gaussian(fwhm=self.fwhm, flux=flux)
                star.drawImage(image, center=galsim.PositionD(x, y), method="no_pixel", add_to_image=True)
            self.image = image.array
            self.variance = np.ones((100, 100))
            self.noise = np.zeros((0, 100, 100))
            self.mask = {"NO_DATA": np.zeros((100, 100), dtype=bool)}

    analysis = analyze_patch(Coadd(2.0), {}, Coarse(2.5, pixel_scale=0.4))
    np.testing.assert_allclose(analysis.numbers["flux_ratio"], 1.0, atol=0.02)
    assert analysis.numbers["n_stars"] >= 3
    assert analysis.disagreement is None


def test_figures_show_the_data() -> None:
    latent, plain = Coadd(2.0, seed=2), Coadd(4.2, sigma=1.0)
    dig_hole(latent)
    latent.mask["CLIPPED"][100, 20:60] = True
    analysis = analyze_patch(latent, METRICS, plain)
    assert {"hole", "streak"} <= {artifact.kind for artifact in analysis.artifacts}
    stretch = Stretch.of(plain.image, 1.0)
    picture = image_figure(latent.image, stretch, largest=400)
    assert picture.get_size_inches().tolist() == [4.0, 4.0]
    for figure, n_axes in (
        (photometry_figure(analysis, ("latent", "plain")), 2),
        (noise_figure(analysis, ("latent", "plain")), 2),
        (fit_figure(METRICS), 2),
        (artifact_figure(latent, analysis), 3),
        (detail_figure({"a": latent.image, "b": plain.image}, [("star", 40.0, 50.0)], stretch), 2),
    ):
        figure.draw_without_rendering()
        assert len(figure.axes) == n_axes
    ratio = photometry_figure(analysis, ("latent", "plain")).axes[0].lines[1].get_ydata()
    assert len(ratio) == int(analysis.sources.is_star.sum())


def test_shrinking_averages() -> None:
    image = np.arange(36.0).reshape(6, 6)
    image[0, 0] = np.nan
    small = shrink(image, 3)
    assert small.shape == (3, 3)
    np.testing.assert_allclose(small[0, 0], np.mean([1, 6, 7]))
    np.testing.assert_allclose(small[2, 2], image[4:, 4:].mean())
    assert shrink(image, 6) is image


def test_sky_stands_in_for_realizations() -> None:
    """Without realizations, correlated noise is known from what a reference shows empty."""
    latent, plain = Coadd(2.0, sigma=0.0), Coadd(4.2, sigma=1.0)
    noise = gaussian_filter(np.random.default_rng(9).normal(size=(220, 220)), 1.5)[10:-10, 10:-10]
    latent.image = latent.image + SIGMA * noise / noise.std()
    latent.variance[:] = SIGMA**2
    psf = latent.kernel(0, 0)
    truth = np.std(filter_with_psf(SIGMA * noise / noise.std(), psf)[20:-20, 20:-20])
    numbers = analyze_patch(latent, {}, plain).numbers
    np.testing.assert_allclose(numbers["depth"], 31.4 - 2.5 * np.log10(5 * truth), atol=0.3)
    assert analyze_patch(latent, {}).numbers["depth"] > numbers["depth"] + 0.5


def test_maps_show_no_difference_that_is_rounding() -> None:
    numbers = {"chi2_worst": 0.99, "depth": 26.9, "flux_ratio": 0.999, "n_inputs": 13.0}
    analyses = [
        {
            "patch": i,
            "bbox": {"x": [100 * i, 100 * i + 110], "y": [0, 110]},
            "concern": 0.5 + i,
            "numbers": {**numbers, "star_fwhm": 2.0 + 1e-4 * i},
        }
        for i in (0, 1)
    ]
    maps = [ax for ax in tract_figure(analyses).axes if ax.collections and ax.get_title()]
    by_title = {ax.get_title(): ax.collections[0] for ax in maps}
    width = by_title[PATCH_NUMBERS["star_fwhm"].doc]
    assert np.ptp(width.norm(width.get_array())) < 0.1
    concern = by_title["Worst deviation over its limit"]
    assert np.ptp(concern.norm(concern.get_array())) == pytest.approx(1.0)


def test_missed_and_faint_sources_do_not_count_as_noise() -> None:
    latent = Coadd(2.0, seed=2)
    rng = np.random.default_rng(7)
    noise = rng.normal(scale=SIGMA, size=(4, *latent.image.shape))
    # In some places of each realization a source was missed, and lacks in it.
    missed = rng.uniform(size=noise.shape) < 0.0008
    latent.noise = noise - gaussian_filter(200.0 * SIGMA * missed, (0, 0.85, 0.85))
    assert np.std(latent.noise) > 1.5 * SIGMA
    numbers = analyze_patch(latent, METRICS | {"visits": {}, "rejected_inputs": {}}, None).numbers
    np.testing.assert_allclose(numbers["sky_spread_over_noise"], 1.0, rtol=0.05)
