# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Warps of an afw stack as inputs; skipped where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lsst.images import Box
from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import BadInputError, ExposureFWarpReader, PatchGrid
from lsst.latent_coadds.tests import make_mock_patch
from lsst.latent_coadds.tests._mock import make_mock_geometry

afw_image = pytest.importorskip("lsst.afw.image", reason="needs lsst.afw, of a full stack")
pytest.importorskip("lsst.meas.algorithms", reason="needs lsst.meas.algorithms, of a full stack")

FWHM = {11: 3.6, 12: 4.4}
"""Of the two detectors, left and right, in pixels."""

STARS = ((30.0, 40.0, 4000.0, 11), (75.0, 60.0, 2000.0, 12))
BORDER = 20


def _make_warp(visit: int, patch: PatchGrid, *, psf: bool = True) -> Any:
    """Make what a stack writes: CoaddPsf, coadd inputs, NaN where nothing is."""
    from lsst.afw.detection import GaussianPsf
    from lsst.afw.table import ExposureTable
    from lsst.geom import Box2I, Extent2I, Point2D, Point2I
    from lsst.meas.algorithms import CoaddPsf

    box = patch.outer_bbox.padded(BORDER)
    exposure = afw_image.ExposureF(box.to_legacy())
    wcs = patch.sky_projection.to_legacy()
    exposure.setWcs(wcs)
    exposure.setPhotoCalib(afw_image.PhotoCalib(1.0))
    exposure.setFilter(afw_image.FilterLabel(band="i", physical="i-mock"))
    rng = np.random.default_rng([5, visit])
    exposure.image.array[:] = rng.normal(size=exposure.image.array.shape)
    exposure.variance.array[:] = 1.0
    schema = ExposureTable.makeMinimalSchema()
    schema.addField("ccd", type=np.int32, doc="Number of the detector")
    schema.addField("visit", type=np.int64, doc="Visit")
    schema.addField("weight", type=float, doc="Weight")
    inputs = afw_image.CoaddInputs(ExposureTable.makeMinimalSchema(), schema)
    # The detectors have the pixels of the tract here, with 6 pixels between them.
    spans = {11: (box.x.start, 55), 12: (61, box.x.stop)}
    columns = np.arange(box.x.start, box.x.stop)
    missing = (columns >= 55) & (columns < 61)
    exposure.image.array[:, missing] = np.nan
    exposure.variance.array[:, missing] = np.inf
    exposure.mask.array[:, missing] |= exposure.mask.getPlaneBitMask("NO_DATA")
    for detector, (start, stop) in spans.items():
        record = inputs.ccds.addNew()
        record.setId(detector)
        record["ccd"], record["visit"], record["weight"] = detector, visit, 1.0
        record.setBBox(Box2I(Point2I(start, box.y.start), Extent2I(stop - start, box.y.size)))
        record.setWcs(wcs)
        record.setPsf(GaussianPsf(31, 31, FWHM[detector] / 2.35482))
        record.setPhotoCalib(afw_image.PhotoCalib(1.0))
    exposure.info.setCoaddInputs(inputs)
    if psf:
        exposure.setPsf(CoaddPsf(inputs.ccds, wcs, "weight"))
        for x, y, flux, _ in STARS:
            stamp = exposure.getPsf().computeImage(Point2D(x, y))
            part = stamp.getBBox()
            part.clip(exposure.getBBox())
            exposure.image[part].array += flux * stamp[part].array
    return exposure


def _read(visit: int, patch: PatchGrid, **options: Any) -> ExposureFWarpReader:
    data_id = {"instrument": "Mock", "visit": visit, "skymap": "mock", "tract": 0, "patch": 0}
    return ExposureFWarpReader(_make_warp(visit, patch, **options), data_id)


