# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the task does with exposures that are not as they should be.

Each message has to name the dataset, and say what to do about it. What a
bad dataset does to a whole run is in test_bad_input_repository.py.
"""

from __future__ import annotations

from typing import Any

import astropy.units as u
import numpy as np
import pytest

from lsst.images import Box, Image, VisitImage
from lsst.images.psfs import GaussianPointSpreadFunction, PointSpreadFunction
from lsst.images.serialization import ArchiveReadError
from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import (
    BadInputError,
    ExposureReader,
    InputProblem,
    PatchGrid,
    PatchNotFoundError,
    UnknownMaskPlaneError,
    UnusableInputsError,
    VisitImageReader,
)
from lsst.latent_coadds.tests import MockVisits, make_mock_patch
from lsst.pex.config import FieldValidationError
from lsst.pipe.base import NoWorkFound, Struct

SIZE = 48
BAD = 1
"""Visit that is given a defect; the others are sound."""


@pytest.fixture(scope="module")
def patch() -> PatchGrid:
    return make_mock_patch(SIZE)


@pytest.fixture(scope="module")
def visits() -> MockVisits:
    return MockVisits(n_visits=3, stars=((0.0, 0.0, 5000.0),))


def read(source: Any, visit: int) -> VisitImageReader:
    data_id = {"instrument": "Mock", "visit": visit, "detector": 0, "physical_filter": "i-mock"}
    return VisitImageReader(source, data_id)


def make_config(**changes: Any) -> BuildLatentCoaddConfig:
    config = BuildLatentCoaddConfig()
    config.restorer.name = "direct"
    # What is wrong with an exposure does not depend on it.
    config.geometry = "registered"
    config.halo = 12
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def run(exposures: list[ExposureReader], patch: PatchGrid, **changes: Any) -> Struct:
    task = BuildLatentCoaddTask(config=make_config(**changes))
    return task.run(exposures=exposures, patch=patch, band="i")


def run_with(bad: VisitImage, visits: MockVisits, patch: PatchGrid, **changes: Any) -> Struct:
    """Run on the sound visits and one that has a defect."""
    images = [bad if visit == BAD else visits.make(visit) for visit in range(visits.n_visits)]
    return run([read(image, visit) for visit, image in enumerate(images)], patch, **changes)


def check_left_out(result: Struct, visits: MockVisits, patch: PatchGrid, *words: str) -> None:
    """Check that the result is that of the sound visits, and says so."""
    ((name, message),) = result.latent_coadd_metrics["rejected_inputs"].items()
    assert f"visit: {BAD}" in name
    for word in (f"calexp@{{instrument: 'Mock', visit: {BAD}, detector: 0}}", *words):
        assert word in message
    sound = run([read(visits.make(v), v) for v in range(visits.n_visits) if v != BAD], patch)
    np.testing.assert_array_equal(result.latent_coadd.image.array, sound.latent_coadd.image.array)
    np.testing.assert_array_equal(result.latent_coadd.variance.array, sound.latent_coadd.variance.array)
    assert result.latent_coadd_n_image.array.max() == visits.n_visits - 1


def replace(original: VisitImage, **changes: Any) -> VisitImage:
    """Return an exposure with some components changed."""
    parts = {
        "image": original.image,
        "mask": original.mask,
        "variance": original.variance,
        "sky_projection": original.sky_projection,
        "obs_info": original.obs_info,
        "psf": original.psf,
        "detector": original.detector,
        "band": original.band,
    }
    parts |= changes
    return VisitImage(parts.pop("image"), **parts)


class StampPsf(GaussianPointSpreadFunction):
    """A PSF that gives whatever stamp it is told to."""

    def __init__(self, stamp: np.ndarray) -> None:
        super().__init__(2.0, Box.from_shape((512, 512)), 31)
        self.stamp = stamp

    def compute_kernel_image(self, *, x: float, y: float, **kwargs: Any) -> Image:
        start = [-(side // 2) for side in self.stamp.shape]
        return Image(self.stamp, yx0=tuple(start))


class BrokenHandle:
    """A dataset of which some parts cannot be read."""

    def __init__(self, image: VisitImage, *broken: str) -> None:
        self.image = image
        self.broken = broken

    def get(self, *, component: str | None = None, parameters: dict[str, Any] | None = None) -> Any:
        if component in self.broken or (component is None and "pixels" in self.broken):
            raise ArchiveReadError(f"{component or 'VARIANCE'} is not in the file")
        return getattr(self.image, component) if component else self.image[(parameters or {})["bbox"]]


def test_no_overlap_is_no_work(visits: MockVisits, patch: PatchGrid) -> None:
    far = visits.make(0, offset=(120.0, 0.0))
    with pytest.raises(NoWorkFound, match="tract 0, patch 0"):
        run([read(far, 0)], patch)


def test_overlap_of_the_halo_alone_is_no_work(visits: MockVisits, patch: PatchGrid) -> None:
    # The patch ends 24 pixels from its centre, and the detector 10 further.
    near = visits.make(0, offset=(0.2 * (24 + 10 + 64), 0.0), rotation=0.0)
    with pytest.raises(NoWorkFound, match="tract 0, patch 0"):
        run([read(near, 0)], patch, halo=24)


@pytest.mark.parametrize("restorer", ["direct", "imagemm"])
def test_good_pixels_in_the_halo_alone_are_an_error(
    visits: MockVisits, patch: PatchGrid, restorer: str
) -> None:
    image = visits.make(0, rotation=0.0, offset=(0.0, 0.0))
    masked = np.zeros((128, 128), dtype=bool)
    masked[34:94, 34:94] = True
    image.mask.set("BAD", masked)
    config = make_config(halo=24)
    config.restorer.name = restorer
    with pytest.raises(UnusableInputsError, match=r"visit: 0.*no good pixels"):
        BuildLatentCoaddTask(config=config).run(exposures=[read(image, 0)], patch=patch, band="i")


def test_no_exposure_is_no_work(patch: PatchGrid) -> None:
    with pytest.raises(NoWorkFound, match="tract 0, patch 0"):
        run([], patch)


@pytest.mark.parametrize(
    ("component", "problem"), [("sky_projection", InputProblem.NO_WCS), ("bbox", InputProblem.UNREADABLE)]
)
def test_missing_component(visits: MockVisits, component: str, problem: InputProblem) -> None:
    with pytest.raises(BadInputError, match=r"calexp@.*visit: 1.*(write|leave)") as caught:
        read(BrokenHandle(visits.make(BAD), component), BAD)
    assert caught.value.problem == problem


def test_missing_psf_is_left_out(visits: MockVisits, patch: PatchGrid) -> None:
    image = replace(visits.make(BAD), psf=ArchiveReadError("unknown PSF type"))
    result = run_with(image, visits, patch)
    check_left_out(result, visits, patch, "no PSF", "unknown PSF type", "leave")


def test_missing_variance_is_left_out(visits: MockVisits, patch: PatchGrid) -> None:
    readers = [read(visits.make(visit), visit) for visit in range(visits.n_visits)]
    readers[BAD]._source = BrokenHandle(visits.make(BAD), "pixels")
    check_left_out(run(readers, patch), visits, patch, "VARIANCE is not in the file", "write the dataset")


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0, np.inf])
def test_unusable_variance_is_left_out(visits: MockVisits, patch: PatchGrid, value: float) -> None:
    image = visits.make(BAD)
    image.variance.array[:] = value
    result = run_with(image, visits, patch)
    check_left_out(result, visits, patch, "bad variance", "variance plane again")


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0])
def test_few_unusable_variances_cost_those_pixels_alone(
    visits: MockVisits, patch: PatchGrid, value: float
) -> None:
    image = visits.make(BAD)
    # Near the centre, within the patch however the detector is turned.
    image.variance.array[60:64, 60:64] = value
    result = run_with(image, visits, patch)
    assert result.latent_coadd_metrics["rejected_inputs"] == {}
    n_image = result.latent_coadd_n_image.array
    assert n_image.max() == visits.n_visits
    assert 16 <= np.count_nonzero(n_image == visits.n_visits - 1) < 600
    assert np.isfinite(result.latent_coadd.image.array).all()


def test_unmasked_nan_pixels_are_left_out(visits: MockVisits, patch: PatchGrid) -> None:
    image = visits.make(BAD)
    image.image.array[60:64, 60:64] = np.nan
    result = run_with(image, visits, patch)
    assert np.isfinite(result.latent_coadd.image.array).all()
    assert result.latent_coadd_n_image.array.min() == visits.n_visits - 1


def test_all_masked_exposure_is_left_out(visits: MockVisits, patch: PatchGrid) -> None:
    image = visits.make(BAD, mask={"BAD": np.ones((128, 128), dtype=bool)})
    result = run_with(image, visits, patch)
    check_left_out(result, visits, patch, "no good pixels", "data query")


def test_everything_masked_is_an_error_that_lists_all(visits: MockVisits, patch: PatchGrid) -> None:
    masked = {"NO_DATA": np.ones((128, 128), dtype=bool)}
    readers: list[ExposureReader] = [read(visits.make(visit, mask=masked), visit) for visit in range(2)]
    with pytest.raises(UnusableInputsError, match=r"None of the 2.*visit: 0.*visit: 1"):
        run(readers, patch)


def test_mixed_units_that_convert_do_not_matter(visits: MockVisits, patch: PatchGrid) -> None:
    image = visits.make(BAD)
    micro = replace(
        image,
        image=Image(image.image.array / 1000, bbox=image.bbox, unit=u.uJy),
        variance=Image(image.variance.array / 1e6, bbox=image.bbox, unit=u.uJy**2),
    )
    mixed = run_with(micro, visits, patch)
    plain = run_with(image, visits, patch)
    assert mixed.latent_coadd.unit == u.nJy
    np.testing.assert_allclose(
        mixed.latent_coadd.image.array, plain.latent_coadd.image.array, rtol=1e-4, atol=1e-3
    )


def test_unit_that_does_not_convert_is_left_out(visits: MockVisits, patch: PatchGrid) -> None:
    result = run_with(visits.make(BAD, unit=u.electron), visits, patch)
    check_left_out(result, visits, patch, "bad unit", "electron", "nJy", "calibrate")


@pytest.mark.parametrize("field", ["bad_mask_planes", "saturated_mask_planes"])
def test_unknown_mask_plane_is_an_error(visits: MockVisits, patch: PatchGrid, field: str) -> None:
    with pytest.raises(UnknownMaskPlaneError, match=r"calexp@.*visit: 0.*'SATURATEDD'.*configuration"):
        run_with(visits.make(BAD), visits, patch, **{field: ["BAD", "SATURATEDD"]})


def test_one_exposure_alone(visits: MockVisits, patch: PatchGrid) -> None:
    for restorer in ("direct", "imagemm"):
        config = make_config()
        config.restorer.name = restorer
        task = BuildLatentCoaddTask(config=config)
        result = task.run(exposures=[read(visits.make(0), 0)], patch=patch, band="i")
        image = result.latent_coadd.image.array
        assert np.isfinite(image).all()
        assert image.sum() == pytest.approx(5000.0, rel=0.05)
        assert set(np.unique(result.latent_coadd_n_image.array)) == {1}


@pytest.mark.parametrize("restorer", ["direct", "imagemm"])
def test_two_hundred_tiny_exposures(restorer: str) -> None:
    patch = make_mock_patch(24)
    visits = MockVisits(n_visits=200, stars=((0.0, 0.0, 500.0),))
    rng = np.random.default_rng(5)
    readers: list[ExposureReader] = []
    for visit in range(200):
        offset = tuple(rng.uniform(-0.4, 0.4, 2))
        image = visits.make(visit, size=40, fwhm=float(rng.uniform(3, 5)), offset=offset, rotation=0.0)
        readers.append(read(image, visit))
    config = make_config()
    config.restorer.name = restorer
    result = BuildLatentCoaddTask(config=config).run(exposures=readers, patch=patch, band="i")
    assert result.latent_coadd_n_image.array.max() == 200
    # 576 pixels of noise 1 / sqrt(200).
    assert result.latent_coadd.image.array.sum() == pytest.approx(500.0, rel=0.05)
    assert len(result.latent_coadd_metrics["visits"]) == 200


@pytest.mark.parametrize(
    ("stamp", "words"),
    [
        (np.zeros((31, 31)), ("sums to 0", "fit the PSF again")),
        (-np.ones((31, 31)), ("sums to -", "fit the PSF again")),
        (np.full((31, 31), np.nan), ("sums to nan", "fit the PSF again")),
        (np.ones((30, 30)), ("even side", "odd stamp size")),
    ],
    ids=["zero", "negative", "nan", "even"],
)
def test_unusable_psf_is_left_out(
    visits: MockVisits, patch: PatchGrid, stamp: np.ndarray, words: tuple[str, ...]
) -> None:
    psf: PointSpreadFunction = StampPsf(stamp)
    result = run_with(replace(visits.make(BAD), psf=psf), visits, patch)
    check_left_out(result, visits, patch, "no PSF", *words)


def test_bad_input_fails_the_quantum_if_so_configured(visits: MockVisits, patch: PatchGrid) -> None:
    image = visits.make(BAD)
    image.variance.array[:] = np.nan
    with pytest.raises(BadInputError, match="visit: 1"):
        run_with(image, visits, patch, bad_inputs="fail")


def test_unknown_restorer_is_refused() -> None:
    with pytest.raises(FieldValidationError, match=r"no restorer 'imagem'.*'direct'.*'imagemm'"):
        BuildLatentCoaddConfig().restorer.name = "imagem"


@pytest.mark.parametrize(
    ("tract", "number", "words"), [(0, 7, "no patch 7.*0 to 0"), (3, 0, r"no tract 3.*\[0\]")]
)
def test_patch_that_the_sky_map_lacks(tract: int, number: int, words: str) -> None:
    from lsst.latent_coadds.tests._mock import make_mock_geometry

    sky_map = make_mock_geometry().to_dict()
    with pytest.raises(PatchNotFoundError, match=f"{words}.*data query"):
        PatchGrid.from_sky_map(sky_map, skymap="mock", tract=tract, patch=number)
