# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""The reader of afw's files against afw itself; skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import galsim
import numpy as np
import piff
import pytest

from lsst.latent_coadds.legacy import read_legacy_exposure

pytest.importorskip("lsst.afw.image", reason="needs lsst.afw, of a full stack")

WIDTH, HEIGHT = 400, 300
PLANES = {
    "BAD": "BAD",
    "SAT": "SATURATED",
    "CR": "COSMIC_RAY",
    "EDGE": "DETECTION_EDGE",
    "INTRP": "INTERPOLATED",
    "UNMASKEDNAN": "UNMASKED_NAN",
}
POINTS = [(x, y) for x in (5.0, 130.25, 390.0) for y in (3.0, 150.5, 290.0)]


def make_box() -> Any:
    from lsst.geom import Box2I, Extent2I, Point2I

    return Box2I(Point2I(0, 0), Extent2I(WIDTH, HEIGHT))


def make_wcs(kind: str) -> Any:
    """A WCS: TAN, TAN-SIP, or one that no header of afw holds."""
    import lsst.geom as geom
    from lsst.afw.geom import (
        makeCdMatrix,
        makeModifiedWcs,
        makeRadialTransform,
        makeSkyWcs,
        makeTanSipWcs,
        makeTransform,
    )

    crpix, crval = geom.Point2D(210.0, 180.0), geom.SpherePoint(150.1, 2.2, geom.degrees)
    cd = makeCdMatrix(scale=0.168 * geom.arcseconds, orientation=31 * geom.degrees)
    if kind == "sip":
        a, b, zero = np.zeros((3, 4, 4))
        a[2, 0], a[3, 0], b[0, 2], b[1, 2] = 2e-6, 3e-9, 1.5e-6, 2e-9
        return makeTanSipWcs(crpix, crval, cd, a, b, zero, zero)
    wcs = makeSkyWcs(crpix, crval, cd)
    if kind == "tan":
        return wcs
    centred = makeTransform(geom.AffineTransform(geom.Extent2D(-crpix.x, -crpix.y)))
    radial = makeRadialTransform([0.0, 1.0, 0.0, 2.5e-8])
    return makeModifiedWcs(centred.then(radial).then(centred.inverted()), wcs, False)


def make_exposure(psf: Any, wcs: str = "tan", photo_calib: Any = None) -> Any:
    from lsst.afw.image import ExposureF, FilterLabel, PhotoCalib, VisitInfo
    from lsst.daf.base import DateTime

    rng = np.random.default_rng(3)
    exposure = ExposureF(make_box())
    exposure.image.array[:] = rng.normal(0, 10, (HEIGHT, WIDTH))
    exposure.variance.array[:] = rng.uniform(90, 110, (HEIGHT, WIDTH))
    for i, name in enumerate((*PLANES, "BRIGHT_OBJECT")):
        exposure.mask.addMaskPlane(name)
        exposure.mask.array[10 * i : 10 * i + 4, 20:60] |= exposure.mask.getPlaneBitMask(name)
    date = DateTime(61100.2, DateTime.MJD, DateTime.TAI)
    exposure.info.setVisitInfo(VisitInfo(exposureTime=150.0, date=date, instrumentLabel="HSC", id=1234))
    exposure.setFilter(FilterLabel("i", "HSC-I"))
    exposure.setWcs(make_wcs(wcs))
    exposure.setPhotoCalib(photo_calib or PhotoCalib(0.4, 0.001, make_box()))
    exposure.setPsf(psf)
    return exposure


def make_gaussian() -> Any:
    from lsst.afw.detection import GaussianPsf

    return GaussianPsf(25, 25, 1.9)


def make_double_gaussian() -> Any:
    pytest.importorskip("lsst.meas.algorithms")
    from lsst.meas.algorithms import DoubleGaussianPsf

    return DoubleGaussianPsf(25, 25, 1.7, 3.4, 0.1)


