# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The task on datasets of an afw stack; skipped where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import ExposureFReader, PatchGrid
from lsst.latent_coadds.qa import weighted_flux
from lsst.latent_coadds.tests import MockVisits, make_mock_patch
from lsst.pipe.base import Struct

pytest.importorskip("lsst.afw.image", reason="needs lsst.afw, of a full stack")

STARS = ((0.0, 0.0, 5000.0), (5.1, -4.3, 1000.0))
POSITIONS = ((47.5, 47.5), (47.5 - 5.1 / 0.2, 47.5 - 4.3 / 0.2))
SCALE = 0.25
"""nJy per count of the exposures in counts."""


def _to_exposure_f(visit: int, *, in_counts: bool) -> Any:
    """Make the exposure that a stack would have written."""
    from lsst.afw.detection import GaussianPsf
    from lsst.afw.image import ExposureF, FilterLabel, PhotoCalib, VisitInfo

    visit_image = MockVisits(stars=STARS).make(visit)
    scale = SCALE if in_counts else 1.0
    exposure = ExposureF(visit_image.bbox.to_legacy())
    exposure.image.array[:] = visit_image.image.array / scale
    exposure.variance.array[:] = visit_image.variance.array / scale**2
    exposure.setWcs(visit_image.sky_projection.to_legacy())
    exposure.setPsf(GaussianPsf(31, 31, (3.5 + 0.3 * visit) / 2.35482))
    exposure.setPhotoCalib(PhotoCalib(scale))
    exposure.setFilter(FilterLabel(band="i", physical="i-mock"))
    exposure.info.setVisitInfo(VisitInfo(exposureTime=30.0))
    return exposure


def _readers(n_visits: int = 5) -> list[ExposureFReader]:
    readers = []
    for visit in range(n_visits):
        data_id = {"instrument": "Mock", "visit": visit, "detector": 0, "physical_filter": "i-mock"}
        exposure = _to_exposure_f(visit, in_counts=visit % 2 == 0)
        readers.append(ExposureFReader(exposure, data_id))
    return readers


def _run(readers: list, patch: PatchGrid | None = None, **settings: object) -> Struct:
    config = BuildLatentCoaddConfig()
    config.restorer.name = "imagemm"
    config.restorer["imagemm"].n_realizations = 1
    config.device = "cpu"
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    task = BuildLatentCoaddTask(config=config)
    return task.run(exposures=readers, patch=patch or make_mock_patch(), band="i")


def test_same_result_as_from_visit_images() -> None:
    ours = _run(_readers()).latent_coadd.image.array
    reference = _run(MockVisits(stars=STARS).readers()).latent_coadd.image.array
    # GaussianPsf normalises its stamp, and otherwise the pixels are the same.
    assert np.abs(ours - reference).max() < 1e-3 * reference.max()


def test_output_as_exposure_f() -> None:
    from lsst.geom import Point2D

    exposure = _run(_readers(), output_storage_class="ExposureF").latent_coadd
    bbox = make_mock_patch().outer_bbox
    assert exposure.getBBox() == bbox.to_legacy()
    assert exposure.getPhotoCalib().getCalibrationMean() == pytest.approx(1.0)
    assert exposure.getFilter().bandLabel == "i"
    inputs = exposure.info.getCoaddInputs()
    assert sorted(inputs.ccds["visit"]) == [0, 1, 2, 3, 4]
    assert sorted(record.getId() for record in inputs.visits) == [0, 1, 2, 3, 4]
    assert (inputs.ccds["weight"] > 0).all()
    assert (inputs.ccds["goodpix"] > 0.4 * bbox.area).all()
    assert all(record.getPsf() is not None and record.getWcs() is not None for record in inputs.ccds)
    # Stars have the attached PSF, wherever they are in a pixel.
    offsets = np.arange(-18, 19)
    wide = np.exp(-0.5 * (offsets[:, None] ** 2 + offsets**2) / 3.0**2)
    for (x, y), (_, _, flux) in zip(POSITIONS, STARS, strict=True):
        psf = exposure.getPsf().computeImage(Point2D(x, y))
        cut = exposure.image[psf.getBBox()].array
        fitted = float((psf.array * cut).sum() / (psf.array**2).sum())
        assert fitted == pytest.approx(flux, rel=0.02)
        kernel = exposure.getPsf().computeKernelImage(Point2D(x, y)).array
        place = (x - bbox.x.start, y - bbox.y.start)
        assert weighted_flux(exposure.image.array, *place, wide, kernel) == pytest.approx(flux, rel=0.015)


def test_exposure_f_survives_a_file(tmp_path) -> None:
    from lsst.afw.image import ExposureF

    exposure = _run(_readers(2), output_storage_class="ExposureF").latent_coadd
    path = str(tmp_path / "latent.fits")
    exposure.writeFits(path)
    again = ExposureF(path)
    np.testing.assert_array_equal(again.mask.array, exposure.mask.array)
    assert again.mask.getMaskPlaneDict().keys() >= {
        "CLIPPED",
        "REJECTED",
        "SENSOR_EDGE",
        "INEXACT_PSF",
        "SAT",
        "BRIGHT_OBJECT",
    }
    assert len(again.info.getCoaddInputs().ccds) == 2


def test_patch_of_a_sky_map() -> None:
    skymap = pytest.importorskip("lsst.skymap", reason="needs lsst.skymap, of a full stack")
    config = skymap.discreteSkyMap.DiscreteSkyMap.ConfigClass()
    config.raList, config.decList, config.radiusList = [150.0], [2.0], [0.05]
    config.pixelScale, config.patchBorder, config.patchInnerDimensions = 0.2, 8, [96, 96]
    sky_map = skymap.discreteSkyMap.DiscreteSkyMap(config)
    info = sky_map[0][5]
    patch = PatchGrid.from_sky_map(sky_map, skymap="mock", tract=0, patch=5)
    assert patch.outer_bbox.to_legacy() == info.getOuterBBox()
    assert patch.inner_bbox.to_legacy() == info.getInnerBBox()
    assert (patch.index.x, patch.index.y) == tuple(info.getIndex())
    center = info.getOuterBBox().getCenter()
    sky = sky_map[0].getWcs().pixelToSky(center)
    ours = patch.sky_projection.pixel_to_sky(x=np.array([center.x]), y=np.array([center.y]))
    assert ours.ra.deg[0] == pytest.approx(sky.getRa().asDegrees(), abs=1e-9)
    assert ours.dec.deg[0] == pytest.approx(sky.getDec().asDegrees(), abs=1e-9)
    with pytest.raises(LookupError, match="no tract 3"):
        PatchGrid.from_sky_map(sky_map, skymap="mock", tract=3, patch=0)
