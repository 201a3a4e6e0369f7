# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of AstroClearNet and of its combination with ImageMM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    ConvolutionOperator,
    ExposureStack,
    FrameGeometry,
    HuberFidelity,
    RestorationError,
    gaussian_kernel,
    load_weights,
    restore,
    save_weights,
    train_weights,
)
from lsst.latent_coadds.restoration._implants import SourceMaker
from lsst.latent_coadds.restoration._kernels import matching_kernels
from lsst.latent_coadds.restoration._learned import LatentPredictor, _turn, _turn_back
from lsst.latent_coadds.restoration._member import Member, Twin
from lsst.latent_coadds.restoration._network import LatentNetwork, PublishedNetwork
from lsst.latent_coadds.restoration._problem import TrainingProblem
from lsst.latent_coadds.restoration._proximal import NonNegativeQuadratic
from lsst.latent_coadds.restoration._training import Training, TrainingOptions, train

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
QUICK: dict[str, dict[str, Any]] = {
    "astroclearnet": {"n_iter": 40, "n_realizations": 1, "width": 8},
    "combined": {"network_steps": 10, "n_realizations": 1, "width": 8},
}


def stars(
    n: int = 4, size: int = 64, *, seed: int = 3, more: Sequence[tuple[float, float, float]] = ()
) -> dict[str, np.ndarray]:
    """Return exposures of Gaussian stars (x, y, flux) between pixels."""
    rng = np.random.default_rng(seed)
    fwhm = np.linspace(3.2, 4.5, n)
    y, x = np.mgrid[:size, :size]
    image = rng.normal(size=(n, size, size))
    for t, width in enumerate(fwhm):
        sigma = width / 2.3548
        for x0, y0, flux in ((18.3, 20.6, 1000.0), (40.5, 42.2, 5000.0), (45.1, 15.8, 300.0), *more):
            r2 = (x - x0) ** 2 + (y - y0) ** 2
            image[t] += flux * np.exp(-0.5 * r2 / sigma**2) / (2 * np.pi * sigma**2)
    return {
        "image": image,
        "variance": np.ones(image.shape),
        "good": np.ones(image.shape, dtype=bool),
        "psf": np.stack([gaussian_kernel(width, 21).numpy() for width in fwhm]),
    }


@pytest.mark.parametrize("n", [1, 3, 9])
@pytest.mark.parametrize("normalisation", ["channel", "group", "none"])
def test_network_takes_any_number_of_exposures(n: int, normalisation: str) -> None:
    network = LatentNetwork(3, width=8, normalisation=normalisation)
    out = network(torch.randn(3, 21, 30), torch.randn(n, 2, 21, 30), torch.full((n,), 1.0 / n))
    assert out.shape == (21, 30) and bool((out == 0).all())


def test_network_ignores_the_order_of_exposures() -> None:
    torch.manual_seed(0)
    network = LatentNetwork(2, width=8, depth=2)
    torch.nn.init.normal_(network.last.weight)
    features, exposures, weights = (torch.randn(2, 16, 16), torch.randn(5, 2, 16, 16), torch.rand(5))
    order = torch.tensor([3, 1, 4, 0, 2])
    one, two = (network(features, exposures, weights), network(features, exposures[order], weights[order]))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_network_does_the_same_on_a_crop() -> None:
    torch.manual_seed(0)
    network = LatentNetwork(2, width=8, depth=2)
    torch.nn.init.normal_(network.last.weight)
    features, exposures, weights = (torch.randn(2, 96, 96), torch.randn(2, 2, 96, 96), torch.full((2,), 0.5))
    whole = network(features, exposures, weights)
    part = network(features[:, 8:88, 8:88], exposures[:, :, 8:88, 8:88], weights)
    torch.testing.assert_close(part[32:48, 32:48], whole[40:56, 40:56], rtol=1e-4, atol=1e-5)


def test_published_network_is_not_negative() -> None:
    out = PublishedNetwork(3)(torch.randn(3, 12, 14))
    assert out.shape == (12, 14) and bool((out >= 0).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", sorted(QUICK))
def test_restores_stars(method: str, device: str) -> None:
    settings = {**QUICK[method], **({"n_iter": 150} if method == "astroclearnet" else {})}
    r = restore(ExposureStack(**stars()), method, device=device, **settings)
    assert r.method == method and r.image.shape == (64, 64)
    assert float(r.image[35:50, 33:48].sum()) == pytest.approx(5000.0, rel=0.04)
    assert float(r.image[13:28, 11:26].sum()) == pytest.approx(1000.0, rel=0.12)
    held_out = [entry["held_out"] for entry in r.history]
    assert min(held_out) < held_out[0] or method == "combined"
    assert r.noise_realizations.shape == (1, 64, 64) and bool((r.variance > 0).all())
    assert float(r.chi2.mean()) == pytest.approx(1.0, abs=0.15)


def test_combined_is_no_worse_than_its_seed() -> None:
    r = restore(ExposureStack(**stars()), "combined", **QUICK["combined"])
    held_out = [entry["held_out"] for entry in r.history]
    assert min(held_out) <= held_out[0]


@pytest.mark.parametrize("method", sorted(QUICK))
def test_deterministic_and_seeded(method: str) -> None:
    before = torch.random.get_rng_state()
    one, two, other = (
        restore(ExposureStack(**stars()), method, generator=torch.Generator().manual_seed(s), **QUICK[method])
        for s in (1, 1, 2)
    )
    torch.testing.assert_close(one.image, two.image, rtol=0, atol=0)
    assert not torch.equal(one.image, other.image)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("method", sorted(QUICK))
def test_masks_rays_and_missing_data(method: str) -> None:
    a = stars()
    a["good"][0, :, 30:34] = False
    a["good"][:, :6] = False
    a["image"][~a["good"]] = np.nan
    a["image"][1, 52, 10:14] += 1000.0
    r = restore(ExposureStack(**a), method, **QUICK[method])
    assert bool(torch.isfinite(r.image).all()) and bool((r.image[r.mask["NO_DATA"]] == 0).all())
    assert bool(r.mask["CLIPPED"][52, 10:14].all())
    assert float(r.image[49:56, 8:17].abs().max()) < 0.2 * float(r.image.max())


def test_published_form_learns() -> None:
    r = restore(ExposureStack(**stars()), "astroclearnet", form="published", n_iter=60, n_realizations=1)
    assert bool((r.image >= -1e-3).all())
    assert r.history[-1]["objective"] < r.history[0]["objective"]


def test_network_that_collapses_is_reported() -> None:
    stack = ExposureStack(**stars())
    weights = restore(stack, "astroclearnet", form="published", n_iter=1, n_realizations=0).weights
    assert weights is not None
    dead = {name: torch.zeros_like(value) for name, value in weights.items()}
    with pytest.raises(RestorationError, match="collapsed"):
        restore(stack, "astroclearnet", form="published", weights=dead)


@pytest.mark.parametrize("method", sorted(QUICK))
def test_empty_sky_stays_empty(method: str) -> None:
    a = stars()
    a["image"] = np.random.default_rng(8).normal(size=a["image"].shape)
    r = restore(ExposureStack(**a), method, **QUICK[method])
    assert float(r.image.abs().max()) < 3.0


def test_known_sources_have_the_light_of_stars() -> None:
    kernels = gaussian_kernel(4.0, 25)[None].float()
    operator = ConvolutionOperator(kernels, (200, 200), margin=10)
    quadratic = NonNegativeQuadratic(operator, torch.tensor([4.0]))
    maker = SourceMaker.from_quadratic(quadratic, 2.0)
    # The PSF is the kernel times the target; sigma is 0.5.
    psf = gaussian_kernel((4.0**2 + 2.0**2) ** 0.5, 41)
    assert maker.flux_error == pytest.approx(0.5 * float((psf**2).sum()) ** -0.5, rel=0.01)
    one, two = (maker.draw(torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert one.shape == operator.latent_shape and bool((one >= 0).all()) and not torch.equal(one, two)
    mean_flux = float(one.sum()) / (one.numel() / 900.0) / maker.flux_error
    assert 50.0 < mean_flux < 200.0
    # A star is no narrower than the target: its brightest pixel has less than 0.23 of its light.
    assert float(one.max()) < 0.23 * 500.0 * maker.flux_error * 2.0


def test_error_of_known_sources_is_a_gradient() -> None:
    problem, _ = small_problem()
    region = (slice(2, 9), slice(4, 12))
    generator = torch.Generator().manual_seed(2)
    sources, latent, plain = (torch.randn(n, generator=generator) for n in ((48, 48), (7, 8), (7, 8)))
    twin = Twin(lambda region, turn: latent, problem, sources, 0.3)
    latent.requires_grad_(True)
    truth = torch.asinh((plain + sources[region]) / 0.3)
    (0.5 * (torch.asinh(latent / 0.3) - truth) ** 2).sum().backward()
    torch.testing.assert_close(twin.error(latent.detach(), plain, region), latent.grad)


@pytest.mark.parametrize("turn", range(8))
def test_turned_images_are_turned_back(turn: int) -> None:
    images = torch.arange(24.0).reshape(2, 3, 4)
    torch.testing.assert_close(_turn_back(_turn(images, turn), turn), images)
    assert turn == 0 or not torch.equal(_turn(images, turn)[:, :3, :3], images[:, :3, :3])


def small_problem() -> tuple[TrainingProblem, torch.nn.Module]:
    kernels = gaussian_kernel(3.0, 9)[None].float()
    operator = ConvolutionOperator(kernels, (40, 40), margin=4)
    data = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    held_out = torch.zeros(1, 40, 40, dtype=torch.bool)
    held_out[0, ::5, ::5] = True
    training, test = (HuberFidelity(data, chosen.float(), 3.0) for chosen in (~held_out, held_out))
    return TrainingProblem(kernels, operator, training, test), torch.nn.Conv2d(1, 1, 1)


def run_training(problem: TrainingProblem, network: torch.nn.Module, predict: Any, *, crop: int) -> Training:
    options = TrainingOptions(
        n_iter=60,
        learning_rate=0.05,
        warm_up=2,
        weight_decay=0.0,
        clip_norm=1.0,
        crop=crop,
        check_every=5,
        patience=100,
        time_limit=0.0,
        reject_sigma=0.0,
    )
    member = Member(predict, problem, torch.zeros_like(problem.training.image, dtype=torch.bool))
    return train(network, [member], options, generator=torch.Generator().manual_seed(0))


def test_training_on_crops_keeps_the_best_weights() -> None:
    problem, network = small_problem()
    ones = torch.ones(1, 48, 48)
    result = run_training(
        problem, network, lambda region, turn: network(ones[:, region[0], region[1]])[0], crop=24
    )
    latent = result.latents[0]
    assert latent.shape == (48, 48)
    best = min(result.history, key=lambda entry: entry["held_out"])
    assert problem.loss(problem.held_out, latent) == pytest.approx(best["held_out"])
    assert float(network(ones).detach().mean()) == pytest.approx(float(latent.mean()))
    assert float(latent[10:-10, 10:-10].mean()) == pytest.approx(0.5, abs=0.1)


def test_training_that_diverges_is_retried_and_reported() -> None:
    problem, network = small_problem()
    calls = []

    def broken(region: tuple[slice, slice], turn: int) -> torch.Tensor:
        calls.append(region)
        ones = torch.ones(1, region[0].stop - region[0].start, region[1].stop - region[1].start)
        return network(ones)[0] * (torch.nan if torch.is_grad_enabled() else 1.0)

    with pytest.raises(RestorationError, match="three times"):
        run_training(problem, network, broken, crop=64)
    assert len(calls) == 4


@pytest.mark.parametrize("method", sorted(QUICK))
def test_weights_give_the_same_image_again(method: str, tmp_path: Path) -> None:
    stack = ExposureStack(**stars())
    settings = {**QUICK[method], "reject_sigma": 0.0}
    first = restore(stack, method, **settings)
    assert first.weights is not None
    save_weights(first.weights, tmp_path / "weights.pt")
    again = restore(stack, method, weights=load_weights(tmp_path / "weights.pt"), **settings)
    assert again.n_iterations == 0
    assert float((again.image - first.image).abs().max()) < 1e-5 * float(first.image.max())


def test_one_network_serves_several_stacks() -> None:
    # Stars that no point stands for: the network has to learn them.
    settings: dict[str, Any] = {"width": 8, "point_threshold": 0.0}
    stacks = [ExposureStack(**stars(n, seed=n)) for n in (3, 5)]
    weights = train_weights(stacks, "astroclearnet", n_iter=60, **settings)
    other = ExposureStack(**stars(4, seed=9))
    trained = restore(other, "astroclearnet", weights=weights, **settings, n_realizations=0)
    untrained = {name: torch.zeros_like(value) for name, value in weights.items()}
    start = restore(other, "astroclearnet", weights=untrained, **settings, n_realizations=0)
    assert trained.history[0]["objective"] < start.history[0]["objective"]
    assert float(trained.image[10:30, 10:30].sum()) == pytest.approx(1000.0, rel=0.1)


def test_tiles_of_one_image_fit_together() -> None:
    more = ((95.3, 99.4, 3000.0), (130.2, 97.1, 300.0), (110.7, 130.6, 20000.0), (99.2, 140.3, 500.0))
    a = stars(3, size=190, more=more)
    tile = (slice(None), slice(37, None), slice(29, None))
    cut = {name: array if name == "psf" else array[tile] for name, array in a.items()}
    settings = {**QUICK["astroclearnet"], "n_realizations": 2}
    weights = train_weights([ExposureStack(**stars(3))], "astroclearnet", **settings)
    whole, part = (
        restore(stack, "astroclearnet", weights=weights, **settings)
        for stack in (ExposureStack(**a), ExposureStack(**cut, origin=(37, 29)))
    )
    # Both are right from 48 pixels inside of the edges of the tile.
    difference = part.image[48:-48, 48:-48] - whole.image[85:-48, 77:-48]
    assert float((difference.abs() / whole.variance[85:-48, 77:-48].sqrt()).max()) < 0.02


def test_training_begins_with_stored_weights() -> None:
    stack = ExposureStack(**stars())
    stored, random = (
        restore(stack, "astroclearnet", start=start, n_iter=20, n_realizations=0, point_threshold=0.0)
        for start in ("stored", "random")
    )
    assert stored.history[-1]["held_out"] < random.history[-1]["held_out"]
    assert float(stored.image[35:50, 33:48].sum()) == pytest.approx(5000.0, rel=0.03)
    assert float(stored.image[13:28, 11:26].sum()) == pytest.approx(1000.0, rel=0.08)


def test_linear_features_have_all_light_where_detectors_cover_a_part() -> None:
    """Two detectors reach over all of the image, two over its right half."""
    n, shifts = 96, (0.3, -0.4, 48.2, 47.7)
    nodes = np.arange(0, n + 16, 16.0)
    x, y = np.meshgrid(nodes, nodes)
    frames = FrameGeometry((n, n), np.stack([x + s for s in shifts]), np.stack([y] * 4), 16)
    columns, rows = np.meshgrid(np.arange(n), np.arange(n))
    places, flux, width = ((22.4, 45.0), (73.1, 50.7)), 5000.0, 4.0 / 2.3548
    image = np.zeros((4, n, n))
    for plane, shift in zip(image, shifts, strict=True):
        for x0, y0 in places:
            distance = (columns + shift - x0) ** 2 + (rows - y0) ** 2
            plane += flux * np.exp(-0.5 * distance / width**2) / (2.0 * np.pi * width**2)
    psf = np.stack([gaussian_kernel(4.0, 21).numpy()] * 4)
    stack = ExposureStack(image, np.ones_like(image), np.ones(image.shape, dtype=bool), psf, frames=frames)
    kernels = matching_kernels(stack.psf, 2.0).to(stack.image)
    operator = ConvolutionOperator(kernels, stack.shape, margin=8, sampler=stack.make_sampler())
    quadratic = NonNegativeQuadratic(operator, stack.exposure_weights())
    predictor = LatentPredictor(quadratic, 2.0, stack.exposure_weights(), skip="linear", softness=0.1)
    features = predictor.encode(stack.image).features
    for feature in features[1:]:
        light = operator.crop(torch.sinh(feature)).numpy() * predictor.sigma
        for x0, y0 in places:
            near = np.hypot(columns - x0, rows - y0) < 20.0
            assert light[near].sum() == pytest.approx(flux, rel=0.02)


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    stack = ExposureStack(**stars())
    weights = train_weights([stack], "astroclearnet", n_iter=1, width=8)
    with pytest.raises(ValueError, match="do not fit"):
        restore(stack, "astroclearnet", weights=weights, width=16)
    with pytest.raises(TypeError, match="no network"):
        restore(stack, "imagemm", weights=weights)
    with pytest.raises(ValueError, match="no stack"):
        train_weights([], "astroclearnet")
    path = tmp_path / "rubbish.pt"
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"rubbish\.pt holds no weights"):
        load_weights(path)
