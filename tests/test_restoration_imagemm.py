# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of ImageMM: invariants that need no truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from lsst.latent_coadds.restoration import (
    ConvolutionOperator,
    ExposureStack,
    RestorationError,
    gaussian_kernel,
    restore,
)
from lsst.latent_coadds.restoration._balance import local_balance
from lsst.latent_coadds.restoration._fidelity import HuberFidelity
from lsst.latent_coadds.restoration._fit import evaluate
from lsst.latent_coadds.restoration._proximal import NonNegativeQuadratic
from lsst.latent_coadds.restoration._residual import SourceDiscs, covered_weight

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SIZE = 48


def stars(n: int = 4, size: int = SIZE, *, seed: int = 3, noise: float = 1.0) -> dict[str, np.ndarray]:
    """Return exposures of Gaussian stars between pixels, with known flux."""
    rng = np.random.default_rng(seed)
    fwhm = np.linspace(3.5, 5.5, n)
    y, x = np.mgrid[:size, :size]
    image = np.zeros((n, size, size))
    for t, width in enumerate(fwhm):
        sigma = width / 2.3548
        for x0, y0, flux in ((14.3, 15.6, 3000.0), (32.5, 30.2, 8000.0)):
            r2 = (x - x0) ** 2 + (y - y0) ** 2
            image[t] += flux * np.exp(-0.5 * r2 / sigma**2) / (2 * np.pi * sigma**2)
    image += noise * rng.normal(size=image.shape)
    psf = np.stack([gaussian_kernel(width, 25).numpy() for width in fwhm])
    return {
        "image": image,
        "variance": np.full(image.shape, max(noise, 0.1) ** 2),
        "good": np.ones(image.shape, dtype=bool),
        "psf": psf,
    }


def fit(arrays: dict[str, np.ndarray], **settings: Any) -> Any:
    return restore(ExposureStack(**arrays), "imagemm", **{"n_realizations": 1, **settings})


