# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Injected sources, against sources that GalSim drew independently."""

from __future__ import annotations

from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable, Table
from click.testing import CliRunner

from lsst.images import Box
from lsst.latent_coadds.adapters import PatchGrid, VisitImageReader
from lsst.latent_coadds.cli import main
from lsst.latent_coadds.evaluation import (
    Detected,
    EvaluationSettings,
    Field,
    FieldError,
    FieldSpec,
    ImageResult,
    PatchResult,
    SourcePlan,
    choose_sites,
    estimate_gain,
    evaluate,
    evaluation_figure,
    find_depths,
    format_evaluation,
    inject,
    make_flux_table,
    make_purity_table,
    make_sources,
    measure_injected,
)
from lsst.latent_coadds.simulation import SceneSettings, plan_pointings, simulate_exposure
from lsst.latent_coadds.tests import MockRepository, MockVisits, make_mock_patch
from lsst.latent_coadds.tests._mock import read_mock

SETTINGS = SceneSettings(
    n_visits=1,
    n_detectors=1,
    n_x=1,
    inner_size=150,
    detector_size=(190, 190),
    n_cosmic_rays=0.0,
    n_bad_columns=0,
    distortion=2e-8,
)


# Where and how bright


def test_sites_keep_their_distance() -> None:
    allowed = np.zeros((150, 200), dtype=bool)
    allowed[20:-20, 30:-30] = True
    sites = choose_sites(allowed, 20.0, np.random.default_rng(1))
    assert len(sites) > 20
    distance = np.hypot(*(sites[:, None] - sites[None, :]).transpose(2, 0, 1))
    assert distance[~np.eye(len(sites), dtype=bool)].min() >= 20.0
    x, y = np.rint(sites).astype(int).T
    assert allowed[y, x].all()
    # There is no room for another one.
    free = np.ones_like(allowed)
    yy, xx = np.mgrid[:150, :200]
    for sx, sy in sites:
        free &= np.hypot(xx - sx, yy - sy) > 20.0 + 3
    assert not (free & allowed).any()
    again = choose_sites(allowed, 20.0, np.random.default_rng(1))
    np.testing.assert_array_equal(sites, again)
    assert choose_sites(np.zeros_like(allowed), 20.0, np.random.default_rng(1)).shape == (0, 2)


def test_sources_fill_the_range_of_magnitudes() -> None:
    plan = SourcePlan(20.0, 25.0, galaxy_fraction=0.5)
    sources = make_sources(np.zeros((200, 2)), plan, np.random.default_rng(2))
    for stars in (True, False):
        counts, _ = np.histogram(sources["magnitude"][sources["is_star"] == stars], np.linspace(20, 25, 6))
        assert counts.min() >= 18 and counts.max() <= 22
    np.testing.assert_allclose(sources["flux"], 10 ** (0.4 * (31.4 - sources["magnitude"])))
    radii = sources["half_light_radius"]
    assert np.all(radii[sources["is_star"]] == 0)
    assert radii[~sources["is_star"]].min() >= 0.2 and radii.max() <= 0.5
    with pytest.raises(ValueError, match="brighter"):
        SourcePlan(25.0, 20.0)


# Injection


def make_catalog(x: np.ndarray, y: np.ndarray, **columns: object) -> tuple[Table, QTable]:
    """Return the same sources for the injection and for the simulation."""
    n = len(x)
    values = {
        "is_star": np.ones(n, dtype=bool),
        "flux": np.full(n, 3e4),
        "half_light_radius": np.full(n, 0.4),
    }
    values |= {
        "index": np.ones(n),
        "g1": np.zeros(n),
        "g2": np.zeros(n),
        "magnitude": np.full(n, 20.0),
    } | columns
    ours = Table({"x": x, "y": y, **values})
    sky = SETTINGS.sky_map.tracts[0].wcs.pixel_to_world(x, y)
    units = {"flux": u.nJy, "half_light_radius": u.arcsec}
    columns = {name: np.asarray(v) * units.get(name, 1) for name, v in values.items()}
    return ours, QTable({"ra": sky.ra.to(u.deg), "dec": sky.dec.to(u.deg), **columns})


def get_patch() -> PatchGrid:
    return PatchGrid.from_sky_map(SETTINGS.sky_map.to_dict(), skymap=SETTINGS.skymap, tract=0, patch=0)


