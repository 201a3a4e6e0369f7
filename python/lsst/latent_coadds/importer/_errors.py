# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("BadExposureError", "ManifestError")


class ManifestError(ValueError):
    """A manifest or an option that cannot be understood."""


class BadExposureError(ValueError):
    """An exposure that cannot be imported.

    Parameters
    ----------
    name : `str`
        The exposure or file.
    reason : `str`
        What is wrong, and what to do about it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason
