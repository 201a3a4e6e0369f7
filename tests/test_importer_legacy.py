# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Detector images of afw go into a repository, and through the pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lsst.daf.butler import Butler
from lsst.images import VisitImage
from lsst.images.cells import CellCoadd
from lsst.latent_coadds.cli import main
from lsst.latent_coadds.importer import (
    BadExposureError,
    ImportSettings,
    import_exposures,
    read_any_exposure,
    specs_from_files,
)
from lsst.latent_coadds.qa import aperture_flux
from lsst.latent_coadds.tests import AfwFile
from lsst.latent_coadds.tests._plain_scene import PlainScene
from lsst.pipe.base import Pipeline
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

SCENE = PlainScene()
FWHM = (3.6, 4.4)
CALIBRATION = (0.25, 0.4)
"""nJy per count of each visit, in whose counts the same sky differs."""


def make_file(visit: int, *, psf: bool = True) -> AfwFile:
    """A calexp of the scene, whose counts are nJy over the calibration."""
    image, _ = SCENE.draw(fwhm=FWHM[visit % 2], seed=visit)
    scale = CALIBRATION[visit % 2]
    mask = {name: np.zeros(image.shape, dtype=bool) for name in ("BAD", "CR", "DETECTED", "INTRP")}
    mask["CR"][5, 7] = True
    mask["DETECTED"][20:40, 20:40] = True
    image[5, 7] += 1e5
    header = {"EXPTIME": 30.0, "DATE-AVG": f"2026-03-01T05:0{visit}:37", "TIMESYS": "TAI", "IDNUM": visit}
    header["HIERARCH LSST BUTLER DATAID DETECTOR"] = 49
    variance = np.full(image.shape, SCENE.variance / scale**2)
    file = AfwFile(image / scale, variance, mask, header=header, wcs=SCENE.wcs())
    file.add_wcs(SCENE.wcs())
    file.add_filter("r", "HSC-R")
    file.add_photo_calib(scale)
    if psf:
        stamp = SCENE.psf(FWHM[visit % 2]).drawImage(nx=41, ny=41, scale=1.0, dtype=float).array
        row = {"kernel": file.add_kernel(stamp / stamp.sum()), "averagePosition_x": 0.0}
        file.add("KernelPsf", [{**row, "averagePosition_y": 0.0}], component="PSF")
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("calexps")
    return [make_file(visit).write(root / f"CALEXP-{visit:07d}-049.fits") for visit in (2, 3, 4)]


