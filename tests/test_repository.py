# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Repositories from nothing: records, regions, exposures that come back."""

from __future__ import annotations

from pathlib import Path

import astropy.units as u
import galsim
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.time import Time
from astropy.wcs import WCS

from lsst.daf.butler import Butler
from lsst.images import Box
from lsst.latent_coadds.repository import (
    MoffatField,
    SimulatedInstrument,
    SkyMapGeometry,
    VisitRecord,
    box_region,
    make_or_open,
    make_visit_image,
    put_calexp,
    read_sky_map,
    register_instrument,
    register_sky_map,
    register_visit,
)
from lsst.pipe.base import Instrument
from lsst.resources import ResourcePath
from lsst.sphgeom import LonLat, UnitVector3d

CENTER = SkyCoord(150.1, 2.2, unit="deg")
BBOX = Box.factory[0:90, 0:70]
BEGIN = Time("2026-03-01T03:00:00", scale="tai")


@pytest.fixture
def geometry() -> SkyMapGeometry:
    return SkyMapGeometry.from_grid("test", CENTER, n_x=3, n_y=2, inner_size=100, border=12, pixel_scale=0.2)


@pytest.fixture
def butler(tmp_path: Path, geometry: SkyMapGeometry) -> Butler:
    result = make_or_open(tmp_path / "repo")
    register_instrument(result, "LatentSim", [0, 1], {"Sim-I": "i"}, instrument_class=SimulatedInstrument)
    register_sky_map(result, geometry)
    return result


def detector_wcs(geometry: SkyMapGeometry, x: float, y: float, angle: float = 0.0) -> WCS:
    """TAN projection that puts the detector's pixel (0, 0) at a tract pixel."""
    wcs = geometry.tracts[0].wcs.deepcopy()
    corner = wcs.pixel_to_world(x, y)
    wcs.wcs.crval = [corner.ra.deg, corner.dec.deg]
    wcs.wcs.crpix = [1.0, 1.0]
    c, s = np.cos(angle), np.sin(angle)
    wcs.wcs.cd = wcs.wcs.cd @ np.array([[c, -s], [s, c]])
    wcs.wcs.set()
    return wcs


def make_exposure(wcs: WCS, *, visit: int = 7, detector: int = 1, seed: int = 0) -> tuple:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=BBOX.shape).astype(np.float32)
    variance = rng.uniform(1, 2, size=BBOX.shape).astype(np.float32)
    mask = {"SATURATED": rng.random(BBOX.shape) > 0.9, "COSMIC_RAY": rng.random(BBOX.shape) > 0.9}
    field = MoffatField.random(rng, BBOX, fwhm=4.0, beta=3.0)
    visit_image = make_visit_image(
        image,
        variance,
        mask,
        wcs,
        field.to_psf(BBOX, stamp_size=31),
        instrument="LatentSim",
        visit=visit,
        detector=detector,
        physical_filter="Sim-I",
        band="i",
        exposure_time=200.0,
        begin=BEGIN,
    )
    return visit_image, image, variance, mask, field


def add_visit(butler: Butler, visit: int, regions: dict, **kwargs: object) -> None:
    settings = {"physical_filter": "Sim-I", "begin": BEGIN, "exposure_time": 200.0} | kwargs
    register_visit(butler, VisitRecord(instrument="LatentSim", visit=visit, regions=regions, **settings))


def test_sky_map_boxes(geometry: SkyMapGeometry) -> None:
    tract = geometry.tracts[0]
    count = np.zeros(tract.bbox.shape, dtype=int)
    overlap = np.zeros(tract.bbox.shape, dtype=int)
    for patch in tract.patches.values():
        count[patch.inner_bbox.slice_within(tract.bbox)] += 1
        overlap[patch.outer_bbox.slice_within(tract.bbox)] += 1
        assert patch.outer_bbox.contains(patch.inner_bbox)
    assert np.all(count == 1)
    assert overlap.max() == 4
    assert tract.patches[4].index == (1, 1)
    x, y = tract.wcs.world_to_pixel(CENTER)
    np.testing.assert_allclose([x, y], [149.5, 99.5], atol=1e-7)


def test_sky_map_round_trip(butler: Butler, geometry: SkyMapGeometry) -> None:
    assert read_sky_map(butler, "test") == geometry
    record = butler.query_dimension_records("patch", skymap="test", tract=0, patch=4)[0]
    assert (record.cell_x, record.cell_y) == (1, 1)


def test_sky_map_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="positive"):
        SkyMapGeometry.from_grid("test", CENTER, n_x=0, n_y=1, inner_size=10, border=1, pixel_scale=0.2)
    with pytest.raises(ValueError, match="version"):
        SkyMapGeometry.from_dict({"version": 99})


def test_another_sky_map_of_the_same_name(butler: Butler) -> None:
    other = SkyMapGeometry.from_grid("test", CENTER, n_x=1, n_y=1, inner_size=10, border=1, pixel_scale=0.2)
    with pytest.raises(ValueError, match="another geometry"):
        register_sky_map(butler, other)