def read(visit_image: object) -> VisitImageReader:
    return read_mock(visit_image, 1001)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_star", [True, False])
def test_injected_sources_are_those_of_the_simulation(is_star: bool) -> None:
    """Through distortion, a PSF that varies, and the pixels' response."""
    x, y = np.array([40.3, 100.0, 70.6]), np.array([50.0, 90.4, 120.2])
    ours, theirs = make_catalog(x, y, is_star=np.full(3, is_star))
    pointing = plan_pointings(SETTINGS)[0]
    empty = simulate_exposure(SETTINGS, theirs[:0], pointing, 0)
    full = simulate_exposure(SETTINGS, theirs, pointing, 0)
    injected = inject(read(empty.visit_image), ours, get_patch(), pixel_scale=SETTINGS.pixel_scale, seed=1)
    box = empty.visit_image.bbox
    added = injected.reader.read(box, (), ()).image - read(empty.visit_image).read(box, (), ()).image
    truth = full.expected - empty.expected
    # What is beyond the stamps of the PSF is missing, and sums to one in them.
    np.testing.assert_allclose(added.sum(), truth.sum(), rtol=0.01)
    assert np.abs(added - truth).max() < 0.02 * truth.max()
    np.testing.assert_allclose(added.sum(), 9e4, rtol=2e-3)


def test_reads_do_not_depend_on_how_they_are_cut() -> None:
    ours, theirs = make_catalog(np.array([40.3, 100.0]), np.array([50.0, 90.4]))
    image = simulate_exposure(SETTINGS, theirs, plan_pointings(SETTINGS)[0], 0).visit_image
    original = read(image)
    before = original.read(image.bbox, (), ()).image.copy()
    for noise_only in (False, True):
        reader = inject(
            original, ours, get_patch(), pixel_scale=SETTINGS.pixel_scale, seed=3, noise_only=noise_only
        ).reader
        whole = reader.read(image.bbox, (), ())
        part = Box.factory[30:120, 25:150]
        cut = reader.read(part, (), ())
        slices = part.slice_within(image.bbox)
        np.testing.assert_array_equal(cut.image, whole.image[slices.y, slices.x])
        np.testing.assert_array_equal(cut.variance, whole.variance[slices.y, slices.x])
        assert reader.name == original.name and reader.bbox == original.bbox
    np.testing.assert_array_equal(original.read(image.bbox, (), ()).image, before)


def test_sources_bring_their_photon_noise() -> None:
    # Bright sources from which the gain can be told.
    x, y = np.array([40.3, 100.0]), np.array([50.0, 90.4])
    ours, theirs = make_catalog(x, y, flux=np.full(2, 3e5))
    image = simulate_exposure(SETTINGS, theirs, plan_pointings(SETTINGS)[0], 0).visit_image
    pixels = read(image).read(image.bbox, (), ())
    gain = estimate_gain(pixels.image, pixels.variance, pixels.good)
    np.testing.assert_allclose(gain, SETTINGS.gain, rtol=0.03)
    added = []
    for seed in range(8):
        reader = inject(read(image), ours, get_patch(), pixel_scale=SETTINGS.pixel_scale, seed=seed).reader
        found = reader.read(image.bbox, (), ())
        added.append(found.image - pixels.image)
        extra = found.variance - pixels.variance
    peak = extra > 0.05 * extra.max()
    ratio = np.var(added, axis=0, ddof=1)[peak] / extra[peak]
    np.testing.assert_allclose(np.mean(ratio), 1.0, atol=0.15)
    flat = np.ones_like(pixels.variance)
    assert np.isinf(estimate_gain(pixels.image, flat, pixels.good))


def test_noise_copies_hold_noise_and_the_sources() -> None:
    ours, theirs = make_catalog(np.array([40.3]), np.array([50.0]))
    image = simulate_exposure(SETTINGS, theirs, plan_pointings(SETTINGS)[0], 0).visit_image
    injected = inject(
        read(image), ours[:0], get_patch(), pixel_scale=SETTINGS.pixel_scale, seed=1, noise_only=True
    )
    pixels = injected.reader.read(image.bbox, (), ())
    scaled = pixels.image / np.sqrt(pixels.variance)
    np.testing.assert_allclose([np.mean(scaled), np.std(scaled)], [0, 1], atol=0.02)


