# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Choice of exposures by their summary statistics."""

from __future__ import annotations

__all__ = ("SummaryLimits",)

import dataclasses
import math
from collections.abc import Iterator, Mapping

from ._errors import BadInputError, InputProblem
from ._exposure_reader import ExposureReader


@dataclasses.dataclass(frozen=True)
class SummaryLimits:
    """Which exposures are good enough, by the statistics that they carry.

    Attributes
    ----------
    minimum, maximum : `~collections.abc.Mapping` [`str`, `float`]
        Limits by the name of a statistic, such as ``nPsfStar``.
    max_residual_ellipticity : `float`, optional
        Largest ``hypot(psfStarDeltaE1Median, psfStarDeltaE2Median)``: the
        median ellipticity that the PSF model leaves in the stars.
    min_effective_time : `float`, optional
        Smallest effective exposure time of the visit, in seconds.
    exclude_detectors : `frozenset` [`int`]
        Detectors that are not used at all.

    Notes
    -----
    These are the criteria of ``PsfWcsSelectImagesTask`` (for detectors) and
    ``BestSeeingSelectVisitsTask`` (for visits) of pipe_tasks. A value that is
    not known, which is NaN, meets no limit.
    """

    minimum: Mapping[str, float] = dataclasses.field(default_factory=dict)
    maximum: Mapping[str, float] = dataclasses.field(default_factory=dict)
    max_residual_ellipticity: float | None = None
    min_effective_time: float | None = None
    exclude_detectors: frozenset[int] = frozenset()

    def check(self, reader: ExposureReader) -> None:
        """Raise if an exposure is not good enough.

        Parameters
        ----------
        reader : `ExposureReader`
            The exposure.

        Raises
        ------
        BadInputError
            If a statistic is beyond its limit, or not known.
        UnknownStatisticError
            If there is no statistic of that name.
        """
        if reader.is_warp:
            # Made of detectors that were chosen already.
            return
        if reader.detector in self.exclude_detectors:
            raise BadInputError(
                reader.name, InputProblem.NOT_SELECTED, f"exclude_detectors has {reader.detector}."
            )
        for found, value, limit in self._compare(reader):
            remedy = " Without the value, switch this limit off." if math.isnan(value) else ""
            raise BadInputError(reader.name, InputProblem.NOT_SELECTED, f"{found}, {limit}.{remedy}")

    def _compare(self, reader: ExposureReader) -> Iterator[tuple[str, float, str]]:
        """Yield what is beyond a limit, its value, and the limit."""
        if self.min_effective_time is not None:
            value = reader.effective_time
            if not value >= self.min_effective_time:
                yield (
                    f"The effective exposure time (effTime) of its visit is {value:.4g} s",
                    value,
                    f"and min_effective_time is {self.min_effective_time:g}",
                )
        if self.max_residual_ellipticity is not None:
            parts = [reader.get_statistic(f"psfStarDeltaE{i}Median") for i in (1, 2)]
            value = math.hypot(*parts)
            if not value <= self.max_residual_ellipticity:
                yield (
                    f"The median residual ellipticity of its stars is {value:.4g}",
                    value,
                    f"and max_residual_ellipticity is {self.max_residual_ellipticity:g}",
                )
        for name, limit in self.minimum.items():
            value = reader.get_statistic(name)
            if not value >= limit:
                yield f"Its {name} is {value:.4g}", value, f"and visit_summary_min_values has {limit:g}"
        for name, limit in self.maximum.items():
            value = reader.get_statistic(name)
            if not value <= limit:
                yield f"Its {name} is {value:.4g}", value, f"and visit_summary_max_values has {limit:g}"
