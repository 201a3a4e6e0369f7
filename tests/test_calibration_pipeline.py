# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exposures that the task calibrates, and the dataset that says how."""

from __future__ import annotations

from pathlib import Path

import galsim
import numpy as np
import pytest
from astropy.table import Table

from lsst.daf.butler import Butler
from lsst.images import VisitImage
from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import read_calibration_table
from lsst.latent_coadds.tests import MockRepository
from lsst.latent_coadds.tests._mock import MockVisits, make_mock_patch, read_mock
from lsst.pex.config import FieldValidationError
from lsst.pipe.base import Struct

STARS = (
    *((0.0, 0.0, 5000.0), (5.1, -4.3, 3000.0), (-5.2, 4.6, 2000.0), (-4.8, -5.0, 4000.0)),
    *((5.3, 4.4, 2500.0), (0.3, 5.7, 1500.0), (-0.4, -6.1, 3500.0)),
)
N_VISITS = 3


def make_visit(visit: int) -> VisitImage:
    """Return a visit whose PSF is said to be 10 % wider than it is, and the second 4 % too bright."""
    visits = MockVisits(stars=STARS)
    width = 3.5 + 0.3 * visit
    image = visits.make(visit, fwhm=1.1 * width)
    image.image.array[:] = visits.make(visit, fwhm=width).image.array * (1.04 if visit == 1 else 1.0)
    return image


def run(known: Table | None = None, **settings: object) -> Struct:
    config = BuildLatentCoaddConfig()
    config.device = "cpu"
    config.restorer["imagemm"].n_realizations = 0
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    readers = [read_mock(make_visit(visit), visit) for visit in range(N_VISITS)]
    task = BuildLatentCoaddTask(config=config)
    return task.run(exposures=readers, patch=make_mock_patch(), band="i", known_calibration=known)


def width(stamp: np.ndarray) -> float:
    """Return the FWHM of a Gaussian."""
    image = galsim.ImageD(np.ascontiguousarray(stamp, dtype=float))
    return 2.35482 * float(galsim.hsm.FindAdaptiveMom(image).moments_sigma)


@pytest.mark.parametrize("geometry", ["registered", "native"])
def test_task_learns_and_reads_back(geometry: str) -> None:
    result = run(exposure_calibration="learn", geometry=geometry)
    table = result.latent_coadd_calibration
    assert set(table["reference"]) == {"stars"}
    assert list(table["visit"]) == [0, 1, 2]
    for row in table:
        truth = 3.5 + 0.3 * row["visit"]
        # Interpolation to the patch widens a registered PSF a little.
        assert width(row["pipeline_psf"]) / truth == pytest.approx(1.1, abs=0.02)
        assert width(row["psf"]) / truth == pytest.approx(1.0, abs=0.02)
        assert row["psf"].sum() == pytest.approx(1.0)
        assert row["psf"].min() >= 0.0
    scales = np.array(table["flux_scale"])
    assert scales[1] / scales[0] == pytest.approx(1.04, abs=0.01)
    again = run(table, geometry=geometry)
    np.testing.assert_array_equal(again.latent_coadd.image.array, result.latent_coadd.image.array)
    assert not hasattr(again, "latent_coadd_calibration")


def test_dataset_in_a_repository(tmp_path: Path) -> None:
    repository = MockRepository(tmp_path / "repo", size=96, border=8)
    repository.add(make_visit(visit) for visit in range(N_VISITS))
    done = repository.run(
        config={
            "exposure_calibration": "learn",
            "device": "cpu",
            "geometry": "registered",
            "restorer.active.n_realizations": 0,
            "calibration.n_rounds": 1,
        }
    )
    assert done.returncode == 0, done.stdout
    butler = Butler.from_config(tmp_path / "repo")
    (ref,) = repository.find("latent_coadd_calibration").values()
    table = butler.get(ref)
    calibration = read_calibration_table(table)
    assert calibration.reference == "stars"
    np.testing.assert_allclose(calibration.parameters[:, 0].numpy(), -np.log(1.1), atol=0.03)
    assert calibration.names == tuple(table["name"])


def test_table_that_is_something_else() -> None:
    with pytest.raises(ValueError, match="no column name"):
        read_calibration_table(Table({"visit": [1]}))


def test_plain_coadds_are_not_calibrated() -> None:
    config = BuildLatentCoaddConfig()
    config.restorer.name = "direct"
    config.exposure_calibration = "learn"
    with pytest.raises(FieldValidationError, match="PSFs of the pipeline"):
        config.validate()
