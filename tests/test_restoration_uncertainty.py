# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Errors of restored images, intervals and detection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    ErrorModel,
    ExposureStack,
    gaussian_kernel,
    make_significance,
    measure_depth,
    measure_interval,
    measure_point_error,
    restore,
)
from lsst.latent_coadds.restoration._find_points import local_precision, share_seen
from lsst.latent_coadds.restoration._model import make_operator
from lsst.latent_coadds.restoration._point_finder import PointFinder
from lsst.latent_coadds.restoration._point_sources import MatchedFilter, PointSources
from lsst.latent_coadds.restoration._proximal import NonNegativeQuadratic
from lsst.latent_coadds.restoration._student import student_quantile
from lsst.latent_coadds.restoration._uncertainty import smooth_variance

SIZE = 96


def make_stack(
    seed: int, sources: list[tuple[float, float, float]], sigma: float = 0.3, variance: float = 0.0
) -> ExposureStack:
    """Draw four exposures of Gaussian PSFs, in closed form, with a masked strip.

    Sources are points, or Gaussians with a variance (px^2).
    """
    rng = np.random.default_rng(seed)
    widths = np.array([3.0, 3.6, 4.2, 4.8]) / 2.35482
    y, x = np.mgrid[:SIZE, :SIZE]
    image = rng.normal(size=(4, SIZE, SIZE)) * sigma
    for px, py, flux in sources:
        for t, w in enumerate(np.sqrt(widths**2 + variance)):
            image[t] += flux / (2 * np.pi * w**2) * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * w**2))
    good = np.ones(image.shape, dtype=bool)
    good[0, 30:50] = False
    psf = torch.stack([gaussian_kernel(2.35482 * w, 33) for w in widths])
    return ExposureStack(image, np.full(image.shape, sigma**2), good, psf)


