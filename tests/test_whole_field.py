# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the parts of an image have in common."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    ConvolutionOperator,
    ExposureCalibration,
    ExposureStack,
    FrameGeometry,
    HuberFidelity,
    InvalidStackError,
    WholeField,
    restore,
)
from lsst.latent_coadds.restoration._balance import local_balance
from lsst.latent_coadds.restoration._find_points import local_precision, share_seen
from lsst.latent_coadds.restoration._fit import evaluate
from lsst.latent_coadds.restoration._model import make_bare_quadratic, make_operator, sum_curvature
from lsst.latent_coadds.restoration._point_sources import MatchedFilter, PointSources
from lsst.latent_coadds.restoration._proximal import NonNegativeQuadratic
from lsst.latent_coadds.restoration._residual import ResidualCorrection, SourceDiscs, covered_weight

SIZE = 48


def gaussian(fwhm: float, size: int = 21) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size // 2
    stamp = np.exp(-4.0 * math.log(2.0) * (x**2 + y**2) / fwhm**2)
    return stamp / stamp.sum()


def make_stack(widths: list[float], field: WholeField | None, **options: Any) -> ExposureStack:
    rng = np.random.default_rng(1)
    image = rng.normal(size=(len(widths), SIZE, SIZE))
    psf = np.stack([gaussian(w) for w in widths])
    return ExposureStack(
        image, np.ones_like(image), np.ones(image.shape, dtype=bool), psf, field=field, **options
    )


def test_curvature_is_the_sum_of_autocorrelations() -> None:
    widths, weights = [3.0, 4.5], [2.0, 0.5]
    field = WholeField(np.stack([7.0 * gaussian(w) for w in widths]), weights)
    found = torch.fft.irfft2(field.curvature(0.0, (64, 64)), s=(64, 64))
    for dx, dy in ((0, 0), (3, 1)):
        # Of two Gaussians of the same width, in closed form; PSFs are tapered beyond 6 px.
        closed = 0.0
        for width, weight in zip(widths, weights, strict=True):
            square = 2.0 * (width / 2.354820045) ** 2
            closed += weight * math.exp(-(dx**2 + dy**2) / (2.0 * square)) / (2.0 * math.pi * square)
        assert float(found[dy, dx]) == pytest.approx(closed, rel=1e-4)


