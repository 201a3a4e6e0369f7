# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import numpy as np
import pytest
import yaml

from lsst.images.cells import CellCoadd, CellIJ
from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import BadInputError, InputProblem
from lsst.latent_coadds.restoration import SETTINGS_CLASSES, ExposureStack, save_weights, train_weights
from lsst.latent_coadds.tests._mock import MockVisits, make_mock_patch, read_mock
from lsst.pex.config import FieldValidationError
from lsst.pipe.base import Struct

STARS = ((0.0, 0.0, 5000.0), (5.1, -4.3, 1000.0))
POSITIONS = ((47.5, 47.5), (47.5 - 5.1 / 0.2, 47.5 - 4.3 / 0.2))


def _run(
    method: str = "direct", *, n_visits: int = 5, readers: list | None = None, **settings: object
) -> Struct:
    config = BuildLatentCoaddConfig()
    config.restorer.name = method
    config.device = "cpu"
    configure = settings.pop("configure", None)
    if configure is not None:
        configure(config)
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    task = BuildLatentCoaddTask(config=config)
    visits = MockVisits(n_visits=n_visits, stars=STARS)
    patch = make_mock_patch()
    return task.run(exposures=readers or visits.readers(), patch=patch, band="i")


def _psf_flux(coadd: CellCoadd, x: float, y: float) -> float:
    """Fit the attached PSF, moved by the Fourier shift theorem."""
    kernel = coadd.psf.compute_kernel_image(x=x, y=y).array
    half = kernel.shape[0] // 2
    column, row = round(x), round(y)
    frequency_y = np.fft.fftfreq(kernel.shape[0])[:, None]
    frequency_x = np.fft.fftfreq(kernel.shape[1])[None, :]
    phase = np.exp(-2j * np.pi * (frequency_x * (x - column) + frequency_y * (y - row)))
    model = np.fft.ifft2(np.fft.fft2(kernel) * phase).real
    cut = coadd.image.array[row - half : row + half + 1, column - half : column + half + 1]
    return float((model * cut).sum() / (model * model).sum())


@pytest.mark.parametrize("method", ["direct", "imagemm"])
def test_stars_keep_position_and_flux(method: str) -> None:
    coadd = _run(method).latent_coadd
    for (x, y), (_, _, flux) in zip(POSITIONS, STARS, strict=True):
        half = 8
        row, column = round(y), round(x)
        cut = coadd.image.array[row - half : row + half + 1, column - half : column + half + 1].astype(float)
        rows, columns = np.mgrid[row - half : row + half + 1, column - half : column + half + 1]
        assert cut.sum() == pytest.approx(flux, rel=0.02)
        assert (cut * columns).sum() / cut.sum() == pytest.approx(x, abs=0.15)
        assert (cut * rows).sum() / cut.sum() == pytest.approx(y, abs=0.15)


def test_outputs_describe_themselves(tmp_path) -> None:
    result = _run("imagemm", cell_size=48)
    coadd = result.latent_coadd
    assert str(coadd.unit) == "nJy"
    assert coadd.band == "i"
    assert coadd.bbox == make_mock_patch().outer_bbox
    assert tuple(coadd.grid.cell_shape) == (48, 48)
    assert coadd.psf[CellIJ(1, 1)].array.sum() == pytest.approx(1.0, abs=1e-5)
    assert coadd.psf[CellIJ(0, 0)].array.shape[0] % 2 == 1
    inputs = coadd.provenance.inputs
    assert sorted(inputs["visit"]) == [0, 1, 2, 3, 4]
    assert set(inputs["instrument"]) == {"Mock"}
    assert set(inputs["physical_filter"]) == {"i-mock"}
    assert set(inputs["day_obs"]) == {20260101}
    assert all(polygon.area > 0.9 * coadd.bbox.area for polygon in inputs["polygon"])
    contributions = coadd.provenance.contributions
    assert len(contributions) == 20
    assert (contributions["weight"] > 0).all()
    # A Gaussian of FWHM 3.5 pixels, as the first visit has.
    first = contributions[contributions["visit"] == 0]
    assert np.allclose(first["psf_shape_xx"], (3.5 / 2.35482) ** 2, rtol=0.02)
    assert not contributions["psf_shape_flag"].any()
    assert (result.latent_coadd_n_image.array == 5).mean() > 0.9
    path = tmp_path / "coadd.fits"
    coadd.write(str(path))
    back = CellCoadd.read(str(path))
    assert np.array_equal(back.image.array, coadd.image.array, equal_nan=True)
    assert back.mask == coadd.mask
    assert len(back.provenance.inputs) == 5