@pytest.mark.parametrize("form", ["accelerated", "published"])
def test_identity_psf_returns_the_image(form: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(5.0, 50.0, size=(1, 20, 24))
    psf = np.zeros((1, 7, 7))
    psf[0, 3, 3] = 1.0
    stack = ExposureStack(image, np.full(image.shape, 0.01), np.ones(image.shape, dtype=bool), psf)
    bare = {"target_fwhm": 0.0, "smooth_scale": 0.0, "n_realizations": 0}
    r = restore(stack, form=form, tolerance=0.0, n_iter=30, **bare)
    np.testing.assert_allclose(r.image.numpy(), image[0], rtol=1e-3)
    assert float(r.psf.sum()) == pytest.approx(1.0) and float(r.psf.max()) == pytest.approx(1.0)


@pytest.mark.parametrize("form", ["accelerated", "published"])
@pytest.mark.parametrize("delta", [0.7, 3.0])
def test_objective_never_rises(form: str, delta: float) -> None:
    a = stars()
    a["image"][1, 20, 20] += 1000.0
    r = fit(a, form=form, huber_delta=delta, tolerance=0.0, n_iter=40, reject_sigma=0.0)
    objective = [entry["objective"] for entry in r.history]
    assert len(objective) == 41 and objective[-1] < objective[0]
    # float32 sums of the published form, which has no safeguard, may differ in the last digits.
    assert all(b <= a * (1 + 1e-6) for a, b in zip(objective[:-1], objective[1:], strict=True))


def test_trail_in_one_exposure_is_rejected() -> None:
    a = stars()
    clean = fit(a)
    rows = np.arange(a["image"].shape[1])
    a["image"][1, rows, rows // 2] += 40.0
    a["image"][1, rows, rows // 2 + 1] += 15.0
    tolerant, strict = fit(a, reject_sigma=0.0), fit(a)
    trail = np.zeros(a["image"].shape[1:], dtype=bool)
    trail[rows, rows // 2] = trail[rows, rows // 2 + 1] = True
    assert strict.mask["CLIPPED"].numpy()[trail].mean() > 0.9
    error = [(r.image - clean.image).numpy()[trail].mean() for r in (tolerant, strict)]
    assert abs(error[1]) < 0.2 * abs(error[0])
    assert strict.history[-1]["iteration"] == strict.n_iterations


def test_trail_leaves_nothing_beyond_the_border() -> None:
    a = stars(n=10, size=64)
    rows = np.arange(20, 64)
    trail = np.zeros(a["image"].shape, dtype=bool)
    for width in range(-2, 3):
        columns = (-10 + 0.6 * rows).astype(int) + width
        # With the widest PSF light beyond the border explains it best.
        a["image"][9, rows, columns] += 40.0 * np.exp(-0.5 * (width / 1.2) ** 2)
        trail[9, rows, columns] = True
    rejected = fit(a)
    # What deviates least beside a trail is lost, too.
    a["good"] = ~binary_dilation(trail, np.ones((1, 3, 3)))
    masked = fit(a)
    residual = ((rejected.image - masked.image).abs() / masked.variance.sqrt()).numpy()
    assert residual[trail.any(axis=0)].max() < 0.5


def test_accelerated_beats_published() -> None:
    a = stars(n=10)
    published = fit(a, form="published", target_fwhm=0.0, n_iter=150, tolerance=0.0)
    accelerated = fit(a, target_fwhm=0.0, n_iter=30, tolerance=0.0)
    assert accelerated.history[-1]["objective"] <= published.history[-1]["objective"]


def test_noiseless_flux_is_conserved() -> None:
    r = fit(stars(noise=0.0), n_iter=60)
    assert float(r.image.sum()) == pytest.approx(11000.0, rel=5e-3)
    assert float(r.image[5:26, 4:25].sum()) == pytest.approx(3000.0, rel=5e-3)
    assert r.flux_closure["model"] == pytest.approx(r.flux_closure["data"], rel=5e-3)


def test_shift_equivariance() -> None:
    a = stars(size=64)
    b = {name: np.roll(v, (3, 5), axis=(1, 2)) if name != "psf" else v for name, v in a.items()}
    one, two = fit(a), fit(b)
    difference = (one.image.roll((3, 5), (0, 1)) - two.image)[12:-12, 12:-12]
    assert float(difference.abs().max()) < 0.01 * float(one.image.max())


def test_order_of_exposures_does_not_matter() -> None:
    a = stars()
    b = {name: v[[2, 0, 3, 1]] for name, v in a.items()}
    one, two = fit(a), fit(b)
    torch.testing.assert_close(one.image, two.image, rtol=1e-3, atol=0.02)
    torch.testing.assert_close(one.chi2[[2, 0, 3, 1]], two.chi2, rtol=1e-3, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deterministic(device: str, dtype: torch.dtype) -> None:
    one, two = (
        restore(ExposureStack(**stars()), device=device, dtype=dtype, n_iter=4, n_realizations=2)
        for _ in range(2)
    )
    torch.testing.assert_close(one.image, two.image, rtol=0, atol=0)
    torch.testing.assert_close(one.noise_realizations, two.noise_realizations, rtol=0, atol=0)
    assert one.image.dtype == torch.float32 and one.image.device.type == "cpu"
    assert one.device.startswith(device)


@pytest.mark.skipif(len(DEVICES) < 2, reason="no GPU here")
def test_devices_agree() -> None:
    cpu, gpu = (
        restore(ExposureStack(**stars()), device=device, n_realizations=0, n_iter=10) for device in DEVICES
    )
    assert float((cpu.image - gpu.image).abs().max() / cpu.image.max()) < 1e-4


def test_precisions_agree() -> None:
    single, double = (
        restore(ExposureStack(**stars()), dtype=dtype, n_realizations=0, n_iter=10)
        for dtype in (torch.float32, torch.float64)
    )
    assert float((single.image - double.image).abs().max() / double.image.max()) < 1e-3


def test_cosmic_ray_of_1000_sigma_is_rejected() -> None:
    clean = stars(n=10)
    hit = {name: v.copy() for name, v in clean.items()}
    hit["image"][4, 40, 9:12] += 1000.0
    one, two = fit(clean), fit(hit, n_realizations=4)
    change = (two.image - one.image)[36:45, 5:16]
    assert float((change.abs() / two.variance[36:45, 5:16].sqrt()).max()) < 3.0
    assert bool(two.mask["CLIPPED"][40, 9:12].all())
    assert float(two.chi2[4]) < 1.5


def test_masks_and_missing_data() -> None:
    a = stars(n=3)
    a["good"][0, :, 20:24] = False
    a["good"][:, :8] = False
    a["good"][:, 28:32, 31:35] = False
    a["image"][~a["good"]] = np.nan
    r = fit(a)
    assert bool((r.mask["NO_DATA"] == torch.as_tensor(~a["good"].any(axis=0))).all())
    assert bool((r.image[r.mask["NO_DATA"]] == 0).all())
    assert bool(torch.isinf(r.variance[r.mask["NO_DATA"]]).all())
    assert bool((r.weight[r.mask["NO_DATA"]] == 0).all())
    assert bool(torch.isfinite(r.image).all()) and bool((r.variance > 0).all())
    assert bool(r.mask["REJECTED"][12, 21]) and not bool(r.mask["REJECTED"][12, 10])
    assert float(r.image[10:21, 9:20].sum()) == pytest.approx(3000.0, rel=0.02)
    # The core of the second star is masked everywhere: nothing bright may pile up around it.
    assert float(r.image[24:38, 26:40].max()) < 0.35 * 8000.0 / (4.5 * np.pi / np.log(2) / 4)


def test_sources_outside_of_the_frame() -> None:
    a = stars(size=64)
    b = {name: v[:, 15:, 14:] if name != "psf" else v for name, v in a.items()}
    inner = fit(a).image[15:, 14:]
    cut = fit(b).image
    # A star cut in half still leaves the sky a few pixels away alone.
    assert float((cut - inner)[9:, 9:].abs().max()) < 0.02 * float(inner.max())


def test_one_exposure() -> None:
    a = {name: v[:1] for name, v in stars().items()}
    r = fit(a)
    assert r.image.shape == (SIZE, SIZE) and r.chi2.shape == (1,)
    assert float(r.image[8:24, 6:23].sum()) == pytest.approx(3000.0, rel=0.03)


def test_two_hundred_tiny_exposures() -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(size=(200, 12, 10))
    psf = np.repeat(gaussian_kernel(3.0, 9).numpy()[None], 200, axis=0)
    stack = ExposureStack(image, np.ones(image.shape), np.ones(image.shape, dtype=bool), psf)
    r = restore(stack, n_iter=5)
    assert r.chi2.shape == (200,) and bool(torch.isfinite(r.image).all())
    assert 0.8 < float(r.chi2.mean()) < 1.1


def test_stops_in_time_and_reports() -> None:
    calls: list[tuple[int, int, float]] = []
    r = restore(
        ExposureStack(**stars()),
        n_iter=500,
        time_limit=1e-6,
        tolerance=0.0,
        progress=lambda *args: calls.append(args),
    )
    assert r.n_iterations == 0 and not r.converged and calls[0][:2] == (0, 500)
    done = fit(stars(), n_iter=500)
    assert done.converged and done.n_iterations < 500
    assert {"prepare", "fit", "uncertainty"} <= set(done.timings)


def test_a_fit_that_is_not_finite_is_not_returned() -> None:
    a = stars()
    a["image"] *= 1e30
    a["variance"] = np.full(a["image"].shape, 1e-30)
    with pytest.raises(RestorationError, match="not finite"):
        fit(a)


def test_noise_realizations_make_the_variance() -> None:
    r = fit(stars(n=6), n_realizations=3)
    assert r.noise_realizations.shape == (3, SIZE, SIZE)
    ratio = r.noise_realizations[:, 36:, :12].square().mean() / r.variance[36:, :12].mean()
    assert 0.5 < float(ratio) < 2.0
    none = fit(stars(n=6), n_realizations=0)
    assert none.noise_realizations.shape[0] == 0 and bool((none.variance > 0).all())


def test_units_do_not_matter() -> None:
    a = stars()
    b = {**a, "image": a["image"] * 1e4, "variance": a["variance"] * 1e8}
    one, two = fit(a), fit(b)
    torch.testing.assert_close(two.image * 1e-4, one.image, rtol=1e-2, atol=0.05)


@pytest.mark.parametrize("form", ["accelerated", "published"])
def test_held_out_pixels_choose_the_update(form: str) -> None:
    a = stars()
    a["image"][1, 40, 9:12] += 1000.0
    r = fit(a, form=form, held_out=0.1, tolerance=0.0, n_iter=150, target_fwhm=0.0, smooth_scale=0.0)
    losses = [entry["held_out"] for entry in r.history]
    # The published form is far from fitting noise after 150 updates.
    assert r.converged == (form == "accelerated")
    assert min(losses) <= losses[0]
    assert not bool(r.mask["CLIPPED"].all()) and bool(r.mask["CLIPPED"][40, 9:12].all())
    assert float(r.image[8:24, 6:23].sum()) == pytest.approx(3000.0, rel=0.05)


def sources_and_sky(n: int = 6, size: int = 96, *, seed: int = 5) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return exposures of a few stars in noise, and where the sky is empty."""
    a = stars(n, size, seed=seed)
    y, x = np.mgrid[:size, :size]
    empty = np.ones((size, size), dtype=bool)
    for x0, y0 in ((14.3, 15.6), (32.5, 30.2)):
        empty &= np.hypot(x - x0, y - y0) > 24
    empty[:8], empty[-8:], empty[:, :8], empty[:, -8:] = (False,) * 4
    return a, empty


def test_sky_damping_quiets_the_sky_alone() -> None:
    a, empty = sources_and_sky()
    uniform, adaptive, damped = (
        fit(a, residual_damping=d, sky_damping=s, n_realizations=0, point_threshold=0.0, sky_penalty=0.0)
        for d, s in ((0.08, 0.08), (0.08, 0.3), (0.3, 0.3))
    )
    rms = [float(r.image.numpy()[empty].std()) for r in (uniform, adaptive, damped)]
    assert rms[1] < 0.85 * rms[0] and abs(rms[1] - rms[2]) < 0.5 * abs(rms[0] - rms[2])
    star = (
        np.hypot(*(np.mgrid[: empty.shape[0], : empty.shape[1]] - np.array([15.6, 14.3])[:, None, None])) < 3
    )
    near = [float((r.image - uniform.image).abs().numpy()[star].max()) for r in (adaptive, damped)]
    assert near[0] < 0.1 * near[1]
    # Signed on both sides, so that the sky has no pedestal.
    assert float(adaptive.image.numpy()[empty].min()) < 0.0
    assert abs(float(adaptive.image.numpy()[empty].mean())) < 0.15 * rms[1]


@pytest.mark.parametrize("sky_damping", [0.0, 0.08])
def test_equal_dampings_are_one_correction(sky_damping: float) -> None:
    a = stars()
    one, two = (
        fit(a, sky_damping=s, residual_damping=0.08, n_iter=4, n_realizations=0) for s in (0.08, sky_damping)
    )
    torch.testing.assert_close(one.image, two.image, rtol=0, atol=0)


def test_surroundings_hold_what_the_data_show() -> None:
    a, empty = sources_and_sky()
    a["good"][:-1, :, 64:] = False
    stack = ExposureStack(**a)
    operator = ConvolutionOperator(stack.psf.to(torch.float64), stack.shape, margin=8)
    weights = stack.exposure_weights()
    quadratic = NonNegativeQuadratic(operator, weights)
    fidelity = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), 3.0)
    coverage = covered_weight(quadratic, fidelity)
    part = coverage[8:-8, 8:-8]
    assert float(part[40:60, 20:40].mean()) == pytest.approx(1.0, abs=0.05)
    assert float(part[40:60, 80:90].mean()) == pytest.approx(float(weights[-1] / weights.sum()), abs=0.02)
    discs = SourceDiscs(quadratic, coverage)
    truth = torch.zeros(operator.latent_shape, dtype=torch.float64)
    truth[24, 22], truth[38, 40] = 3000.0, 8000.0
    transform = operator.transform(truth)
    weight = operator.crop(discs.weight(transform, evaluate(operator, fidelity, transform)[1])).numpy()
    assert weight.min() >= 0.0 and weight.max() <= 1.0
    assert weight[14:18, 13:16].min() > 0.9 and weight[29:32, 31:34].min() > 0.9
    # Noise of the sky passes for a source now and then.
    assert weight[empty].mean() < 0.25


def test_what_is_missed_comes_back_where_detectors_cover_a_part() -> None:
    """Four exposures on either half give what eight halves of detectors hold."""
    rng = np.random.default_rng(4)
    n, n_exposures = 96, 8
    y, x = np.mgrid[:n, :n]
    star = 300.0 * np.exp(-0.5 * ((x - 30) ** 2 + (y - 50) ** 2) / 1.7**2) / (2.0 * np.pi * 1.7**2)
    image = rng.normal(size=(n_exposures, n, n)) + star
    good = np.ones(image.shape, dtype=bool)
    good[::2, :, n // 2 :] = False
    good[1::2, :, : n // 2] = False
    psf = np.stack([gaussian_kernel(4.0, 21).numpy()] * n_exposures)
    stack = ExposureStack(image, np.ones_like(image), good, psf)
    result = restore(stack, "imagemm", generator=torch.Generator().manual_seed(1))
    # A pedestal of half of what positive noise makes would be five sigma.
    assert abs(result.flux_closure["sigma"]) < 2.5
    inner = result.image.numpy()[8:-8, 8:-8]
    assert inner.sum() == pytest.approx(300.0, abs=2.5 * math.sqrt(inner.size / 4))


@pytest.mark.parametrize("shape", [(40, 52), (37, 45)])
@pytest.mark.parametrize("origin", [(0, 0), (7, 20), (-5, 3)])
def test_wide_gaussians_stand_on_every_second_pixel(shape: tuple[int, int], origin: tuple[int, int]) -> None:
    kernels = gaussian_kernel(3.0, 11)[None]
    operator = ConvolutionOperator(kernels, shape, margin=4, padding=10)
    quadratic = NonNegativeQuadratic(
        operator, torch.ones(1), scales=(0.0, 2.5), penalties=(0.4, 0.0), origin=origin
    )
    rows, columns = operator.latent_shape
    n_points = rows * columns
    # They stand at even places of the grid that all tiles share.
    first = [o % 2 for o in origin]
    width = -(-(columns - first[1]) // 2)
    n_wide = -(-(rows - first[0]) // 2) * width
    z = torch.zeros(n_points + n_wide, dtype=torch.float64)
    z[n_points + 10 * width + 9] = 100.0
    y, x = np.mgrid[:rows, :columns]
    y, x = y - 20 - first[0], x - 18 - first[1]
    expected = 100.0 * np.exp(-0.5 * (y**2 + x**2) / 2.5**2) / (2.0 * np.pi * 2.5**2)
    np.testing.assert_allclose(quadratic.latent(z).numpy(), expected, atol=1e-3 * expected.max())
    assert quadratic.penalty(z) == 0.0

    generator = torch.Generator().manual_seed(0)
    z = torch.rand(len(z), generator=generator, dtype=torch.float64)
    image = torch.randn((rows, columns), generator=generator, dtype=torch.float64)
    left = float((quadratic.latent(z) * image).sum())
    right = float((z * quadratic._project(operator.transform(image))).sum())
    assert left == pytest.approx(right, rel=1e-10)
    halved = quadratic.select(z, (torch.arange(columns) < 20).to(z).expand(rows, columns))
    assert float(quadratic.latent(halved)[:, 35:].abs().max()) < 1e-2
    uniform = quadratic.latent(quadratic.divide(torch.ones((rows, columns), dtype=torch.float64)))
    assert float((uniform[14:-14, 14:-14] - 1.0).abs().max()) < 1e-3


def bright_star(size: int = 120, n: int = 4, flux: float = 3e4, gain: float = 20.0) -> dict[str, np.ndarray]:
    """Return exposures of one star whose own noise exceeds the sky's by far."""
    rng = np.random.default_rng(8)
    y, x = np.mgrid[:size, :size]
    psf = np.stack([gaussian_kernel(width, 31).numpy() for width in np.linspace(3.2, 5.0, n)])
    image = np.zeros((n, size, size))
    for t, width in enumerate(np.linspace(3.2, 5.0, n)):
        sigma = width / 2.3548
        for x0, y0, part in ((60.3, 58.6, 1.0), (44.0, 70.0, 0.01), (75.2, 47.3, 0.003)):
            r2 = (x - x0) ** 2 + (y - y0) ** 2
            image[t] += part * flux * np.exp(-0.5 * r2 / sigma**2) / (2 * np.pi * sigma**2)
    variance = 1.0 + image / gain
    image = image + np.sqrt(variance) * rng.normal(size=image.shape)
    return {"image": image, "variance": variance, "good": np.ones(image.shape, dtype=bool), "psf": psf}


def test_balance_makes_the_curvature_that_of_the_data() -> None:
    arrays = bright_star(size=64)
    stack = ExposureStack(**arrays)
    operator = ConvolutionOperator(stack.psf.double(), (64, 64), margin=4)
    weights = stack.exposure_weights()
    balance = local_balance(operator, stack.inverse_variance, weights, operator.power(weights))
    assert balance is not None
    expected = []
    for row, column in ((36, 36), (12, 50)):
        point = torch.zeros(operator.latent_shape, dtype=torch.float64)
        point[row, column] = 1.0
        seen = operator.forward(point) ** 2
        total = (seen * weights[:, None, None]).sum()
        expected.append(float(((seen * stack.inverse_variance).sum() / total).sqrt()))
    found = [float(balance[36, 36]), float(balance[12, 50])]
    assert found == pytest.approx(expected, rel=1e-6)
    constant = torch.ones_like(stack.inverse_variance)
    ones = torch.ones(4, dtype=torch.float64)
    assert local_balance(operator, constant, ones, operator.power(ones)) is None


def test_tiles_agree_in_the_core_of_a_bright_star() -> None:
    arrays = bright_star()
    results = []
    for top, left in ((0, 0), (15, 20)):
        part = {k: v if k == "psf" else v[:, top : top + 100, left : left + 100] for k, v in arrays.items()}
        restored = restore(ExposureStack(**part, origin=(top, left)), n_realizations=0)
        results.append(restored.image[45 - top : 75 - top, 45 - left : 75 - left])
    first, second = results
    # The noise of the sky is 0.2 per pixel, that of the core some ten times more.
    assert float((first - second).abs().max()) < 0.02
