# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fits that go on in windows around single places."""

from __future__ import annotations

import dataclasses
import math
import sys

import galsim
import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import ExposureStack, FrameGeometry, ImageMMSettings
from lsst.latent_coadds.restoration import _accelerated as accelerated
from lsst.latent_coadds.restoration import _settling as settling_module
from lsst.latent_coadds.restoration._direct import direct_coadd
from lsst.latent_coadds.restoration._fidelity import HuberFidelity
from lsst.latent_coadds.restoration._filled import start_accelerated
from lsst.latent_coadds.restoration._find_points import local_precision, share_seen
from lsst.latent_coadds.restoration._fit import Fit, fit_accelerated
from lsst.latent_coadds.restoration._imagemm import restore_imagemm
from lsst.latent_coadds.restoration._local_fit import fit_places
from lsst.latent_coadds.restoration._model import make_operator, make_quadratic, split_target
from lsst.latent_coadds.restoration._point_sources import MatchedFilter
from lsst.latent_coadds.restoration._proximal import NonNegativeQuadratic
from lsst.latent_coadds.restoration._settings import DirectSettings
from lsst.latent_coadds.restoration._settling import Settling
from lsst.latent_coadds.restoration._windows import group_windows, plan_windows

SIZE = 136
FWHM = (4.0, 4.6, 5.2)
STARS = ((60.3, 61.1, 4000.0), (66.2, 62.8, 1500.0), (110.2, 30.7, 900.0), (90.0, 110.4, 3000.0))
PAIR = ((0.3, 1.1, 4000.0), (5.2, 2.8, 1500.0))
SETTINGS = ImageMMSettings(tolerance=1e-9)


def make_stack(native: bool, varying: bool = False, latent: int = SIZE) -> ExposureStack:
    """Return exposures of a close pair and of other stars, drawn with GalSim, with photon noise."""
    rng = np.random.default_rng(5)
    border = 20.0 if native else 0.0
    size = latent + round(2 * border)
    shifts = [(border + 0.37 * t, border - 0.21 * t) if native else (0.0, 0.0) for t in range(3)]
    images, variances, psfs = [], [], []
    for fwhm, (dx, dy) in zip(FWHM, shifts, strict=True):
        profile = galsim.Moffat(beta=3.5, fwhm=fwhm)
        image = galsim.ImageD(size, size)
        for x, y, flux in STARS:
            profile.withFlux(flux).drawImage(
                image, center=galsim.PositionD(x + dx + 1, y + dy + 1), scale=1.0, add_to_image=True
            )
        variance = 1.0 + np.maximum(image.array, 0.0) / 4.0
        images.append(image.array + rng.normal(size=image.array.shape) * np.sqrt(variance))
        variances.append(variance)
        psfs.append(profile.drawImage(nx=25, ny=25, scale=1.0).array)
    psf = np.stack(psfs)
    if varying:
        tilt = np.roll(psf, 1, axis=-1) - psf
        psf = np.stack([psf, 0.02 * tilt, -0.02 * tilt], axis=1)
    frames = None
    if native:
        line = np.arange(0.0, size + 20.0, 20.0)
        x, y = np.meshgrid(line, line)
        frames = FrameGeometry(
            (latent, latent), np.stack([x - s[0] for s in shifts]), np.stack([y - s[1] for s in shifts]), 20
        )
    good = np.ones(np.shape(images), dtype=bool)
    good[1, 70:75, :] = False
    return ExposureStack(np.stack(images), np.stack(variances), good, psf, frames=frames)


@dataclasses.dataclass
class Problem:
    fidelity: HuberFidelity
    quadratic: NonNegativeQuadratic
    settling: Settling
    narrow: torch.Tensor
    start: torch.Tensor

    def largest(self, one: Fit, other: Fit) -> float:
        """Return the largest difference in sigma of the height of a star."""
        operator = self.quadratic.operator
        return float(operator.untransform((one.transform - other.transform) * self.narrow).abs().max())


def make_problem(stack: ExposureStack, limit: float = 1e-4) -> Problem:
    spread, _ = split_target(SETTINGS)
    operator = make_operator(stack, spread, SETTINGS.smooth_scale)
    quadratic = make_quadratic(operator, stack, spread, SETTINGS)
    matched = MatchedFilter(
        quadratic, spread, local_precision(quadratic, stack, share_seen(quadratic, stack))
    )
    settling = Settling(matched, spread, SETTINGS.target_fwhm, quadratic.largest_scale, limit)
    coadd = direct_coadd(stack, DirectSettings(clip=True))
    start = start_accelerated(stack, quadratic, coadd, 20)
    fidelity = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), SETTINGS.huber_delta)
    return Problem(fidelity, quadratic, settling, settling._kernels[0], start)


def place(problem: Problem, x: float, y: float, half: int) -> torch.Tensor:
    operator = problem.quadratic.operator
    places = problem.start.new_zeros(operator.latent_shape)
    column, row = (round(p) + operator.margin for p in (x, y))
    places[row - half : row + half + 1, column - half : column + half + 1] = 1.0
    return places


