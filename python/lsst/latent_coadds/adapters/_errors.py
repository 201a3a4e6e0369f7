# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = (
    "BadInputError",
    "InputProblem",
    "PatchNotFoundError",
    "UnknownMaskPlaneError",
    "UnknownStatisticError",
    "UnusableInputsError",
)

import enum
from collections.abc import Iterable
from typing import Any

from lsst.pipe.base import AlgorithmError


class InputProblem(enum.StrEnum):
    """Why an exposure could not be used."""

    NO_PSF = "no PSF"
    POOR_PSF = "PSF beyond the limits"
    NO_WCS = "no WCS"
    NO_VARIANCE = "no variance"
    BAD_VARIANCE = "bad variance"
    BAD_UNIT = "bad unit"
    NO_CALIBRATION = "no final calibration"
    NO_GOOD_PIXELS = "no good pixels"
    OTHER_GRID = "not on the pixels of the patch"
    NOT_SELECTED = "not selected"
    UNREADABLE = "unreadable"


class BadInputError(ValueError):
    """An exposure cannot be used.

    Parameters
    ----------
    name : `str`
        Which dataset, as a user would name it to the Butler.
    problem : `InputProblem`
        Kind of defect.
    remedy : `str`
        What is wrong in detail, and what to do about it.
    """

    def __init__(self, name: str, problem: InputProblem, remedy: str) -> None:
        super().__init__(f"{name}: {problem}. {remedy}")
        self.name = name
        self.problem = problem


class UnknownMaskPlaneError(ValueError):
    """A configured mask plane is neither standard nor in the exposure.

    Parameters
    ----------
    dataset : `str`
        Name of the exposure.
    plane : `str`
        The plane.
    present : `~collections.abc.Iterable` [`str`]
        Planes that the exposure has.
    """

    def __init__(self, dataset: str, plane: str, present: Iterable[str]) -> None:
        super().__init__(
            f"{dataset}: there is no mask plane {plane!r}. It has {sorted(present)}; "
            "correct the plane names in the task's configuration."
        )


class UnknownStatisticError(ValueError):
    """A configured statistic is not among those of the exposure.

    Parameters
    ----------
    dataset : `str`
        Name of the exposure.
    name : `str`
        The statistic.
    present : `~collections.abc.Iterable` [`str`]
        Statistics that the exposure has.
    """

    def __init__(self, dataset: str, name: str, present: Iterable[str]) -> None:
        super().__init__(
            f"{dataset}: there is no summary statistic {name!r}. It has {sorted(present)}; "
            "correct the names in the task's configuration."
        )


class PatchNotFoundError(LookupError):
    """The sky map has no such tract or patch."""


class UnusableInputsError(AlgorithmError):
    """None of a patch's exposures can be used.

    Parameters
    ----------
    reasons : `dict` [`str`, `str`]
        Message for each rejected exposure.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        listed = "; ".join(reasons.values())
        super().__init__(f"None of the {len(reasons)} exposures that overlap the patch can be used: {listed}")
        self.reasons = reasons

    @property
    def metadata(self) -> dict[str, Any]:
        return {"n_rejected": len(self.reasons)}
