# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of the stack, of its checks and of the entry point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    SETTINGS_CLASSES,
    ExposureStack,
    InvalidStackError,
    NoGoodPixelsError,
    gaussian_kernel,
    restore,
)


def arrays(n: int = 3, size: int = 24, k: int = 7) -> dict[str, Any]:
    """Return the arrays of a stack of flat sky."""
    rng = np.random.default_rng(5)
    return {
        "image": rng.normal(size=(n, size, size)),
        "variance": np.ones((n, size, size)),
        "good": np.ones((n, size, size), dtype=bool),
        "psf": np.repeat(gaussian_kernel(3.0, k).numpy()[None], n, axis=0),
    }


def test_normalises_psf_and_keeps_type() -> None:
    a = arrays()
    a["psf"] = a["psf"] * 7.0
    stack = ExposureStack(**a)
    assert stack.image.dtype == torch.float64
    torch.testing.assert_close(stack.psf.sum(dim=(1, 2)), torch.ones(3, dtype=torch.float64))
    assert stack.n_exposures == 3 and stack.shape == (24, 24)


def test_integer_input_becomes_float() -> None:
    a = arrays()
    a["image"] = np.zeros(a["image"].shape, dtype=np.int32)
    a["variance"] = np.ones(a["image"].shape, dtype=np.float32)
    assert ExposureStack(**a).image.dtype == torch.float32


def test_values_of_bad_pixels_do_not_matter() -> None:
    a = arrays()
    a["good"][1, 3:9, 4:8] = False
    results = []
    for junk in (0.0, np.nan, np.inf, 1e30):
        b = {name: array.copy() for name, array in a.items()}
        b["image"][1, 3:9, 4:8] = junk
        b["variance"][1, 3:9, 4:8] = -junk
        results.append(restore(ExposureStack(**b), n_iter=3, n_realizations=1))
    for other in results[1:]:
        torch.testing.assert_close(other.image, results[0].image, rtol=0, atol=0)
        torch.testing.assert_close(other.variance, results[0].variance, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("psf", lambda p: p[:, :6, :6], "odd"),
        ("psf", lambda p: p * np.array([1, -1, 1])[:, None, None], "beta.*sums to"),
        ("psf", lambda p: p * 0.0, "alpha.*sums to 0"),
        ("psf", lambda p: p * np.array([1, 1, np.nan])[:, None, None], "gamma.*not finite"),
        ("psf", lambda p: p[:2], "one square stamp"),
        ("psf", lambda p: p[:, :5, :], "square"),
        ("variance", lambda v: v * np.array([1, 0, 1])[:, None, None], "beta.*variance"),
        ("variance", lambda v: v * np.array([1, 1, -1])[:, None, None], "gamma.*variance"),
        ("variance", lambda v: v * np.array([np.nan, 1, 1])[:, None, None], "alpha.*variance"),
        ("variance", lambda v: v[:, :5], "variance has shape"),
        ("good", lambda g: g[:2], "good has shape"),
        ("image", lambda i: i * np.array([1, np.nan, 1])[:, None, None], "beta.*non-finite"),
        ("image", lambda i: i[0], r"\(T, H, W\)"),
    ],
)
def test_bad_input_is_named(name: str, change: Any, message: str) -> None:
    a = arrays()
    a[name] = change(a[name])
    with pytest.raises(InvalidStackError, match=message):
        ExposureStack(**a, names=["alpha", "beta", "gamma"])


def test_number_of_names() -> None:
    with pytest.raises(InvalidStackError, match="names"):
        ExposureStack(**arrays(), names=["one"])


def test_no_good_pixels() -> None:
    a = arrays()
    a["good"][:] = False
    with pytest.raises(NoGoodPixelsError, match="3 exposures"):
        ExposureStack(**a)


@pytest.mark.parametrize("method", sorted(SETTINGS_CLASSES))
def test_an_all_bad_exposure_contributes_nothing(method: str) -> None:
    a = arrays()
    a["good"][1] = False
    b = {name: array[[0, 2]] for name, array in a.items()}
    quick = {"n_iter": 20} if method == "astroclearnet" else {}
    full, short = (restore(ExposureStack(**x), method, **quick) for x in (a, b))
    if method == "direct":
        torch.testing.assert_close(full.image, short.image)
    assert torch.isnan(full.chi2[1]) and full.n_good[1] == 0
    assert bool(torch.isfinite(full.chi2[[0, 2]]).all())
    assert not bool(full.mask["NO_DATA"].any()) and bool(full.mask["REJECTED"].all())


def test_unknown_method_and_settings() -> None:
    stack = ExposureStack(**arrays())
    with pytest.raises(ValueError, match="direct, imagemm"):
        restore(stack, "wavelets")
    with pytest.raises(TypeError, match="n_iter"):
        restore(stack, "imagemm", iterations=3)
    with pytest.raises(ValueError, match="n_iter=0"):
        restore(stack, "imagemm", n_iter=0)
    with pytest.raises(ValueError, match="published"):
        restore(stack, "imagemm", form="fast")
    with pytest.raises(ValueError, match="dtype"):
        restore(stack, "direct", dtype=torch.float16)


def test_direct_is_the_weighted_mean() -> None:
    a = arrays()
    a["variance"] *= np.array([1.0, 2.0, 4.0])[:, None, None]
    a["good"][0, 5, 6] = False
    a["good"][:, 7, 8] = False
    r = restore(ExposureStack(**a), "direct", dtype=torch.float64)
    w = (a["good"] / a["variance"]).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.where(w > 0, (a["image"] * a["good"] / a["variance"]).sum(axis=0) / w, 0.0)
        np.testing.assert_allclose(r.image.numpy(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(r.variance.numpy(), 1.0 / w, rtol=1e-5)
    np.testing.assert_allclose(r.weight.numpy(), w, rtol=1e-5)
    assert r.mask["NO_DATA"].sum() == 1 and r.mask["NO_DATA"][7, 8]
    assert r.mask["REJECTED"].sum() == 1 and r.mask["REJECTED"][5, 6]
    assert float(r.psf.sum()) == pytest.approx(1.0, abs=1e-6) and r.n_image[5, 6] == 2


def test_direct_clips_one_exposure() -> None:
    a = arrays(n=5)
    a["image"][2, 10, 11] += 1000.0
    plain, clipped = (restore(ExposureStack(**a), "direct", clip=clip) for clip in (False, True))
    assert float(plain.image[10, 11]) > 100.0
    assert abs(float(clipped.image[10, 11])) < 3.0
    assert bool(clipped.mask["CLIPPED"][10, 11]) and not bool(plain.mask["CLIPPED"].any())


def test_model_of_an_unknown_exposure() -> None:
    r = restore(ExposureStack(**arrays()), "direct")
    assert r.model(2).shape == (24, 24)
    with pytest.raises(IndexError, match="has 3"):
        r.model(3)
