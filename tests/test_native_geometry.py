# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exposures on their own pixels and finer output grids, through the task."""

from __future__ import annotations

from fractions import Fraction

import astropy.units as u
import galsim
import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from lsst.images import Box
from lsst.images.cells import CellCoadd
from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import (
    PatchExposure,
    PatchGrid,
    VisitImageReader,
    parse_oversampling,
    stack_tile,
)
from lsst.latent_coadds.repository import MoffatField, SkyMapGeometry
from lsst.latent_coadds.restoration import evaluate_psf_basis, lanczos_resample
from lsst.latent_coadds.tests._mock import MockVisits, make_mock_patch, make_mock_visit_image, read_mock
from lsst.pex.config import FieldValidationError
from lsst.pipe.base import Struct

CENTER = SkyCoord(150.0 * u.deg, 2.0 * u.deg)
STARS = ((0.0, 0.0, 5000.0), (5.1, -4.3, 1000.0))


def _run(
    method: str = "imagemm", *, readers: list[VisitImageReader] | None = None, **settings: object
) -> Struct:
    config = BuildLatentCoaddConfig()
    config.restorer.name = method
    config.device = "cpu"
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    exposures = readers or MockVisits(n_visits=4, stars=STARS).readers()
    return BuildLatentCoaddTask(config=config).run(exposures=exposures, patch=make_mock_patch(), band="i")


def _measure(coadd: CellCoadd, star: tuple[float, float, float], radius: float) -> tuple[float, float]:
    """Return the flux in a disc on the sky, and the offset in arcseconds."""
    sky = CENTER.spherical_offsets_by(star[0] * u.arcsec, star[1] * u.arcsec)
    found = coadd.sky_projection.sky_to_pixel(sky)
    rows, columns = np.mgrid[coadd.bbox.y.start : coadd.bbox.y.stop, coadd.bbox.x.start : coadd.bbox.x.stop]
    inside = np.hypot(columns - float(found.x), rows - float(found.y)) < radius
    image = np.where(inside, coadd.image.array, 0.0).astype(float)
    flux = image.sum()
    position = coadd.sky_projection.pixel_to_sky(
        x=float((image * columns).sum() / flux), y=float((image * rows).sum() / flux)
    )
    return flux, float(position.separation(sky).to_value(u.arcsec))


@pytest.mark.parametrize("method", ["direct", "imagemm"])
@pytest.mark.parametrize(
    ("geometry", "oversampling"), [("native", "1"), ("native", "2"), ("registered", "3/2")]
)
def test_stars_keep_position_and_flux(method: str, geometry: str, oversampling: str, tmp_path) -> None:
    result = _run(method, geometry=geometry, oversampling=oversampling)
    path = tmp_path / "coadd.fits"
    result.latent_coadd.write(str(path))
    coadd = CellCoadd.read(str(path))
    factor = float(Fraction(oversampling))
    size = round(96 * factor)
    assert coadd.bbox == Box.from_shape((size, size))
    assert coadd.grid.bbox == coadd.bbox
    assert coadd.patch.inner_bbox == coadd.bbox
    for star in STARS:
        flux, offset = _measure(coadd, star, 8.0 * factor)
        assert flux == pytest.approx(star[2], rel=0.02)
        assert offset < 0.04
    wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
    assert wcs is not None
    x, y = wcs.world_to_pixel(CENTER)
    assert (float(x), float(y)) == pytest.approx((size / 2 - 0.5,) * 2, abs=1e-3)
    assert result.latent_coadd_n_image.bbox == coadd.bbox
    metrics = result.latent_coadd_metrics
    assert (metrics["geometry"], metrics["oversampling"]) == (geometry, oversampling)
    if method == "imagemm":
        for figures in metrics["visits"].values():
            assert figures["chi2"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("method", "geometry"), [("imagemm", "native"), ("direct", "registered")])
def test_geometry_follows_the_restorer(method: str, geometry: str) -> None:
    readers = MockVisits(n_visits=2, stars=STARS).readers()
    assert _run(method, readers=readers).latent_coadd_metrics["geometry"] == geometry


