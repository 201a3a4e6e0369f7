# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tiles: what they hold together, and what happens when memory ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch

from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import PatchGrid, to_window
from lsst.latent_coadds.restoration import ExposureStack, Restoration, restore
from lsst.latent_coadds.tasks import TilePlan, choose_halo, restorer_registry
from lsst.latent_coadds.tests._mock import MockVisits, make_mock_geometry, make_mock_patch, read_mock
from lsst.pex.config import Config
from lsst.pipe.base import Struct

STARS = ((0.0, 0.0, 3000.0), (5.1, -4.3, 1000.0), (-4.2, 3.3, 800.0))


class SmallMemoryRestorer:
    """A plain coadd that fails beyond a number of pixels."""

    ConfigClass: ClassVar[type[Config]] = Config
    has_chosen_psf = False
    trains_per_patch = False
    largest: ClassVar[int] = 64 * 64
    error: ClassVar[Callable[[], Exception]] = MemoryError
    shapes: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, config: Config) -> None:
        pass

    def train(self, *arguments: object, **options: object) -> SmallMemoryRestorer:
        return self

    def restore(
        self, stack: ExposureStack, *, device: str, generator: torch.Generator, progress: object = None
    ) -> Restoration:
        if stack.shape[0] * stack.shape[1] > self.largest:
            raise self.error()
        self.shapes.append(stack.shape)
        return restore(stack, "direct", device=device, generator=generator)


restorer_registry.register("small memory", SmallMemoryRestorer)


def _run(method: str, patch: PatchGrid | None = None, n_visits: int = 4, **settings: object) -> Struct:
    config = BuildLatentCoaddConfig()
    config.restorer.name = method
    config.device = "cpu"
    active = settings.pop("active", {})
    for name, value in active.items():
        setattr(config.restorer.active, name, value)
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    readers = MockVisits(n_visits=n_visits, stars=STARS).readers()
    return BuildLatentCoaddTask(config=config).run(
        exposures=readers, patch=patch or make_mock_patch(), band="i"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError,
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_smaller_tiles_where_memory_runs_out(
    error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SmallMemoryRestorer, "error", staticmethod(error))
    SmallMemoryRestorer.shapes.clear()
    with caplog.at_level(logging.WARNING):
        result = _run("small memory", halo=6)
    assert "Memory ran out" in caplog.text
    assert "max_memory" in caplog.text
    assert max(SmallMemoryRestorer.shapes) <= (64, 64)
    metrics = result.latent_coadd_metrics
    assert metrics["tile_size"] > 96
    assert metrics["smallest_tile_size"] == 64
    assert metrics["peak_memory"] > 0.05
    whole = _run("direct")
    assert np.array_equal(result.latent_coadd.image.array, whole.latent_coadd.image.array, equal_nan=True)
    assert result.latent_coadd.mask == whole.latent_coadd.mask


def test_memory_that_never_suffices_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallMemoryRestorer, "largest", 100)
    monkeypatch.setattr(SmallMemoryRestorer, "error", MemoryError)
    with pytest.raises(MemoryError):
        _run("small memory")


def test_tile_size_follows_the_memory() -> None:
    patch = make_mock_patch(4200)
    sizes = {}
    for n_exposures in (8, 33):
        for max_memory in (2.5, 4.0, 8.0):
            plan = TilePlan(
                exposures=[],
                patch=patch,
                method="imagemm",
                halo=40,
                native=False,
                device="cpu",
                max_memory=max_memory,
                max_device_memory=0.0,
            )
            plan._count_overlap = lambda n=33, count=n_exposures: count  # type: ignore[method-assign]
            sizes[n_exposures, max_memory] = plan.tile_size()
    assert sizes[33, 2.5] < sizes[33, 4.0] < sizes[8, 4.0] <= sizes[8, 8.0] <= 1024
    assert sizes[33, 4.0] > 300


def test_little_memory_makes_small_tiles_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = _run("direct", max_memory=0.5)
    # The interpreter alone takes more, so that the smallest tiles are taken.
    assert result.latent_coadd_metrics["tile_size"] == 64
    assert "allow more" in caplog.text
    assert len(result.latent_coadd_metrics["tiles"]) == 4


def test_halo_follows_the_psf() -> None:
    patch = make_mock_patch()
    sharp, blurred = (
        choose_halo([MockVisits().readers()[0]] if fwhm is None else _readers(fwhm), patch)
        for fwhm in (None, 9.0)
    )
    assert 16 <= sharp < blurred <= 128
    assert choose_halo(_readers(9.0), patch.refined(2)) > 1.5 * blurred