@pytest.fixture(scope="module")
def repository(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported as they are, without any calibration against each other."""
    repo = tmp_path_factory.mktemp("imported") / "repo"
    off = {"flux_scale": "off", "registration": "off", "background": "off"}
    settings = ImportSettings(instrument="HSC", patch_size=200, border=20, **off)
    result = import_exposures(repo, specs_from_files(files), settings)
    assert not result.failures
    assert set(result.report["psf_model"]) == {"KernelPsf"}
    assert all(result.report["calibrated"])
    return repo


def read_back(repo: Path, visit: int) -> VisitImage:
    butler = Butler.from_config(repo, collections="HSC/calexps")
    return butler.get("calexp", instrument="HSC", visit=visit, detector=49)


def test_exposure_keeps_what_it_brought(repository: Path) -> None:
    exposure = read_back(repository, 3)
    expected, _ = SCENE.draw(fwhm=FWHM[1], seed=3)
    clean = ~exposure.mask.get("COSMIC_RAY")
    np.testing.assert_allclose(exposure.image.array[clean], expected[clean], rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(exposure.variance.array, SCENE.variance, rtol=1e-5)
    assert np.argwhere(~clean).tolist() == [[5, 7]]
    assert exposure.mask.get("DETECTED").sum() == 400
    assert (exposure.band, exposure.physical_filter, str(exposure.unit)) == ("r", "HSC-R", "nJy")
    kernel = exposure.psf.compute_kernel_image(x=60.0, y=70.0).array
    truth = SCENE.psf(FWHM[1]).drawImage(nx=41, ny=41, scale=1.0, dtype=float).array
    np.testing.assert_allclose(kernel, truth / truth.sum(), atol=1e-6)
    sky = exposure.sky_projection.pixel_to_sky(x=12.0, y=140.0)
    x, y = SCENE.wcs().world_to_pixel(sky)
    np.testing.assert_allclose([x, y], [12.0, 140.0], atol=1e-4)


def test_pipeline_runs_on_them(repository: Path) -> None:
    pipeline = Pipeline("latent coadd")
    pipeline.addTask("lsst.latent_coadds.BuildLatentCoaddTask", "buildLatentCoadd")
    pipeline.addConfigOverride("buildLatentCoadd", "restorer.name", "direct")
    executor = SimplePipelineExecutor.from_pipeline(
        pipeline,
        butler=SimplePipelineExecutor.prep_butler(
            str(repository), inputs=["HSC/calexps", "skymaps"], output="u/test"
        ),
        where="skymap='imported' AND tract=0 AND patch=0 AND band='r'",
    )
    executor.run(register_dataset_types=True)
    butler = Butler.from_config(repository, collections="u/test")
    coadd = butler.get("latent_coadd", skymap="imported", tract=0, patch=0, band="r")
    assert isinstance(coadd, CellCoadd)
    assert len(coadd.provenance.inputs) == 3
    for star in (0, 3, 6):
        sky = SCENE.wcs().pixel_to_world(*SCENE.positions[star])
        pixel = coadd.sky_projection.sky_to_pixel(sky)
        x, y = float(pixel.x) - coadd.bbox.x.start, float(pixel.y) - coadd.bbox.y.start
        kernel = coadd.psf.compute_kernel_image(x=float(pixel.x), y=float(pixel.y)).array
        flux = aperture_flux(coadd.image.array, x, y, 7.0, psf=kernel)
        assert flux == pytest.approx(SCENE.fluxes[star], rel=0.01)


def test_command_line_recognizes_them(files: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["import", str(tmp_path / "repo"), *map(str, files), "--instrument", "HSC"]
    )
    assert done.exit_code == 0, done.output
    assert "visit 2" in done.output
    assert "not calibrated" not in done.output


def test_psf_can_be_fitted_all_the_same(tmp_path: Path) -> None:
    path = make_file(2, psf=False).write(tmp_path / "no_psf.fits")
    result = import_exposures(tmp_path / "repo", specs_from_files([path]), ImportSettings(instrument="HSC"))
    assert list(result.report["psf_model"]) != ["KernelPsf"]
    (spec,) = specs_from_files([make_file(2).write(tmp_path / "psf.fits")], {"psf": "stars"})
    assert read_any_exposure(spec).psf is None


def test_what_the_user_says_wins(files: list[Path]) -> None:
    (spec,) = specs_from_files(
        files[:1], {"visit": 9, "detector": 3, "band": "i", "filter": "other", "date": "2020-01-01T00:00:00"}
    )
    identity = read_any_exposure(spec).identity
    assert (identity.visit, identity.detector, identity.band) == (9, 3, "i")
    assert (identity.physical_filter, identity.begin.isot) == ("other", "2020-01-01T00:00:00.000")


def test_other_exposures_carry_on(files: list[Path], tmp_path: Path) -> None:
    broken = make_file(7, psf=False)
    broken.add("CoaddPsf", [{"coaddwcs": 1}], component="PSF")
    bad = broken.write(tmp_path / "bad.fits")
    result = import_exposures(
        tmp_path / "repo", specs_from_files([*files[:2], bad]), ImportSettings(instrument="HSC")
    )
    assert list(result.failures) == ["bad"]
    assert "CoaddPsf" in result.failures["bad"] and "psf=stars" in result.failures["bad"]
    assert list(result.report["status"]) == ["imported", "imported", "failed"]


def test_file_without_date_is_named(tmp_path: Path) -> None:
    image = np.ones((20, 20))
    path = AfwFile(image, image, {}, wcs=SCENE.wcs(), header={"FILTER": "r"}).write(tmp_path / "undated.fits")
    (spec,) = specs_from_files([path])
    with pytest.raises(BadExposureError, match=r"undated.*DATE-OBS"):
        read_any_exposure(spec)
