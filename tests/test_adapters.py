# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import astropy.units as u
import galsim
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from lsst.images import Box, DetectorFrame, Image, SkyProjection
from lsst.images.psfs import GaussianPointSpreadFunction
from lsst.latent_coadds.adapters import (
    BadInputError,
    PatchExposure,
    PatchGrid,
    PatchNotFoundError,
    PixelMapping,
    UnknownMaskPlaneError,
    choose_cell_shape,
    select_mask_planes,
)
from lsst.latent_coadds.repository import SkyMapGeometry, make_visit_image
from lsst.latent_coadds.tests._mock import (
    MockVisits,
    make_mock_geometry,
    make_mock_patch,
    make_mock_visit_image,
    read_mock,
)

PLANES = {"bad": ("SATURATED", "NO_DATA"), "saturated": ("SATURATED",), "margin": 8}


def _distorted_wcs(size: int) -> WCS:
    """Make a SIP WCS with a distortion stronger than a camera's."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.wcs.crpix = [size / 2, size / 2]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.cd = (0.2 / 3600) * np.array([[-0.9, 0.3], [0.3, 0.9]])
    a = np.zeros((4, 4))
    a[2, 0], a[0, 2], a[3, 0], a[1, 2] = 2e-6, 1e-6, 2e-9, 1e-9
    return_wcs = WCS(wcs.to_header(), naxis=2)
    from astropy.wcs import Sip

    return_wcs.sip = Sip(a, a.T.copy(), np.zeros((4, 4)), np.zeros((4, 4)), wcs.wcs.crpix)
    return_wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    return return_wcs


def test_mapping_is_accurate_for_a_distorted_wcs() -> None:
    size = 2000
    patch = make_mock_patch(1000)
    box = Box.from_shape((size, size))
    frame = DetectorFrame(instrument="Mock", visit=1, detector=0, bbox=box)
    image = make_visit_image(
        np.zeros((size, size), dtype=np.float32),
        np.ones((size, size), dtype=np.float32),
        {},
        SkyProjection.from_fits_wcs(_distorted_wcs(size), frame),
        GaussianPointSpreadFunction(2.0, box, 21),
        instrument="Mock",
        visit=1,
        detector=0,
        physical_filter="i-mock",
        band="i",
        exposure_time=30.0,
    )
    mapping = PixelMapping(patch, read_mock(image, 1))
    region = Box.factory[100:500, 200:700]
    x, y = mapping.grid(region)
    exact_x, exact_y = mapping(*np.meshgrid(np.arange(200, 700), np.arange(100, 500)))
    assert np.hypot(x - exact_x, y - exact_y).max() < 0.005
    back_x, back_y = mapping.inverse(exact_x[::50, ::50], exact_y[::50, ::50])
    assert np.abs(back_x - np.arange(200, 700)[None, ::50]).max() < 1e-3
    assert np.abs(back_y - np.arange(100, 500)[::50, None]).max() < 1e-3
    # Astropy evaluates the same SIP polynomial in its own code.
    sky = make_mock_geometry(1000).tracts[0].wcs.pixel_to_world(450.0, 300.0)
    astropy_x, astropy_y = _distorted_wcs(size).world_to_pixel(sky)
    assert exact_x[200, 250] == pytest.approx(float(astropy_x), abs=2e-3)
    assert exact_y[200, 250] == pytest.approx(float(astropy_y), abs=2e-3)


@pytest.mark.parametrize("rotation", [0.0, 37.0, 90.0, 181.0])
def test_registered_star_lands_at_its_position(rotation: float) -> None:
    patch = make_mock_patch()
    star = (2.3, -1.7, 10000.0)
    image = make_mock_visit_image(3, [star], rotation=rotation, sigma=1e-3)
    exposure = PatchExposure(read_mock(image, 3), patch, **PLANES)
    registered = exposure.register(patch.outer_bbox)
    assert registered is not None
    pixels = registered.image.numpy().astype(float)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    # North up, east left, around the centre of the tract at 47.5.
    assert (pixels * x).sum() / pixels.sum() == pytest.approx(47.5 - 2.3 / 0.2, abs=0.01)
    assert (pixels * y).sum() / pixels.sum() == pytest.approx(47.5 - 1.7 / 0.2, abs=0.01)
    assert pixels.sum() == pytest.approx(10000.0, rel=1e-3)


def test_cutouts_are_read_when_not_cached() -> None:
    patch = make_mock_patch()
    exposure = PatchExposure(read_mock(MockVisits().make(1), 1), patch, **PLANES)
    box = Box.factory[20:50, 30:80]
    cached = exposure.register(box)
    exposure.drop_cache()
    fresh = exposure.register(box)
    assert cached is not None
    assert fresh is not None
    assert (cached.image == fresh.image).all()
    assert (cached.good == fresh.good).all()


def test_exposure_beside_the_patch_contributes_nothing() -> None:
    patch = make_mock_patch()
    image = make_mock_visit_image(1, [], offset=(200.0, 0.0))
    exposure = PatchExposure(read_mock(image, 1), patch, **PLANES)
    assert exposure.bbox is None
    assert exposure.register(patch.outer_bbox) is None


def test_mask_planes_are_selected() -> None:
    saturated = np.zeros((128, 128), dtype=bool)
    saturated[5, 6] = True
    mask = make_mock_visit_image(1, [], mask={"SATURATED": saturated}).mask
    assert (select_mask_planes(mask, ["SATURATED", "STREAK"], "x") == saturated).all()
    with pytest.raises(UnknownMaskPlaneError, match="calexp@1: there is no mask plane 'SATURATDE'"):
        select_mask_planes(mask, ["SATURATDE"], "calexp@1")


def test_units_are_converted() -> None:
    image = make_mock_visit_image(1, [(0.0, 0.0, 1.0)], unit=u.uJy, sigma=0.001)
    exposure = PatchExposure(read_mock(image, 1), make_mock_patch(), **PLANES)
    registered = exposure.register(Box.factory[0:96, 0:96])
    assert registered is not None
    assert float(registered.image.sum()) == pytest.approx(1000.0, rel=0.5)
    assert float(registered.variance[10, 10]) == pytest.approx(1.0, rel=1e-4)
    counts = make_mock_visit_image(1, [], unit=u.electron)
    with pytest.raises(BadInputError, match=r"visit: 1.*electron.*calibrate"):
        PatchExposure(read_mock(counts, 1), make_mock_patch(), **PLANES)


def test_unknown_patches_are_named() -> None:
    sky_map = make_mock_geometry().to_dict()
    with pytest.raises(PatchNotFoundError, match="no tract 7"):
        PatchGrid.from_sky_map(sky_map, skymap="mock", tract=7, patch=0)
    with pytest.raises(PatchNotFoundError, match="no patch 99"):
        PatchGrid.from_sky_map(sky_map, skymap="mock", tract=0, patch=99)


def test_cell_shape_divides_the_patch() -> None:
    assert tuple(choose_cell_shape((4200, 4200), 150)) == (150, 150)
    assert tuple(choose_cell_shape((360, 380), 150)) == (120, 95)
    assert tuple(choose_cell_shape((257, 300), 150)) == (257, 150)


@pytest.mark.parametrize("parity", [1, -1])
def test_psf_turns_and_scales_with_the_image(parity: int) -> None:
    """A lopsided star, on coarser, turned, mirrored pixels, is its own PSF."""
    geometry = SkyMapGeometry.from_grid(
        "m", SkyCoord(150, 2, unit="deg"), n_x=1, n_y=1, inner_size=140, border=0, pixel_scale=0.168
    )
    patch = PatchGrid.from_sky_map(geometry.to_dict(), skymap="m", tract=0, patch=0)
    cos, sin = np.cos(2.1), np.sin(2.1)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [150.0, 2.0], [101.3, 95.2]
    wcs.wcs.cd = 0.2 / 3600 * np.array([[-cos * parity, sin], [sin * parity, cos]])
    profile = galsim.Gaussian(sigma=1.7).shear(g1=0.3, g2=0.2)
    profile = galsim.Add([profile, 0.25 * galsim.Gaussian(sigma=1.5).shift(3.0, 1.5)])
    center = patch.outer_bbox.x.center + 3.3, patch.outer_bbox.y.center - 7.6
    x, y = wcs.world_to_pixel(patch.sky_projection.pixel_to_sky(x=center[0], y=center[1]))
    size = 200
    star = galsim.ImageD(size, size, xmin=0, ymin=0, scale=1.0)
    profile.withFlux(1e5).drawImage(star, center=galsim.PositionD(float(x), float(y)), method="no_pixel")
    box = Box.from_shape((size, size))
    image = make_visit_image(
        star.array.astype(np.float32),
        np.ones((size, size), dtype=np.float32),
        {},
        wcs,
        _FixedPsf(profile.drawImage(nx=41, ny=41, scale=1.0, method="no_pixel", dtype=float).array, box),
        instrument="Mock",
        visit=1,
        detector=0,
        physical_filter="i-mock",
        band="i",
        exposure_time=30.0,
    )
    exposure = PatchExposure(read_mock(image, 1), patch, **PLANES)
    registered = exposure.register(patch.outer_bbox)
    assert registered is not None
    pixels = registered.image.numpy().astype(float)
    assert pixels.sum() == pytest.approx(1e5, rel=1e-4)
    kernel = galsim.Image(exposure.psf_kernel(*center), scale=1.0)
    start = patch.outer_bbox.start
    model = galsim.ImageD(*pixels.shape[::-1], xmin=start.x, ymin=start.y, scale=1.0)
    stamp = galsim.InterpolatedImage(kernel, x_interpolant="lanczos7", normalization="flux").withFlux(1e5)
    stamp.drawImage(model, center=galsim.PositionD(*center), method="no_pixel")
    assert np.abs(pixels - model.array).max() < 0.01 * pixels.max()


class _FixedPsf(GaussianPointSpreadFunction):
    """A PSF that is one given kernel everywhere."""

    def __init__(self, kernel: np.ndarray, bounds: Box) -> None:
        super().__init__(2.0, bounds, kernel.shape[0])
        self.kernel = kernel

    def compute_kernel_image(self, *, x: float, y: float) -> Image:
        return Image(self.kernel.copy(), bbox=self.kernel_bbox)


class _HalfPsf(_FixedPsf):
    """A PSF that fails on one side of the detector."""

    def compute_kernel_image(self, *, x: float, y: float) -> Image:
        if x < 40:
            raise RuntimeError("no stars here")
        return super().compute_kernel_image(x=x, y=y)


def test_psf_that_fails_anywhere_is_found_at_once() -> None:
    image = make_mock_visit_image(1, [])
    image._psf = _HalfPsf(np.ones((5, 5)), image.bbox)
    with pytest.raises(BadInputError, match=r"visit: 1.*PSF cannot be evaluated.*no stars here"):
        PatchExposure(read_mock(image, 1), make_mock_patch(), **PLANES)
