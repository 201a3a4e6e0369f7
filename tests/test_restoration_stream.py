# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    MemoryModel,
    RemainingTime,
    Window,
    choose_tile_size,
    estimate_memory,
    evaluate_psf_basis,
    fit_psf_basis,
    gaussian_kernel,
    is_out_of_memory,
    move_psf_basis,
    peak_memory,
    psf_basis_degree,
    psf_basis_terms,
    psf_reach,
    resident_memory,
    stream_windows,
)


@pytest.mark.parametrize(("shape", "tile_size"), [((100, 100), 100), ((101, 333), 64), ((30, 40), 600)])
def test_windows_partition_the_area(shape: tuple[int, int], tile_size: int) -> None:
    area = Window(-7, shape[0] - 7, 13, shape[1] + 13)
    count = np.zeros(shape, dtype=int)
    for window in area.split(tile_size):
        assert max(window.shape) <= tile_size
        assert window.size == math.prod(window.shape)
        count[window.within(area)] += 1
    assert (count == 1).all()


def test_padded_window_holds_the_window() -> None:
    inner = Window(3, 9, 4, 6)
    outer = inner.padded(2)
    assert outer.shape == (10, 6)
    plane = np.arange(60).reshape(10, 6)
    assert plane[inner.within(outer)].shape == inner.shape
    assert plane[inner.within(outer)][0, 0] == 2 * 6 + 2


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_tiles_shrink_when_memory_runs_out(error: Exception) -> None:
    area = Window(0, 300, 0, 200)
    count = np.zeros(area.shape, dtype=int)
    shrunk = []

    def work(window: Window) -> None:
        # The first row of tiles still fits, as where exposures are few.
        if window.y_start >= 100 and max(window.shape) > 60:
            raise error
        count[window.within(area)] += 1

    final = stream_windows(area, 100, work, smallest=16, on_shrink=lambda *what: shrunk.append(what))
    assert (count == 1).all()
    assert final == 50
    assert [size for size, _ in shrunk] == [50]


def test_crowded_tiles_are_divided_alone() -> None:
    area, done = Window(0, 200, 0, 200), []
    stream_windows(area, 100, done.append, smallest=10, fits=lambda w: w.y_start < 100 or max(w.shape) <= 25)
    assert [w.shape for w in done[:2]] == [(100, 100)] * 2
    assert [w.shape for w in done[2:]] == [(25, 25)] * 32
    assert sorted(done) == sorted({*done})
    assert sum(w.size for w in done) == area.size


def test_other_errors_and_hopeless_ones_go_on() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(RuntimeError, match="something else"):
        stream_windows(Window(0, 9, 0, 9), 9, lambda _: fail(RuntimeError("something else")), smallest=2)
    with pytest.raises(MemoryError):
        stream_windows(Window(0, 9, 0, 9), 9, lambda _: fail(MemoryError()), smallest=4)


def test_allocation_failures_are_recognised() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as torch_error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(torch_error.value)
    with pytest.raises(MemoryError) as numpy_error:
        np.empty(1 << 60, dtype=np.uint8)
    assert is_out_of_memory(numpy_error.value)
    assert not is_out_of_memory(ValueError("out of range"))


def test_tile_size_keeps_within_the_budget() -> None:
    model = MemoryModel(per_exposure_pixel=50.0, per_pixel=200.0, fixed=1e8)
    previous = 10_000
    for n_exposures in (1, 8, 33):
        size = choose_tile_size(1.5e9, n_exposures, 40, model)
        assert model.bytes((size + 80, size + 80), n_exposures) <= 1.5e9
        assert model.bytes((size + 84, size + 84), n_exposures) > 1.5e9 or size == 1024
        assert size <= previous
        previous = size
    assert choose_tile_size(0.0, 33, 40, model, smallest=96) == 96
    assert estimate_memory("of another package") == estimate_memory("combined")


def test_remaining_time_follows_the_clock() -> None:
    now = [100.0]
    remaining = RemainingTime(200.0, clock=lambda: now[0])
    assert math.isinf(remaining.seconds())
    assert remaining.describe() == "0 %"
    now[0] += 30.0
    remaining.add(50.0)
    assert remaining.seconds() == pytest.approx(90.0)
    assert remaining.describe() == "25 %, about 1 min left"
    assert remaining.describe(begun=50.0) == "50 %, about 30 s left"
    now[0] += 36000.0
    assert "h" in remaining.describe()


