# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Smooth sources that stand for galaxies in noise realizations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import ExposureStack, gaussian_kernel
from lsst.latent_coadds.restoration._fidelity import HuberFidelity
from lsst.latent_coadds.restoration._fit import evaluate
from lsst.latent_coadds.restoration._likely_structure import _find_odds, _find_rough
from lsst.latent_coadds.restoration._model import make_operator
from lsst.latent_coadds.restoration._point_finder import PointFinder
from lsst.latent_coadds.restoration._point_sources import MatchedFilter
from lsst.latent_coadds.restoration._proximal import NonNegativeQuadratic
from lsst.latent_coadds.restoration._smooth_sources import SmoothSourceFit, SmoothSources

SIZE = 96
WIDTHS = np.array([3.0, 3.6, 4.2, 4.8]) / 2.35482
SHAPE = (2.6, 0.7, 1.5)
"""Covariance xx, xy, yy (px^2) of a galaxy."""

Source = tuple[float, float, float, float, float, float]


def make_stack(seed: int, sources: list[Source], sigma: float, drawn: float = 1.0) -> ExposureStack:
    """Draw exposures of elliptical Gaussians, in closed form; the noise is ``drawn`` times as large."""
    y, x = np.mgrid[:SIZE, :SIZE]
    image = drawn * sigma * np.random.default_rng(seed).normal(size=(4, SIZE, SIZE))
    for px, py, flux, xx, xy, yy in sources:
        for t, w in enumerate(WIDTHS):
            a, b, dx, dy = xx + w**2, yy + w**2, x - px, y - py
            determinant = a * b - xy**2
            form = (b * dx**2 - 2 * xy * dx * dy + a * dy**2) / determinant
            image[t] += flux / (2 * np.pi * np.sqrt(determinant)) * np.exp(-0.5 * form)
    good = np.ones(image.shape, dtype=bool)
    good[0, 30:50] = False
    psf = torch.stack([gaussian_kernel(2.35482 * w, 33) for w in WIDTHS])
    return ExposureStack(image, np.full(image.shape, sigma**2), good, psf)


def make_filter(stack: ExposureStack) -> tuple[MatchedFilter, HuberFidelity, torch.Tensor]:
    """Return the matched filter of a stack, its data term, and the gradient of an empty image."""
    operator = make_operator(stack, 1.0, 0.0)
    matched = MatchedFilter(NonNegativeQuadratic(operator, stack.exposure_weights()), 1.0)
    fidelity = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), 3.0)
    empty = operator.transform(torch.zeros(operator.latent_shape))
    return matched, fidelity, evaluate(operator, fidelity, empty)[1]


def fit_sources(stack: ExposureStack) -> tuple[SmoothSourceFit, SmoothSources]:
    """Return Gaussian sources that fit best, from the peaks of the filtered data."""
    matched, fidelity, gradient = make_filter(stack)
    fit = SmoothSourceFit(matched, 1.0, fidelity)
    everywhere = torch.ones(matched.operator.latent_shape)
    begin = fit.begin(matched.left(gradient), everywhere, 8.0)
    return fit, fit.improve(begin, 12, torch.zeros_like(gradient))


def test_light_of_an_exponential_profile_is_that_of_an_exponential() -> None:
    matched, fidelity, _ = make_filter(make_stack(0, [], 0.1))
    fit, operator = SmoothSourceFit(matched, 1.0, fidelity), matched.operator
    # The variance per axis of an exponential profile is three times the square of its scale.
    scale, middle = 3.0, operator.margin + 48
    values = [[middle + 0.3, middle - 0.4, 100.0, 3 * scale**2, 0.0, 3 * scale**2, 2.0 / 3.0]]
    plane = operator.untransform(fit.light(SmoothSources(torch.tensor(values, dtype=torch.float64))))
    rows, columns = np.mgrid[: plane.shape[0], : plane.shape[1]]
    radius = np.hypot(columns - middle - 0.3, rows - middle + 0.4)
    truth = 100.0 * np.exp(-radius / scale) / (2.0 * np.pi * scale**2)
    ring = (radius > 3.0) & (radius < 15.0)
    # The PSF of the latent image, of 0.42 px, raises it by less than 2 %.
    np.testing.assert_allclose(plane.numpy()[ring], truth[ring], rtol=0.03, atol=2e-3)
    assert float(plane.sum()) == pytest.approx(100.0, rel=0.01)


def test_smooth_sources_are_measured() -> None:
    sources = [
        (30.3, 66.8, 40.0, *SHAPE),
        (60.6, 40.2, 60.0, 1.0, 0.0, 4.0),
        (70.4, 70.5, 50.0, 0.0, 0.0, 0.0),
    ]
    fit, found = fit_sources(make_stack(1, sources, 0.1, drawn=0.01))
    margin = fit._operator.margin
    assert len(found) == 3
    for source in sources:
        k = int(torch.hypot(found.x - margin - source[0], found.y - margin - source[1]).argmin())
        values = found.values[k, :6] - torch.tensor([margin, margin, 0, 0, 0, 0])
        assert float(values[2]) == pytest.approx(source[2], rel=0.01)
        np.testing.assert_allclose(values[[0, 1, 3, 4, 5]], np.array(source)[[0, 1, 3, 4, 5]], atol=0.06)


