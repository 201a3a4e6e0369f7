# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""PSFs, scales, shifts and backgrounds that are learned with the sky."""

from __future__ import annotations

import dataclasses
import math

import galsim
import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    CALIBRATION_PARAMETERS,
    CalibrationSettings,
    ExposureCalibration,
    ExposureStack,
    FrameGeometry,
    InvalidStackError,
    calibrate_exposures,
    evaluate_psf_basis,
    fit_psf_basis,
    restore,
)
from lsst.latent_coadds.restoration._exposure_prior import ExposurePrior
from lsst.latent_coadds.restoration._psf_spline import PsfSpline, stretch_matrix, wing_scale
from lsst.latent_coadds.restoration._star_finder import (
    cut_stamps,
    find_sources_to_fit,
    slope_of_locus,
    stellar_locus,
)
from lsst.latent_coadds.restoration._star_fit import StarFit
from lsst.latent_coadds.restoration._star_stamps import StarStamps, initial_stars

SIZE = 104
STAMP = 25
WIDTHS = (3.2, 4.0, 3.6, 4.4)
ROW = np.array([18.3, 40.8, 63.1, 85.6])
PLACES = np.array([(x + 0.37 * i, y - 0.21 * i) for i, x in enumerate(ROW) for y in ROW])
FLUXES = 2000.0 * np.geomspace(1.0, 20.0, 16)[np.random.default_rng(2).permutation(16)]


N_PARAMETERS = len(CALIBRATION_PARAMETERS)
CORNERS = np.array([(0.0, 0.0), (-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)])


def profile(
    width: float, e1: float = 0.0, e2: float = 0.0, trunc: float = STAMP // 2 - 0.5
) -> galsim.GSObject:
    """Return a PSF in units of pixels; the response of pixels is part of it."""
    return galsim.Moffat(beta=3.5, fwhm=width, trunc=trunc).shear(g1=e1, g2=e2)


def draw(psf: galsim.GSObject, nx: int, ny: int, x: float, y: float) -> np.ndarray:
    image = galsim.ImageD(galsim.BoundsI(0, nx - 1, 0, ny - 1), scale=1.0)
    return psf.drawImage(image=image, method="no_pixel", center=galsim.PositionD(x, y)).array


