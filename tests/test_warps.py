# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of visits that lie on the pixels of a patch already, as inputs."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import astropy.units as u
import galsim
import numpy as np
import pytest

from lsst.daf.butler import Butler, DatasetType
from lsst.images import YX, Box, Image, Mask, MaskPlane, MaskSchema, Polygon
from lsst.images.cells import (
    CellCoadd,
    CellGrid,
    CellGridBounds,
    CellIJ,
    CellPointSpreadFunction,
    CoaddProvenance,
    PatchDefinition,
)
from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import (
    BadInputError,
    CellCoaddWarpReader,
    InputProblem,
    PatchExposure,
    PatchGrid,
    mean_variance_ratio,
    stack_tile,
)
from lsst.latent_coadds.restoration import lanczos_resample
from lsst.latent_coadds.tests import MockRepository, make_mock_patch
from lsst.latent_coadds.tests._mock import make_mock_geometry, make_mock_visit_image
from lsst.pex.config import FieldValidationError
from lsst.pipe.base import Struct

STARS = ((47.5, 47.5, 5000.0), (22.0, 26.0, 1000.0))
"""Pixel of the patch, and flux."""

SCHEMA = MaskSchema(
    [
        MaskPlane("NO_DATA", "No detector reaches here."),
        MaskPlane("SATURATED", "Saturated."),
        MaskPlane("COSMIC_RAY", "Cosmic ray."),
    ]
)
DETECTOR_EDGE = 72
"""First column of the gap between the detectors of a warp; 6 pixels wide."""