def make_varying_kernel() -> Any:
    pytest.importorskip("lsst.meas.algorithms")
    from lsst.afw.image import ImageD
    from lsst.afw.math import FixedKernel, LinearCombinationKernel, PolynomialFunction2D
    from lsst.meas.algorithms import KernelPsf

    stamps = [galsim.Gaussian(fwhm=f).shear(g1=0.02).drawImage(nx=31, ny=31, scale=1.0) for f in (3.2, 6.0)]
    narrow, wide = (stamp.array.astype(float) / stamp.array.sum() for stamp in stamps)
    kernels = []
    for array in (narrow, wide - narrow):
        image = ImageD(31, 31)
        image.array[:] = array
        kernels.append(FixedKernel(image))
    kernel = LinearCombinationKernel(kernels, PolynomialFunction2D(2))
    kernel.setSpatialParameters([[1.0, 0, 0, 0, 0, 0], [0.2, 1e-4, -2e-4, 1e-7, 2e-7, -1e-7]])
    return KernelPsf(kernel)


def make_piff() -> Any:
    pytest.importorskip("lsst.meas.extensions.piff.piffPsf")
    from lsst.meas.extensions.piff.piffPsf import PiffPsf

    psf = piff.SimplePSF(piff.Moffat(3.0), piff.BasisPolynomial(order=1))
    psf.interp.q = np.array([[2.0, 1e-4, 3e-4], [0.02, 0, 0], [0, 1e-5, 0]])
    psf.wcs, psf.pointing, psf.stars = {0: galsim.PixelScale(1.0)}, None, []
    return PiffPsf(31, 31, psf)


def make_psfex() -> Any:
    """Let PSFEx fit stars whose size varies over the image."""
    pytest.importorskip("lsst.meas.extensions.psfex.psfexPsfDeterminer")
    from lsst.afw.table import SourceTable
    from lsst.meas.algorithms import PsfCandidateF, SourceDetectionTask
    from lsst.meas.base import SingleFrameMeasurementTask
    from lsst.meas.extensions.psfex.psfexPsfDeterminer import PsfexPsfDeterminerConfig, PsfexPsfDeterminerTask

    exposure = make_exposure(make_gaussian())
    exposure.mask.array[:] = 0
    rng = np.random.default_rng(5)
    image = galsim.ImageF(exposure.image.array, xmin=0, ymin=0)
    for x, y, flux in zip(
        rng.uniform(30, WIDTH - 30, 60),
        rng.uniform(30, HEIGHT - 30, 60),
        10 ** rng.uniform(4.3, 5.5, 60),
        strict=True,
    ):
        star = galsim.Moffat(beta=3, fwhm=3.6 + 0.6 * x / WIDTH + 0.4 * (y / HEIGHT) ** 2, flux=flux)
        star.drawImage(image, center=galsim.PositionD(x, y), add_to_image=True)
    exposure.variance.array[:] = 100 + np.maximum(exposure.image.array, 0)
    schema = SourceTable.makeMinimalSchema()
    detection = SourceDetectionTask(schema=schema)
    config = SingleFrameMeasurementTask.ConfigClass()
    config.plugins.names = [
        *("base_SdssCentroid", "base_SdssShape", "base_PixelFlags"),
        *("base_CircularApertureFlux", "base_PsfFlux"),
    ]
    config.slots.apFlux = "base_CircularApertureFlux_12_0"
    for slot in ("calibFlux", "gaussianFlux", "modelFlux", "psfShape"):
        setattr(config.slots, slot, None)
    measurement = SingleFrameMeasurementTask(schema, config=config)
    catalog = detection.run(SourceTable.make(schema), exposure).sources
    measurement.run(catalog, exposure)
    candidates = [
        PsfCandidateF(source, exposure)
        for source in catalog
        if 30 < source.getX() < WIDTH - 30
        and 30 < source.getY() < HEIGHT - 30
        and source.getApInstFlux() > 2e4
    ]
    settings = PsfexPsfDeterminerConfig()
    settings.spatialOrder, settings.samplingSize, settings.stampSize = 2, 0.7, 31
    settings.photometricFluxField = "base_CircularApertureFlux_12_0_instFlux"
    return PsfexPsfDeterminerTask(schema=schema, config=settings).determinePsf(exposure, candidates)[0]