@pytest.mark.parametrize(("native", "varying"), [(False, False), (False, True), (True, True)])
def test_windows_find_the_solution_of_the_whole(native: bool, varying: bool) -> None:
    stack = make_stack(native, varying).to(device="cpu", dtype=torch.float64)
    problem = make_problem(stack)
    places = place(problem, 62, 62, 9)
    windows = plan_windows(problem.quadratic.operator, places, problem.quadratic.largest_scale, 10)
    assert windows is not None and len(windows) == 1
    local = fit_places(
        problem.fidelity, problem.quadratic, problem.start, places, windows, SETTINGS, problem.settling
    )
    free = problem.quadratic.spread(places) > 0.0
    settings = dataclasses.replace(SETTINGS, n_iter=30, tolerance=0.0)
    whole = fit_accelerated(problem.fidelity, problem.quadratic, problem.start, settings, free=free)
    objective = local.history[-1]["objective"]
    assert whole.history[0]["objective"] > objective + 100.0
    assert whole.history[-1]["objective"] > objective
    # The whole image finds nothing to mend.
    after = fit_accelerated(problem.fidelity, problem.quadratic, local.coefficients, settings, free=free)
    assert after.history[-1]["objective"] == pytest.approx(objective, abs=1e-4)
    # Interpolated images of windows and of the whole differ by some 1e-5 of the peak of a star.
    assert problem.largest(local, after) < (0.1 if native else 0.01)
    assert torch.equal(local.coefficients[~free], problem.start[~free])


def test_windows_are_disjoint_and_hold_all_places() -> None:
    problem = make_problem(make_stack(False, latent=320))
    operator = problem.quadratic.operator
    places = place(problem, 60, 60, 5)
    for x, y in ((60, 74), (140, 60), (3, 310)):
        places = torch.maximum(places, place(problem, x, y, 5))
    windows = plan_windows(operator, places, 2.0, 10)
    assert windows is not None and len(windows) == 3
    covered = torch.zeros_like(places)
    for window in windows:
        assert not any(c % 2 for c in window.corner)
        assert all(
            0 <= c and c + n <= m for c, n, m in zip(window.corner, window.shape, operator.shape, strict=True)
        )
        part = tuple(
            slice(c, c + n + 2 * operator.margin) for c, n in zip(window.corner, window.shape, strict=True)
        )
        box = torch.zeros_like(covered[part])
        box[window.box] = 1.0
        covered[part] += box
    assert float(covered.max()) == 1.0
    assert bool((covered[places > 0.0] == 1.0).all())
    assert plan_windows(operator, torch.ones_like(places), 2.0, 10) is None
    # The image is no window of itself at any cost either, but any number of smaller ones are.
    assert plan_windows(operator, torch.ones_like(places), 2.0, 10, at_any_cost=True) == []
    for x in range(20, 320, 60):
        for y in range(20, 320, 60):
            places = torch.maximum(places, place(problem, x, y, 5))
    assert plan_windows(operator, places, 2.0, 10) is None
    many = plan_windows(operator, places, 2.0, 10, at_any_cost=True)
    assert many is not None and len(many) >= 25
    groups = group_windows(operator, many)
    assert [window for group in groups for window in group] == many
    held = [sum(math.prod(window.shape) for window in group) for group in groups]
    assert len(groups) > 1 and max(held) <= 0.5 * math.prod(operator.shape)


def test_places_go_on_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """When updates of the whole end, all that has not settled is left to windows, be they cheap or not."""
    monkeypatch.setattr(settling_module, "_LONGEST", 20)
    grid = [(x, y) for x in range(50, 320, 110) for y in range(50, 320, 110)]
    pairs = tuple((x + dx, y + dy, flux) for x, y in grid for dx, dy, flux in PAIR)
    monkeypatch.setattr(sys.modules[__name__], "STARS", pairs)
    problem = make_problem(make_stack(False, latent=320), limit=1.0)
    fit = fit_accelerated(
        problem.fidelity, problem.quadratic, problem.start, SETTINGS, settling=problem.settling
    )
    assert fit.n_iterations == 20
    assert fit.unsettled is not None and fit.windows is not None
    assert problem.settling.windows(fit.unsettled) is None
    left = fit.unsettled.clone()
    for window in fit.windows:
        rows, columns = (
            slice(c + b.start, c + b.stop) for c, b in zip(window.corner, window.box, strict=True)
        )
        left[rows, columns] = 0.0
    assert not bool(left.any())


def test_what_goes_to_and_fro_has_not_settled() -> None:
    problem = make_problem(make_stack(False))
    operator = problem.quadratic.operator
    begin = operator.transform(torch.zeros(operator.latent_shape))
    there = operator.transform(100.0 * place(problem, 40, 60, 1))
    course = [begin, begin + 0.5 * there, begin + there, begin + 0.5 * there, begin]
    places = problem.settling.unsettled(course)
    assert places is not None
    assert bool((places[place(problem, 40, 60, 3) > 0.0] == 1.0).all())
    assert float(places.mean()) < 0.5
    assert problem.settling.unsettled([begin] * 3) is None


def test_a_close_pair_does_not_depend_on_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of the pair is fitted in double precision where the rest of the image is not."""
    used = []

    def spy(*args: object) -> Fit:
        used.append(args)
        return fit_places(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(accelerated, "fit_places", spy)
    stack = make_stack(False, latent=320)
    # Stars of pixels, which take long to settle.
    settings = ImageMMSettings(target_fwhm=2.5, point_threshold=0.0, n_realizations=0)
    images = [
        restore_imagemm(
            stack.to(device="cpu", dtype=dtype), settings, generator=torch.Generator().manual_seed(1)
        )
        for dtype in (torch.float32, torch.float64)
    ]
    assert len(used) >= 2
    near = (slice(50, 75), slice(50, 75))
    single, double = (result.image[near].double() for result in images)
    sigma = math.sqrt(float(images[0].variance.median()))
    assert float(double.max()) > 100.0 * sigma
    assert float((single - double).abs().max()) < 0.02 * sigma