def _run(readers: list[ExposureFWarpReader], **settings: object) -> Any:
    config = BuildLatentCoaddConfig()
    config.input_kind, config.input_storage_class, config.device = "warps", "ExposureF", "cpu"
    config.restorer["imagemm"].n_realizations = 1
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    return BuildLatentCoaddTask(config=config).run(exposures=readers, patch=make_mock_patch(), band="i")


@pytest.mark.parametrize("oversampling", ["1", "2"])
def test_stars_keep_their_flux(oversampling: str) -> None:
    patch = make_mock_patch()
    coadd = _run([_read(visit, patch) for visit in range(4)], oversampling=oversampling).latent_coadd
    factor = float(oversampling)
    rows, columns = np.mgrid[: coadd.bbox.y.size, : coadd.bbox.x.size]
    for x, y, flux, _ in STARS:
        distance = np.hypot(columns - factor * (x + 0.5) + 0.5, rows - factor * (y + 0.5) + 0.5)
        assert coadd.image.array[distance < 10 * factor].sum() == pytest.approx(flux, rel=0.02)
    inputs = coadd.provenance.inputs
    assert sorted(set(inputs["detector"])) == [11, 12]
    assert len(inputs) == 8


def test_psf_is_that_of_the_detector() -> None:
    reader = _read(0, make_mock_patch())
    left, right = (reader.compute_psf_kernel(x=x, y=40.0).max() for x in (30.0, 80.0))
    assert left / right == pytest.approx((FWHM[12] / FWHM[11]) ** 2, rel=0.05)
    with pytest.raises(BadInputError, match="PSF cannot be evaluated"):
        reader.compute_psf_kernel(x=58.0, y=40.0)
    x, _ = reader.locate_psf(58.0, 40.0)
    assert reader.compute_psf_kernel(x=x, y=40.0).max() in (left, right)


def test_each_detector_is_an_exposure_of_its_own() -> None:
    patch = make_mock_patch()
    left, right = _read(0, patch).split()
    assert (left.detector, right.detector) == (11, 12)
    for reader, fwhm in ((left, FWHM[11]), (right, FWHM[12])):
        x, y = reader.locate_psf(58.0, 40.0)
        kernel = reader.compute_psf_kernel(x=x, y=y)
        assert kernel.max() == pytest.approx(0.8825 / fwhm**2, rel=0.03)
        pixels = reader.read(reader.bbox, (), ())
        assert pixels.good.mean() > 0.95


def test_masks_and_noise_power() -> None:
    patch = make_mock_patch()
    pixels = _read(0, patch).read(Box.factory[10:50, 40:70], (), ())
    assert pixels.no_data is not None
    assert pixels.no_data.sum() == 40 * 6
    np.testing.assert_array_equal(pixels.good, ~pixels.no_data)
    assert pixels.n_invalid == 0
    assert 1.05 < np.median(pixels.variance) < 1.25


def test_output_as_exposure_f_lists_the_detectors() -> None:
    patch = make_mock_patch()
    readers = [_read(visit, patch) for visit in range(2)]
    exposure = _run(readers, output_storage_class="ExposureF").latent_coadd
    ccds = exposure.info.getCoaddInputs().ccds
    assert sorted(zip(ccds["visit"], ccds["ccd"], strict=True)) == [(0, 11), (0, 12), (1, 11), (1, 12)]
    assert all(record.getPsf() is not None and record.getWcs() is not None for record in ccds)


def test_other_pixels_and_no_psf_are_refused() -> None:
    patch = make_mock_patch()
    other = PatchGrid.from_sky_map(
        make_mock_geometry(96, n_x=3, border=8).to_dict(), skymap="mock", tract=0, patch=0
    )
    result = _run([_read(0, patch), _read(1, other)])
    assert "px away from those of the patch" in next(
        iter(result.latent_coadd_metrics["rejected_inputs"].values())
    )
    bare = _read(2, patch, psf=False)
    result = _run([_read(0, patch), bare])
    assert "no PSF" in next(iter(result.latent_coadd_metrics["rejected_inputs"].values()))
