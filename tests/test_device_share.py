# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Processes take turns at a device."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.restoration import find_devices, hold_device
from lsst.latent_coadds.tests import MockVisits, make_mock_patch
from lsst.pipe.base import Struct

INTERVAL = 0.01


HOLD = """
import sys
from lsst.latent_coadds.restoration import hold_device
with hold_device([sys.argv[2]], 1, directory=sys.argv[1]) as device:
    print(device, flush=True)
    sys.stdin.read(1)
"""


class _Holder:
    """Another process that holds a device until it is told to let it go."""

    def __init__(self, directory: Path, device: str) -> None:
        command = [sys.executable, "-c", HOLD, str(directory), device]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.device = self._process.stdout.readline().strip()

    def release(self) -> None:
        self._process.communicate(".")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def _holding(directory: Path, device: str = "cpu") -> Iterator[_Holder]:
    holder = _Holder(directory, device)
    try:
        yield holder
    finally:
        if holder._process.poll() is None:
            holder.kill()


@pytest.mark.parametrize("end", ["release", "kill"])
def test_waits_until_the_other_process_ends(tmp_path: Path, end: str) -> None:
    waited = []
    with _holding(tmp_path) as holder:
        assert holder.device == "cpu"

        def on_wait(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 5:
                getattr(holder, end)()

        with hold_device(["cpu"], 1, directory=tmp_path, on_wait=on_wait, interval=INTERVAL) as device:
            assert device == "cpu"
    assert len(waited) == 5
    assert waited == sorted(waited)


def test_free_device_is_preferred(tmp_path: Path) -> None:
    # A lock belongs to an open file: within one process, they exclude each other as well.
    with (
        hold_device(["a:0", "a:1"], 1, directory=tmp_path, on_wait=pytest.fail) as first,
        hold_device(["a:0", "a:1"], 1, directory=tmp_path, on_wait=pytest.fail) as second,
    ):
        assert (first, second) == ("a:0", "a:1")


def test_devices_are_shared_once_all_are_in_use(tmp_path: Path) -> None:
    devices = ["a:0", "a:1"]
    with contextlib.ExitStack() as everything:
        stacks = [everything.enter_context(contextlib.ExitStack()) for _ in range(4)]
        held = [
            stack.enter_context(hold_device(devices, 2, directory=tmp_path, on_wait=pytest.fail))
            for stack in stacks
        ]
        assert held == ["a:0", "a:1", "a:0", "a:1"]

        def on_wait(seconds: float) -> None:
            stacks[1].close()

        with hold_device(devices, 2, directory=tmp_path, on_wait=on_wait, interval=INTERVAL) as device:
            assert device == "a:1"


def test_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold_device(["cpu"], 1, directory=tmp_path):
        raise KeyError("work failed")
    with hold_device(["cpu"], 1, directory=tmp_path, on_wait=pytest.fail):
        pass


def test_any_number_needs_no_files(tmp_path: Path) -> None:
    with hold_device(["cpu"], 0, directory=tmp_path / "missing") as device:
        assert device == "cpu"


def test_bad_directory_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="choose another directory.*missing"),
        hold_device(["cpu"], 1, directory=tmp_path / "missing"),
    ):
        pass


def test_no_device() -> None:
    with pytest.raises(ValueError, match="no device"), hold_device([], 1):
        pass


def test_the_cpu_is_one_device() -> None:
    assert find_devices("cpu") == ["cpu"]


def _run(directory: Path, **settings: object) -> Struct:
    config = BuildLatentCoaddConfig()
    config.restorer.name = "direct"
    config.device = "cpu"
    config.device_lock_directory = str(directory)
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    task = BuildLatentCoaddTask(config=config)
    return task.run(exposures=MockVisits(n_visits=2).readers(), patch=make_mock_patch(), band="i")


def test_task_waits_for_its_device(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with _holding(tmp_path) as holder:

        class Release(logging.Filter):
            def filter(self, record: logging.LogRecord) -> bool:
                if "Waiting for a cpu device" in record.getMessage():
                    holder.kill()
                return True

        caplog.handler.addFilter(release := Release())
        try:
            with caplog.at_level(logging.INFO):
                result = _run(tmp_path, quanta_per_device=1)
        finally:
            caplog.handler.removeFilter(release)
    assert "Waiting for a cpu device, which 1 other quanta use (0 s)" in caplog.text
    assert result.latent_coadd_metrics["timings"]["waiting"] > 0.4


def test_tasks_on_the_cpu_do_not_wait_by_default(tmp_path: Path) -> None:
    with _holding(tmp_path):
        result = _run(tmp_path)
    assert result.latent_coadd_metrics["timings"]["waiting"] < 0.1