@pytest.mark.parametrize(
    ("make_psf", "tolerance"),
    [
        (make_gaussian, 1e-6),
        (make_double_gaussian, 1e-6),
        (make_varying_kernel, 1e-6),
        (make_piff, 1e-6),
        # Lanczos interpolation of GalSim and of PSFEx are normalized otherwise.
        (make_psfex, 3e-4),
    ],
)
def test_psf_is_that_of_afw(make_psf: Any, tolerance: float, tmp_path: Path) -> None:
    from lsst.geom import Point2D

    psf = make_psf()
    path = tmp_path / "exposure.fits"
    make_exposure(psf).writeFits(str(path))
    read = read_legacy_exposure(path).psf
    assert read is not None
    for x, y in POINTS:
        expected = psf.computeKernelImage(Point2D(x, y)).array
        kernel = read.psf.draw(x, y, stamp_size=read.stamp_size, center=True).array
        assert kernel.shape == expected.shape
        assert np.abs(kernel / kernel.sum() - expected).max() < tolerance * expected.max()


@pytest.mark.parametrize("kind", ["tan", "sip", "radial"])
def test_wcs_is_that_of_afw(kind: str, tmp_path: Path) -> None:
    from lsst.geom import Point2D

    path = tmp_path / "exposure.fits"
    make_exposure(make_gaussian(), kind).writeFits(str(path))
    exposure = read_legacy_exposure(path)
    sky = [make_wcs(kind).pixelToSky(Point2D(x, y)) for x, y in POINTS]
    ra, dec = [p.getRa().asDegrees() for p in sky], [p.getDec().asDegrees() for p in sky]
    pixels = np.transpose(exposure.wcs.all_world2pix(ra, dec, 0))
    assert np.hypot(*(pixels - POINTS).T).max() < 1e-3
    assert exposure.wcs_error < 1e-3


@pytest.mark.parametrize("varying", [False, True])
def test_pixels_are_those_of_afw(varying: bool, tmp_path: Path) -> None:
    from lsst.afw.geom import Polygon
    from lsst.afw.image import PhotoCalib
    from lsst.afw.math import ChebyshevBoundedField
    from lsst.geom import Point2D

    photo_calib = None
    if varying:
        coefficients = np.array([[0.4, 0.02, 0.01], [0.03, 0.005, 0], [-0.01, 0, 0]])
        photo_calib = PhotoCalib(ChebyshevBoundedField(make_box(), coefficients), 0.001)
    exposure = make_exposure(make_gaussian(), photo_calib=photo_calib)
    corners = [(-0.5, -0.5), (350.0, -0.5), (300.0, 250.0), (30.0, 280.0)]
    polygon = Polygon([Point2D(x, y) for x, y in corners])
    exposure.info.setValidPolygon(polygon)
    path = tmp_path / "exposure.fits"
    exposure.writeFits(str(path))
    read = read_legacy_exposure(path)
    calibrated = exposure.getPhotoCalib().calibrateImage(exposure.maskedImage)
    np.testing.assert_allclose(read.image, calibrated.image.array, rtol=1e-6)
    np.testing.assert_allclose(read.variance, calibrated.variance.array, rtol=1e-6)
    for legacy, name in PLANES.items():
        expected = (exposure.mask.array & exposure.mask.getPlaneBitMask(legacy)) != 0
        assert np.array_equal(read.mask[name], expected)
    assert "BRIGHT_OBJECT" in read.dropped_planes
    # afw gives the part of a pixel that is inside; ours is whether its centre is.
    share = polygon.createImage(make_box()).array
    assert not read.mask["NO_DATA"][share > 0.99].any()
    assert read.mask["NO_DATA"][share < 0.01].all()
    identity = read.identity
    assert (identity.visit, identity.band, identity.physical_filter) == (1234, "i", "HSC-I")
    assert identity.begin is not None
    assert identity.begin.tai.mjd == pytest.approx(61100.2 - 75.0 / 86400, abs=1e-7)
