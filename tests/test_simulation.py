# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scenes are what their settings say, and the same at every call."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import astropy.units as u
import galsim
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import QTable

from lsst.daf.butler import Butler
from lsst.images import Box
from lsst.latent_coadds.qa import aperture_flux, measure_star
from lsst.latent_coadds.simulation import (
    CALEXP_RUN,
    SceneMismatchError,
    SceneSettings,
    add_cosmic_rays,
    draw_sources,
    draw_truth,
    expected_snr,
    make_catalog,
    plan_pointings,
    read_truth,
    saturate,
    simulate,
    simulate_exposure,
)

SMALL = SceneSettings(
    seed=5,
    n_visits=2,
    n_detectors=2,
    detector_size=(90, 130),
    chip_gap=10,
    inner_size=80,
    border=8,
    dither=1.0,
    bright_stars=(16.5,),
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scene")
    simulate(root, SMALL, progress=False)
    return root


def source(settings: SceneSettings, sky: SkyCoord, **values: object) -> QTable:
    """Catalogue of one source."""
    catalog = make_catalog(settings)[:1]
    row = {"ra": sky.ra, "dec": sky.dec, "flux": 1e4 * u.nJy, "is_star": True, "index": 1.0}
    for name, value in (row | values).items():
        catalog[name] = value
    return catalog


def test_repository_holds_every_detector(scene: Path) -> None:
    butler = Butler.from_config(scene / "repo", collections=[CALEXP_RUN, "skymaps"])
    refs = butler.query_datasets("calexp")
    assert {(r.dataId["visit"], r.dataId["detector"]) for r in refs} == {
        (1001, 0),
        (1001, 1),
        (1002, 0),
        (1002, 1),
    }
    exposure = butler.get(refs[0])
    assert exposure.unit == u.nJy
    assert exposure.psf.kernel_bbox.shape == (51, 51)
    patches = butler.query_data_ids(
        ["patch", "visit", "detector"], instrument="LatentSim", skymap="latent_sim"
    )
    assert {d["patch"] for d in patches} == {0, 1}


def test_truth_is_beside_the_repository(scene: Path) -> None:
    for patch, geometry in SMALL.sky_map.tracts[0].patches.items():
        image, catalog = read_truth(scene / "truth", patch)
        assert image.shape == geometry.outer_bbox.shape
        np.testing.assert_allclose(
            image, draw_truth(SMALL, make_catalog(SMALL), geometry.outer_bbox), rtol=1e-6, atol=1e-6
        )
    np.testing.assert_array_equal(catalog["flux"], make_catalog(SMALL)["flux"])
    assert np.all(catalog["snr"] >= 0)


def test_completing_a_scene_changes_nothing_else(scene: Path) -> None:
    butler = Butler.from_config(scene / "repo", collections=CALEXP_RUN)
    refs = sorted(butler.query_datasets("calexp"))
    kept, lost = butler.getURI(refs[0]).ospath, butler.getURI(refs[1]).ospath
    before = butler.get(refs[1])
    stamp = Path(kept).stat().st_mtime_ns
    Path(butler.getURI(refs[2]).ospath).unlink()
    # What is left when a run dies between the file and its record.
    writeable = Butler.from_config(scene / "repo", writeable=True)
    writeable.pruneDatasets([refs[1]], disassociate=True, unstore=True, purge=True)
    Path(lost).write_text("half a file")
    (scene / "truth" / "patch_1.fits").unlink()
    simulate(scene, SMALL, progress=False)
    assert Path(kept).stat().st_mtime_ns == stamp
    assert (scene / "truth" / "patch_1.fits").exists()
    after = butler.get("calexp", refs[1].dataId)
    np.testing.assert_array_equal(after.image.array, before.image.array)
    np.testing.assert_array_equal(after.mask.array, before.mask.array)
    assert len(butler.query_datasets("calexp")) == 4


def test_another_scene_is_refused(scene: Path) -> None:
    with pytest.raises(SceneMismatchError, match="other settings"):
        simulate(scene, dataclasses.replace(SMALL, seed=6), progress=False)


def test_a_scene_needs_visits() -> None:
    with pytest.raises(ValueError, match="n_visits=0"):
        SceneSettings(n_visits=0)


def test_seed_decides_everything() -> None:
    catalog, pointing = make_catalog(SMALL), plan_pointings(SMALL)[1]
    first, second = (simulate_exposure(SMALL, catalog, pointing, 0).visit_image for _ in range(2))
    np.testing.assert_array_equal(first.image.array, second.image.array)
    other = dataclasses.replace(SMALL, seed=6)
    third = simulate_exposure(other, make_catalog(other), plan_pointings(other)[1], 0).visit_image
    assert not np.array_equal(first.image.array, third.image.array)


def test_pixels_follow_the_variance_plane() -> None:
    settings = dataclasses.replace(SMALL, n_cosmic_rays=0, n_bad_columns=0)
    catalog = make_catalog(settings)
    exposure = simulate_exposure(settings, catalog, plan_pointings(settings)[0], 1)
    image = exposure.visit_image
    good = ~image.mask.get("SATURATED")
    pull = (image.image.array - exposure.expected) / np.sqrt(image.variance.array)
    np.testing.assert_allclose(pull[good].std(), 1, rtol=0.02)
    assert abs(pull[good].mean()) < 0.04
    sky = np.sqrt(image.variance.array.min()) / settings.counts_to_njy
    assert settings.sky_noise[0] <= sky <= settings.sky_noise[1]


@pytest.mark.parametrize("visit", [0, 1])
@pytest.mark.parametrize("detector", [0, 1])
def test_a_star_lands_where_the_projection_says(visit: int, detector: int) -> None:
    pointing = plan_pointings(SMALL)[visit]
    sky = pointing.wcs(SMALL, detector).pixel_to_world(44.3, 65.8)
    exposures = [simulate_exposure(SMALL, source(SMALL, sky), pointing, d) for d in (0, 1)]
    expected = exposures[detector].expected
    shape = measure_star(expected, 44.0, 66.0)
    assert shape is not None
    np.testing.assert_allclose([shape.x, shape.y], [44.3, 65.8], atol=0.02)
    np.testing.assert_allclose(shape.fwhm, pointing.fwhm, rtol=0.25)
    np.testing.assert_allclose(expected.sum(), 1e4, rtol=0.02)
    assert exposures[1 - detector].expected.sum() < 100
    kernel = exposures[detector].visit_image.psf.compute_kernel_image(x=44.3, y=65.8).array
    np.testing.assert_allclose(aperture_flux(expected, 44.3, 65.8, 8.0, psf=kernel), 1e4, rtol=0.01)


def test_the_projection_comes_back_with_its_distortion(scene: Path) -> None:
    pointing = plan_pointings(SMALL)[1]
    butler = Butler.from_config(scene / "repo", collections=CALEXP_RUN)
    exposure = butler.get("calexp", instrument="LatentSim", visit=pointing.visit, detector=1)
    x, y = np.array([0.0, 89.0, 40.0]), np.array([0.0, 129.0, 3.0])
    sky = pointing.wcs(SMALL, 1).pixel_to_world(x, y)
    back = exposure.sky_projection.sky_to_pixel(sky)
    np.testing.assert_allclose([back.x, back.y], [x, y], atol=1e-4)
    straight = dataclasses.replace(SMALL, distortion=0.0)
    shift = np.array(pointing.wcs(straight, 1).world_to_pixel(sky)) - [x, y]
    radius = np.hypot(x + 5, y - 65)
    np.testing.assert_allclose(np.hypot(*shift), SMALL.distortion * radius**3, rtol=0.05)


def test_the_attached_psf_is_that_of_the_stars() -> None:
    pointing = plan_pointings(SMALL)[0]
    # At the centre of a pixel, so that the kernel needs no shift.
    sky = pointing.wcs(SMALL, 0).pixel_to_world(45, 60)
    exposure = simulate_exposure(SMALL, source(SMALL, sky), pointing, 0)
    kernel = exposure.visit_image.psf.compute_kernel_image(x=45, y=60).array
    stamp = exposure.expected[60 - 25 : 60 + 26, 45 - 25 : 45 + 26]
    np.testing.assert_allclose(stamp / stamp.sum(), kernel, atol=2e-4 * kernel.max())


def test_truth_has_the_target_psf_and_conserves_flux() -> None:
    box = Box.factory[10:80, 20:100]
    sky = SMALL.sky_map.tracts[0].wcs.pixel_to_world(60.3, 41.8)
    image = draw_truth(SMALL, source(SMALL, sky), box)
    shape = measure_star(image, 40.3, 31.8)
    assert shape is not None
    np.testing.assert_allclose([shape.x, shape.y], [40.3, 31.8], atol=1e-3)
    np.testing.assert_allclose(shape.fwhm, SMALL.target_fwhm, rtol=1e-3)
    np.testing.assert_allclose(image.sum(), 1e4, rtol=1e-3)
    galaxy = source(SMALL, sky, is_star=False, half_light_radius=0.5 * u.arcsec)
    np.testing.assert_allclose(draw_truth(SMALL, galaxy, box).sum(), 1e4, rtol=0.01)


def test_galaxies_keep_their_position_angle() -> None:
    """A galaxy that points east does so in a turned exposure as in the tract."""
    pointing = dataclasses.replace(plan_pointings(SMALL)[0], rotation=50.0)
    wcs = pointing.wcs(SMALL, 0)
    x, y = 45.0, 65.0
    sky = wcs.pixel_to_world(x, y)
    galaxy = source(SMALL, sky, is_star=False, half_light_radius=0.8 * u.arcsec, g1=0.5, g2=0.2)
    image = draw_sources(
        galaxy, wcs, (130, 90), lambda x, y: galsim.Gaussian(fwhm=2), integrate_pixels=False, noise=0.1
    )
    yy, xx = np.indices(image.shape)
    position = wcs.pixel_to_world(xx, yy)
    east, north = (v.to_value(u.arcsec) for v in sky.spherical_offsets_to(position))
    weight = image * (np.hypot(xx - x, yy - y) < 25)
    qee, qnn, qen = (
        np.sum(weight * a * b) / weight.sum() for a, b in [(east,) * 2, (north,) * 2, (east, north)]
    )
    angle = 0.5 * np.arctan2(2 * qen, qee - qnn)
    np.testing.assert_allclose(angle, 0.5 * np.arctan2(0.2, 0.5), atol=0.02)


def test_saturated_pixels_bleed_and_are_masked() -> None:
    image = np.zeros((60, 40))
    image[30, 20] = 1e5
    mask = saturate(image, 9000.0)
    assert image.max() == 9000.0
    assert mask[30, 20]
    assert np.all(mask[image >= 9000.0])
    column = np.nonzero(image[:, 20] >= 9000.0)[0]
    assert 5 < column.size < 30
    assert not np.any(image[:, [18, 22]])


def test_cosmic_rays_masked_and_unmasked() -> None:
    image = np.zeros((200, 200))
    found, missed = add_cosmic_rays(
        np.random.default_rng(2), image, expected=60, noise=10.0, unmasked_fraction=0.3
    )
    assert found.any()
    assert missed.any()
    assert not np.any(found & missed)
    assert np.all(image[found | missed] > 0)
    assert np.count_nonzero(image) == np.count_nonzero(found | missed)


def test_expected_snr_scales_with_flux_and_visits() -> None:
    catalog = make_catalog(SMALL)
    catalog = catalog[np.argsort(catalog["flux"])][:3]
    faint = expected_snr(SMALL, catalog, plan_pointings(SMALL))
    catalog["flux"] *= 2
    np.testing.assert_allclose(expected_snr(SMALL, catalog, plan_pointings(SMALL)), 2 * faint, rtol=0.1)
    assert np.all(expected_snr(SMALL, catalog, plan_pointings(SMALL)[:1]) <= 2 * faint)


def test_visits_take_the_bands_in_turn(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, n_visits=3, n_detectors=1, bands=("i", "r"))
    butler = simulate(tmp_path, settings, progress=False)
    refs = butler.query_datasets("calexp", CALEXP_RUN, with_dimension_records=True)
    assert {ref.dataId["visit"]: ref.dataId["band"] for ref in refs} == {1001: "i", 1002: "r", 1003: "i"}
    exposure = butler.get("calexp", instrument="LatentSim", visit=1002, detector=0, collections=CALEXP_RUN)
    assert (exposure.band, exposure.physical_filter) == ("r", "Sim-R")
    # The sky is the same: only the band has changed.
    plain = dataclasses.replace(settings, bands=("i",))
    (first, second), catalog = plan_pointings(plain)[:2], make_catalog(settings)
    assert dataclasses.replace(second, band="r") == plan_pointings(settings)[1]
    np.testing.assert_array_equal(
        simulate_exposure(plain, catalog, second, 0).visit_image.image.array, exposure.image.array
    )
    # Only visits of the first band count for what its coadd can reach.
    _, truth = read_truth(tmp_path / "truth", 0)
    third = plan_pointings(settings)[2]
    np.testing.assert_allclose(truth["snr"], expected_snr(settings, catalog, [first, third]))


@pytest.mark.parametrize("bands", [(), ("i", "i"), ("i", "")])
def test_bands_that_make_no_sense_are_refused(bands: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="needs bands"):
        dataclasses.replace(SMALL, bands=bands)