def make_warp(
    visit: int,
    patch: PatchGrid,
    *,
    border: int = 12,
    shift: tuple[float, float] = (0.0, 0.0),
    gap: bool = True,
) -> CellCoadd:
    """Draw one visit on the pixels of a patch with GalSim.

    The detector on the right of the gap has a wider PSF; cells in the gap
    have none.
    """
    fwhm = 3.5 + 0.3 * visit
    box = patch.outer_bbox.padded(border)
    image = galsim.ImageD(box.x.size, box.y.size, xmin=box.x.start, ymin=box.y.start, scale=1.0)
    for x, y, flux in STARS:
        right = x >= DETECTOR_EDGE
        profile = galsim.Gaussian(fwhm=fwhm + 0.5 * right, flux=flux)
        profile.drawImage(
            image,
            center=galsim.PositionD(x + shift[0], y + shift[1]),
            method="no_pixel",
            add_to_image=True,
        )
    rng = np.random.default_rng([23, visit])
    pixels = (image.array + rng.normal(size=image.array.shape)).astype(np.float32)
    mask = Mask(0, schema=SCHEMA, bbox=box)
    columns = np.arange(box.x.start, box.x.stop)
    missing = np.zeros(pixels.shape, dtype=bool)
    if gap:
        missing[:, (columns >= DETECTOR_EDGE) & (columns < DETECTOR_EDGE + 6)] = True
    mask.set("NO_DATA", missing)
    pixels[missing] = np.nan
    variance = np.ones_like(pixels)
    variance[missing] = np.inf
    grid = CellGrid(bbox=box, cell_shape=YX(y=box.y.size // 4, x=6))
    kernels, absent = [], set()
    for i in range(grid.grid_size.i):
        for j in range(grid.grid_size.j):
            center = grid.bbox_of(CellIJ(i=i, j=j)).x.center
            width = fwhm + 0.5 * (center >= DETECTOR_EDGE)
            kernel = galsim.Gaussian(fwhm=width).drawImage(nx=31, ny=31, scale=1.0, method="no_pixel").array
            if gap and DETECTOR_EDGE <= center < DETECTOR_EDGE + 6:
                absent.add(CellIJ(i=i, j=j))
                kernel = np.full_like(kernel, np.nan)
            kernels.append(kernel)
    array = np.array(kernels, dtype=float).reshape(grid.grid_size.i, grid.grid_size.j, 31, 31)
    return CellCoadd(
        Image(pixels, bbox=box, unit=u.nJy),
        mask=mask,
        variance=Image(variance, bbox=box, unit=u.nJy**2),
        sky_projection=patch.sky_projection,
        band="i",
        psf=CellPointSpreadFunction(array, CellGridBounds(grid=grid, bbox=box, missing=frozenset(absent))),
        patch=PatchDefinition(id=patch.patch, index=patch.index, inner_bbox=patch.inner_bbox, cells=grid),
        provenance=_provenance(visit, box),
    )


def _provenance(visit: int, box: Box) -> CoaddProvenance:
    inputs = CoaddProvenance.make_empty_input_table(2)
    for n, (start, stop) in enumerate(((box.x.start, DETECTOR_EDGE), (DETECTOR_EDGE + 6, box.x.stop))):
        part = Box.factory[box.y.start : box.y.stop, start:stop]
        inputs[n] = ("Mock", visit, 7 + n, "i-mock", 20260101, part.to_polygon())
    contributions = CoaddProvenance.make_empty_contribution_table(2)
    for n in range(2):
        contributions[n] = (0, 0, "Mock", visit, 7 + n, True, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, False)
    return CoaddProvenance(inputs, contributions)


def _data_id(visit: int) -> dict[str, object]:
    return {
        "instrument": "Mock",
        "visit": visit,
        "skymap": "mock",
        "tract": 0,
        "patch": 0,
        "physical_filter": "i-mock",
        "day_obs": 20260101,
    }


def _read(warp: CellCoadd, visit: int = 0, order: int = 5) -> CellCoaddWarpReader:
    return CellCoaddWarpReader(warp, _data_id(visit), order=order)


def _readers(n_visits: int = 4) -> list[CellCoaddWarpReader]:
    patch = make_mock_patch()
    return [_read(make_warp(visit, patch), visit) for visit in range(n_visits)]


def _expose(reader: CellCoaddWarpReader, patch: PatchGrid) -> PatchExposure:
    return PatchExposure(reader, patch, bad=("SATURATED",), saturated=("SATURATED",), margin=8)


def _run(readers: Sequence[CellCoaddWarpReader], method: str = "imagemm", **settings: object) -> Struct:
    config = BuildLatentCoaddConfig()
    config.input_kind, config.input_storage_class, config.device = "warps", "CellCoadd", "cpu"
    config.restorer.name = method
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    return BuildLatentCoaddTask(config=config).run(exposures=readers, patch=make_mock_patch(), band="i")


def _flux(coadd: CellCoadd, x: float, y: float, radius: float, factor: float = 1.0) -> float:
    rows, columns = np.mgrid[coadd.bbox.y.start : coadd.bbox.y.stop, coadd.bbox.x.start : coadd.bbox.x.stop]
    x, y = (factor * (value + 0.5) - 0.5 for value in (x, y))
    inside = np.hypot(columns - x, rows - y) < radius * factor
    return float(np.where(inside, coadd.image.array, 0.0).sum())


@pytest.mark.parametrize(("method", "oversampling"), [("direct", "1"), ("imagemm", "1"), ("imagemm", "2")])
def test_stars_keep_their_flux(method: str, oversampling: str) -> None:
    result = _run(_readers(), method, oversampling=oversampling)
    factor = float(oversampling)
    for x, y, flux in STARS:
        assert _flux(result.latent_coadd, x, y, 10.0, factor) == pytest.approx(flux, rel=0.02)
    metrics = result.latent_coadd_metrics
    assert metrics["geometry"] == ("native" if factor > 1 else "registered")
    assert metrics["rejected_inputs"] == {}
    if method == "imagemm":
        # The noise drawn here is white, as if nothing had been interpolated.
        for figures in metrics["visits"].values():
            assert figures["chi2"] == pytest.approx(1.0, abs=0.06)


def test_pixels_are_taken_as_they_are() -> None:
    patch = make_mock_patch()
    warp = make_warp(0, patch)
    saturated = np.zeros(tuple(warp.bbox.shape), dtype=bool)
    saturated[30:34, 40:44] = True
    warp.mask.set("SATURATED", saturated)
    inner = Box.factory[4:60, 2:90]
    tile = stack_tile([_expose(_read(warp), patch)], inner, 20)
    assert tile is not None
    stack = tile.stack
    assert stack.frames is None
    outer = inner.padded(20)
    # The warp reaches 12 pixels beyond the patch, and the halo further.
    both = outer.intersection(warp.bbox)
    there = both.slice_within(outer)
    here = both.slice_within(warp.bbox)
    good = stack.good[0].numpy()
    expected = ~(warp.mask.get("NO_DATA") | saturated)[here.y, here.x]
    np.testing.assert_array_equal(good[there.y, there.x], expected)
    assert good.sum() == expected.sum()
    image = warp.image.array[here.y, here.x]
    np.testing.assert_array_equal(stack.image[0].numpy()[there.y, there.x][expected], image[expected])
    assert tile.saturated.sum() == 16
    # Nothing covers the gap, and what lies beside it is the edge of a detector.
    columns = np.arange(inner.x.start, inner.x.stop)
    in_gap = (columns >= DETECTOR_EDGE) & (columns < DETECTOR_EDGE + 6)
    assert not tile.covered[0][:, in_gap].any()
    assert tile.sensor_edge[:, np.flatnonzero(in_gap)[0] - 1].all()


def test_variance_is_the_noise_power() -> None:
    """Interpolated white noise has less variance than power; see GalSim-free check below."""
    rng = np.random.default_rng(1)
    for order in (3, 5):
        noise = rng.normal(size=(600, 600))
        y, x = np.mgrid[20:580, 20:580] + rng.uniform(size=(2, 560, 560))
        import torch

        done = lanczos_resample(
            torch.from_numpy(noise),
            torch.ones(600, 600, dtype=torch.float64),
            torch.ones(600, 600, dtype=torch.bool),
            torch.from_numpy(x),
            torch.from_numpy(y),
            order=order,
        )
        assert mean_variance_ratio(order) == pytest.approx(float(done.image.var()), rel=0.02)
    patch = make_mock_patch()
    pixels = _read(make_warp(0, patch), order=3).read(patch.outer_bbox, (), ())
    assert np.median(pixels.variance) == pytest.approx(1.0 / mean_variance_ratio(3))


def test_psf_is_that_of_the_detector_and_the_gap_has_none() -> None:
    patch = make_mock_patch()
    reader = _read(make_warp(0, patch))
    with pytest.raises(BadInputError, match="PSF cannot be evaluated"):
        reader.compute_psf_kernel(x=DETECTOR_EDGE + 3.0, y=40.0)
    x, y = reader.locate_psf(DETECTOR_EDGE + 3.0, 40.0)
    assert abs(x - DETECTOR_EDGE - 3.0) <= 24.0
    assert abs(y - 40.0) <= 24.0
    exposure = _expose(reader, patch)
    left, right = exposure.psf_kernel(20.0, 40.0), exposure.psf_kernel(90.0, 40.0)
    assert left.max() > 1.2 * right.max()
    truth = galsim.Gaussian(fwhm=3.5).drawImage(nx=31, ny=31, scale=1.0, method="no_pixel").array
    assert np.abs(left - truth / truth.sum()).max() < 1e-4 * left.max()


def test_each_detector_is_an_exposure_of_its_own() -> None:
    patch = make_mock_patch()
    whole = _read(make_warp(0, patch))
    left, right = whole.split()
    assert (left.detector, right.detector) == (7, 8)
    assert left.bbox.x.stop <= DETECTOR_EDGE + 1 < right.bbox.x.start
    assert "detector 8" in right.name
    pieces = [_expose(reader, patch) for reader in (left, right)]
    tile = stack_tile(pieces, patch.outer_bbox, 8)
    together = stack_tile([_expose(whole, patch)], patch.outer_bbox, 8)
    assert tile is not None
    assert together is not None
    # The same pixels, none of them twice, and PSFs that do not jump.
    np.testing.assert_array_equal(tile.good.sum(axis=0), together.good[0])
    assert max(tile.psf_error) < 1e-6 < 0.02 < together.psf_error[0]
    assert tile.stack.mean_psf[0].max() > 1.2 * tile.stack.mean_psf[1].max()
    for reader in (left, right):
        x, y = reader.locate_psf(DETECTOR_EDGE + 3.0, 40.0)
        reader.compute_psf_kernel(x=x, y=y)
        assert (x < DETECTOR_EDGE) == (reader is left)


def test_whole_warps_are_taken_apart() -> None:
    readers = _readers(2)
    whole = _run(readers)
    pieces = _run([piece for reader in readers for piece in reader.split()])
    np.testing.assert_array_equal(whole.latent_coadd.image.array, pieces.latent_coadd.image.array)
    assert whole.latent_coadd_metrics["n_inputs"] == 4


@pytest.mark.parametrize("split", [False, True])
def test_provenance_names_the_detectors(split: bool) -> None:
    readers = _readers(2)
    if split:
        readers = [piece for reader in readers for piece in reader.split()]
    coadd = _run(readers, "direct").latent_coadd
    inputs = coadd.provenance.inputs
    assert sorted(zip(inputs["visit"], inputs["detector"], strict=True)) == [(0, 7), (0, 8), (1, 7), (1, 8)]
    assert all(isinstance(polygon, Polygon) for polygon in inputs["polygon"])
    contributions = coadd.provenance.contributions
    assert set(contributions["detector"]) == {7, 8}
    grid = coadd.grid
    for row in contributions:
        box = grid.bbox_of(CellIJ(i=int(row["cell_i"]), j=int(row["cell_j"])))
        reaches = box.x.start < DETECTOR_EDGE if row["detector"] == 7 else box.x.stop > DETECTOR_EDGE + 6
        assert reaches


def test_other_pixels_are_refused() -> None:
    patch = make_mock_patch()
    other = PatchGrid.from_sky_map(
        make_mock_geometry(96, n_x=3, border=8).to_dict(), skymap="mock", tract=0, patch=0
    )
    with pytest.raises(BadInputError, match="px away from those of the patch") as caught:
        _expose(_read(make_warp(0, other)), patch)
    assert caught.value.problem is InputProblem.OTHER_GRID
    assert "direct_warp@{instrument: 'Mock', visit: 0, skymap: 'mock', tract: 0, patch: 0}" in str(
        caught.value
    )
    away = dataclasses.replace(patch, outer_bbox=Box.factory[400:496, 300:396])
    with pytest.raises(BadInputError, match="does not reach the patch"):
        _expose(_read(make_warp(0, patch)), away)
    # On a finer output grid the pixels are those of the sky map still.
    fine = patch.refined(Fraction(2))
    assert _expose(_read(make_warp(0, patch)), fine).bbox is not None
    with pytest.raises(BadInputError, match="px away"):
        _expose(_read(make_warp(0, other)), fine)


def test_options_have_to_fit_warps() -> None:
    config = BuildLatentCoaddConfig()
    config.input_kind = "warps"
    with pytest.raises(FieldValidationError, match="one of CellCoadd, ExposureF"):
        config.validate()
    config.input_storage_class = "ExposureF"
    config.validate()
    config.subtract_sky_correction = True
    with pytest.raises(FieldValidationError, match="calibrated already"):
        config.validate()
    config = BuildLatentCoaddConfig()
    config.input_storage_class = "CellCoadd"
    with pytest.raises(FieldValidationError, match="one of VisitImage, ExposureF"):
        config.validate()


def test_from_a_repository(tmp_path: Path) -> None:
    repository = MockRepository(
        tmp_path / "repo", size=96, border=8, inputs="Mock/warps,Mock/calexps,skymaps"
    )
    # The visits must be known; their calexps are of no use here.
    repository.add(make_mock_visit_image(visit, ()) for visit in range(3))
    butler = Butler.from_config(tmp_path / "repo", writeable=True, run="Mock/warps")
    butler.registry.registerDatasetType(
        DatasetType(
            "direct_warp",
            ("instrument", "skymap", "tract", "patch", "visit"),
            "CellCoadd",
            universe=butler.dimensions,
        )
    )
    patch = make_mock_patch()
    for visit in range(3):
        data_id = {"instrument": "Mock", "skymap": "mock", "tract": 0, "patch": 0, "visit": visit}
        butler.put(make_warp(visit, patch), "direct_warp", data_id)
    options = {
        "connections.warp_name": "direct_warp",
        "input_kind": "warps",
        "input_storage_class": "CellCoadd",
        "device": "cpu",
        "restorer.name": "direct",
    }
    done: subprocess.CompletedProcess[str] = repository.run(config=options)
    assert done.returncode == 0, done.stdout
    coadd = Butler.from_config(tmp_path / "repo").get(repository.find()[0])
    assert sorted(set(coadd.provenance.inputs["visit"])) == [0, 1, 2]
    for x, y, flux in STARS:
        assert _flux(coadd, x, y, 10.0) == pytest.approx(flux, rel=0.03)