def test_parts_weigh_frequencies_alike_and_light_by_what_they_have() -> None:
    widths = [3.8, 4.0, 4.2]
    field = WholeField(np.stack([gaussian(w) for w in widths]), np.ones(3))
    curvatures, precisions = [], []
    for part in (widths, widths[1:]):
        stack = make_stack(part, field)
        operator = ConvolutionOperator(stack.psf.double(), stack.shape, margin=4)
        curvature = sum_curvature(operator, stack, 0.0)
        quadratic = NonNegativeQuadratic(operator, stack.exposure_weights(), curvature=curvature)
        seen = share_seen(quadratic, stack)
        precision = local_precision(quadratic, stack, seen)[SIZE // 2, SIZE // 2]
        assert float(precision) == pytest.approx(1.0, abs=1e-6)
        curvatures.append(curvature)
        precisions.append(torch.fft.irfft2(curvature, s=operator.fft_shape)[0, 0] * precision)
    ratio = curvatures[1] / curvatures[0]
    assert float(ratio.max() - ratio.min()) < 1e-9
    expected = [sum((gaussian(w) ** 2).sum() for w in part) for part in (widths, widths[1:])]
    assert [float(p) for p in precisions] == pytest.approx(expected, rel=1e-3)


def test_shares_of_the_weight_know_the_area_of_every_pixel() -> None:
    """A mapping that stretches by 10 % along x: a pixel's area is not the mean one."""
    nodes = np.arange(0.0, 97.0, 8.0)
    stretched = nodes * (0.45 + 0.0005 * nodes)
    x, y = np.meshgrid(stretched, 0.5 * nodes)
    frames = FrameGeometry((SIZE, SIZE), x[None], y[None], 8)
    image = np.zeros((1, 96, 96))
    stack = ExposureStack(
        image, np.ones_like(image), np.ones(image.shape, dtype=bool), gaussian(4.0)[None], frames=frames
    )
    operator = ConvolutionOperator(stack.psf.double(), stack.shape, sampler=stack.make_sampler())
    quadratic = NonNegativeQuadratic(operator, stack.exposure_weights())
    fidelity = HuberFidelity(stack.image.double(), stack.inverse_variance.double().sqrt(), 5.0)
    area = frames.area(0, (96, 96))
    covered, squares = covered_weight(quadratic, fidelity), operator.square_weight(fidelity.inverse_sigma**2)
    mean = float(frames.affine(0).det().abs())
    column = np.interp(np.arange(SIZE), stretched, nodes)
    for at in (14, 30):
        # Flux per pixel of the exposure is area times that per latent pixel, and there are 1 / area of them.
        expected = float(area[48, round(column[at])])
        assert float(covered[24, at]) == pytest.approx(expected / mean, rel=0.01)
        assert float(squares[24, at]) == pytest.approx(expected * (gaussian(4.0) ** 2).sum(), rel=0.01)


def test_corrections_reach_the_whole_field() -> None:
    field = WholeField(np.stack([gaussian(3.0), gaussian(4.0)]), np.ones(2), ["a", "b"])
    stack = make_stack([4.0], field, names=["b"])
    calibration = ExposureCalibration.identity(["b"])
    calibration.parameters[0, 0] = 0.1
    calibration.parameters[0, 5] = math.log(2.0)
    corrected = calibration.apply(stack).field
    assert corrected is not None
    assert corrected.weights.tolist() == pytest.approx([1.0, 4.0])
    np.testing.assert_allclose(corrected.psf[0], field.psf[0])
    np.testing.assert_allclose(corrected.psf[1], calibration.apply(stack).psf[0].double(), atol=1e-6)
    assert float((corrected.psf[1] - field.psf[1]).abs().max()) > 1e-3


def test_a_field_of_the_exposures_themselves_changes_nothing() -> None:
    widths = [3.0, 4.0]
    field = WholeField(np.stack([gaussian(w) for w in widths]), np.ones(2))
    plain, whole = (
        restore(make_stack(widths, f), "imagemm", n_realizations=0, target_fwhm=2.5).image
        for f in (None, field)
    )
    torch.testing.assert_close(plain, whole, rtol=0.0, atol=0.01)


@pytest.mark.parametrize(
    ("psf", "weights", "names", "message"),
    [
        (gaussian(3.0), [1.0], None, "must have shape"),
        (gaussian(3.0)[None, :20, :20], [1.0], None, "k odd"),
        (0.0 * gaussian(3.0)[None], [1.0], None, "positive sum"),
        (gaussian(3.0)[None], [0.0], None, "positive weight"),
        (gaussian(3.0)[None], [1.0, 1.0], None, "positive weight"),
        (gaussian(3.0)[None], [1.0], ["a", "b"], "2 names for 1 exposures"),
    ],
)
def test_bad_fields_are_refused(psf: Any, weights: Any, names: Any, message: str) -> None:
    with pytest.raises(InvalidStackError, match=message):
        WholeField(psf, weights, names)


def test_exposures_that_differ_too_much_have_a_curvature_of_their_own() -> None:
    """In the shape of much sharper ones, galaxies would be points, and errors too small."""
    alone = make_stack([6.0], None)
    operator = ConvolutionOperator(alone.psf.double(), alone.shape, margin=4)
    own = operator.power(alone.exposure_weights())
    sharp = WholeField(np.stack([gaussian(3.0), gaussian(3.0), gaussian(6.0)]), np.ones(3))
    torch.testing.assert_close(sum_curvature(operator, make_stack([6.0], sharp), 0.0), own)
    alike = WholeField(np.stack([gaussian(5.8), gaussian(6.0)]), np.ones(2))
    found = sum_curvature(operator, make_stack([6.0], alike), 0.0)
    assert float((found / own)[0, 8]) > 1.01


def test_mixtures_lead_from_the_bluntest_exposure_to_the_sharpest() -> None:
    """The sum of squares of a Gaussian of unit flux is one over 4 pi sigma^2."""
    widths, weights = [3.0, 3.6, 4.2, 5.4], torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    field = WholeField(np.stack([gaussian(w) for w in widths]), weights)
    levels, mixtures, middle = field.mixtures(0.0)
    sharpness = torch.tensor([1.0 / (4.0 * math.pi * (w / 2.354820045) ** 2) for w in widths]).double()
    torch.testing.assert_close(mixtures[middle], weights)
    ends = sharpness[[3, 0]]
    for level, expected in ((levels[0], ends[0]), (levels[-1], ends[1])):
        assert level == pytest.approx(float(expected), rel=1e-3)
    for end, which in ((0, 3), (-1, 0)):
        share = mixtures[end] / mixtures[end].sum()
        assert float(share[which]) > 0.999
    for level, following in itertools.pairwise(levels):
        assert 1.0 < following / level <= 1.2501
    for level, mixture in zip(levels, mixtures, strict=True):
        assert float((mixture * sharpness).sum() / mixture.sum()) == pytest.approx(level, rel=1e-3)
        # Tilted: the logarithm of the factor is a straight line.
        if 0 < levels.index(level) < len(levels) - 1:
            slope = (mixture / weights).log().diff() / sharpness.diff()
            torch.testing.assert_close(slope, slope[:1].expand(3), rtol=0.01, atol=1e-3)
    alike = WholeField(np.stack([gaussian(4.0), gaussian(4.01)]), np.ones(2))
    assert alike.mixtures(0.0)[1:] == ([alike.weights], 0)


def make_half(widths: list[float], which: slice, field: WholeField, image: np.ndarray) -> ExposureStack:
    """Return exposures of which the first, the sharpest, ends in the middle."""
    good = np.ones(image.shape, dtype=bool)
    good[0, :, image.shape[2] // 2 :] = False
    psf = np.stack([gaussian(w) for w in widths])
    planes = (image[which], np.ones_like(image[which]), good[which], psf[which])
    return ExposureStack(*planes, field=field, weights=np.ones(len(psf[which])))


@pytest.mark.parametrize("spread", [0.0, 1.2])
def test_places_are_judged_and_corrected_by_the_exposures_that_are_there(spread: float) -> None:
    """A tile without the sharpest exposure agrees with one that has it somewhere else."""
    widths, height, width = [2.8, 4.0, 5.0], 48, 200
    rng = np.random.default_rng(4)
    image = rng.normal(size=(3, height, width))
    field = WholeField(np.stack([gaussian(w) for w in widths]), np.ones(3))
    found = []
    for which in (slice(0, 3), slice(1, 3)):
        stack = make_half(widths, which, field, image)
        operator = make_operator(stack, spread, 0.0)
        quadratic = make_bare_quadratic(operator, stack, spread)
        fidelity = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), 5.0)
        coverage = covered_weight(quadratic, fidelity)
        data = evaluate(operator, fidelity, operator.transform(torch.zeros(operator.latent_shape)))[1]
        nothing = torch.zeros_like(data)
        corrected = ResidualCorrection(quadratic, spread, 0.1, coverage).correct(nothing, data)
        matched = MatchedFilter(
            quadratic, spread, local_precision(quadratic, stack, share_seen(quadratic, stack))
        )
        discs = SourceDiscs(quadratic, coverage).weight(nothing, data, (1.0, 2.0))
        inner = operator.margin + 10, operator.margin + width - 24
        point = PointSources(*(torch.tensor([v], dtype=torch.float64) for v in (inner[1], 30.0, 100.0)))
        rows = slice(inner[0], inner[0] + height - 20)
        columns = slice(operator.margin + 140, operator.margin + width - 12)
        found.append(
            (
                operator.untransform(corrected)[rows, columns],
                discs[rows, columns],
                matched.deviation(matched.left(data))[rows, columns],
                matched.flux_errors(point),
                matched.resolutions(point),
                torch.stack([*matched.place_error(point), matched.width(matched.left(data), point)]),
            )
        )
    assert float(found[0][0].std()) > 0.01
    for with_it, without in zip(*found, strict=True):
        torch.testing.assert_close(with_it, without, rtol=2e-3, atol=2e-3)
    # The Cramer-Rao error, in closed form.
    sums = sum(1.0 / (4.0 * math.pi * (w / 2.354820045) ** 2) for w in widths[1:])
    assert float(found[0][3]) == pytest.approx(sums**-0.5, rel=0.01)
    assert float(found[0][4]) == pytest.approx((2.0 / sums) ** 0.5, rel=0.01)