def test_finer_grid_shows_what_the_patch_grid_cannot() -> None:
    """Two stars at 0.34 arcsec, 1.7 pixels, seen with 0.4 arcsec seeing."""
    stars = ((-0.17, 0.0, 4000.0), (0.17, 0.0, 4000.0))
    angles, offsets = (0.0, 20.0, 70.0, 130.0), ((0.0, 0.0), (0.11, 0.05), (-0.07, 0.13), (0.04, -0.09))
    readers = [
        read_mock(make_mock_visit_image(t, stars, fwhm=2.0, rotation=angle, offset=offset), t)
        for t, (angle, offset) in enumerate(zip(angles, offsets, strict=True))
    ]
    fine = _run(readers=readers, geometry="native", oversampling="2").latent_coadd
    line = fine.image.array[94:98, 85:107].sum(axis=0)
    peaks = [n for n in range(1, len(line) - 1) if line[n] > max(line[n - 1], line[n + 1], 300.0)]
    assert len(peaks) == 2
    assert abs(np.diff(peaks)[0]) in (3, 4)
    assert line[peaks[0] + 1 : peaks[1]].min() < 0.75 * line[peaks].min()
    assert fine.image.array[80:112, 80:112].sum() == pytest.approx(8000.0, rel=0.02)


def test_masks_are_on_the_output_grid() -> None:
    visits = MockVisits(stars=STARS)
    saturated = np.zeros((128, 128), dtype=bool)
    saturated[60:68, 60:68] = True
    rays = np.zeros((128, 128), dtype=bool)
    rays[30:34, 40:44] = True
    images = [
        visits.make(t, mask={"SATURATED": saturated, "COSMIC_RAY": rays}, rotation=0.0, offset=(0, 0))
        for t in range(2)
    ]
    images += [visits.make(t, rotation=0.0, offset=(0.0, 0.0)) for t in range(2, 5)]
    for image in images[:2]:
        image.image.array[saturated | rays] = 1e6
    result = _run("direct", readers=[read_mock(m, t) for t, m in enumerate(images)], geometry="native")
    mask = result.latent_coadd.mask
    # The detector is 128 pixels wide, the patch 96, and both have one centre.
    for plane in ("SATURATED", "REJECTED", "INEXACT_PSF"):
        assert mask.get(plane)[47, 47]
    assert mask.get("COSMIC_RAY")[14:18, 24:28].all()
    assert mask.get("COSMIC_RAY").sum() == 16
    assert mask.get("SATURATED").sum() == 64
    assert result.latent_coadd_n_image.array[47, 47] == 3
    assert result.latent_coadd_n_image.array[5, 5] == 5
    assert np.nanmax(result.latent_coadd.image.array) < 1e4


def test_native_stack_agrees_with_the_registered_one() -> None:
    """Nodes, Jacobian and PSF: registering the native stack gives the same."""
    patch = make_mock_patch().refined(Fraction(2))
    reader = MockVisits(stars=STARS, sigma=1e-3).readers()[3]
    exposure = PatchExposure(reader, patch, bad=("BAD",), saturated=("SATURATED",), margin=8)
    inner = Box.factory[40:150, 30:140]
    native = stack_tile([exposure], inner, 10, native=True)
    registered = stack_tile([exposure], inner, 10)
    assert native is not None
    assert registered is not None
    assert native.stack.frames is not None
    # Half as many pixels, turned, in a frame.
    assert native.stack.image.shape[1] < 1.5 * 130 / 2 + 16
    moved = native.stack.register()
    difference = (moved.image - registered.stack.image)[moved.good & registered.stack.good]
    assert float(difference.abs().max()) < 2e-3 * float(registered.stack.image.max())
    assert np.allclose(native.stack.psf, registered.stack.psf, atol=1e-6)
    assert np.median(native.weight[native.good]) == pytest.approx(4e6, rel=0.05)
    assert np.median(registered.weight[registered.good]) == pytest.approx(4e6, rel=0.05)