def test_smooth_sources_are_off_by_what_is_drawn() -> None:
    places = [(22.3 + 26 * i, 21.8 + 26 * j) for i in range(3) for j in range(3)]
    generator = torch.Generator().manual_seed(1)
    deviation = []
    for seed in range(6):
        fit, found = fit_sources(make_stack(seed, [(x, y, 90.0, *SHAPE) for x, y in places], 0.25))
        information, root = fit.root(found)
        noise = torch.randn(400, len(found), 6, generator=generator, dtype=torch.float64)
        drawn = torch.stack([fit.move(found, information, root, n[:, None]).values[:, :6] for n in noise])
        truth = torch.tensor([(x, y, 90.0, *SHAPE) for x, y in places], dtype=torch.float64)
        truth[:, :2] += fit._operator.margin
        order = torch.cdist(found.values[:, :2], truth[:, :2]).argmin(dim=1)
        deviation.append((found.values[:, :6] - truth[order]) / drawn.std(dim=0))
    spread = torch.cat(deviation).square().mean(dim=0).sqrt()
    # Of 54 sources an rms is known to a tenth.
    assert len(torch.cat(deviation)) == 54
    assert float((spread - 1.0).abs().max()) < 0.3
    assert float((spread.mean() - 1.0).abs()) < 0.15


def test_drawn_shapes_are_no_lines() -> None:
    fit, found = fit_sources(make_stack(5, [(48.3, 60.6, 20.0, 0.7, 0.0, 0.7)], 0.25))
    information, root = fit.root(found)
    noise = torch.randn(300, 1, 12, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def lines(n_draws: int) -> float:
        drawn = torch.cat([fit.move(found, information, root, n[:, :n_draws]).values for n in noise])
        xx, xy, yy = drawn[:, 3:6].unbind(1)
        return float((xx * yy - xy**2 < 1e-6).double().mean())

    # The best shape is no line, but many draws are.
    assert lines(1) > 0.3
    assert lines(12) < 0.02


@pytest.mark.parametrize(("variance", "flux", "low", "high"), [(0.0, 1.0, 0.0, 1.25), (1.6, 1.3, 5.0, 1e9)])
def test_a_wide_point_may_be_a_galaxy(variance: float, flux: float, low: float, high: float) -> None:
    star = make_filter(make_stack(0, [], 0.3))[0].flux_error * 15.0 * flux
    stack = make_stack(2, [(48.4, 60.3, star, variance, 0.0, variance)], 0.3, drawn=0.0)
    matched, fidelity, gradient = make_filter(stack)
    points = PointFinder(matched, 4.0).candidates(matched.left(gradient), n_rounds=1)
    left = matched.left(evaluate(matched.operator, fidelity, matched.light(points))[1])
    (odds,) = _find_odds(matched, left, points)
    assert low <= float(odds) < high
    # Of fainter ones it is not asked.
    fainter = stack.image * 0.5
    matched, fidelity, gradient = make_filter(ExposureStack(fainter, stack.variance, stack.good, stack.psf))
    points = PointFinder(matched, 4.0).candidates(matched.left(gradient), n_rounds=1)
    left = matched.left(evaluate(matched.operator, fidelity, matched.light(points))[1])
    assert float(_find_odds(matched, left, points)[0]) == 0.0


def test_structure_is_rough_around_where_the_latent_image_is_much_better() -> None:
    structure, gain = torch.zeros(2, 80, 120)
    structure[30:50, 20:40] = structure[30:50, 80:100] = 1.0
    gain[38:42, 28:32] = 16.0 / 16.0
    assert float(_find_rough(gain, structure).sum()) == 0.0
    gain[38:42, 28:32] = 40.0 / 16.0
    rough = _find_rough(gain, structure)
    assert bool((rough[30:50, 20:40] == 1.0).all())
    assert float(rough.sum()) == 400.0


def test_size_of_a_point_is_known_by_its_likelihood() -> None:
    """The profile likelihood of a round Gaussian is that of closed forms, where one PSF is Gaussian."""
    variance, size, flux, sigma = 0.0, 1.5, 20.0, 0.3
    stack = make_stack(0, [(48.0, 62.0, flux, variance, 0.0, variance)], sigma, drawn=0.0)
    matched, fidelity, gradient = make_filter(stack)
    points = PointFinder(matched, 4.0).candidates(matched.left(gradient), n_rounds=1)
    left = matched.left(evaluate(matched.operator, fidelity, matched.light(points))[1])

    def overlap(wide: float) -> float:
        """Sum over exposures of products of the PSF with one that is wider."""
        return float((1.0 / (2.0 * math.pi * (2.0 * WIDTHS**2 + wide))).sum()) / sigma**2

    expected = 0.5 * flux**2 * overlap(size) ** 2 / overlap(2.0 * size)
    found = float(matched.log_likelihood(left, points, size)[0])
    assert found == pytest.approx(expected, rel=0.03)