def test_windows_weigh_missing_exposures_once() -> None:
    """Where one of four exposures is left, the curvature of a window is that of its pixels."""
    stack = make_stack([3.0, 3.5, 4.0, 4.5], None)
    wide = 3 * SIZE
    planes = np.zeros((4, SIZE, wide)), np.ones((4, SIZE, wide)), np.ones((4, SIZE, wide), dtype=bool)
    planes[2][1:, :, : SIZE + 40] = False
    stack = ExposureStack(*planes, stack.psf)
    operator = ConvolutionOperator(stack.psf.double(), stack.shape, margin=4)
    weights = stack.exposure_weights()
    balance = local_balance(operator, stack.inverse_variance.double(), weights, operator.power(weights))
    assert balance is not None
    quadratic = NonNegativeQuadratic(operator, weights, balance=balance)
    small = ConvolutionOperator(stack.psf[:1].double(), (SIZE, SIZE), margin=4)
    part, index = quadratic.part(small, [0], (0, 0))
    row, column = 4 + SIZE // 2, 4 + SIZE // 2
    square = float(balance[row, column]) ** 2
    assert square < 0.5
    expected = float(operator.square_weight(stack.inverse_variance.double())[row, column])
    for problem, shape in ((quadratic, operator.fft_shape), (part, small.fft_shape)):
        origin = float(torch.fft.irfft2(problem.curvature, s=shape)[0, 0])
        assert square * origin == pytest.approx(expected, rel=0.02)