def stamp(psf: galsim.GSObject, size: int = STAMP) -> np.ndarray:
    image = draw(psf, size, size, size // 2, size // 2)
    return image / image.sum()


def make_stack(
    *,
    stretch: np.ndarray | float = 1.0,
    shear: np.ndarray | float = 0.0,
    shifts: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    levels: np.ndarray | None = None,
    noise: float = 2.0,
    seed: int = 1,
    galaxies: bool = False,
) -> tuple[ExposureStack, np.ndarray]:
    """Return exposures whose PSFs are said to be wrong by a factor, and the true PSFs."""
    n = len(WIDTHS)
    shifts = np.zeros((n, 2)) if shifts is None else shifts
    scales = np.ones(n) if scales is None else scales
    levels = np.zeros(n) if levels is None else levels
    rng = np.random.default_rng(seed)
    images, truth, told = [], [], []
    for t, width in enumerate(WIDTHS):
        psf = profile(width, 0.02, -0.01)
        inside = draw(psf, STAMP, STAMP, STAMP // 2, STAMP // 2).sum()
        image = rng.normal(0.0, noise, (SIZE, SIZE)) + levels[t]
        for (x, y), flux in zip(PLACES, FLUXES, strict=True):
            source = psf.withFlux(flux * scales[t] / inside)
            if galaxies and int(x) % 2:
                source = galsim.Convolve(source, galsim.Exponential(half_light_radius=2.5))
            image += draw(source, SIZE, SIZE, x + shifts[t, 0], y + shifts[t, 1])
        images.append(image)
        truth.append(stamp(psf))
        wrong = psf.dilate(np.broadcast_to(stretch, n)[t]).shear(g1=np.broadcast_to(shear, n)[t], g2=0.0)
        told.append(stamp(wrong))
    variance = np.full((n, SIZE, SIZE), max(noise, 1e-3) ** 2)
    names = [f"visit {t}" for t in range(n)]
    good = np.ones(variance.shape, dtype=bool)
    return ExposureStack(np.stack(images), variance, good, np.stack(told), names=names), np.stack(truth)


def widths(psf: torch.Tensor) -> np.ndarray:
    """Return the sizes of adaptive moments."""
    return np.array(
        [galsim.hsm.FindAdaptiveMom(galsim.ImageD(p.numpy().astype(float))).moments_sigma for p in psf]
    )


def ellipticities(psf: torch.Tensor) -> np.ndarray:
    """Return (xx - yy) / (xx + yy) of adaptive moments."""
    return np.array(
        [galsim.hsm.FindAdaptiveMom(galsim.ImageD(p.numpy().astype(float))).observed_shape.e1 for p in psf]
    )


def test_spline_keeps_samples_and_moves_them():
    psf = profile(3.4, 0.05, 0.03)
    spline = PsfSpline(torch.from_numpy(stamp(psf)))
    zero = torch.zeros(3, dtype=torch.float64)
    same = spline.stamps(zero, zero[:2])[0].numpy()
    np.testing.assert_allclose(same, stamp(psf), atol=1e-12)
    moved = spline.stamps(zero, torch.tensor([0.31, -0.44], dtype=torch.float64))[0].numpy()
    expected = draw(psf, STAMP, STAMP, STAMP // 2 + 0.31, STAMP // 2 - 0.44)
    np.testing.assert_allclose(moved / moved.sum(), expected / expected.sum(), atol=1e-3 * moved.max())


def test_spline_slopes():
    spline = PsfSpline(torch.from_numpy(stamp(profile(3.0))))
    generator = torch.Generator().manual_seed(0)
    x, y = (8.0 * torch.rand((1, 200), generator=generator, dtype=torch.float64) - 4.0 for _ in range(2))
    knots, h = spline.knots(), 1e-5
    _, slope_x, slope_y = spline.evaluate(knots, x, y)
    for slope, (dx, dy) in ((slope_x, (h, 0.0)), (slope_y, (0.0, h))):
        after, before = (spline.evaluate(knots, x + s * dx, y + s * dy)[0] for s in (1, -1))
        torch.testing.assert_close((after - before) / (2 * h), slope, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(("size", "e1"), [(0.1, 0.0), (-0.1, 0.0), (0.05, 0.04)])
def test_stretched_psf_is_that_of_galsim(size, e1):
    spline = PsfSpline(torch.from_numpy(stamp(profile(4.0, trunc=0.0))))
    shape = torch.tensor([size, e1, 0.0], dtype=torch.float64)
    stretched = spline.stamps(shape, torch.zeros(2, dtype=torch.float64))[0]
    expected = stamp(profile(4.0 * math.exp(size), math.tanh(e1), trunc=0.0))
    stretched = (stretched / stretched.sum()).numpy()
    # Wings beyond the stamp are not known to the spline.
    np.testing.assert_allclose(stretched, expected, atol=1e-3 * expected.max())


def test_stretch_matrix_has_the_area_and_the_axes_that_it_says():
    matrix = stretch_matrix(torch.tensor([0.07, 0.03, -0.04], dtype=torch.float64))
    assert float(torch.linalg.det(matrix)) == pytest.approx(math.exp(-0.14), rel=1e-12)
    axes = torch.linalg.svdvals(matrix)
    assert float((axes[0] - axes[1]) / (axes[0] + axes[1])) == pytest.approx(math.tanh(0.05), rel=1e-9)


def make_fit(rng: np.random.Generator) -> StarFit:
    """Return two stars in two exposures, near the solution."""
    line = torch.arange(-9.0, 10.0, dtype=torch.float64)
    dy, dx = (a.reshape(1, -1).repeat(2, 1) for a in torch.meshgrid(line, line, indexing="ij"))
    stars = initial_stars(torch.tensor([[10.2, 11.0, 50.0], [30.4, 9.7, 80.0]], dtype=torch.float64))
    stamps = []
    for t, width in enumerate((3.4, 4.2)):
        x, y = dx + torch.tensor([[10.0], [30.0]]), dy + torch.tensor([[11.0], [10.0]])
        spline = PsfSpline(torch.from_numpy(stamp(profile(width, 0.02, 0.01))))
        image = (
            torch.from_numpy(rng.normal(0.0, 0.1, x.shape)) + 50.0 * torch.exp(-(dx**2 + dy**2) / 5.0) / 16
        )
        terms = torch.ones((2, 1), dtype=torch.float64)
        field = torch.tensor([[-0.6, 0.2], [0.7, -0.3]], dtype=torch.float64)
        ones = torch.ones_like(x)
        stamps.append(StarStamps(t, torch.arange(2), spline, terms, field, x, y, 1.1 * ones, image, ones))
    parameters = torch.from_numpy(rng.normal(0.0, 0.03, (2, N_PARAMETERS)))
    parameters[1, 6] = 0.0
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    prior = ExposurePrior((0.1, 0.05, 0.05, 0.2, 0.2, 0.05, 0.5, *(0.05,) * 6, 0.1))
    return StarFit(stamps, stars, parameters, weights, prior, 0.0, torch.ones(2, dtype=torch.bool))


def test_slopes_of_the_fit_are_derivatives():
    fit = make_fit(np.random.default_rng(3))

    def half_chi2() -> float:
        return 0.5 * sum(float((w * r**2).sum()) for _, r, w in map(fit.residual, fit.stamps))

    _, slope = fit.evaluate()
    by_exposure = fit._ways()[1]
    expected = torch.einsum("tslp,tsl->tp", by_exposure, slope)
    h = 1e-5
    for i in range(N_PARAMETERS + 1):
        for t in range(2):
            values = []
            for sign in (1, -1):
                fit.parameters[t, i] += sign * h
                values.append(half_chi2())
                fit.parameters[t, i] -= sign * h
            numeric = -(values[0] - values[1]) / (2 * h)
            # Stretches one after the other are not quite one stretch by their sum.
            assert numeric == pytest.approx(float(expected[t, i]), rel=5e-3, abs=0.03), i


@pytest.mark.parametrize("beta", [2.5, 6.0])
def test_wings_of_moffat_profiles(beta):
    """One exponent becomes another, if the width of both is the same."""
    told = galsim.Moffat(beta=3.5, fwhm=4.0)
    spline = PsfSpline(torch.from_numpy(stamp(told, 61)))
    wing = torch.tensor(math.log(beta / 3.5), dtype=torch.float64)
    line = torch.linspace(0.0, 14.0, 29, dtype=torch.float64)[None]
    shape = torch.zeros((1, 3), dtype=torch.float64)
    value = spline.change(spline.knots()[:1], line, 0.0 * line, shape, wing)[0][0].numpy()
    radii = line[0].numpy()
    # The radius is scaled in units of the FWHM, which is not the scale of a Moffat profile.
    errors = []
    for width in np.linspace(3.6, 4.4, 161):
        truth = np.array([galsim.Moffat(beta=beta, fwhm=width).xValue(r, 0.0) for r in radii])
        errors.append(np.abs(value / value[0] - truth / truth[0]).max())
    plain = np.array([told.xValue(r, 0.0) for r in radii])
    truth = np.array([galsim.Moffat(beta=beta, fwhm=4.0).xValue(r, 0.0) for r in radii])
    assert min(errors) < 0.35 * np.abs(plain / plain[0] - truth / truth[0]).max()
    assert (np.diff(value[:17]) < 0).all()
    assert value.min() > -1e-4 * value[0]


def test_wing_scale_near_the_centre():
    square = torch.tensor([0.0, 0.999e-3, 1.001e-3, 2.0], dtype=torch.float64)
    scale, along, change = wing_scale(square, torch.tensor(-0.4, dtype=torch.float64))
    assert float(scale[0]) == 1.0
    for values in (scale, along):
        assert float(values[1]) == pytest.approx(float(values[2]), rel=1e-5)
    assert float(change[2] / change[1]) == pytest.approx(1.002, rel=1e-3)
    same, _, _ = wing_scale(square, torch.tensor(0.0, dtype=torch.float64))
    torch.testing.assert_close(same, torch.ones_like(square))


def test_wings_leave_the_ellipticity():
    psf = torch.from_numpy(stamp(profile(4.0, 0.05, 0.0, trunc=0.0), 41))
    spline = PsfSpline(psf)
    zero = torch.zeros(3, dtype=torch.float64)
    changed = spline.stamps(zero, zero[:2], torch.tensor(-0.5, dtype=torch.float64))[0]
    before, after = ellipticities(torch.stack([psf, changed / changed.sum()]))
    assert after == pytest.approx(before, abs=2e-3)


@pytest.mark.parametrize("beta", [8.0, 2.5])
def test_wings_are_learned(beta):
    stack, truth = make_stack()
    inside = STAMP // 2 - 0.5
    told = [stamp(galsim.Moffat(beta=beta, fwhm=w, trunc=inside).shear(g1=0.02, g2=-0.01)) for w in WIDTHS]
    wrong = ExposureStack(stack.image, stack.variance, stack.good, np.stack(told), names=stack.names)
    calibration = calibrate_exposures(wrong)
    assert (calibration.parameters[:, 6] * (3.5 - beta) > 0).all()
    corrected = calibration.apply(wrong).psf
    errors = [float((psf - torch.from_numpy(truth)).square().sum()) for psf in (wrong.psf, corrected)]
    assert errors[1] < 0.02 * errors[0]
    assert float(corrected.min()) >= 0.0
    fixed = calibrate_exposures(wrong, wing_sigma=0.0)
    assert not bool(fixed.parameters[:, 6].any())


@pytest.mark.parametrize("common", [False, True])
def test_errors_that_run_over_the_field(common):
    """The FWHM is off by -10 to +10 % across the field; stars say so."""
    angle = np.array([0.4, 0.4, 0.4, 0.4] if common else [0.4, 2.0, 3.6, 5.2])
    slopes = 0.1 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    stack, truth = make_stack()
    line = np.linspace(-1, 1, 4)
    u, v = (plane.ravel() for plane in np.meshgrid(line, line))
    bases = []
    for width, slope in zip(WIDTHS, slopes, strict=True):
        told = [stamp(profile(width * math.exp(slope @ p), 0.02, -0.01)) for p in zip(u, v, strict=True)]
        bases.append(fit_psf_basis(np.stack(told), u, v, degree=2, tolerance=0.0)[0])
    wrong = ExposureStack(stack.image, stack.variance, stack.good, np.stack(bases), names=stack.names)
    calibration = calibrate_exposures(wrong)
    assert calibration.reference == "stars"
    corrected = calibration.apply(wrong).psf.double().numpy()
    for t in range(len(WIDTHS)):
        there = torch.from_numpy(evaluate_psf_basis(corrected[t], *CORNERS.T))
        error = widths(there) / widths(torch.from_numpy(truth[t : t + 1])) - 1.0
        assert abs(error).max() < 0.02
    found = calibration.gradients[:, 0].numpy()
    np.testing.assert_allclose(found, -slopes, atol=0.012)


def test_parts_of_a_field_are_corrected_for_where_they_are():
    stack, _ = make_stack()
    calibration = ExposureCalibration.identity(stack.names)
    calibration.parameters[:, 7] = 0.1
    calibration = dataclasses.replace(calibration, field=(100.0, 50.0, 100.0))
    part = ExposureStack(
        stack.image, stack.variance, stack.good, stack.psf, names=stack.names, origin=(0, 96)
    )
    corrected = calibration.apply(part)
    assert corrected.psf.ndim == 4
    torch.testing.assert_close(corrected.psf[:, 0].sum(dim=(1, 2)), torch.ones(4, dtype=corrected.psf.dtype))
    there = torch.from_numpy(evaluate_psf_basis(corrected.psf[0].double().numpy(), *CORNERS.T))
    x = 96.0 + 0.5 * (SIZE - 1) * (1.0 + CORNERS[:, 0])
    expected = np.exp(0.1 * (x - 100.0) / 100.0) * widths(stack.psf[:1])
    np.testing.assert_allclose(widths(there), expected, rtol=3e-3)
    one = calibration.correct_psf("visit 0", stack.psf[0], shifted=True, place=(float(x[0]), 0.0))
    np.testing.assert_allclose(widths(one[None]), expected[0], rtol=3e-3)


def test_slope_of_the_stellar_locus():
    rng = np.random.default_rng(5)
    field = torch.from_numpy(rng.uniform(-1, 1, (50, 2)))
    error = torch.from_numpy(rng.uniform(0.002, 0.02, 50))
    size = torch.from_numpy(rng.uniform(0.15, 0.5, 50))
    slope = torch.tensor([0.1, -0.05], dtype=torch.float64)
    noise = error * torch.from_numpy(rng.normal(size=50))
    size[:25] = (field @ slope + noise)[:25]
    torch.testing.assert_close(slope_of_locus(size, error, field), slope, atol=0.01, rtol=0.0)
    size[:25] = noise[:25]
    assert not bool(slope_of_locus(size, error, field).any())
    assert not bool(slope_of_locus(size[:11], error[:11], field[:11]).any())


def test_priors_that_were_adapted():
    rng = np.random.default_rng(7)
    errors = torch.full((8, N_PARAMETERS), 0.004, dtype=torch.float64)
    errors[:, 7:] = 0.001
    parameters = errors * torch.from_numpy(rng.normal(size=errors.shape))
    parameters[:, 0] -= 0.1
    prior = ExposurePrior((0.1, 0.05, 0.05, 0.2, 0.2, 0.05, 0.5, *(0.05,) * 6))
    idle = prior.narrow(parameters, errors, errors[0] / math.sqrt(8))
    # Wings and gradients are noise; sizes have an error in common, and no other.
    assert idle == [6, 7, 8, 9, 10, 11, 12]
    assert prior.free == [0, 1, 2, 3, 4, 5]
    precision = prior.precision(8)
    one = torch.ones(8, dtype=torch.float64)
    assert float(one @ precision[0] @ one) / 8 == pytest.approx(0.1**-2, rel=1e-6)
    along = torch.linalg.eigvalsh(precision[0])[-1]
    assert float(along) > 1e5
    assert float(one @ precision[1] @ one) / 8 > 1e5


def test_errors_of_a_coadd_are_estimated():
    """What stars leave open: more, if they are few, and the more the fainter they are."""
    accounts = []
    for noise in (2.0, 8.0):
        stack, _ = make_stack(noise=noise, stretch=1.05)
        calibration = calibrate_exposures(stack, n_rounds=1)
        assert calibration.mean_errors.shape == (len(CALIBRATION_PARAMETERS),)
        accounts.append((calibration.flux_error, float(calibration.mean_errors[0])))
        assert abs(float(calibration.parameters[:, 0].mean()) + math.log(1.05)) < 4 * accounts[-1][1]
    assert 0.0005 < accounts[0][0] < accounts[1][0] < 0.05
    # A flux that is measured with a PSF as weight goes with its size.
    assert accounts[0][0] == pytest.approx(accounts[0][1], rel=0.5)


def test_shifts_and_scales_are_recovered_with_little_noise():
    shifts = np.array([[0.12, -0.05], [-0.2, 0.08], [0.05, 0.1], [0.03, -0.13]])
    scales = np.array([1.03, 0.96, 1.05, 0.97])
    stack, _ = make_stack(shifts=shifts, scales=scales, noise=0.05)
    calibration = calibrate_exposures(
        stack, size_sigma=0.0, shear_sigma=0.0, background_sigma=0.0, shift_sigma=1.0, scale_sigma=1.0
    )
    weights = stack.exposure_weights().double() / float(stack.exposure_weights().sum())
    found = calibration.parameters
    np.testing.assert_allclose((weights @ found[:, 3:]).numpy(), 0.0, atol=1e-12)
    expected = shifts - weights.numpy() @ shifts
    np.testing.assert_allclose(found[:, 3:5].numpy(), expected, atol=2e-3)
    logarithm = np.log(scales) - weights.numpy() @ np.log(scales)
    np.testing.assert_allclose(found[:, 5].numpy(), logarithm, atol=1e-3)
    assert not bool(found[:, :3].any())


@pytest.mark.parametrize("common", [False, True])
def test_stars_tell_the_width_of_psfs(common):
    stretch = 1.1 if common else np.array([1.1, 0.9, 0.9, 1.1])
    stack, truth = make_stack(stretch=stretch, shear=0.015 if common else np.array([1, -1, 1, -1]) * 0.015)
    calibration = calibrate_exposures(stack)
    assert calibration.reference == "stars"
    corrected = calibration.apply(stack)
    wrong = widths(stack.psf) / widths(torch.from_numpy(truth)) - 1.0
    right = widths(corrected.psf) / widths(torch.from_numpy(truth)) - 1.0
    assert abs(wrong).min() > 0.07
    assert abs(right).max() < 0.01
    difference = ellipticities(corrected.psf) - ellipticities(torch.from_numpy(truth))
    assert abs(difference).max() < 0.01
    assert float(corrected.psf.min()) >= 0.0
    torch.testing.assert_close(corrected.psf.sum(dim=(1, 2)), torch.ones(4, dtype=corrected.psf.dtype))
    assert float(restore(corrected, n_realizations=0).chi2.mean()) < 1.05


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("imagemm", {"form": "published", "n_iter": 5}),
        ("astroclearnet", {"n_iter": 3}),
        ("combined", {"network_steps": 2}),
    ],
)
def test_any_restorer_takes_calibrated_exposures(method, settings):
    stack, _ = make_stack()
    calibration = ExposureCalibration.identity(stack.names)
    calibration.parameters[:, 5] = torch.tensor([0.1, -0.1, 0.0, 0.05])
    calibration.parameters[:, 0] = 0.05
    result = restore(calibration.apply(stack), method, n_realizations=0, **settings)
    assert bool(torch.isfinite(result.image).all())


def test_right_psfs_stay():
    stack, _ = make_stack()
    calibration = calibrate_exposures(stack)
    assert float(calibration.parameters[:, 0].abs().max()) < 3e-3
    assert float(calibration.parameters[:, 1:3].abs().max()) < 4e-3
    assert float(calibration.parameters[:, 3:5].abs().max()) < 0.01
    assert float(calibration.parameters[:, 5].abs().max()) < 3e-3
    assert float((calibration.background / 2.0).abs().max()) < 0.03


def test_without_points_the_mean_of_psfs_stays():
    stack, truth = make_stack(stretch=np.array([1.1, 0.95, 0.95, 1.1]))
    calibration = calibrate_exposures(stack, reference="pipeline")
    assert calibration.reference == "pipeline"
    weights = stack.exposure_weights().double()
    means = weights @ calibration.parameters[:, :3] / weights.sum()
    np.testing.assert_allclose(means.numpy(), 0.0, atol=1e-12)
    # What the exposures differ by is found all the same.
    after = widths(calibration.apply(stack).psf) / widths(torch.from_numpy(truth))
    assert np.log(after).std() < 0.007
    assert np.log(after).mean() == pytest.approx(0.025, abs=0.01)


def test_galaxies_do_not_widen_psfs():
    stack, truth = make_stack(galaxies=True)
    calibration = calibrate_exposures(stack)
    assert calibration.reference == "stars"
    right = widths(calibration.apply(stack).psf) / widths(torch.from_numpy(truth)) - 1.0
    assert abs(right).max() < 0.015


@pytest.mark.parametrize("width", [3.1, 3.4, 3.7, 4.0, 4.3])
def test_stars_are_seen_whatever_the_width_of_psfs(width):
    psf = profile(width)
    image = torch.from_numpy(1000.0 * draw(psf, 61, 61, 30.2, 29.7))[None]
    good = torch.ones_like(image, dtype=torch.bool)
    stack = ExposureStack(image, torch.ones_like(image), good, torch.from_numpy(stamp(psf))[None])
    found = find_sources_to_fit(stack, 30.0, 10)
    nothing, places = torch.zeros_like(image), torch.zeros((1, 2), dtype=torch.float64)
    (block,) = cut_stamps(stack, stack.psf, found, nothing, nothing[:, 0, 0], [0], 0, places)
    assert block.stars.tolist() == [0]
    stack.good[:, :, 28:31] = False
    holed = stack.without(~stack.good)
    assert not cut_stamps(holed, stack.psf, found, nothing, nothing[:, 0, 0], [0], 0, places)


def test_stellar_locus():
    rng = np.random.default_rng(0)
    error = torch.from_numpy(rng.uniform(0.002, 0.03, 60))
    size = torch.from_numpy(rng.uniform(0.15, 0.5, 60))
    size[:25] = 0.08 + 0.01 * torch.from_numpy(rng.normal(size=25)) + error[:25] * 0.5
    stars = stellar_locus(size, error)
    assert bool(stars[:25].all())
    assert int(stars[25:].sum()) <= 2


def test_background_and_its_mean():
    levels = np.array([0.3, -0.2, 0.1, -0.1])
    stack, _ = make_stack(levels=levels)
    calibration = calibrate_exposures(stack, background_sigma=1.0, n_rounds=2)
    found = (calibration.background / calibration.flux_scale).numpy()
    weights = stack.exposure_weights().double().numpy()
    weights /= weights.sum()
    assert float(weights @ found) == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(found, levels - weights @ levels, atol=0.08)


def test_priors_of_zero_leave_exposures_alone():
    stack, _ = make_stack(stretch=1.05)
    calibration = calibrate_exposures(
        stack, size_sigma=0.0, shear_sigma=0.0, shift_sigma=0.0, scale_sigma=0.0, background_sigma=0.0
    )
    corrected = calibration.apply(stack)
    torch.testing.assert_close(corrected.psf, stack.psf)
    assert torch.equal(corrected.image, stack.image)


def test_free_kernel_mends_a_profile():
    stack, truth = make_stack()
    wrong = torch.from_numpy(np.stack([stamp(galsim.Gaussian(fwhm=w)) for w in WIDTHS]))
    told = ExposureStack(stack.image, stack.variance, stack.good, wrong, names=stack.names)
    errors = []
    for sigma in (0.0, 0.1):
        calibration = calibrate_exposures(told, kernel_sigma=sigma, kernel_radius=3)
        np.testing.assert_allclose(calibration.kernels.sum(dim=(1, 2)).numpy(), 1.0, atol=1e-12)
        corrected = calibration.apply(told).psf
        assert float(corrected.min()) >= 0.0
        errors.append(float((corrected - torch.from_numpy(truth)).square().sum()))
    assert errors[1] < 0.6 * errors[0]


def test_psf_that_varies_is_stretched_as_a_whole():
    stack, _ = make_stack()
    basis = torch.zeros((4, 3, STAMP, STAMP), dtype=torch.float64)
    basis[:, 0] = stack.psf
    basis[:, 1] = 0.05 * (torch.from_numpy(stamp(profile(4.2))) - stack.psf)
    varying = ExposureStack(stack.image, stack.variance, stack.good, basis, names=stack.names)
    identity = ExposureCalibration.identity(stack.names)
    identity.parameters[:, 0] = 0.05
    corrected = identity.apply(varying)
    torch.testing.assert_close(corrected.psf[:, 0].sum(dim=(1, 2)), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(corrected.psf[:, 1:].sum(dim=(2, 3)), torch.zeros((4, 2), dtype=torch.float64))
    there = (corrected.psf * torch.tensor([1.0, 0.7, 0.0])[:, None, None]).sum(dim=1)
    one = (basis * torch.tensor([1.0, 0.7, 0.0])[:, None, None]).sum(dim=1)
    np.testing.assert_allclose(widths(there) / widths(one), math.exp(0.05), rtol=3e-3)
    assert calibrate_exposures(varying, n_rounds=1).reference == "stars"


def test_exposures_with_their_own_pixels():
    """Frames that are moved by a fraction of a pixel, two of which are said to be elsewhere."""
    stack, truth = make_stack(stretch=np.array([1.1, 0.95, 1.1, 0.95]))
    line = np.arange(0, SIZE + 8, 8.0)
    x, y = (np.stack([a] * 4) for a in np.meshgrid(line, line))
    errors = np.array([[0.15, 0.0], [-0.15, 0.0], [0.0, 0.0], [0.0, 0.0]])
    frames = FrameGeometry((SIZE, SIZE), x + errors[:, :1, None], y + errors[:, 1:, None], 8)
    native = ExposureStack(
        stack.image, stack.variance, stack.good, stack.psf, names=stack.names, frames=frames
    )
    calibration = calibrate_exposures(native)
    corrected = calibration.apply(native)
    right = widths(corrected.psf) / widths(torch.from_numpy(truth)) - 1.0
    assert abs(right).max() < 0.01
    offsets = (corrected.frames.x - torch.from_numpy(x)).mean(dim=(1, 2))
    np.testing.assert_allclose((offsets - offsets.mean()).numpy(), 0.0, atol=0.02)
    # A PSF stays in the middle of its stamp there.
    assert abs(float((corrected.psf[0] * torch.arange(STAMP)).sum()) - STAMP // 2) < 0.02


def test_pieces_of_sky_share_exposures():
    stack, _ = make_stack(stretch=1.1)
    half = SIZE // 2
    names = stack.names
    pieces = [
        ExposureStack(
            stack.image[:, rows], stack.variance[:, rows], stack.good[:, rows], stack.psf, names=names
        )
        for rows in (slice(0, half + 10), slice(half - 10, None))
    ]
    calibration = calibrate_exposures(pieces, n_rounds=2)
    assert calibration.names == names
    np.testing.assert_allclose(calibration.parameters[:, 0].numpy(), -math.log(1.1), atol=0.02)


def test_nothing_to_learn_from():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 48, 48))
    psf = np.stack([stamp(profile(3.5))] * 2)
    stack = ExposureStack(image, np.ones(image.shape), np.ones(image.shape, dtype=bool), psf)
    calibration = calibrate_exposures(stack, n_rounds=1, background_sigma=0.0)
    assert calibration.reference == "none"
    torch.testing.assert_close(calibration.apply(stack).psf, stack.psf)


def test_bad_settings():
    stack, _ = make_stack()
    with pytest.raises(ValueError, match="size_sigma"):
        CalibrationSettings(size_sigma=-1.0)
    with pytest.raises(ValueError, match="reference"):
        calibrate_exposures(stack, reference="moon")
    with pytest.raises(TypeError, match="sigma_size"):
        calibrate_exposures(stack, sigma_size=1.0)
    with pytest.raises(ValueError, match="at least one"):
        calibrate_exposures([])
    twice = ExposureStack(stack.image, stack.variance, stack.good, stack.psf, names=["a", "a", "b", "c"])
    with pytest.raises(InvalidStackError, match="must differ"):
        calibrate_exposures(twice)
    with pytest.raises(KeyError, match="no exposure 'moon'"):
        ExposureCalibration.identity(["a"]).correct_psf("moon", stack.psf[0])
    zeros = torch.zeros((1, N_PARAMETERS), dtype=torch.float64)
    with pytest.raises(InvalidStackError, match="background"):
        ExposureCalibration(("a",), zeros, zeros, zeros[0], zeros[:, 0], torch.ones((1, 1, 1)))