@pytest.mark.parametrize(
    ("probability", "n", "value"),
    [
        (0.975, 1, 12.706205),
        (0.975, 3, 3.182446),
        (0.84, 2, 1.311578),
        (0.975, 15, 2.131450),
        (0.975, np.inf, 1.959964),
    ],
)
def test_student_quantile(probability: float, n: float, value: float) -> None:
    assert student_quantile(probability, n) == pytest.approx(value, rel=1e-6)
    assert student_quantile(1.0 - probability, n) == pytest.approx(-value, rel=1e-6)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_interval_covers_correlated_gaussian_errors_for_any_number_of_realizations(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = {0.68: 0, 0.95: 0}
    trials = 1000
    y, x = np.mgrid[:40, :40]
    # Correlated over the diagonal, with a bias of 0.7; the source is at (20, 20).
    for _ in range(trials):
        noise = rng.normal(size=(n + 1, 42, 42))
        errors = noise[:, 1:-1, 1:-1] + 0.6 * noise[:, 2:, 2:] + 0.7
        truth = 300.0 * np.exp(-((x - 20) ** 2 + (y - 20) ** 2) / 8.0)
        model = ErrorModel(truth + errors[0], np.ones(truth.shape), errors[1:])
        weights = np.ones((3, 3))
        for level in hits:
            interval = model.interval(weights, level, corner=(19, 19))
            assert interval.on_source
            hits[level] += interval.low <= truth[19:22, 19:22].sum() <= interval.high
    for level, count in hits.items():
        assert abs(count / trials - level) < 3.5 * np.sqrt(level * (1 - level) / trials)


def test_interval_in_the_sky_knows_that_errors_are_not_gaussian() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(300):
        # Mostly nothing, and specks in 3 % of all pixels.
        errors = rng.normal(size=(9, 40, 40)) * np.where(rng.uniform(size=(9, 40, 40)) < 0.03, 1.0, 0.05)
        model = ErrorModel(errors[0], np.full((40, 40), errors.var()), errors[1:])
        interval = model.interval(np.ones((1, 1)), 0.68, corner=(20, 20))
        hits += interval.low <= 0.0 <= interval.high
    assert abs(hits / 300 - 0.68) < 0.1


def test_what_lies_beside_a_speck_is_no_sky_in_a_realization_either() -> None:
    rng = np.random.default_rng(6)
    errors = rng.normal(size=(17, 82, 82))
    before = ErrorModel(errors[0], np.ones((82, 82)), errors[1:])._measure_sky(np.ones((1, 1)), 1.0)[0]
    # Nine pixels apart are the places where the measurement is repeated.
    errors[4, :80:9, :80:9] = 2.5
    errors[4, 2::9, 2::9] = 60.0
    errors[5, :80:9, :80:9] = 2.4
    errors[5, 2::9, 2::9] = 4.0
    after = ErrorModel(errors[0], np.ones((82, 82)), errors[1:])._measure_sky(np.ones((1, 1)), 1.0)[0]
    assert len(before) == 1600
    assert len(after) == 1600 - 81
    assert not (after == 2.5).any()
    assert (after == 2.4).sum() == 81


def test_interval_of_white_noise_is_exact_without_realizations() -> None:
    stack = make_stack(1, [(48.0, 60.0, 30.0)])
    result = restore(stack, "direct")
    weights = np.ones((5, 5))
    interval = measure_interval(result, weights, 0.95, corner=(60, 46))
    # The sum of 25 pixels of the mean of four exposures.
    assert interval.error == pytest.approx(np.sqrt(25 / 4) * 0.3, rel=1e-5)
    assert interval.high - interval.low == pytest.approx(2 * 1.959964 * interval.error, rel=1e-5)
    wider = measure_interval(result, weights, 0.95, corner=(60, 46), relative_error=0.5)
    assert wider.error == pytest.approx(np.hypot(interval.error, 0.5 * abs(interval.value)), rel=1e-5)


def test_bad_measurements_are_named() -> None:
    model = ErrorModel(np.zeros((8, 8)), np.full((8, 8), np.inf))
    assert np.isnan(model.interval(np.ones((2, 2))).low)
    with pytest.raises(ValueError, match="leave the image"):
        model.interval(np.ones((4, 4)), corner=(6, 6))
    with pytest.raises(ValueError, match="between 0 and 1"):
        model.interval(np.ones((2, 2)), 68.0)
    with pytest.raises(ValueError, match=r"give \(N, H, W\)"):
        ErrorModel(np.zeros((8, 8)), np.ones((8, 8)), np.zeros((2, 4, 4)))


def test_filtered_data_are_read_between_pixels() -> None:
    stack = make_stack(2, [], sigma=0.02)
    operator = make_operator(stack, 1.0, 0.0)
    matched = MatchedFilter(NonNegativeQuadratic(operator, stack.exposure_weights()), 1.0)
    zero = operator.transform(torch.zeros(operator.latent_shape))
    place = torch.tensor([[40.5, 40.5, 40.9], [50.5, 50.2, 50.5]], dtype=torch.float64)
    star = PointSources(place[0, :1], place[1, :1], torch.full((1,), 30.0, dtype=torch.float64))
    nowhere = PointSources(place[0], place[1], torch.zeros(3, dtype=torch.float64))
    value, (along_x, along_y) = matched.values(matched.add(zero, star), nowhere)
    assert float(value[0]) == pytest.approx(30.0 * matched.precision, rel=1e-3)
    # The slopes vanish in the middle, and are those of a parabola beside it.
    bend = 30.0 * torch.tensor(matched.bend)
    assert float(along_x[0].abs()) < 1e-3 * float(bend[0])
    assert float(along_y[0].abs()) < 1e-3 * float(bend[1])
    assert float(along_y[1]) == pytest.approx(0.3 * float(bend[1]), rel=0.03)
    assert float(along_x[2]) == pytest.approx(-0.4 * float(bend[0]), rel=0.03)


def test_points_are_found_at_their_places_and_measured() -> None:
    sources = [(30.3, 66.8, 40.0), (36.1, 70.2, 25.0), (70.6, 20.4, 60.0)]
    stack = make_stack(2, sources, sigma=0.02)
    operator = make_operator(stack, 1.0, 0.0)
    quadratic = NonNegativeQuadratic(operator, stack.exposure_weights())
    matched = MatchedFilter(quadratic, 1.0)
    zero = operator.transform(torch.zeros(operator.latent_shape))
    weight = stack.inverse_variance
    gradient = -operator.transform(operator.adjoint(weight * stack.image))
    points = PointFinder(matched).candidates(matched.signal(zero, gradient))
    for px, py, flux in sources:
        offset = torch.hypot(points.x - operator.margin - px, points.y - operator.margin - py)
        k = int(offset.argmin())
        assert float(offset[k]) < 0.05
        assert float(points.flux[k]) == pytest.approx(flux, rel=0.03)
    # In closed form: the sum of squared PSFs over the variance, for four exposures.
    widths = np.array([3.0, 3.6, 4.2, 4.8]) / 2.35482
    assert matched.flux_error == pytest.approx(
        (1 / (4 * np.pi * widths**2) / 0.02**2).sum() ** -0.5, rel=0.01
    )


def test_points_are_found_anew_where_exposures_are_missing() -> None:
    """Two of four exposures have data: what stands out by 4.5 of their sigma is found, and no less."""
    stack = make_stack(2, [(48.3, 47.6, 1.0)], sigma=1e-6)
    variance = torch.full_like(stack.image, 0.3**2)
    half = torch.ones_like(stack.good)
    half[::2] = False
    operator = make_operator(stack, 1.0, 0.0)
    whole = ExposureStack(stack.image, variance, torch.ones_like(half), stack.psf)
    seen = ExposureStack(stack.image, variance, half, stack.psf)
    quadratic = NonNegativeQuadratic(operator, whole.exposure_weights())
    matched = MatchedFilter(quadratic, 1.0, local_precision(quadratic, seen, share_seen(quadratic, seen)))
    middle = operator.margin + 48
    error = matched.flux_error / float(matched.coverage[middle, middle]) ** 0.5
    assert error > 1.3 * matched.flux_error
    star = operator.transform(operator.adjoint(seen.inverse_variance * stack.image))
    for strength, n_found in ((2.5, 0), (4.5, 1)):
        left = matched.left(-strength * error * star)
        points = PointFinder(matched, 3.5).again(left, PointSources.none(matched.device))[1]
        assert len(points) == n_found
    assert float(points.x[0] - operator.margin) == pytest.approx(48.3, abs=0.1)
    assert float(points.flux[0]) == pytest.approx(4.5 * error, rel=0.05)
    # Where points are not wanted, other noise makes none.
    assert len(PointFinder(matched, 0.0).again(left, PointSources.none(matched.device))[1]) == 0


def test_significance_of_noise_is_a_standard_gaussian_in_spite_of_masks() -> None:
    values = torch.cat([make_significance(make_stack(s, []), clip=False).image for s in range(6)])
    assert float(values.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(values.std()) == pytest.approx(1.0, abs=0.03)
    assert float((values > 2.0).double().mean()) == pytest.approx(0.0228, abs=0.006)
    masked = torch.cat([make_significance(make_stack(s, []), clip=False).image[34:46] for s in range(6)])
    assert float(masked.std()) == pytest.approx(1.0, abs=0.08)


def test_half_of_the_sources_at_the_threshold_are_found() -> None:
    stack = make_stack(3, [(48.0, 60.0, 100.0)])
    depth = measure_depth(stack, generator=torch.Generator().manual_seed(1), n_sources=100)
    assert depth.completeness[0] < 0.2 and depth.completeness[-1] > 0.95
    assert 4.0 < depth.limiting_signal_to_noise < 5.3
    assert depth.n_found >= 1 and depth.n_false <= 1
    error = make_significance(stack).flux_error
    assert make_significance(stack).limiting_flux() == pytest.approx(5 * float(error.median()), rel=1e-6)


def test_realizations_of_a_restoration_predict_its_aperture_fluxes() -> None:
    y, x = np.mgrid[:SIZE, :SIZE]
    misses, widths = [], []
    for seed in range(4):
        sources = [(20.3 + 28 * i, 20.7 + 28 * j, 45.0) for i in range(3) for j in range(3)]
        result = restore(make_stack(seed + 10, sources), "imagemm", n_realizations=6)
        model = ErrorModel.from_restoration(result)
        for px, py, flux in sources:
            interval = model.interval((np.hypot(x - px, y - py) < 4.0).astype(float), 0.95)
            misses.append(not interval.low <= flux <= interval.high)
            widths.append(interval.error)
    assert np.mean(misses) < 0.2
    assert 0.5 < np.median(widths) / 1.4 < 2.0


GRID = [(20.3 + 28 * i, 20.7 + 28 * j) for i in range(3) for j in range(3)]


def test_intervals_cover_pixels_of_galaxies() -> None:
    """A galaxy in the restored image is specks; realizations are to know that it is none in truth."""
    variance, flux = 3.0, 150.0
    inside, off, known = [], [], []
    for seed in range(4):
        stack = make_stack(seed + 30, [(x, y, flux) for x, y in GRID], variance=variance)
        result = restore(stack, "imagemm", n_realizations=8, generator=torch.Generator().manual_seed(seed))
        model = ErrorModel.from_restoration(result)
        total = variance + (2.0 / 2.35482) ** 2
        for x, y in GRID:
            for row, column in ((round(y), round(x)), (round(y) + 1, round(x) - 1)):
                square = (column - x) ** 2 + (row - y) ** 2
                truth = flux / (2 * np.pi * total) * np.exp(-0.5 * square / total)
                interval = [model.interval(np.ones((1, 1)), p, corner=(row, column)) for p in (0.68, 0.95)]
                inside.append([i.low <= truth <= i.high for i in interval])
                off.append(interval[0].value - truth)
                known.append(float(result.noise_realizations[:, row, column].mean()))
    narrow, wide = np.mean(inside, axis=0)
    assert 0.52 < narrow < 0.84
    assert wide > 0.85
    assert np.corrcoef(off, known)[0, 1] > 0.5


def test_a_bright_star_that_is_no_point_is_not_smoothed() -> None:
    stack = make_stack(7, [(x, y, 150.0) for x, y in GRID])
    result = restore(stack, "imagemm", n_realizations=8, point_threshold=1e4)
    model = ErrorModel.from_restoration(result)
    y, x = np.mgrid[:SIZE, :SIZE]
    pull, inside = [], []
    for px, py in GRID:
        psf = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (2.0 / 2.35482) ** 2))
        weights = psf * psf.sum() / (psf**2).sum()
        interval = model.interval(weights, 0.95)
        inside.append(interval.low <= 150.0 <= interval.high)
        pull.append(interval.bias / interval.error)
    assert np.mean(inside) > 0.7
    assert np.abs(pull).mean() < 3.0