def _varying_exposure(variation: float, oversampling: Fraction, rotation: float = 30.0) -> PatchExposure:
    """Return an exposure of a large detector with a Piff PSF that varies."""
    size = 1400
    geometry = SkyMapGeometry.from_grid(
        "mock", CENTER, n_x=1, n_y=1, inner_size=900, border=0, pixel_scale=0.2
    )
    patch = PatchGrid.from_sky_map(geometry.to_dict(), skymap="mock", tract=0, patch=0)
    image = make_mock_visit_image(1, [], size=size, rotation=rotation)
    field = MoffatField.random(
        np.random.default_rng(0), image.bbox, fwhm=3.5, beta=3.0, g=0.02, variation=variation
    )
    image._psf = field.to_psf(image.bbox, stamp_size=41)
    grid = patch.refined(oversampling)
    return PatchExposure(read_mock(image, 1), grid, bad=("BAD",), saturated=("SATURATED",), margin=8)


@pytest.mark.parametrize("oversampling", [Fraction(1), Fraction(2)])
def test_varying_psf_is_kept_to_a_thousandth(oversampling: Fraction) -> None:
    exposure = _varying_exposure(0.1, oversampling)
    size = int(600 * oversampling)
    bbox = Box.factory[50 : 50 + size, 100 : 100 + size]
    covered = exposure.find_box(bbox)
    assert covered is not None
    basis, error, _ = exposure.psf.basis(bbox, covered, degree=2)
    assert len(basis) in (3, 6)
    assert error < 1e-3
    widths = []
    for u_, v_ in ((-1.0, -1.0), (0.3, -0.6), (1.0, 0.5), (-0.2, 1.0)):
        x = bbox.x.start + 0.5 * (u_ + 1) * (size - 1)
        y = bbox.y.start + 0.5 * (v_ + 1) * (size - 1)
        stamp = evaluate_psf_basis(basis, np.array([u_]), np.array([v_]))[0]
        truth = exposure.psf_kernel(x, y, len(stamp))
        assert np.abs(stamp - truth).max() < 1e-3 * truth.max()
        widths.append(truth.max())
    assert max(widths) / min(widths) > 1.02


@pytest.mark.parametrize("variation", [0.03, 0.06])
def test_parts_of_a_tract_share_their_psfs(variation: float) -> None:
    """With the polynomial of the detector, and with that of the patch."""
    exposure = _varying_exposure(variation, Fraction(1))
    places = {"x": 340.0, "y": 260.0}
    stamps, typical, errors = [], [], []
    whole = exposure.reader.bbox
    on_patch = Box.factory[whole.y.min + 400 : whole.y.max - 400, whole.x.min + 400 : whole.x.max - 400]
    for bbox in (Box.factory[50:650, 100:700], Box.factory[201:300, 290:395], Box.factory[255:265, 330:350]):
        covered = exposure.find_box(bbox)
        assert covered is not None
        basis, error, reference = exposure.psf.basis(bbox, covered, degree=2, on_patch=on_patch)
        errors.append(error)
        u, v = (
            np.array([2.0 * (p - i.start) / (i.size - 1) - 1.0])
            for p, i in zip(places.values(), (bbox.x, bbox.y), strict=True)
        )
        stamps.append(evaluate_psf_basis(basis, u, v)[0])
        typical.append(evaluate_psf_basis(basis, *(np.array([r]) for r in reference))[0])
    assert len(set(errors)) == 1
    assert errors[0] < 1e-3
    for kernels in (stamps, typical):
        for kernel in kernels[1:]:
            assert np.abs(kernel - kernels[0]).max() < 1e-9 * kernels[0].max()


