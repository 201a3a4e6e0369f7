# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Turns of quanta at a device that they share."""

from __future__ import annotations

__all__ = ("wait_for_device",)

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lsst.utils.logging import LsstLogAdapter, PeriodicLogger

from ..restoration import find_devices, hold_device
from ._config import BuildLatentCoaddConfig
from ._metrics import MetricsRecorder
from ._patch_settings import RestorePatchSettings


@contextmanager
def wait_for_device(
    settings: RestorePatchSettings,
    config: BuildLatentCoaddConfig,
    metrics: MetricsRecorder,
    log: LsstLogAdapter,
) -> Iterator[RestorePatchSettings]:
    """Wait for a device, and yield the settings for work on it."""
    kind, started = settings.device, time.perf_counter()
    n_holders = config.quanta_per_device
    if n_holders is None:
        n_holders = 0 if kind == "cpu" else 1
    directory = config.device_lock_directory
    periodic = PeriodicLogger(log, interval=60.0)
    periodic.next_log_time = 0.0  # The first message comes at once.

    def report(waited: float) -> None:
        periodic.log("Waiting for a %s device, which %d other quanta use (%.0f s)", kind, n_holders, waited)

    with hold_device(find_devices(kind), n_holders, directory=directory, on_wait=report) as device:
        metrics.add_timing("waiting", time.perf_counter() - started)
        max_device_memory = settings.max_device_memory
        if n_holders > 1 and kind == "cuda" and not max_device_memory:
            # What is free now will not be, once the others begin.
            _, total = torch.cuda.mem_get_info(device)
            max_device_memory = 0.8 * total / n_holders / 2**30
        yield dataclasses.replace(settings, device=device, max_device_memory=max_device_memory)
