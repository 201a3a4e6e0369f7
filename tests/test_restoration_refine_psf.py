# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of PSF stamps on finer grids; the truth is drawn with GalSim."""

from __future__ import annotations

import galsim
import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import refine_psf, resample_psf

SCALE = 0.168
SIZE = 31
PROFILES = {
    "moffat": (galsim.Moffat(beta=3.0, fwhm=0.4).shear(g1=0.05, g2=-0.03), 5e-4),
    "sharp": (galsim.Moffat(beta=3.0, fwhm=0.3).shear(g1=0.05, g2=-0.03), 5e-4),
    "kolmogorov": (galsim.Kolmogorov(fwhm=0.55).shear(g2=0.05), 2e-3),
    "two components": (
        0.8 * galsim.Moffat(beta=3.5, fwhm=0.4) + 0.2 * galsim.Moffat(beta=2.5, fwhm=0.8),
        1.5e-3,
    ),
    "telescope": (
        galsim.Convolve(galsim.Kolmogorov(fwhm=0.38), galsim.Airy(lam=770, diam=8.2, obscuration=0.2)).shear(
            g1=0.04
        ),
        5e-3,
    ),
}


def draw(profile: galsim.GSObject, factor: int) -> np.ndarray:
    """The PSF with its native pixel, sampled on a finer grid."""
    seen = galsim.Convolve(profile, galsim.Pixel(SCALE))
    size = factor * (SIZE - 1) + 1
    stamp = seen.drawImage(nx=size, ny=size, scale=SCALE / factor, method="no_pixel").array.astype(float)
    return stamp / stamp.sum()


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("name", PROFILES)
def test_against_drawn_psf(name: str, factor: int) -> None:
    profile, bound = PROFILES[name]
    stamp, truth = torch.from_numpy(draw(profile, 1)), draw(profile, factor)
    refined = refine_psf(stamp, factor).numpy()
    error = np.abs(refined - truth).max() / truth.max()
    assert error < bound
    plain = resample_psf(stamp, torch.eye(2, dtype=torch.float64) / factor, len(truth)).numpy()
    assert error < np.abs(plain - truth).max() / truth.max()


def test_samples_are_kept() -> None:
    rng = np.random.default_rng(1)
    stamp = draw(PROFILES["moffat"][0], 1) + 1e-4 * rng.normal(size=(SIZE, SIZE))
    refined = refine_psf(torch.from_numpy(stamp), 3).numpy()
    again = refined[::3, ::3] / refined[::3, ::3].sum()
    np.testing.assert_allclose(again, stamp / stamp.sum(), atol=1e-12)
    assert refined.sum() == pytest.approx(1.0) and refined.shape == (91, 91)


def test_factor_one_normalises() -> None:
    stamp = torch.from_numpy(3.0 * draw(PROFILES["sharp"][0], 1)).float()
    torch.testing.assert_close(refine_psf(stamp, 1), stamp.double() / stamp.double().sum())


@pytest.mark.parametrize(
    ("stamp", "factor", "match"),
    [
        (torch.ones(4, 4), 2, "odd side"),
        (torch.ones(5, 7), 2, "odd side"),
        (torch.ones(5, 5), 0, "factor"),
        (-torch.ones(5, 5), 2, "positive"),
    ],
)
def test_bad_stamps(stamp: torch.Tensor, factor: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        refine_psf(stamp, factor)
