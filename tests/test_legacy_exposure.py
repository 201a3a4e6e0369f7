# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Detector images of afw are read without it: pixels, PSF, WCS, calibration."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import galsim
import numpy as np
import piff
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip

from lsst.latent_coadds.legacy import (
    LegacyExposure,
    LegacyFileError,
    fit_fits_wcs,
    is_legacy_exposure,
    read_legacy_exposure,
)
from lsst.latent_coadds.tests import AfwFile

SHAPE = (60, 80)
STEP = 0.7
"""Sampling of the PSFEx model, in pixels."""


def make_wcs(x0: int = 0, y0: int = 0) -> WCS:
    """A distorted WCS in pixels that count from (x0, y0)."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.wcs.crpix = [33.0 - x0, 28.0 - y0]
    wcs.wcs.crval = [150.1, 2.2]
    wcs.wcs.cd = np.array([[-4e-5, 1e-5], [1e-5, 4e-5]])
    along_x, along_y = np.zeros((2, 3, 3))
    along_x[2, 0], along_y[0, 2], along_x[1, 1] = 2e-5, -1e-5, 1e-5
    wcs.sip = Sip(along_x, along_y, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def make_file(origin: tuple[int, int] = (0, 0), **header: Any) -> AfwFile:
    """A noise image with some planes of the mask, and no components."""
    rng = np.random.default_rng(4)
    planes = ("BAD", "SAT", "CR", "EDGE", "DETECTED", "UNMASKEDNAN", "BRIGHT_OBJECT")
    mask = {name: np.zeros(SHAPE, dtype=bool) for name in planes}
    for i, plane in enumerate(mask.values()):
        plane[i, : i + 1] = True
    image, variance = rng.normal(0, 10, SHAPE), np.full(SHAPE, 100.0)
    keywords = {"EXPTIME": 30.0, "DATE-AVG": "2026-03-01T05:00:37", "TIMESYS": "TAI", "IDNUM": 77, **header}
    return AfwFile(image, variance, mask, origin=origin, header=keywords, wcs=make_wcs(*origin))


def read(file: AfwFile, tmp_path: Path) -> LegacyExposure:
    path = file.write(tmp_path / "exposure.fits")
    assert is_legacy_exposure(path)
    return read_legacy_exposure(path)


def draw(exposure: LegacyExposure, x: float, y: float) -> np.ndarray:
    """Kernel at a position of the image, of unit sum."""
    assert exposure.psf is not None
    size = exposure.psf.stamp_size
    kernel = exposure.psf.psf.draw(x, y, stamp_size=size, center=True).array
    return kernel / kernel.sum()


def gaussian(sigma: float, size: int = 25, step: float = 1.0) -> np.ndarray:
    """Samples of a Gaussian, of unit sum."""
    y, x = (np.mgrid[:size, :size] - size // 2) * step
    stamp = np.exp(-0.5 * (x**2 + y**2) / sigma**2)
    return stamp / stamp.sum()


def assert_close(kernel: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    assert kernel.shape == expected.shape
    assert np.abs(kernel - expected).max() < tolerance * expected.max()


def test_planes_and_identity(tmp_path: Path) -> None:
    file = make_file(**{"HIERARCH LSST BUTLER DATAID DETECTOR": 49})
    file.add_filter("i", "HSC-I")
    file.add_photo_calib(0.25)
    path = file.write(tmp_path / "calexp.fits")
    exposure = read_legacy_exposure(path)
    identity = exposure.identity
    assert (identity.visit, identity.detector) == (77, 49)
    assert (identity.band, identity.physical_filter) == ("i", "HSC-I")
    # 37 s of TAI are 0 s of UTC; the shutter opened 15 s before the middle.
    assert identity.begin is not None and identity.begin.isot == "2026-03-01T04:59:45.000"
    assert identity.exposure_time == 30.0
    names = ("BAD", "SATURATED", "COSMIC_RAY", "DETECTION_EDGE", "DETECTED", "UNMASKED_NAN")
    assert set(exposure.mask) == set(names)
    for i, name in enumerate(names):
        assert np.argwhere(exposure.mask[name]).tolist() == [[i, j] for j in range(i + 1)]
    assert exposure.dropped_planes == ("BRIGHT_OBJECT",)
    with fits.open(path) as hdus:
        np.testing.assert_allclose(exposure.image, 0.25 * hdus["IMAGE"].data, rtol=1e-6)
    np.testing.assert_allclose(exposure.variance, 100 * 0.25**2)
    assert exposure.calibrated and exposure.psf is None


def test_other_files_are_not_taken_for_legacy_ones(tmp_path: Path) -> None:
    path = tmp_path / "plain.fits"
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(path)
    assert not is_legacy_exposure(path)
    (tmp_path / "text").write_text("no FITS")
    assert not is_legacy_exposure(tmp_path / "text")
    assert not is_legacy_exposure(tmp_path / "absent")


def test_varying_calibration(tmp_path: Path) -> None:
    file = make_file()
    coefficients = np.array([[0.4, 0.03, 0.01], [0.02, 0.005, 0.0]])
    file.add_photo_calib(0.4, coefficients)
    path = file.write(tmp_path / "exposure.fits")
    exposure = read_legacy_exposure(path)
    height, width = SHAPE
    y, x = np.mgrid[:height, :width]
    # Chebyshev polynomials: 1, t and 2 t**2 - 1 over edges at -0.5 and n - 0.5.
    u, v = (2 * x - width + 1) / width, (2 * y - height + 1) / height
    scale = 0.4 + 0.03 * u + 0.01 * (2 * u**2 - 1) + v * (0.02 + 0.005 * u)
    with fits.open(path) as hdus:
        np.testing.assert_allclose(exposure.image, scale * hdus["IMAGE"].data, rtol=1e-6)
    np.testing.assert_allclose(exposure.variance, 100 * scale**2, rtol=1e-6)


@pytest.mark.parametrize(
    ("header", "scale"),
    [
        # Magnitude zero is 3631 Jy.
        ({"FLUXMAG0": 1e12}, 3.6307805),
        ({"BUNIT": "nJy"}, 1.0),
        ({}, None),
    ],
)
def test_calibration_of_older_files(header: dict[str, Any], scale: float | None, tmp_path: Path) -> None:
    file = make_file(**header)
    if "BUNIT" in header:
        file._pixels[0].header["BUNIT"] = "nJy"
    exposure = read(file, tmp_path)
    assert exposure.calibrated == (scale is not None)
    np.testing.assert_allclose(exposure.variance, 100 * (scale or 1.0) ** 2, rtol=1e-6)


@pytest.mark.parametrize("mean", [np.nan, 0.0])
def test_failed_calibration_is_refused(mean: float, tmp_path: Path) -> None:
    file = make_file()
    file.add_photo_calib(mean)
    with pytest.raises(LegacyFileError, match="calibration failed"):
        read(file, tmp_path)


def test_unknown_bounded_field_is_refused(tmp_path: Path) -> None:
    file = make_file()
    field = file.add("PixelAreaBoundedField", [{"scaling": 1.0}])
    row = {"isConstant": False, "calibrationMean": 1.0, "calibrationErr": 0.0, "field": field, "version": 1}
    file.add("PhotoCalib", [row], component="PHOTOCALIB")
    with pytest.raises(LegacyFileError, match=r"PixelAreaBoundedField.*calibrateImage"):
        read(file, tmp_path)


def test_valid_polygon(tmp_path: Path) -> None:
    file = make_file()
    corners = [(-0.5, -0.5), (79.5, -0.5), (79.5, 20.0), (-0.5, 40.0)]
    file.add("Polygon", [{"vertices_x": x, "vertices_y": y} for x, y in corners], component="VALID_POLYGON")
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    expected = y > 40.0 - (x + 0.5) * 20.0 / 80.0
    assert np.array_equal(read(file, tmp_path).mask["NO_DATA"], expected)


def test_exact_wcs_corrects_the_header(tmp_path: Path) -> None:
    file = make_file()
    exact = make_wcs()
    exact.wcs.crval = [150.2, 2.3]
    exact.wcs.set()
    file.add_wcs(exact)
    exposure = read(file, tmp_path)
    assert exposure.wcs_error < 1e-6
    x, y = np.array([0.0, 79.0, 40.0]), np.array([0.0, 30.0, 59.0])
    px, py = exposure.wcs.all_world2pix(*exact.all_pix2world(x, y, 0), 0)
    np.testing.assert_allclose([px, py], [x, y], atol=1e-6)


def test_header_is_kept_where_it_agrees(tmp_path: Path) -> None:
    file = make_file()
    file.add_wcs(make_wcs())
    exposure = read(file, tmp_path)
    assert exposure.wcs_error < 1e-6
    np.testing.assert_array_equal(exposure.wcs.wcs.crpix, make_wcs().wcs.crpix)


def test_cut_outs_keep_their_place(tmp_path: Path) -> None:
    file = make_file(origin=(300, 200))
    file.add_wcs(make_wcs())
    narrow, wide = file.add_kernel(gaussian(1.5)), file.add_kernel(gaussian(2.5) - gaussian(1.5))
    add_combination(file, (narrow, wide), ([1.0, 0.0, 0.0], [0.2, 1e-3, -2e-3]))
    exposure = read(file, tmp_path)
    px, py = exposure.wcs.all_world2pix(*make_wcs().all_pix2world([310.0], [220.0], 0), 0)
    np.testing.assert_allclose([px, py], [[10.0], [20.0]], atol=1e-6)
    share = 0.2 + 1e-3 * 310 - 2e-3 * 220
    assert_close(draw(exposure, 10.0, 20.0), (1 - share) * gaussian(1.5) + share * gaussian(2.5))


def test_projection_that_no_header_can_hold_is_refused() -> None:
    def bent(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 150.0 + 1e-5 * (x + 3.0 * np.sin(x)), 2.0 + 1e-5 * y

    with pytest.raises(LegacyFileError, match="no TAN-SIP"):
        fit_fits_wcs(bent, SHAPE)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    file = make_file()
    file.add("SkyWcs", [{"wcs": np.frombuffer(b"1 SkyWcs 0 nothing", np.uint8)}], component="SKYWCS")
    with pytest.raises(LegacyFileError, match="AST text"):
        read(file, tmp_path)
    damaged = make_file(**{"PSF_ID": 12})
    with pytest.raises(LegacyFileError, match="no object 12"):
        read_legacy_exposure(damaged.write(tmp_path / "damaged.fits"))


def add_combination(
    file: AfwFile, kernels: tuple[int, int], polynomials: tuple[list[float], list[float]]
) -> None:
    functions = [file.add("PolynomialFunction2D", [{"coefficients": np.array(p)}]) for p in polynomials]
    place = {"dimensions_x": 25, "dimensions_y": 25, "center_x": 12, "center_y": 12}
    parts = {"spatialfunctions": np.array(functions), "components": np.array(kernels)}
    kernel = file.add("LinearCombinationKernel", [place | parts])
    row = {"kernel": kernel, "averagePosition_x": 0.0, "averagePosition_y": 0.0}
    file.add("KernelPsf", [row], component="PSF")


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("GaussianPsf", {"sigma": 1.8}, gaussian(1.8)),
        ("SingleGaussianPsf", {"sigma": 2.2}, gaussian(2.2)),
        (
            "DoubleGaussianPsf",
            {"sigma1": 1.5, "sigma2": 3.0, "b": 0.1},
            (gaussian(1.5) + 0.1 * gaussian(3.0) * gaussian(1.5).max() / gaussian(3.0).max()),
        ),
    ],
)
def test_gaussians(kind: str, row: dict[str, float], expected: np.ndarray, tmp_path: Path) -> None:
    file = make_file()
    file.add(kind, [{"dimensions_x": 25, "dimensions_y": 25, **row}], component="PSF")
    exposure = read(file, tmp_path)
    assert exposure.psf is not None and exposure.psf.kind == kind
    assert_close(draw(exposure, 40.0, 30.0), expected / expected.sum())


def test_kernels_with_quadratic_weights(tmp_path: Path) -> None:
    file = make_file()
    narrow, wide = file.add_kernel(gaussian(1.5)), file.add_kernel(gaussian(2.5) - gaussian(1.5))
    # In the order 1, x, y, x**2, x y, y**2.
    weights = [0.2, 1e-3, -2e-3, 1e-5, 2e-5, -3e-5]
    add_combination(file, (narrow, wide), ([1.0, 0, 0, 0, 0, 0], weights))
    exposure = read(file, tmp_path)
    for x, y in ((0.0, 0.0), (70.0, 10.0), (20.5, 50.25)):
        share = float(np.dot(weights, [1, x, y, x * x, x * y, y * y]))
        assert_close(draw(exposure, x, y), (1 - share) * gaussian(1.5) + share * gaussian(2.5))


@pytest.mark.parametrize(("groups", "degrees"), [((0, 0), (2,)), ((0, 1), (1, 1))])
def test_psfex(groups: tuple[int, int], degrees: tuple[int, ...], tmp_path: Path) -> None:
    # PSFEx counts x fastest: 1, x, x**2, y, x y, y**2, and 1, x, y, x y.
    powers = {1: [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2)], 2: [(0, 0), (1, 0), (0, 1), (1, 1)]}
    terms = powers[len(degrees)]
    offset, scale = np.array([40.0, 30.0]), np.array([35.0, 25.0])
    core, wings = gaussian(1.6 / STEP, 41), gaussian(2.6 / STEP, 41)
    weights = np.array([0.3, 0.1, 0.05, -0.1, 0.08, 0.02])[: len(terms)]
    components = np.stack([w * (wings - core) + (core if i == 0 else 0) for i, w in enumerate(weights)])
    file = make_file()
    sizes = {"ndim": 2, "ngroup": len(degrees), "ncoeff": len(terms), "_size_size": 3, "_context_size": 2}
    arrays = {
        "group": np.array(groups),
        "degree": np.array([*degrees, 9])[: len(degrees)],
        "_size": np.array([41, 41, len(terms)]),
        "_comp": components.ravel(),
        "_context_first": offset,
        "_context_second": scale,
    }
    file.add("PsfexPsf", [{**sizes, "_pixstep": STEP}], [arrays], component="PSF")
    exposure = read(file, tmp_path)
    assert exposure.psf is not None and exposure.psf.stamp_size == 29
    for x, y in ((5.0, 55.0), (40.0, 30.0), (75.5, 3.0)):
        u, v = (np.array([x, y]) - offset) / scale
        share = sum(w * u**a * v**b for w, (a, b) in zip(weights, terms, strict=True))
        expected = (1 - share) * gaussian(1.6, 29) + share * gaussian(2.6, 29)
        # What the interpolation between samples of 0.7 px leaves.
        assert_close(draw(exposure, x, y), expected / expected.sum(), 2e-3)


def make_piff(moffat: bool = True) -> piff.PSF:
    psf = piff.SimplePSF(piff.Moffat(3.0), piff.BasisPolynomial(order=1))
    psf.interp.q = np.array([[2.0, 1e-3, 3e-3], [0.02, 0.0, 0.0], [0.0, 1e-4, 0.0]])
    psf.wcs, psf.pointing, psf.stars = {0: galsim.PixelScale(1.0)}, None, []
    return psf


def test_piff(tmp_path: Path) -> None:
    file = make_file()
    file.add_piff_psf(make_piff(), 31)
    exposure = read(file, tmp_path)
    for x, y in ((3.0, 4.0), (70.0, 50.5)):
        # Moffat of half-light radius 2 + 3e-3 x + 1e-3 y, seen through a pixel.
        profile = galsim.Moffat(beta=3.0, half_light_radius=2.0 + 1e-3 * y + 3e-3 * x)
        profile = profile.shear(g1=0.02, g2=1e-4 * y)
        expected = profile.drawImage(nx=31, ny=31, scale=1.0, dtype=float).array
        assert_close(draw(exposure, x, y), expected / expected.sum(), 1e-3)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trap",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps((31, 31, _Trap())),
        b"cpiff.util\nos\n.",
        b"cgalsim\nos.mkdir\n.",
        b"cgalsim.utilities\nos\n.",
        b"cnumpy\nload\n.",
    ],
)
def test_pickles_run_nothing(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = make_file()
    file.add("PiffPsf", [{"bytes": np.frombuffer(content, np.uint8)}], component="PSF")
    with pytest.raises(LegacyFileError, match="Piff PSF"):
        read(file, tmp_path)
    assert not (tmp_path / "trap").exists()


def test_piff_in_sky_coordinates_is_refused(tmp_path: Path) -> None:
    psf = make_piff()
    psf.wcs = {0: galsim.AffineTransform(1.0, 0.1, 0.0, 1.0)}
    file = make_file()
    file.add_piff_psf(psf, 31)
    with pytest.raises(LegacyFileError, match="pixels"):
        read(file, tmp_path)


@pytest.mark.parametrize("kind", ["CoaddPsf", "WarpedPsf"])
def test_other_psfs_are_named(kind: str, tmp_path: Path) -> None:
    file = make_file()
    file.add(kind, [{"coaddwcs": 1}], component="PSF")
    path = file.write(tmp_path / "exposure.fits")
    with pytest.raises(LegacyFileError, match=rf"{kind}.*psf=stars"):
        read_legacy_exposure(path)
    assert read_legacy_exposure(path, with_psf=False).psf is None
