# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Where faint points may be, against least-squares fits of a star to the exposures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import ExposureStack, gaussian_kernel, restore
from lsst.latent_coadds.restoration._model import make_operator
from lsst.latent_coadds.restoration._place_interval import SourcePlace
from lsst.latent_coadds.restoration._place_likelihood import PlaceLikelihood
from lsst.latent_coadds.restoration._point_sources import MatchedFilter, PointSources
from lsst.latent_coadds.restoration._proximal import NonNegativeQuadratic

SIZE = 64
WIDTHS = np.array([3.0, 3.6, 4.2, 4.8]) / 2.35482
SIGMA = 0.3
FLUX_ERROR = SIGMA * (1.0 / (4.0 * np.pi * WIDTHS**2)).sum() ** -0.5
"""In closed form."""


def star(x: float, y: float) -> np.ndarray:
    """Return exposures of a star of unit flux, in closed form."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    w = WIDTHS[:, None, None]
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * w**2)) / (2 * np.pi * w**2)


def make_stack(image: np.ndarray) -> ExposureStack:
    psf = torch.stack([gaussian_kernel(2.35482 * w, 31) for w in WIDTHS])
    return ExposureStack(image, np.full(image.shape, SIGMA**2), np.ones(image.shape, dtype=bool), psf)


def draw(image: np.ndarray, points: list[tuple[float, float, float]], n: int = 4000) -> np.ndarray:
    """Return how far (points, n, 2) points of x, y and flux are moved, given data."""
    stack = make_stack(image)
    operator = make_operator(stack, 1.0, 0.0)
    matched = MatchedFilter(NonNegativeQuadratic(operator, stack.exposure_weights()), 1.0)
    gradient = -operator.transform(operator.adjoint(stack.inverse_variance * stack.image))
    x, y, flux = (torch.tensor(v, dtype=torch.float64) for v in zip(*points, strict=True))
    known = PointSources(x + operator.margin, y + operator.margin, flux)
    places = PlaceLikelihood(matched, matched.residual(matched.left(gradient), known), known)
    generator = torch.Generator().manual_seed(1)
    moved = [places.move(known, generator) for _ in range(n)]
    moves = [torch.stack([m.x - known.x, m.y - known.y], dim=1) for m in moved]
    return torch.stack(moves, dim=1).numpy()


def fit_everywhere(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return by how much a star with its best flux lowers chi squared, for places (n,)."""
    found = []
    for place in zip(x, y, strict=True):
        model = star(*place)
        found.append(max((model * image).sum(), 0.0) ** 2 / (model**2).sum() / SIGMA**2)
    return np.array(found)


def test_a_star_without_noise_has_cramer_rao_errors() -> None:
    flux = 12.0 * FLUX_ERROR
    moves = draw(flux * star(31.3, 30.8), [(31.3, 30.8, flux)])[0]
    information = flux**2 / SIGMA**2 * (1.0 / (8.0 * np.pi * WIDTHS**4)).sum()
    np.testing.assert_allclose(moves.std(axis=0), information**-0.5, rtol=0.06)


def test_places_follow_the_likelihood_that_was_seen() -> None:
    """Where noise lies beside a star, a star may be anywhere between."""
    image = FLUX_ERROR * (4.5 * star(30.0, 32.0) + 3.0 * star(33.0, 33.0))
    line = np.arange(-4.0, 4.01, 0.2)
    right, down = (g.ravel() for g in np.meshgrid(line, line))
    gain = fit_everywhere(image, 31.0 + right, 32.4 + down)
    best = gain.argmax()
    inside = gain >= gain[best] - 4.0
    offset = np.stack([right - right[best], down - down[best]])[:, inside]
    expected = offset @ offset.T / inside.sum()
    flux = np.sqrt(gain[best]) * FLUX_ERROR
    moves = draw(image, [(31.0 + right[best], 32.4 + down[best], flux)])[0]
    found = moves.T @ moves / len(moves)
    np.testing.assert_allclose(found, expected, rtol=0.12, atol=0.02)
    # A star alone is known better, and as well along either axis.
    alone = draw(flux * star(31.0, 32.4), [(31.0, 32.4, flux)])[0].std(axis=0)
    assert moves[:, 0].std() > 1.3 * alone[0]
    assert alone[0] == pytest.approx(alone[1], rel=0.06)


def test_bright_points_and_pairs_stay_where_they_are() -> None:
    points = [(15.0, 15.0, 50.0), (45.0, 45.0, 6.0), (47.5, 45.0, 6.0), (15.0, 45.0, 6.0)]
    points = [(x, y, s * FLUX_ERROR) for x, y, s in points]
    image = sum(f * star(x, y) for x, y, f in points)
    moves = draw(np.asarray(image), points, n=3)
    assert (moves[:3] == 0.0).all()
    assert (moves[3] != 0.0).all()


def test_realizations_of_a_star_beside_a_bump_of_noise_scatter_along_both() -> None:
    image = FLUX_ERROR * (5.0 * star(30.0, 32.0) + 3.0 * star(33.0, 32.0))
    result = restore(make_stack(image), "imagemm", n_realizations=32)
    place = SourcePlace.find(result.image.double().numpy(), result.noise_realizations.numpy(), 32.0, 31.0)
    assert place is not None
    down, right = np.sqrt(np.mean(place.shifts**2, axis=0))
    # By 1.7 in the likelihood; 32 draws know each to an eighth.
    assert right > 1.2 * down
