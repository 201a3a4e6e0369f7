# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Multi-frame restoration of the sky as an LSST Science Pipelines plugin."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tasks import (
        AnalyzeLatentCoaddConfig,
        AnalyzeLatentCoaddTask,
        BuildLatentCoaddConfig,
        BuildLatentCoaddTask,
        SummarizeLatentCoaddsConfig,
        SummarizeLatentCoaddsTask,
    )

__all__ = (
    "AnalyzeLatentCoaddConfig",
    "AnalyzeLatentCoaddTask",
    "BuildLatentCoaddConfig",
    "BuildLatentCoaddTask",
    "SummarizeLatentCoaddsConfig",
    "SummarizeLatentCoaddsTask",
)


def __getattr__(name: str) -> Any:
    # Lazily, so that the numeric core can be imported without any of LSST.
    if name in __all__:
        from . import tasks

        return getattr(tasks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