def test_metrics_are_plain_and_complete() -> None:
    metrics = _run("imagemm").latent_coadd_metrics
    assert yaml.safe_load(yaml.safe_dump(metrics)) == metrics
    assert metrics["restorer"] == "imagemm"
    assert metrics["device"] == "cpu"
    assert set(metrics["visits"]) == {"0", "1", "2", "3", "4"}
    for figures in metrics["visits"].values():
        assert figures["chi2"] == pytest.approx(1.0, abs=0.05)
    assert sum(entry["weight_fraction"] for entry in metrics["inputs"]) == pytest.approx(1.0)
    assert metrics["tiles"][0]["history"]
    assert metrics["n_iterations"] > 0
    assert metrics["timings"]["total"] > 0
    # Gaussians of FWHM 3.5 to 4.7 pixels, and noise of 1 nJy in each pixel.
    precision = sum(1.0 / (4.0 * np.pi * ((3.5 + 0.3 * visit) / 2.35482) ** 2) for visit in range(5))
    limit = 31.4 - 2.5 * np.log10(5.0 * precision**-0.5)
    assert metrics["limiting_magnitude"] == pytest.approx(limit, abs=0.03)
    assert limit - 0.3 < metrics["limiting_magnitude_shallow"] <= metrics["limiting_magnitude"]


def test_exposures_that_cannot_be_opened_are_counted() -> None:
    config = BuildLatentCoaddConfig()
    config.restorer.name = "direct"
    unreadable = BadInputError("calexp@9", InputProblem.UNREADABLE, "Write it again.")
    result = BuildLatentCoaddTask(config=config).run(
        exposures=MockVisits(n_visits=2, stars=STARS).readers(),
        patch=make_mock_patch(),
        band="i",
        rejected=[unreadable],
    )
    metrics = result.latent_coadd_metrics
    assert (metrics["n_offered"], metrics["n_inputs"]) == (3, 2)
    assert metrics["rejected_inputs"] == {"calexp@9": str(unreadable)}


def test_direct_psf_is_that_of_the_stars() -> None:
    coadd = _run("direct").latent_coadd
    for (x, y), (_, _, flux) in zip(POSITIONS, STARS, strict=True):
        assert _psf_flux(coadd, x, y) == pytest.approx(flux, rel=0.02)


def test_tiles_leave_no_seam_in_the_plain_coadd() -> None:
    whole = _run("direct", tile_size=600).latent_coadd
    tiled = _run("direct", tile_size=40).latent_coadd
    difference = np.abs(whole.image.array - tiled.image.array)
    sigma = np.sqrt(np.nanmedian(whole.variance.array))
    assert np.nanmax(difference) < 0.02 * sigma
    assert tiled.mask.get("SENSOR_EDGE").tolist() == whole.mask.get("SENSOR_EDGE").tolist()


def test_masked_pixels_are_left_out_and_marked() -> None:
    visits = MockVisits(stars=STARS)
    saturated = np.zeros((128, 128), dtype=bool)
    saturated[60:68, 60:68] = True
    images = [visits.make(t, mask={"SATURATED": saturated}, rotation=0.0, offset=(0, 0)) for t in range(2)]
    images += [visits.make(t, rotation=0.0, offset=(0.0, 0.0)) for t in range(2, 5)]
    images[0].image.array[saturated] = 1e6
    images[1].image.array[saturated] = 1e6
    result = _run("direct", readers=[read_mock(image, t) for t, image in enumerate(images)])
    mask = result.latent_coadd.mask
    for plane in ("SATURATED", "REJECTED", "INEXACT_PSF"):
        assert mask.get(plane)[47, 47]
    assert not mask.get("REJECTED")[10, 10]
    assert result.latent_coadd_n_image.array[47, 47] == 3
    assert result.latent_coadd.image.array[47, 47] < 1e4
    assert not mask.get("NO_DATA").any()