def test_enclosing_sky_map_holds_its_positions() -> None:
    sky = CENTER.spherical_offsets_by(np.array([0, 130, -40]) * u.arcsec, np.array([0, -90, 15]) * u.arcsec)
    geometry = SkyMapGeometry.enclosing("all", sky, inner_size=100, border=10, pixel_scale=0.2, margin=5)
    x, y = geometry.tracts[0].wcs.world_to_pixel(sky)
    bbox = geometry.tracts[0].bbox
    assert min(x.min(), y.min()) >= 4.5
    assert x.max() < bbox.x.stop - 4.5
    assert y.max() < bbox.y.stop - 4.5


def test_box_region_is_the_box(geometry: SkyMapGeometry) -> None:
    tract = geometry.tracts[0]
    region = tract.region(1)
    box = tract.patches[1].outer_bbox
    x, y = np.meshgrid([box.x.start - 1, box.x.start, box.x.stop - 1, box.x.stop], [box.y.start, box.y.stop])
    for sky, xi, yi in zip(tract.wcs.pixel_to_world(x, y).ravel(), x.ravel(), y.ravel(), strict=True):
        vector = UnitVector3d(LonLat.fromDegrees(sky.ra.deg, sky.dec.deg))
        assert region.contains(vector) == box.contains(x=xi, y=yi)


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_spatial_join_finds_the_detectors_of_each_patch(
    butler: Butler, geometry: SkyMapGeometry, angle: float
) -> None:
    tract = geometry.tracts[0]
    expected = set()
    for visit, (x, y) in enumerate([(-60, 20), (10, 10), (95, 50), (140, 130), (250, 150), (120, 215)]):
        wcs = detector_wcs(geometry, x, y, angle)
        add_visit(butler, visit, {visit % 2: box_region(wcs, BBOX)})
        # Every half pixel of the detector, tested against every patch.
        yy, xx = np.mgrid[-0.5 : BBOX.y.size - 0.5 : 181j, -0.5 : BBOX.x.size - 0.5 : 141j]
        tx, ty = tract.wcs.world_to_pixel(wcs.pixel_to_world(xx, yy))
        for patch_id, patch in tract.patches.items():
            box = patch.outer_bbox
            inside = (tx > box.x.start - 0.5) & (tx < box.x.stop - 0.5)
            inside &= (ty > box.y.start - 0.5) & (ty < box.y.stop - 0.5)
            if inside.any():
                expected.add((patch_id, visit, visit % 2))
    found = {
        (d["patch"], d["visit"], d["detector"])
        for d in butler.query_data_ids(
            ["patch", "visit", "detector"], instrument="LatentSim", skymap="test", tract=0
        )
    }
    assert found == expected
    assert len({visit for _, visit, _ in expected}) < 6


def test_exposure_round_trip(butler: Butler, geometry: SkyMapGeometry) -> None:
    wcs = detector_wcs(geometry, 10, 10, 0.3)
    visit_image, image, variance, mask, field = make_exposure(wcs)
    add_visit(butler, 7, {1: box_region(wcs, BBOX)})
    ref = put_calexp(butler, visit_image, "calexps")
    result = butler.get("calexp", instrument="LatentSim", visit=7, detector=1, collections="calexps")
    np.testing.assert_array_equal(result.image.array, image)
    np.testing.assert_array_equal(result.variance.array, variance)
    assert result.unit == u.nJy
    for name, plane in mask.items():
        np.testing.assert_array_equal(result.mask.get(name), plane)
    assert result.mask.get("BAD").sum() == 0
    assert result.detector.frame.bbox == result.detector.bbox == BBOX
    assert (result.band, result.physical_filter) == ("i", "Sim-I")
    sky = result.sky_projection.pixel_to_sky(x=12.0, y=33.0)
    assert sky.separation(wcs.pixel_to_world(12.0, 33.0)).to_value(u.mas) < 1e-3
    cutout = butler.get(ref, parameters={"bbox": Box.factory[10:20, 30:50]})
    np.testing.assert_array_equal(cutout.image.array, image[10:20, 30:50])
    for x, y in [(0.0, 0.0), (12.3, 80.1)]:
        # The coefficients come back exactly, but in another byte order, which
        # changes the order of a sum.
        kernel = visit_image.psf.compute_kernel_image(x=x, y=y).array
        np.testing.assert_allclose(result.psf.compute_kernel_image(x=x, y=y).array, kernel, atol=1e-15)
        np.testing.assert_allclose(cutout.psf.compute_kernel_image(x=x, y=y).array, kernel, atol=1e-15)
        drawn = field.profile(x, y).drawImage(nx=31, ny=31, scale=1.0, dtype=float).array
        np.testing.assert_allclose(kernel, drawn / drawn.sum(), atol=1e-12)


def test_psf_varies_over_the_detector() -> None:
    field = MoffatField.random(np.random.default_rng(3), BBOX, fwhm=4.0, beta=3.0, g=0.05, variation=0.05)
    a, b = (field.profile(x, y).drawImage(scale=0.5) for x, y in [(0, 0), (69, 89)])
    shapes = [galsim.hsm.FindAdaptiveMom(i) for i in (a, b)]
    assert abs(shapes[0].moments_sigma / shapes[1].moments_sigma - 1) > 0.005
    assert shapes[0].observed_shape != shapes[1].observed_shape


