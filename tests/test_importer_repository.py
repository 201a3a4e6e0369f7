# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plain exposures into a repository and out of it again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from click.testing import CliRunner

from lsst.daf.butler import Butler
from lsst.images import XY
from lsst.latent_coadds.cli import main
from lsst.latent_coadds.importer import (
    BadExposureError,
    ImportSettings,
    ManifestError,
    import_exposures,
    specs_from_files,
)
from lsst.latent_coadds.tests._plain_scene import PlainScene

SCENE = PlainScene()
SETTINGS = ImportSettings(instrument="Cam", patch_size=120, border=20)
SHIFT, SCALE = (0.4, -0.3), 0.9
DATES = ("2020-01-02T03:04:05", "2020-01-02T03:14:05", "2020-02-02T03:04:05")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Reference; one that is shifted and dimmed, with cosmic rays; one with every plane."""
    root = tmp_path_factory.mktemp("fits")
    first = SCENE.write(root / "first.fits", date=DATES[0], fwhm=3.6)
    second = SCENE.write(
        root / "second.fits", date=DATES[1], fwhm=4.4, shift=SHIFT, scale=SCALE, seed=2, rays=6
    )
    third = root / "third.fits"
    image, _ = SCENE.draw(seed=3)
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[10:12, 20:22] = 1
    stamp = np.exp(-0.5 * (np.hypot(*np.mgrid[-10:11, -10:11]) / 1.8) ** 2)
    planes = [
        fits.ImageHDU(np.full(image.shape, 150.0), name="VAR"),
        fits.ImageHDU(mask, name="MASK"),
        fits.ImageHDU(stamp, name="PSF"),
    ]
    fits.HDUList([fits.PrimaryHDU(image, SCENE.header(DATES[2])), *planes]).writeto(third)
    return first, second, third


@pytest.fixture(scope="module")
def imported(files, tmp_path_factory):
    repo = tmp_path_factory.mktemp("imported") / "repo"
    specs = specs_from_files(files[:2], {"zero_point": 28.9})
    specs += specs_from_files(
        files[2:], {"zero_point": 28.9, "variance": "VAR", "mask": "MASK", "psf": "PSF"}
    )
    return repo, specs, import_exposures(repo, specs, SETTINGS)


def read_back(repo, name, run="Cam/calexps"):
    butler = Butler.from_config(repo)
    for ref in butler.query_datasets("calexp", run):
        exposure = butler.get(ref)
        if exposure.metadata["import_name"] == name:
            return exposure
    raise LookupError(name)


def test_report(imported):
    repo, _, result = imported
    assert not result.failures
    assert result.n_patches == 4
    assert result.collections == ("Cam/calexps", "skymaps")
    rows = {row["name"]: row for row in Table.read(result.path)}
    assert list(rows) == ["first", "second", "third"]
    assert {row["status"] for row in rows.values()} == {"imported"}
    assert rows["first"]["seeing"] == pytest.approx(0.2 * 3.75, rel=0.05)
    assert rows["second"]["flux_scale"] == pytest.approx(1 / SCALE, rel=0.01)
    assert rows["second"]["dx"] == pytest.approx(SHIFT[0], abs=0.02)
    assert rows["second"]["dy"] == pytest.approx(SHIFT[1], abs=0.02)
    assert rows["second"]["cosmic_ray"] > 0
    assert rows["third"]["variance_from"] == "given"
    assert rows["third"]["psf_model"] == "stamp"
    assert all(row["calibrated"] for row in rows.values())


def test_exposure_reads_back(imported):
    repo, _, _ = imported
    exposure = read_back(repo, "first")
    njy = 10 ** (0.4 * (31.4 - 28.9))
    image, _ = SCENE.draw(fwhm=3.6)
    np.testing.assert_allclose(exposure.image.array, image * njy, atol=0.05 * njy * np.sqrt(SCENE.variance))
    assert np.median(exposure.variance.array) == pytest.approx(SCENE.variance * njy**2, rel=0.05)
    assert str(exposure.unit) == "nJy"
    assert exposure.band == "r"
    kernel = exposure.psf.compute_kernel_image(x=50.0, y=90.0).array
    assert kernel.shape[0] % 2 == 1
    assert kernel.sum() == pytest.approx(1.0)


def test_corrections_are_applied(imported):
    repo, _, _ = imported
    star = SCENE.positions[0]
    sky = SCENE.wcs().pixel_to_world(*star)
    exposure = read_back(repo, "second")
    pixel = exposure.sky_projection.sky_to_pixel(sky)
    assert float(pixel.x) == pytest.approx(star[0] + SHIFT[0], abs=0.02)
    assert float(pixel.y) == pytest.approx(star[1] + SHIFT[1], abs=0.02)
    x, y = round(float(pixel.x)), round(float(pixel.y))
    flux = exposure.image.array[y - 10 : y + 11, x - 10 : x + 11].sum()
    reference = read_back(repo, "first").image.array
    x, y = np.round(star).astype(int)
    assert flux == pytest.approx(reference[y - 10 : y + 11, x - 10 : x + 11].sum(), rel=0.025)
    assert exposure.mask.get("COSMIC_RAY").any()


def test_given_planes_are_kept(imported):
    repo, _, result = imported
    exposure = read_back(repo, "third")
    assert exposure.mask.get("BAD").sum() == 4
    assert not exposure.mask.get("COSMIC_RAY").any()
    # The flux scale acts on the variance as well.
    unit = 10 ** (0.4 * (31.4 - 28.9)) * result.report["flux_scale"][2]
    assert np.median(exposure.variance.array) == pytest.approx(150.0 * unit**2, rel=1e-4)
    assert exposure.psf.compute_kernel_image(x=5.0, y=9.0).array.shape == (21, 21)


def test_again_skips_and_replace_replaces(imported):
    repo, specs, first = imported
    second = import_exposures(repo, specs[:1], SETTINGS)
    assert list(second.report["status"]) == ["present", "imported", "imported"]
    assert second.report["seeing"][0] == first.report["seeing"][0]
    assert second.n_patches == 0
    before = read_back(repo, "second").image.array
    settings = ImportSettings(instrument="Cam", replace=True, cosmic_rays="never")
    third = import_exposures(repo, specs[:2], settings)
    assert list(third.report["status"]) == ["replaced", "replaced", "imported"]
    assert not read_back(repo, "second").mask.get("COSMIC_RAY").any()
    assert read_back(repo, "second").image.array == pytest.approx(before, rel=0.05, abs=300.0)
    assert len(Butler.from_config(repo).query_datasets("calexp", "Cam/calexps")) == 3


def test_report_only_leaves_pixels_and_wcs_alone(files, tmp_path):
    settings = ImportSettings(instrument="Cam", flux_scale="report", registration="report", background="off")
    result = import_exposures(tmp_path / "repo", specs_from_files(files[:2]), settings)
    assert result.report["flux_scale"][1] == pytest.approx(1 / SCALE, rel=0.01)
    assert not result.report["flux_scale_applied"].any()
    assert not result.report["calibrated"].any()
    exposure = read_back(tmp_path / "repo", "second")
    np.testing.assert_array_equal(exposure.image.array, fits.getdata(files[1]))
    sky = exposure.sky_projection.pixel_to_sky(XY(x=30.0, y=40.0))
    assert sky.separation(SCENE.wcs().pixel_to_world(30.0, 40.0)).arcsec < 1e-6


def test_one_bad_exposure_does_not_stop_the_others(files, tmp_path):
    bad = tmp_path / "bad.fits"
    header = SCENE.header("2021-01-01T00:00:00")
    # No star for a PSF, which shows only after headers were read.
    noise = np.random.default_rng(1).normal(0, 10, (SCENE.size, SCENE.size))
    fits.PrimaryHDU(noise, header).writeto(bad)
    broken = tmp_path / "broken.fits"
    broken.write_text("nothing")
    specs = specs_from_files([files[0], bad, broken, files[1]])
    result = import_exposures(tmp_path / "repo", specs, SETTINGS)
    assert set(result.failures) == {"bad", "broken"}
    assert "No clean star" in result.failures["bad"]
    status = {row["name"]: row["status"] for row in result.report}
    assert status == {"first": "imported", "second": "imported", "bad": "failed", "broken": "failed"}
    assert len(Butler.from_config(tmp_path / "repo").query_datasets("calexp", "Cam/calexps")) == 2


def test_nothing_is_written_when_the_headers_contradict(files, tmp_path):
    twin = SCENE.write(tmp_path / "twin.fits", date=DATES[0], seed=9)
    with pytest.raises(BadExposureError, match="first is visit .* as well.*DATE-OBS"):
        import_exposures(tmp_path / "repo", specs_from_files([files[0], twin]), SETTINGS)
    assert not (tmp_path / "repo").exists()
    with pytest.raises(ManifestError, match="'third' is none of the exposures"):
        import_exposures(tmp_path / "repo", specs_from_files(files[:2]), ImportSettings(reference="third"))
    with pytest.raises(ManifestError, match="no exposures"):
        import_exposures(tmp_path / "repo", [], SETTINGS)


def test_a_repository_is_added_to(files, tmp_path):
    repo = tmp_path / "repo"
    import_exposures(repo, specs_from_files(files[:1]), SETTINGS)
    other = ImportSettings(instrument="Other")
    result = import_exposures(repo, specs_from_files(files[1:2]), other)
    assert result.n_patches == 0
    butler = Butler.from_config(repo)
    assert len(butler.query_datasets("calexp", "Cam/calexps")) == 1
    assert len(butler.query_datasets("calexp", "Other/calexps")) == 1
    (skymap,) = butler.query_dimension_records("skymap")
    assert skymap.name == "imported"
    # Each overlaps patches of the one sky map.
    with butler.query() as query:
        joined = query.join_dimensions(["visit", "detector", "patch"])
        rows = list(
            joined.data_ids(["visit", "detector", "patch"]).where(instrument="Other", skymap="imported")
        )
    assert len(rows) == 4
    moved = specs_from_files(files[2:], {"set": {"CRVAL1": 10.0}})
    with pytest.raises(ManifestError, match="No exposure overlaps the sky map 'imported'"):
        import_exposures(repo, moved, ImportSettings(instrument="Third"))


def test_another_time_for_a_visit_is_refused(files, tmp_path):
    repo = tmp_path / "repo"
    import_exposures(repo, specs_from_files(files[:1], {"visit": 7}), SETTINGS)
    specs = specs_from_files(files[:1], {"visit": 7})
    specs += specs_from_files(files[1:2], {"visit": 7, "detector": 1})
    result = import_exposures(repo, specs, SETTINGS)
    assert "another visit ID" in result.failures["second"]
    assert len(Butler.from_config(repo).query_datasets("calexp", "Cam/calexps")) == 1


def test_mixed_calibration_is_refused(files, tmp_path):
    specs = specs_from_files(files[:1], {"zero_point": 28.0}) + specs_from_files(files[1:2])
    settings = ImportSettings(instrument="Cam", flux_scale="report")
    result = import_exposures(tmp_path / "repo", specs, settings)
    assert "zero point" in result.failures["second"]
    result = import_exposures(tmp_path / "repo", specs, SETTINGS)
    assert not result.failures


def test_command_line(files, tmp_path):
    manifest = tmp_path / "m.yaml"
    manifest.write_text(
        "settings: {instrument: Cam, skymap: mine}\n"
        f"exposures: [{{file: {files[0].name}}}, {{file: {files[1].name}, set: {{DATE-OBS: 2022-01-01}}}}]\n"
    )
    repo = tmp_path / "repo"
    arguments = ["import", str(repo), "--manifest", str(manifest), "--base", str(files[0].parent)]
    done = CliRunner().invoke(main, [*arguments, "--zero-point", "28.9"])
    assert done.exit_code == 0, done.output
    assert "second: imported as visit 2022010100000" in done.output
    assert "-i Cam/calexps,skymaps" in done.output
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0
    assert "present already" in again.output
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "file").write_text("mine")
    other = CliRunner().invoke(main, ["import", str(tmp_path / "junk"), str(files[0])])
    assert other.exit_code == 1
    assert "not empty" in other.output
    assert CliRunner().invoke(main, ["import", str(repo)]).exit_code == 2
    wrong = CliRunner().invoke(main, ["import", str(repo), str(files[0]), "--set", "DATE-OBS"])
    assert "KEY=VALUE" in wrong.output


def test_flux_scale_is_not_measured_across_bands(files, tmp_path):
    specs = specs_from_files(files[:1], {"zero_point": 28.9})
    specs += specs_from_files(files[1:2], {"zero_point": 28.9, "filter": "g", "set": {"FILTER": "g"}})
    result = import_exposures(tmp_path / "repo", specs, SETTINGS)
    assert not result.failures
    assert list(result.report["calibration"]) == ["reference", "shift only: other band"]
    assert result.report["flux_scale"][1] == 1.0
    assert not result.report["flux_scale_applied"][1]
    assert result.report["dx"][1] == pytest.approx(SHIFT[0], abs=0.02)
    x, y = np.round(SCENE.positions[0] + SHIFT).astype(int)
    box = np.s_[y - 10 : y + 11, x - 10 : x + 11]
    njy = 10 ** (0.4 * (31.4 - 28.9))
    flux = read_back(tmp_path / "repo", "second").image.array[box].sum()
    assert flux == pytest.approx(fits.getdata(files[1])[box].sum() * njy, rel=0.01)


def test_chance_matches_are_not_applied(files, tmp_path):
    """Stars of another field, some of which lie within the radius of a match."""
    rng = np.random.default_rng(11)
    positions = SCENE.positions + rng.uniform(-6.0, 6.0, SCENE.positions.shape)
    fluxes = rng.permutation(SCENE.fluxes)
    scene = type("Scene", (PlainScene,), {"positions": positions, "fluxes": fluxes})()
    path = scene.write(tmp_path / "other.fits", date=DATES[1], seed=4)
    result = import_exposures(tmp_path / "repo", specs_from_files([files[0], path]), SETTINGS)
    row = result.report[1]
    assert row["status"] == "imported"
    assert row["n_matched"] >= 2
    assert row["calibration"].startswith("not applied: ")
    assert not row["flux_scale_applied"]
    assert not row["shift_applied"]


@pytest.mark.parametrize("keep_gain", [True, False])
def test_padded_exposure(tmp_path, keep_gain):
    image, _ = SCENE.draw(seed=8)
    image[:, :40] = 0.0
    header = SCENE.header()
    if not keep_gain:
        header.remove("GAIN")
    fits.PrimaryHDU(image.astype(np.float32), header).writeto(tmp_path / "pad.fits")
    report = import_exposures(tmp_path / "repo", specs_from_files([tmp_path / "pad.fits"]), SETTINGS).report
    assert report["masked"][0] == pytest.approx(0.25, abs=0.01)
    assert report["noise_scale"][0] == pytest.approx(1.0, abs=0.1)
    assert report["cosmic_ray"][0] < 2e-3


def test_background_of_equal_pixels_is_refused(tmp_path):
    image, _ = SCENE.draw(seed=8)
    image[:, :100] = 0.0
    mask = fits.ImageHDU(np.zeros(image.shape, dtype=np.uint8), name="MASK")
    fits.HDUList([fits.PrimaryHDU(image, SCENE.header()), mask]).writeto(tmp_path / "pad.fits")
    specs = specs_from_files([tmp_path / "pad.fits"], {"mask": "MASK"})
    with pytest.raises(BadExposureError, match="pad: .*[Gg]ive a mask"):
        import_exposures(tmp_path / "repo", specs, SETTINGS)


def test_a_run_keeps_its_reference(files, tmp_path):
    repo = tmp_path / "repo"
    import_exposures(repo, specs_from_files(files[:1]), SETTINGS)
    with pytest.raises(ManifestError, match="calibrated against 'first' .*List its file again"):
        import_exposures(repo, specs_from_files(files[1:2]), SETTINGS)
    both = specs_from_files([files[1], files[0]])
    with pytest.raises(ManifestError, match="calibrated against 'first'"):
        import_exposures(repo, both, dataclasses.replace(SETTINGS, reference="second"))
    for reference in ("", "first"):
        result = import_exposures(
            repo, both, dataclasses.replace(SETTINGS, reference=reference, replace=bool(reference))
        )
        rows = {row["name"]: row for row in result.report}
        assert rows["first"]["calibration"] == "reference"
        assert rows["second"]["calibration"] == "applied"
        assert rows["second"]["flux_scale"] == pytest.approx(1 / SCALE, rel=0.01)
    again = import_exposures(repo, both, SETTINGS)
    assert set(again.report["status"]) == {"present"}
    assert list(again.report["calibration"][again.report["name"] == "second"]) == ["applied"]


def test_outside_of_the_sky_map(files, tmp_path):
    repo = tmp_path / "repo"
    import_exposures(repo, specs_from_files(files[:1]), SETTINGS)
    far = specs_from_files(files[1:2], {"set": {"CRVAL2": 2.5}})
    result = import_exposures(repo, [*specs_from_files(files[:1]), *far], SETTINGS)
    assert "outside of the sky map 'imported'" in result.failures["second"]
    assert {row["name"]: row["status"] for row in result.report} == {"first": "present", "second": "failed"}


@pytest.mark.parametrize(
    "option", ["--patch-size=0", "--pixel-scale=0", "--border=-5", "--mesh=0", "--detector=-1"]
)
def test_command_line_refuses_numbers_out_of_range(files, tmp_path, option):
    done = CliRunner().invoke(main, ["import", str(tmp_path / "repo"), str(files[0]), option])
    assert done.exit_code != 0
    assert isinstance(done.exception, SystemExit)
    assert option.split("=")[0].strip("-") in done.output
    assert not (tmp_path / "repo").exists()
