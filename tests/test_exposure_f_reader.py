# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading detector images of an afw stack; skipped where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lsst.images import Box
from lsst.latent_coadds.adapters import BadInputError, ExposureFReader, FinalCalibration

afw_image = pytest.importorskip("lsst.afw.image", reason="needs lsst.afw, of a full stack")

DATA_ID = {
    "instrument": "HSC",
    "visit": 1228,
    "detector": 49,
    "physical_filter": "HSC-I",
    "day_obs": 20141001,
}
BBOX = Box.factory[200:320, 100:250]
BAD = ("BAD", "SATURATED", "NO_DATA", "COSMIC_RAY")


def _wcs(scale: float = 0.168) -> Any:
    from lsst.afw.geom import makeCdMatrix, makeSkyWcs
    from lsst.geom import Point2D, SpherePoint, arcseconds, degrees

    return makeSkyWcs(
        Point2D(175, 260), SpherePoint(150.0, 2.0, degrees), makeCdMatrix(scale=scale * arcseconds)
    )


def _psf(width: float = 2.0) -> Any:
    from lsst.afw.detection import GaussianPsf

    return GaussianPsf(25, 25, width)


def _exposure() -> Any:
    exposure = afw_image.ExposureF(BBOX.to_legacy())
    rng = np.random.default_rng(1)
    exposure.image.array[:] = rng.normal(100.0, 3.0, tuple(BBOX.shape))
    exposure.variance.array[:] = 9.0
    exposure.mask.array[5, 6] |= exposure.mask.getPlaneBitMask("SAT")
    exposure.mask.array[7, 8] |= exposure.mask.getPlaneBitMask("CR")
    exposure.mask.array[9, 10] |= exposure.mask.getPlaneBitMask("DETECTED")
    exposure.setWcs(_wcs())
    exposure.setPsf(_psf())
    exposure.setPhotoCalib(afw_image.PhotoCalib(50.0, 1.0, bbox=BBOX.to_legacy()))
    return exposure


def _summary(**missing: None) -> Any:
    from lsst.afw.table import ExposureCatalog, ExposureTable

    catalog = ExposureCatalog(ExposureTable.makeMinimalSchema())
    row = catalog.addNew()
    row.setId(49)
    row.setBBox(BBOX.to_legacy())
    values = {"Wcs": _wcs(0.17), "Psf": _psf(3.0), "PhotoCalib": afw_image.PhotoCalib(55.0)}
    for name, value in {**values, **missing}.items():
        getattr(row, f"set{name}")(value)
    return catalog


def test_pixels_are_calibrated_and_masked() -> None:
    exposure = _exposure()
    reader = ExposureFReader(exposure, DATA_ID)
    assert reader.bbox == BBOX
    pixels = reader.read(BBOX, BAD, ("SATURATED",))
    np.testing.assert_allclose(pixels.image, 50.0 * exposure.image.array, rtol=1e-6)
    # The uncertainty of the scale is no noise of a pixel.
    np.testing.assert_allclose(pixels.variance, 2500.0 * 9.0, rtol=1e-6)
    assert pixels.saturated[5, 6]
    assert pixels.cosmic_ray[7, 8]
    assert not pixels.good[5, 6]
    assert not pixels.good[7, 8]
    assert pixels.good[9, 10]
    assert pixels.good.sum() == BBOX.area - 2


def test_cut_out_is_where_it_says() -> None:
    exposure = _exposure()
    part = Box.factory[210:220, 130:160]
    pixels = ExposureFReader(exposure, DATA_ID).read(part, BAD, ())
    np.testing.assert_allclose(pixels.image, 50.0 * exposure.image.array[10:20, 30:60], rtol=1e-6)
    # Nothing is written into the caller's exposure.
    assert exposure.image.array.mean() == pytest.approx(100.0, abs=0.5)