def test_peak_memory_grows() -> None:
    before = peak_memory()
    block = np.ones(40_000_000)
    assert peak_memory() >= before
    assert peak_memory() >= block.nbytes
    assert 0 < resident_memory() <= peak_memory()


def test_reach_holds_the_light() -> None:
    narrow, wide = (gaussian_kernel(fwhm, 41) for fwhm in (3.0, 7.0))
    reach = psf_reach(torch.stack([narrow, wide]))
    half = 20
    inside = wide[half - reach : half + reach + 1, half - reach : half + reach + 1].sum()
    assert inside >= 0.99
    assert reach == psf_reach(wide)
    assert psf_reach(narrow) < reach
    assert psf_reach(torch.full((5, 5), 0.04)) == 2


def _moffat(u: float, v: float, variation: float, size: int = 41) -> np.ndarray:
    """Draw a Moffat whose width and shape vary by a part of themselves."""
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    radius = 4.0 * (1 + variation * (0.4 * u - 0.3 * v + 0.3 * u * v))
    g = 0.05 + 0.3 * variation * v
    stamp = (1 + (x**2 * (1 + g) + y**2 * (1 - g)) / radius**2) ** -3.0
    return stamp / stamp.sum()


def _sample(variation: float, n: int, limit: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, v = (a.ravel() for a in np.meshgrid(*2 * [np.linspace(-limit, limit, n)]))
    return np.stack([_moffat(a, b, variation) for a, b in zip(u, v, strict=True)]), u, v


def test_basis_reproduces_ten_per_cent_over_a_tile() -> None:
    # 10 % over a detector; a tile sees half of it at most.
    basis, error = fit_psf_basis(*_sample(0.035, 4), degree=2)
    test, u, v = _sample(0.035, 9)
    fitted = evaluate_psf_basis(basis, u, v)
    worst = (np.abs(fitted - test).max(axis=(1, 2)) / test.max(axis=(1, 2))).max()
    assert worst < 1e-3
    assert worst < 2 * error + 1e-4
    assert basis[0].sum() == pytest.approx(1.0)
    assert np.abs(basis[1:].sum(axis=(1, 2))).max() < 1e-12


def test_constant_psf_needs_one_image() -> None:
    stamps, u, v = _sample(0.0, 4)
    basis, error = fit_psf_basis(stamps, u, v, degree=2)
    assert basis.shape == (1, 41, 41)
    assert error < 1e-12
    assert np.allclose(basis[0], stamps[0])


def test_sliver_is_not_extrapolated() -> None:
    """Positions on a line far off: the PSF across the tile stays sane."""
    u, v = np.full(16, 0.97) + 1e-3 * np.tile([0, 1, 2, 3], 4), np.repeat(np.linspace(-1, 1, 4), 4)
    stamps = np.stack([_moffat(a, b, 0.3) for a, b in zip(u, v, strict=True)])
    basis, _ = fit_psf_basis(stamps, u, v, degree=2)
    across = evaluate_psf_basis(basis, np.array([-1.0, 0.0]), np.array([0.0, 0.0]))
    assert np.abs(across - stamps.mean(axis=0)).max() < 0.3 * stamps.max()


def test_terms_have_the_agreed_order() -> None:
    terms = psf_basis_terms(np.array([2.0]), np.array([3.0]), 2)
    assert terms.tolist() == [[1.0, 2.0, 3.0, 4.0, 6.0, 9.0]]
    assert [psf_basis_degree(n) for n in (1, 3, 6, 10)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="do not make a polynomial"):
        psf_basis_degree(4)


@pytest.mark.parametrize("n_basis", [1, 3, 6, 10])
def test_moved_basis_is_the_same_psf(n_basis: int) -> None:
    rng = np.random.default_rng(n_basis)
    basis = rng.normal(size=(n_basis, 5, 5))
    basis[1:] -= basis[1:].mean(axis=(1, 2), keepdims=True)
    scale, offset = (0.3, 1.7), (-0.6, 2.1)
    u, v = rng.uniform(-1, 1, (2, 20))
    moved = move_psf_basis(basis, scale, offset)
    expected = evaluate_psf_basis(basis, scale[0] * u + offset[0], scale[1] * v + offset[1])
    assert np.abs(evaluate_psf_basis(moved, u, v) - expected).max() < 1e-12 * np.abs(expected).max()
    assert moved[0].sum() == pytest.approx(basis[0].sum())
    assert np.abs(moved[1:].sum(axis=(1, 2))).max(initial=0.0) < 1e-12