def test_variance_of_a_sky_of_specks_is_as_even_as_the_exposures() -> None:
    generator = torch.Generator().manual_seed(4)
    shape = (4, 240, 240)
    # Noise that is zero nearly everywhere, twice as large where half of the exposures are missing.
    specks = (torch.rand(shape, generator=generator) < 0.003) * torch.randn(shape, generator=generator)
    precision = torch.ones(shape[1:])
    precision[:, 120:] = 0.25
    noise = specks / precision.sqrt()
    image = torch.zeros(shape[1:])
    image[60:63, 60:63] = 10.0
    noise[:, 60:63, 60:63] = torch.randn((4, 3, 3), generator=generator)
    sigma = smooth_variance(noise, image, precision).sqrt()
    empty = torch.ones(shape[1:], dtype=torch.bool)
    empty[50:73, 50:73] = False
    truth = math.sqrt(0.003) / precision.sqrt()
    assert float((sigma / truth - 1.0)[empty].abs().max()) < 0.15
    assert 0.5 < float(sigma[61, 61]) < 1.5


def test_error_of_a_point_is_that_of_the_exposures_that_are_there() -> None:
    error = measure_point_error(make_stack(1, []))
    square = np.array([4 * math.pi * (w / 2.35482) ** 2 for w in (3.0, 3.6, 4.2, 4.8)])
    all_four, three = (0.3 * (1 / part).sum() ** -0.5 for part in (square, square[1:]))
    assert float(error[70, 70]) == pytest.approx(all_four, rel=0.01)
    assert float(error[40, 70]) == pytest.approx(three, rel=0.01)


def test_a_star_below_the_threshold_is_a_source_of_the_realizations() -> None:
    # Four sigma are half a sigma below the threshold: the star is no point, and its errors are no sky's.
    stack = make_stack(0, [])
    flux = 4.0 * float(measure_point_error(stack)[70, 70])
    y, x = np.mgrid[:SIZE, :SIZE]
    w = np.array([3.0, 3.6, 4.2, 4.8])[:, None, None] / 2.35482
    star = np.exp(-((x - 66.0) ** 2 + (y - 70.0) ** 2) / (2 * w**2)) / (2 * np.pi * w**2)
    noiseless = ExposureStack(flux * star, stack.variance, stack.good, stack.psf)
    result = restore(noiseless, "imagemm", n_realizations=16, point_threshold=4.5)
    here, elsewhere = (
        measure_interval(result, np.ones((1, 1)), 0.95, corner=(70, column)) for column in (66, 20)
    )
    assert here.on_source and not elsewhere.on_source
    assert here.low < flux * float(result.psf.max()) < here.high
    assert here.error > 3.0 * elsewhere.error
