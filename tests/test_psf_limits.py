# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exposures are chosen by width and ellipticity of their PSFs."""

from __future__ import annotations

import galsim
import numpy as np
import pytest

from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import PsfShape, UnusableInputsError
from lsst.latent_coadds.tests import MockVisits, make_mock_patch
from lsst.pipe.base import Struct


@pytest.mark.parametrize("ellipticity", [0.0, 0.1, 0.3])
def test_shape_of_a_gaussian(ellipticity: float) -> None:
    profile = galsim.Gaussian(fwhm=4.0).shear(e=ellipticity, beta=30 * galsim.degrees)
    shape = PsfShape.from_kernel(profile.drawImage(nx=41, ny=41, scale=1.0, method="no_pixel").array)
    assert shape.fwhm == pytest.approx(4.0, rel=1e-3)
    assert shape.ellipticity == pytest.approx(ellipticity, abs=1e-3)


def test_shape_agrees_with_an_independent_measurement() -> None:
    image = galsim.Moffat(beta=3.0, fwhm=4.5).shear(g1=0.05, g2=0.08).drawImage(nx=45, ny=45, scale=1.0)
    moments = galsim.hsm.FindAdaptiveMom(image)
    shape = PsfShape.from_kernel(image.array)
    assert shape.fwhm == pytest.approx(2.35482 * moments.moments_sigma, rel=1e-3)
    assert shape.ellipticity == pytest.approx(moments.observed_shape.e, rel=5e-3)


def test_kernel_without_light_has_no_shape() -> None:
    assert np.isnan(PsfShape.from_kernel(np.zeros((21, 21))).fwhm)


def _run(**settings: object) -> Struct:
    config = BuildLatentCoaddConfig()
    config.restorer.name = "direct"
    config.device = "cpu"
    # What is left out by choice fails nothing.
    config.bad_inputs = "fail"
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    task = BuildLatentCoaddTask(config=config)
    return task.run(exposures=MockVisits().readers(), patch=make_mock_patch(), band="i")


def test_wide_exposures_are_left_out() -> None:
    # FWHMs are 0.70, 0.76, 0.82, 0.88 and 0.94 arcsec.
    result = _run(max_psf_fwhm=0.79)
    assert sorted(set(result.latent_coadd.provenance.inputs["visit"])) == [0, 1]
    reasons = list(result.latent_coadd_metrics["rejected_inputs"].values())
    assert len(reasons) == 3
    assert all("max_psf_fwhm is 0.79" in reason for reason in reasons)


def test_round_exposures_stay() -> None:
    result = _run(max_psf_ellipticity=0.02)
    assert len(set(result.latent_coadd.provenance.inputs["visit"])) == 5


def test_limits_that_nothing_meets_say_so() -> None:
    with pytest.raises(UnusableInputsError, match="max_psf_fwhm is 0.1"):
        _run(max_psf_fwhm=0.1)