def test_halo_asks_only_detectors_that_may_reach() -> None:
    def refuse(**position: float) -> np.ndarray:
        raise AssertionError("The PSF of a detector that lies elsewhere is of no interest.")

    patch = make_mock_patch()
    near, far = MockVisits().make(0), MockVisits().make(1, offset=(120.0, 0.0))
    readers = [read_mock(near, 0), read_mock(far, 1)]
    readers[1].compute_psf_kernel = refuse  # type: ignore[method-assign]
    assert choose_halo(readers, patch) == choose_halo(readers[:1], patch)
    readers[0].compute_psf_kernel = refuse  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        choose_halo(readers, patch)


def _readers(fwhm: float) -> list:
    return [read_mock(MockVisits().make(0, fwhm=fwhm), 0)]


def test_parts_to_train_on_take_no_more_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []

    def train(self: object, stacks: list[ExposureStack], **options: object) -> object:
        numbers.append(len(stacks))
        return self

    monkeypatch.setattr(SmallMemoryRestorer, "trains_per_patch", True)
    monkeypatch.setattr(SmallMemoryRestorer, "train", train)
    monkeypatch.setattr(SmallMemoryRestorer, "largest", 10**6)
    for size in (256, 40):
        monkeypatch.setattr(TilePlan, "tile_size", lambda self, size=size: size)
        _run("small memory", tile_size=48, halo=16)
    assert numbers == [8, 1]


@pytest.mark.parametrize("geometry", ["registered", "native"])
def test_plain_coadd_has_no_seams(geometry: str) -> None:
    whole = _run("direct", geometry=geometry).latent_coadd
    tiled = _run("direct", geometry=geometry, tile_size=40).latent_coadd
    sigma = np.sqrt(np.nanmedian(whole.variance.array))
    assert np.nanmax(np.abs(whole.image.array - tiled.image.array)) < 0.002 * sigma
    assert tiled.mask == whole.mask


@pytest.mark.parametrize("geometry", ["registered", "native"])
def test_imagemm_has_no_seams(geometry: str) -> None:
    """To 2 % of the noise, once the fits are carried on long enough."""
    settings = {"geometry": geometry, "active": {"tolerance": 0.0, "n_iter": 60}}
    whole = _run("imagemm", **settings).latent_coadd
    tiled = _run("imagemm", tile_size=48, **settings).latent_coadd
    sigma = np.sqrt(whole.variance.array)
    difference = (tiled.image.array - whole.image.array) / sigma
    near = np.zeros(difference.shape, dtype=bool)
    near[:, 44:52] = near[44:52] = True
    assert np.sqrt(np.nanmean(difference[near] ** 2)) < 0.02
    assert np.sqrt(np.nanmean(difference**2)) < 0.02


def test_neighbouring_patches_agree_in_their_overlap() -> None:
    geometry = make_mock_geometry(64, n_x=2, border=10)
    coadds = []
    for number in (0, 1):
        patch = PatchGrid.from_sky_map(geometry.to_dict(), skymap="mock", tract=0, patch=number)
        coadds.append((patch, _run("imagemm", patch).latent_coadd))
    shared = coadds[0][0].outer_bbox.intersection(coadds[1][0].outer_bbox)
    assert shared.x.size == 20
    left, right = (
        (coadd.image.array[shared.slice_within(patch.outer_bbox)], coadd) for patch, coadd in coadds
    )
    variance = coadds[0][1].variance.array[shared.slice_within(coadds[0][0].outer_bbox)]
    both = np.isfinite(left[0]) & np.isfinite(right[0])
    assert both.mean() > 0.8
    difference = ((left[0] - right[0]) / np.sqrt(variance))[both]
    # The same data went into both.
    assert np.sqrt((difference**2).mean()) < 0.02
    assert np.abs(difference).max() < 0.1


def test_exposures_are_read_again_when_the_cache_is_full() -> None:
    cached = _run("direct", tile_size=40, cache_memory=1.0)
    read = _run("direct", tile_size=40, cache_memory=0.0)
    assert np.array_equal(cached.latent_coadd.image.array, read.latent_coadd.image.array, equal_nan=True)


def test_progress_tells_the_remaining_time(caplog: pytest.LogCaptureFixture) -> None:
    task = BuildLatentCoaddTask(config=BuildLatentCoaddConfig())
    lines = []

    class Reporter:
        progress = staticmethod(lines.append)
        warn = staticmethod(lines.append)

    from lsst.latent_coadds.tasks import MetricsRecorder, configure_patch, prepare_exposures, restore_patch

    task.config.tile_size = 48
    task.config.restorer.name = "direct"
    task.restorer = task.config.restorer.apply()
    patch = make_mock_patch()
    readers = MockVisits(n_visits=2, stars=STARS).readers()
    settings = configure_patch(task.config, task.restorer, readers, patch)
    exposures = prepare_exposures(readers, patch, settings, lambda error: None)
    restore_patch(exposures, patch, task.restorer, settings, MetricsRecorder(2), Reporter())
    assert [line.partition(";")[2].split()[0] for line in lines] == ["25", "50", "75", "100"]
    assert "left" in lines[0]
    assert to_window(patch.outer_bbox).size == 96 * 96