def test_information_is_that_of_a_matched_filter() -> None:
    sigma, fwhm = 1.3, 4.0
    image = MockVisits(n_visits=1, stars=(), sigma=sigma).make(0, fwhm=fwhm, rotation=0.0, offset=(0.0, 0.0))
    ours = make_catalog(np.array([48.2]), np.array([47.7]))[0]
    information = inject(read_mock(image, 0), ours, make_mock_patch(), pixel_scale=0.2, seed=1).information
    width = fwhm / 2.35482
    np.testing.assert_allclose(information, 1 / (4 * np.pi * width**2 * sigma**2), rtol=1e-2)


# Measurement and tables


class Sky:
    """A coadd with injected sources and white noise."""

    def __init__(self, sources: QTable, sigma: float) -> None:
        from lsst.latent_coadds.simulation import draw_truth

        self.image = draw_truth(SETTINGS, sources, Box.factory[0:150, 0:150])
        self.image = self.image + np.random.default_rng(4).normal(0, sigma, self.image.shape)
        self.variance = np.full(self.image.shape, sigma**2)
        self.good = np.ones(self.image.shape, dtype=bool)
        self.mask: dict[str, np.ndarray] = {}
        self.noise = np.zeros((0, *self.image.shape))
        self.pixel_scale = SETTINGS.pixel_scale

    def kernel(self, x: float, y: float) -> np.ndarray:
        yy, xx = np.mgrid[-10:11, -10:11]
        kernel = np.exp(-4 * np.log(2) * (xx**2 + yy**2) / SETTINGS.target_fwhm**2)
        return kernel / kernel.sum()


@pytest.mark.parametrize("is_star", [True, False])
def test_measured_fluxes_and_intervals(is_star: bool) -> None:
    gx, gy = np.meshgrid(np.arange(20.0, 140.0, 22.0), np.arange(20.0, 140.0, 22.0))
    offset = np.random.default_rng(5).uniform(-0.5, 0.5, (2, gx.size))
    x, y = gx.ravel() + offset[0], gy.ravel() + offset[1]
    ours, theirs = make_catalog(
        x, y, is_star=np.full(x.size, is_star), g1=np.full(x.size, 0.0), flux=np.full(x.size, 2e4)
    )
    for sigma in (0.01, 30.0):
        measured = measure_injected(Sky(theirs, sigma), ours, x, y, radius=7.0)
        ratio = measured["flux"] / 2e4
        np.testing.assert_allclose(np.mean(ratio), 1.0, atol=0.01)
        if sigma > 1:
            held = (measured["low_68"] < 2e4) & (2e4 < measured["high_68"])
            assert 0.45 < held.mean() < 0.9
            wide = (measured["low_95"] < 2e4) & (2e4 < measured["high_95"])
            assert wide.mean() > 0.85
    near_edge = ours[:1].copy()
    assert np.isnan(measure_injected(Sky(theirs, 1.0), near_edge, [2.0], [2.0], radius=7.0)["flux"][0])


def make_results(*, bias: float = 0.1, n: int = 600) -> list[PatchResult]:
    """Make results of sources with known errors, and known detections."""
    rng = np.random.default_rng(6)
    results = []
    for noise_only in (False, True):
        images = []
        for name, depth, noise in (("plain", 24.0, 50.0), ("latent", 24.5, 40.0)):
            sources = make_sources(np.zeros((n, 2)), SourcePlan(21.0, 26.0), np.random.default_rng(7))
            flux = np.asarray(sources["flux"])
            measured = flux * (1 + (bias if name == "latent" else 0.0)) + rng.normal(0, noise, n)
            sources["measured_flux"] = measured
            for level, width in ((68, 0.9945), (95, 1.96)):
                sources[f"low_{level}"], sources[f"high_{level}"] = (
                    measured - width * noise,
                    measured + width * noise,
                )
            sources["snr"] = np.where(sources["magnitude"] < depth, 10.0, 0.0)
            sources["best_error"] = noise
            # Three of four detections are true; false ones are the weakest.
            detected = Detected(np.full(40, 23.0), np.arange(1, 41) / 2.0, np.arange(40) >= 10)
            images.append(ImageResult(name, sources, detected, depth, 0.7, 2.0))
        results.append(PatchResult("p", noise_only, images))
    return results