def test_even_stamp() -> None:
    with pytest.raises(ValueError, match="odd"):
        MoffatField.constant(fwhm=3.0).to_psf(BBOX, stamp_size=30)


def test_adding_twice_loses_nothing(butler: Butler, geometry: SkyMapGeometry, tmp_path: Path) -> None:
    wcs = [detector_wcs(geometry, x, 10) for x in (0, 200)]
    for detector in (0, 1):
        again = make_or_open(tmp_path / "repo")
        register_instrument(again, "LatentSim", [detector, 5], {"Sim-I": "i", "Sim-R": "r"})
        register_sky_map(again, geometry)
        add_visit(again, 7, {detector: box_region(wcs[detector], BBOX)})
        visit_image, *_ = make_exposure(wcs[detector], detector=detector)
        first = put_calexp(again, visit_image, "calexps")
        assert put_calexp(again, visit_image, "calexps") == first
    assert len(butler.query_datasets("calexp", "calexps")) == 2
    assert len(butler.query_dimension_records("detector", instrument="LatentSim")) == 3
    instrument = Instrument.fromName("LatentSim", butler.registry)
    assert isinstance(instrument, SimulatedInstrument)
    (visit,) = butler.query_dimension_records("visit", instrument="LatentSim", visit=7)
    for w in wcs:
        sky = w.pixel_to_world(35, 45)
        assert visit.region.contains(UnitVector3d(LonLat.fromDegrees(sky.ra.deg, sky.dec.deg)))


def test_replacing_and_refusing(butler: Butler, geometry: SkyMapGeometry) -> None:
    wcs = detector_wcs(geometry, 10, 10)
    add_visit(butler, 7, {1: box_region(wcs, BBOX)})
    first, *_ = make_exposure(wcs)
    second, image, *_ = make_exposure(wcs, seed=5)
    put_calexp(butler, first, "calexps")
    with pytest.raises(FileExistsError, match="already has calexp"):
        put_calexp(butler, second, "calexps", if_exists="error")
    ref = put_calexp(butler, second, "calexps", if_exists="replace")
    np.testing.assert_array_equal(butler.get(ref).image.array, image)
    with pytest.raises(ValueError, match="if_exists"):
        put_calexp(butler, second, "calexps", if_exists="perhaps")


def test_conflicts_are_named(butler: Butler, geometry: SkyMapGeometry) -> None:
    register_instrument(butler, "LatentSim", [], {"Sim-R": "r"})
    region = box_region(detector_wcs(geometry, 10, 10), BBOX)
    add_visit(butler, 7, {1: region})
    with pytest.raises(ValueError, match="another visit ID"):
        add_visit(butler, 7, {1: region}, physical_filter="Sim-R")
    with pytest.raises(ValueError, match="another visit ID"):
        add_visit(butler, 7, {1: region}, begin=BEGIN + 1 * u.h)
    with pytest.raises(ValueError, match="no detector regions"):
        add_visit(butler, 8, {})
    with pytest.raises(ValueError, match="has band"):
        register_instrument(butler, "LatentSim", [], {"Sim-R": "i"})
    with pytest.raises(ValueError, match="Detector 1"):
        register_instrument(butler, "LatentSim", {1: "Nut"}, {})


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("text")
    with pytest.raises(FileExistsError, match=r"butler\.yaml"):
        make_or_open(tmp_path)


def test_exposure_arrays_are_checked(geometry: SkyMapGeometry) -> None:
    names = {
        "instrument": "LatentSim",
        "visit": 1,
        "detector": 0,
        "physical_filter": "Sim-I",
        "band": "i",
        "exposure_time": 30.0,
    }
    wcs = detector_wcs(geometry, 0, 0)
    psf = MoffatField.constant(fwhm=3.0).to_psf(BBOX)
    image = np.zeros(BBOX.shape)
    with pytest.raises(ValueError, match="variance of visit 1"):
        make_visit_image(image, np.ones((3, 3)), {}, wcs, psf, **names)
    with pytest.raises(ValueError, match="SATURATED"):
        make_visit_image(image, np.ones(BBOX.shape), {"SAT": image > 0}, wcs, psf, **names)


def test_a_repository_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies while it makes a repository leaves none."""

    def fail(root: ResourcePath) -> None:
        Path(root.join("butler.yaml").ospath).write_text("datastore: {}")
        raise KeyboardInterrupt

    (tmp_path / "repo").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Butler, "makeRepo", fail)
        with pytest.raises(KeyboardInterrupt):
            make_or_open(tmp_path / "repo")
    assert list(tmp_path.rglob("*")) == [tmp_path / "repo"]
    make_or_open(tmp_path / "repo")
    assert [p.name for p in tmp_path.iterdir()] == ["repo"]
    register_instrument(make_or_open(tmp_path / "repo"), "Cam", [0], {})