def test_a_psf_that_no_polynomial_describes_is_fitted_to_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    exposure = _varying_exposure(0.1, Fraction(1))
    bbox = Box.factory[50:350, 100:400]
    covered = exposure.find_box(bbox)
    assert covered is not None
    monkeypatch.setattr("lsst.latent_coadds.adapters._patch_psf._LARGEST_ERROR", 1e-5)
    basis, error, _ = exposure.psf.basis(bbox, covered, degree=2)
    assert 0.0 < error < 1e-3
    truth = exposure.psf_kernel(249.5, 199.5, basis.shape[-1])
    assert np.abs(evaluate_psf_basis(basis, np.zeros(1), np.zeros(1))[0] - truth).max() < 1e-3 * truth.max()
    assert len(exposure.psf.basis(bbox, Box.factory[10:20, 30:50], degree=2)[0]) == 1
    assert len(exposure.psf.basis(bbox, covered, degree=0)[0]) == 1


def test_piff_is_drawn_through_one_detector_pixel() -> None:
    """On a grid twice as fine the PSF is that of GalSim, pixel included once."""
    size = 400
    image = make_mock_visit_image(1, [], size=size, rotation=0.0)
    field = MoffatField.constant(fwhm=2.0, beta=3.0, g1=0.05, g2=-0.03)
    image._psf = field.to_psf(image.bbox, stamp_size=31)
    patch = make_mock_patch().refined(Fraction(2))
    exposure = PatchExposure(read_mock(image, 1), patch, bad=("BAD",), saturated=("SATURATED",), margin=8)
    kernel = exposure.psf_kernel(90.0, 100.0)
    seen = galsim.Convolve(field.profile(0.0, 0.0), galsim.Pixel(1.0))
    truth = seen.drawImage(nx=61, ny=61, scale=0.5, method="no_pixel", dtype=float).array
    # The mock detector and the patch both have east to the left.
    assert kernel.shape == (61, 61)
    assert np.abs(kernel - truth / truth.sum()).max() < 1e-3 * truth.max()
    # Interpolating an undersampled kernel image is worse.
    import torch

    coarse = torch.from_numpy(exposure.reader.compute_psf_kernel(x=180.0, y=190.0))
    half = torch.arange(-30, 31, dtype=torch.float64) * 0.5 + 15
    y, x = torch.meshgrid(half, half, indexing="ij")
    ones = torch.ones_like(coarse)
    rough = lanczos_resample(coarse, ones, ones.bool(), x, y).image.numpy()
    assert np.abs(rough / rough.sum() - truth / truth.sum()).max() > 1e-3 * truth.max()


def test_refined_patches_share_one_grid() -> None:
    geometry = SkyMapGeometry.from_grid("m", CENTER, n_x=2, n_y=1, inner_size=90, border=6, pixel_scale=0.2)
    left, right = (
        PatchGrid.from_sky_map(geometry.to_dict(), skymap="m", tract=0, patch=p).refined(Fraction(3, 2))
        for p in (0, 1)
    )
    assert left.inner_bbox.x.stop == right.inner_bbox.x.start
    shared = left.outer_bbox.intersection(right.outer_bbox)
    assert shared.x.size == 18
    for corner in ((shared.x.min, shared.y.min), (shared.x.max, shared.y.max)):
        places = [
            g.sky_projection.pixel_to_sky(x=float(corner[0]), y=float(corner[1])) for g in (left, right)
        ]
        assert places[0].separation(places[1]).to_value(u.mas) < 1e-6


def test_oversampling_is_checked() -> None:
    assert parse_oversampling("3/2") == Fraction(3, 2)
    assert parse_oversampling("2.5") == Fraction(5, 2)
    for text, message in (("two", "no fraction"), ("5", "between 1 and 4"), ("1/2", "between 1 and 4")):
        with pytest.raises(ValueError, match=message):
            parse_oversampling(text)
    config = BuildLatentCoaddConfig()
    for value in (2, 1.5, "3/2"):
        config.oversampling = value
        config.validate()
    config.oversampling = "0"
    with pytest.raises(FieldValidationError, match="oversampling"):
        config.validate()
    with pytest.raises(ValueError, match="7/5 does not fit patch 0"):
        _run(oversampling="7/5")
