# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("LogReporter", "Reporter")

from typing import Protocol

from lsst.utils.logging import LsstLogAdapter, PeriodicLogger


class Reporter(Protocol):
    """Where to say how the work goes."""

    def progress(self, line: str) -> None:
        """Say where the work is; called often."""

    def warn(self, line: str) -> None:
        """Say what a user should know."""


class LogReporter:
    """Reports progress now and then, and warnings at once.

    Parameters
    ----------
    log : `lsst.utils.logging.LsstLogAdapter`
        Where to.
    """

    def __init__(self, log: LsstLogAdapter) -> None:
        self._log = log
        self._periodic = PeriodicLogger(log, interval=10.0)

    def progress(self, line: str) -> None:
        """Say where the work is, if that was not said just now."""
        self._periodic.log("%s", line)

    def warn(self, line: str) -> None:
        """Say what a user should know."""
        self._log.warning("%s", line)
