# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Intervals in the cores of faint stars, whose places are uncertain."""

from __future__ import annotations

import numpy as np
import pytest

from lsst.latent_coadds.restoration import ErrorModel
from lsst.latent_coadds.restoration._place_interval import SourcePlace

SIGMA = 2.0 / 2.35482
SIZE = 41
ERROR = 3.4
"""Error of the place of a star, in px, times its S/N."""

SKY = 0.02


def star(y: float, x: float, flux: float) -> np.ndarray:
    """Return a Gaussian star in closed form."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    square = (rows - y) ** 2 + (columns - x) ** 2
    return flux * np.exp(-0.5 * square / SIGMA**2) / (2.0 * np.pi * SIGMA**2)


def observe(rng: np.random.Generator, y: float, x: float, signal: float) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of a star whose place and flux err, and realizations of the errors."""
    flux = max(signal + rng.normal(), 3.5)
    place = np.array([y, x]) + ERROR / signal * rng.normal(size=2)
    image = star(*place, flux)
    noise = SKY * rng.normal(size=(16, SIZE, SIZE))
    again = place + ERROR / flux * rng.normal(size=(16, 2))
    fluxes = flux + rng.normal(size=16)
    errors = noise + [star(*p, f) - image for p, f in zip(again, fluxes, strict=True)]
    return image + SKY * rng.normal(size=image.shape), errors


@pytest.mark.parametrize(("signal", "beside"), [(5.0, 0), (5.0, 1), (10.0, 1)])
def test_pixels_in_cores_of_faint_stars_are_covered(signal: float, beside: int) -> None:
    """Intervals that only knew of the errors at the pixel held in 37 and 68 % beside a star of S/N 5."""
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(120):
        y, x = 20.0 + rng.uniform(-0.5, 0.5, 2)
        image, errors = observe(rng, y, x, signal)
        model = ErrorModel(image, np.full(image.shape, SKY**2), errors)
        true = star(y, x, signal)[20 + beside, 20 + beside]
        intervals = (model.interval(np.ones((1, 1)), v, corner=(20 + beside,) * 2) for v in (0.68, 0.95))
        hits.append([i.low <= true <= i.high for i in intervals])
    share = np.mean(hits, axis=0)
    # Two and a half standard errors of 120 stars.
    assert share[0] == pytest.approx(0.68, abs=0.04 + 0.105)
    assert 0.95 - 0.025 - 0.05 <= share[1]


def test_the_place_and_its_error_are_found() -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(20):
        image, errors = observe(rng, 20.2, 19.7, 8.0)
        place = SourcePlace.find(image, errors, 21.0, 20.0)
        assert place is not None
        assert place.sigma == pytest.approx(SIGMA, rel=0.25)
        found.append(place.error)
    assert np.median(found) == pytest.approx(ERROR / 8.0, rel=0.2)


def test_nothing_is_found_at_the_border_or_in_the_sky() -> None:
    rng = np.random.default_rng(3)
    image, errors = observe(rng, 20.0, 20.0, 8.0)
    assert SourcePlace.find(image, errors, 3.0, 20.0) is None
    assert SourcePlace.find(image, errors, 20.0, 38.0) is None
    empty = np.zeros_like(image)
    assert SourcePlace.find(empty, np.zeros_like(errors), 20.0, 20.0) is None


def test_apertures_and_bright_stars_keep_their_intervals() -> None:
    rng = np.random.default_rng(4)
    image, errors = observe(rng, 20.0, 20.0, 8.0)
    place = SourcePlace.find(image, errors, 20.0, 20.0)
    assert place is not None
    assert place.is_narrow(np.ones((1, 1)))
    assert not place.is_narrow(np.ones((5, 5)))
    image, errors = observe(rng, 20.0, 20.0, 100.0)
    place = SourcePlace.find(image, errors, 20.0, 20.0)
    assert place is not None
    assert not place.is_narrow(np.ones((1, 1)))


def test_no_weights_measure_nothing() -> None:
    rng = np.random.default_rng(6)
    image, errors = observe(rng, 20.0, 20.0, 8.0)
    interval = ErrorModel(image, np.ones_like(image), errors).interval(np.zeros((2, 2)))
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_an_interval_knows_along_which_axis_the_place_is_uncertain() -> None:
    rng = np.random.default_rng(7)
    flux, error = 8.0, np.array([0.15, 0.9])
    image = star(20.0, 20.0, flux)
    again = 20.0 + error * rng.normal(size=(16, 2))
    errors = SKY * rng.normal(size=(16, SIZE, SIZE)) + [star(*p, flux) - image for p in again]
    model = ErrorModel(image, np.full(image.shape, SKY**2), errors)
    above, beside = (model.interval(np.ones((1, 1)), 0.68, corner=p) for p in ((21, 20), (20, 21)))
    # The star may well be in the pixel beside it, and not in the one above.
    assert beside.high > 0.9 * image.max()
    assert above.high < 0.7 * image.max()


def test_a_bias_is_nothing_that_places_and_fluxes_explain() -> None:
    image, errors = observe(np.random.default_rng(8), 20.0, 20.0, 8.0)
    place = SourcePlace.find(image, errors, 20.0, 20.0)
    assert place is not None

    def measure(down: np.ndarray, right: np.ndarray) -> np.ndarray:
        return image[20 - down, 20 - right]

    seen = np.asarray(errors)[:, 20, 20]
    assert place.interval(measure, seen, 0.68, 0.0) is not None
    assert place.interval(measure, seen + 5.0 * seen.std(), 0.68, 0.0) is None