def test_pixels_without_data_are_nan_and_marked() -> None:
    visits = MockVisits(stars=STARS)
    readers = [read_mock(visits.make(t, size=26, rotation=0.0, offset=(0, 0)), t) for t in range(2)]
    result = _run("imagemm", readers=readers, cell_size=32)
    coadd = result.latent_coadd
    empty = coadd.mask.get("NO_DATA")
    assert empty[5, 5]
    assert not empty[48, 48]
    assert np.isnan(coadd.image.array[empty]).all()
    assert np.isnan(coadd.variance.array[empty]).all()
    assert np.isfinite(coadd.image.array[~empty]).all()
    assert (coadd.variance.array[~empty] > 0).all()
    assert CellIJ(0, 0) in coadd.bounds.missing


def test_same_seed_same_result() -> None:
    first, second = (_run("imagemm", seed=3).latent_coadd for _ in range(2))
    assert np.array_equal(first.image.array, second.image.array, equal_nan=True)
    assert np.array_equal(first.variance.array, second.variance.array, equal_nan=True)


def test_order_of_exposures_does_not_matter() -> None:
    readers = MockVisits(stars=STARS).readers()
    forward = _run("imagemm", readers=readers).latent_coadd
    backward = _run("imagemm", readers=readers[::-1]).latent_coadd
    assert np.array_equal(forward.image.array, backward.image.array, equal_nan=True)


def test_config_mirrors_the_settings() -> None:
    config = BuildLatentCoaddConfig()
    for method, settings_class in SETTINGS_CLASSES.items():
        assert settings_class(**config.restorer[method].toDict()) == settings_class()
    with pytest.raises(FieldValidationError):
        config.restorer["imagemm"].n_iter = -3
    with pytest.raises(FieldValidationError):
        config.restorer["imagemm"].form = "quick"
    config.seed = -1
    with pytest.raises(FieldValidationError, match="seed"):
        config.validate()


@pytest.mark.parametrize("method", ["astroclearnet", "combined"])
def test_one_network_serves_all_tiles(method: str, tmp_path) -> None:
    def configure(config: BuildLatentCoaddConfig) -> None:
        active = config.restorer[method]
        active.width, active.crop = 8, 64
        if method == "astroclearnet":
            active.n_iter, active.learning_rate, active.pixel_spread = 60, 0.01, 0.5
        else:
            active.network_steps = 60

    settings = {"n_training_crops": 2, "training_crop_size": 64, "halo": 24, "configure": configure}
    tiled = _run(method, tile_size=48, **settings)
    metrics = tiled.latent_coadd_metrics
    assert len(metrics["tiles"]) == 4
    # Trained once for all, and applied to each tile as it is.
    assert metrics["timings"]["training"] > 0
    assert all(tile["n_iterations"] == 0 for tile in metrics["tiles"])
    image = tiled.latent_coadd.image.array
    # A few seconds of training; what it ends with is tested elsewhere.
    assert image[39:56, 39:56].sum() == pytest.approx(5000.0, rel=0.15)
    # No step across the seams, beyond what pixels differ by anyway.
    steps = np.abs(np.diff(image, axis=1))
    sky = np.r_[5:20, 60:90]
    assert np.median(steps[sky, 47]) < 3 * np.median(steps[sky]) + 0.02


def test_training_starts_from_stored_weights(tmp_path) -> None:
    def configure(config: BuildLatentCoaddConfig) -> None:
        config.restorer["astroclearnet"].width = 8
        config.restorer["astroclearnet"].n_iter = 1

    stack = ExposureStack(
        np.random.default_rng(1).normal(size=(2, 64, 64)),
        np.ones((2, 64, 64)),
        np.ones((2, 64, 64), dtype=bool),
        np.ones((2, 5, 5)),
    )
    weights = train_weights([stack], "astroclearnet", width=8, n_iter=1)
    save_weights(weights, tmp_path / "weights.pt")
    result = _run("astroclearnet", initial_weights=str(tmp_path / "weights.pt"), configure=configure)
    assert result.latent_coadd_metrics["tiles"][0]["n_iterations"] == 0
    (tmp_path / "bad.pt").write_text("nothing")
    with pytest.raises(ValueError, match="holds no weights"):
        _run("astroclearnet", initial_weights=str(tmp_path / "bad.pt"), configure=configure)
