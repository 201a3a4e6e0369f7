# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("FractionField",)

from typing import Any

from lsst.pex.config import Config, Field


class FractionField(Field[str]):
    """A fraction as text, which may also be set to a number.

    Command lines turn ``2`` into a number and leave ``3/2`` as it is.
    """

    def __set__(self, instance: Config, value: Any, at: Any = None, label: str = "assignment") -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        super().__set__(instance, value, at=at, label=label)
