# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which exposures a patch is made of."""

from __future__ import annotations

__all__ = ("describe_selection", "select_exposures", "split_exposures")

from collections.abc import Sequence
from typing import Any

from lsst.utils.logging import LsstLogAdapter

from ..adapters import BadInputError, ExposureReader, InputProblem, PsfLimits, SummaryLimits
from ._config import BuildLatentCoaddConfig
from ._metrics import MetricsRecorder

_LIMITS = (
    *("max_psf_fwhm", "max_psf_ellipticity", "min_effective_time", "max_residual_ellipticity"),
    *("visit_summary_min_values", "visit_summary_max_values", "exclude_detectors"),
)


def split_exposures(
    exposures: Sequence[ExposureReader],
    rejected: Sequence[BadInputError],
    config: BuildLatentCoaddConfig,
) -> tuple[list[ExposureReader], list[BadInputError]]:
    """Take warps apart into their detectors, each of which has a PSF without jumps.

    Returns the exposures, and the errors of all that cannot be used.
    """
    readers: list[ExposureReader] = []
    errors = list(rejected)
    for reader in exposures:
        try:
            readers += reader.split()
        except BadInputError as error:
            if config.bad_inputs == "fail":
                raise
            errors.append(error)
    return readers, errors


def select_exposures(
    exposures: Sequence[ExposureReader],
    config: BuildLatentCoaddConfig,
    metrics: MetricsRecorder,
    log: LsstLogAdapter,
) -> list[ExposureReader]:
    """Leave out the exposures that are beyond the configured limits.

    They are listed in the metrics, and are no defect, whatever
    ``config.bad_inputs`` says.
    """
    criteria = _make_criteria(config)
    selected = []
    for reader in exposures:
        try:
            for limits in criteria:
                limits.check(reader)
        except BadInputError as error:
            if error.problem in (InputProblem.POOR_PSF, InputProblem.NOT_SELECTED):
                log.info("Leaving out %s", error)
                metrics.reject(error)
                continue
        selected.append(reader)
    return selected


def describe_selection(config: BuildLatentCoaddConfig) -> dict[str, Any]:
    """Return the limits that are in use, for the metrics."""
    values = config.toDict()
    return {name: values[name] for name in _LIMITS if values[name] not in (None, [], {})}


def _make_criteria(config: BuildLatentCoaddConfig) -> tuple[SummaryLimits, PsfLimits]:
    """Return the limits; the first are cheaper to check."""
    summary = SummaryLimits(
        minimum=dict(config.visit_summary_min_values),
        maximum=dict(config.visit_summary_max_values),
        max_residual_ellipticity=config.max_residual_ellipticity,
        min_effective_time=config.min_effective_time,
        exclude_detectors=frozenset(config.exclude_detectors),
    )
    return summary, PsfLimits(config.max_psf_fwhm, config.max_psf_ellipticity)