def test_a_place_does_not_know_how_many_exposures_end_before_it() -> None:
    """Of 16 exposures 15 end 50 px before what is compared; a tile without them has the same image."""
    n, height, width, fwhm = 16, 80, 220, 4.0
    rng = np.random.default_rng(2)
    image = rng.normal(size=(n, height, width))
    rows, columns = np.mgrid[:height, :width]
    for x, y, flux in np.transpose(
        [rng.uniform(90, width, 20), rng.uniform(0, height, 20), [60.0, 400.0] * 10]
    ):
        sigma = fwhm / 2.354820045
        star = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2.0 * sigma**2))
        image += flux * star / (2.0 * np.pi * sigma**2)
    good = np.ones(image.shape, dtype=bool)
    good[1:, :, 70:] = False
    psf, weights = np.stack([gaussian(fwhm)] * n), np.ones(n)
    images = []
    for which in (slice(0, n), slice(0, 1)):
        part = [plane[which] for plane in (image, np.ones_like(image), good, psf)]
        stack = ExposureStack(*part, field=WholeField(psf, weights), weights=weights[which])
        result = restore(
            stack,
            "imagemm",
            generator=torch.Generator().manual_seed(1),
            target_fwhm=2.5,
            n_realizations=2,
        )
        images.append(result.image[10:-10, 120:-10])
        sigma = float(result.variance[10:-10, 120:-10].sqrt().median())
    difference = (images[0] - images[1]).abs()
    assert float(difference.max()) < 0.1 * sigma
    assert float((difference**2).mean().sqrt()) < 0.005 * sigma
    assert float(images[1].max()) > 50.0 * sigma