def test_either_kind_of_name_selects_a_plane() -> None:
    reader = ExposureFReader(_exposure(), DATA_ID)
    assert not reader.read(BBOX, ("SAT",), ()).good[5, 6]
    with pytest.raises(ValueError, match="NOT_A_PLANE"):
        reader.read(BBOX, ("NOT_A_PLANE",), ())


def test_visit_summary_wins() -> None:
    exposure = _exposure()
    name = ExposureFReader(exposure, DATA_ID).name
    calibration = FinalCalibration.from_summary(_summary(), 49, name)
    reader = ExposureFReader(exposure, DATA_ID, calibration=calibration)
    pixels = reader.read(BBOX, BAD, ())
    np.testing.assert_allclose(pixels.image, 55.0 * exposure.image.array, rtol=1e-6)
    kernel = reader.compute_psf_kernel(x=170.0, y=250.0)
    own = ExposureFReader(exposure, DATA_ID).compute_psf_kernel(x=170.0, y=250.0)
    assert kernel.max() < 0.6 * own.max()
    one_pixel = reader.sky_projection.pixel_to_sky(x=np.array([175.0, 176.0]), y=np.array([260.0, 260.0]))
    assert one_pixel[0].separation(one_pixel[1]).arcsec == pytest.approx(0.17, rel=1e-3)


@pytest.mark.parametrize("what", ["Wcs", "Psf", "PhotoCalib"])
def test_missing_calibration_names_it(what: str) -> None:
    with pytest.raises(BadInputError, match="(?i)" + what):
        FinalCalibration.from_summary(_summary(**{what: None}), 49, "calexp@{...}")


def test_detector_without_a_row() -> None:
    with pytest.raises(BadInputError, match="no row for this detector"):
        FinalCalibration.from_summary(_summary(), 50, "calexp@{...}")


def test_sky_correction_is_subtracted_before_calibration() -> None:
    from lsst.afw import math as afw_math
    from lsst.afw.math import BackgroundControl, BackgroundList, makeBackground

    flat = afw_image.ImageF(BBOX.to_legacy())
    flat.array[:] = 7.0
    made = makeBackground(flat, BackgroundControl(4, 4))
    sky = BackgroundList(
        (
            made,
            afw_math.Interpolate.LINEAR,
            afw_math.THROW_EXCEPTION,
            afw_math.ApproximateControl.UNKNOWN,
            0,
            0,
            False,
        )
    )
    exposure = _exposure()
    plain = ExposureFReader(exposure, DATA_ID).read(BBOX, BAD, ())
    part = Box.factory[210:220, 130:160]
    corrected = ExposureFReader(exposure, DATA_ID, calibration=FinalCalibration(sky_correction=sky)).read(
        part, BAD, ()
    )
    np.testing.assert_allclose(corrected.image, plain[part].image - 350.0, rtol=1e-4)


def test_pixels_outside_of_the_valid_polygon_are_not_good() -> None:
    from lsst.afw.geom import Polygon
    from lsst.geom import Box2D, Point2D

    exposure = _exposure()
    exposure.info.setValidPolygon(Polygon(Box2D(Point2D(120.0, 190.0), Point2D(400.0, 400.0))))
    pixels = ExposureFReader(exposure, DATA_ID).read(BBOX, BAD, ())
    assert not pixels.good[:, :20].any()
    assert pixels.good[20:, 21:].all()


def test_missing_psf_says_what_to_do() -> None:
    exposure = _exposure()
    exposure.setPsf(None)
    reader = ExposureFReader(exposure, DATA_ID)
    with pytest.raises(BadInputError, match="carries no psf; .* visit summary"):
        reader.compute_psf_kernel(x=170.0, y=250.0)


def test_missing_photo_calib_says_what_to_do() -> None:
    exposure = _exposure()
    exposure.setPhotoCalib(None)
    reader = ExposureFReader(exposure, DATA_ID)
    with pytest.raises(BadInputError, match="carries no photoCalib; .* visit summary"):
        reader.read(BBOX, BAD, ())