def test_tables_say_what_was_put_in() -> None:
    results = make_results()
    table = make_flux_table(results, n_bins=5)
    assert len(table) == 2 * 2 * 5
    bright = table[table["high"] <= 23.0]
    for image, bias in (("plain", 0.0), ("latent", 0.1)):
        rows = bright[bright["image"] == image]
        assert np.all(np.abs(rows["bias"] - bias) < 4 * rows["bias_error"] + 1e-4)
        assert np.all(rows["completeness"] == 1)
    plain = table[table["image"] == "plain"]
    np.testing.assert_allclose(plain["scatter"], plain["best_scatter"], rtol=0.45)
    assert np.abs(plain["coverage_68"] - 0.68).max() < 0.25
    np.testing.assert_allclose(np.average(plain["coverage_68"], weights=plain["n"]), 0.68, atol=0.05)
    np.testing.assert_allclose(np.average(plain["coverage_95"], weights=plain["n"]), 0.95, atol=0.03)
    assert np.all(plain["completeness"][plain["low"] >= 24.0] == 0)
    purity = make_purity_table(results, threshold=3.0, n_bins=5)
    row = purity[(purity["image"] == "plain") & (purity["low"] <= 23.0) & (purity["high"] > 23.0)][0]
    assert row["n"] == 35 and row["purity"] == pytest.approx(30 / 35)
    assert row["false_density"] == pytest.approx(5 / 2.0)
    text = format_evaluation(results)
    assert "latent" in text and "false detection" in text
    figure = evaluation_figure(table, purity)
    figure.draw_without_rendering()
    assert len(figure.axes) == 6


def test_depth_at_the_same_number_of_false_detections() -> None:
    plain, latent = find_depths(make_results(), false_density=1.0)
    # Two square arcminutes: the third strongest false detection is left out.
    assert plain.threshold == pytest.approx(4.0)
    np.testing.assert_allclose([plain.magnitude, latent.magnitude], [24.0, 24.5], atol=0.1)


def test_no_room_is_an_error() -> None:
    results = make_results(n=0)
    with pytest.raises(ValueError, match="smaller spacing"):
        make_flux_table(results)


# A repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    mock = MockRepository(tmp_path_factory.mktemp("evaluate") / "repo", n_patches=1, size=120)
    visits = MockVisits(n_visits=2, stars=((0.0, 0.0, 2000.0),))
    mock.add(visits.make(visit, size=220) for visit in range(2))
    return mock


def list_files(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_command_on_a_repository(repository: MockRepository, tmp_path: Path) -> None:
    before = list_files(repository.root)
    arguments = ["evaluate", str(repository.root), repository.inputs, "-o", str(tmp_path / "out")]
    arguments += ["-d", repository.data_query, "--rounds", "1", "--spacing", "22"]
    arguments += ["-c", "restorer.active.n_iter=10", "-c", "geometry=registered"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert list_files(repository.root) == before
    fluxes = Table.read(tmp_path / "out" / "fluxes.ecsv")
    assert fluxes.meta["collections"] == repository.inputs
    bright = fluxes[(fluxes["low"] < fluxes["low"].min() + 1) & (fluxes["kind"] == "star")]
    assert np.all(bright["completeness"] == 1)
    np.testing.assert_allclose(bright["bias"], 0, atol=0.08)
    assert {"plain", "latent"} == set(fluxes["image"])
    assert len(Table.read(tmp_path / "out" / "purity.ecsv")) > 0
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert "best: the Cramér-Rao bound" in (tmp_path / "out" / "evaluation.txt").read_text(encoding="utf-8")


def test_errors_say_what_is_missing(repository: MockRepository) -> None:
    spec = FieldSpec(str(repository.root), ("Mock/calexps", "skymaps"), "skymap='mock' AND band='r'")
    with pytest.raises(FieldError, match="No patch of"):
        evaluate(spec, EvaluationSettings())
    with pytest.raises(FieldError, match="has no task nothing"):
        Field(FieldSpec(str(repository.root), ("Mock/calexps",), label="nothing"))
    result = CliRunner().invoke(
        main, ["evaluate", str(repository.root), "Mock/calexps", "-o", "x", "-c", "a"]
    )
    assert result.exit_code == 2 and "NAME=VALUE" in result.output
