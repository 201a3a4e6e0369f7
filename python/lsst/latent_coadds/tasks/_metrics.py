# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("MetricsRecorder",)

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..adapters import BadInputError, CellAccumulator, PatchExposure, Tile
from ..qa import to_magnitude
from ..restoration import Restoration, peak_memory

_DETECTION = 5.0
"""Significance at which a point source counts as detected."""

_DEPTH_STEP = 4
"""Every so many pixels the depth is recorded."""


@dataclasses.dataclass
class _ExposureFigures:
    chi2_sum: float = 0.0
    n_good: int = 0
    expected_sum: float = 0.0


class MetricsRecorder:
    """Collects the figures that describe how a patch was restored.

    Parameters
    ----------
    n_offered : `int`
        Number of exposures that were offered, usable or not.
    """

    def __init__(self, n_offered: int) -> None:
        self._n_offered = n_offered
        self._rejected: dict[str, str] = {}
        self._figures: dict[str, _ExposureFigures] = {}
        self._tiles: list[dict[str, Any]] = []
        self._closure = {"model": 0.0, "data": 0.0}
        self._closure_variance = 0.0
        self._device = ""
        self._timings: dict[str, float] = {}
        self._plan: dict[str, Any] = {}
        self._psf_errors: dict[str, float] = {}
        self._point_errors: list[np.ndarray] = []

    @property
    def rejected(self) -> dict[str, str]:
        """Message for each exposure that could not be used (`dict`)."""
        return dict(self._rejected)

    def reject(self, error: BadInputError) -> None:
        """Record that an exposure cannot be used."""
        self._rejected[error.name] = str(error)

    def describe_plan(self, **entries: Any) -> None:
        """Record how the patch was divided."""
        self._plan.update(entries)

    def add_timing(self, name: str, seconds: float) -> None:
        """Add to the time spent on a stage of the work."""
        self._timings[name] = self._timings.get(name, 0.0) + seconds

    def add_tile(self, tile: Tile, restoration: Restoration, registration: float) -> None:
        """Record the figures of a restored tile.

        Parameters
        ----------
        tile : `~lsst.latent_coadds.adapters.Tile`
            The exposures.
        restoration : `~lsst.latent_coadds.restoration.Restoration`
            The result.
        registration : `float`
            Seconds that reading and registering took.
        """
        self._device = restoration.device
        for position, name in enumerate(tile.stack.names):
            figures = self._figures.setdefault(name, _ExposureFigures())
            self._psf_errors[name] = max(self._psf_errors.get(name, 0.0), tile.psf_error[position])
            n_good, chi2 = int(restoration.n_good[position]), float(restoration.chi2[position])
            if n_good and math.isfinite(chi2):
                figures.n_good += n_good
                figures.chi2_sum += chi2 * n_good
                figures.expected_sum += tile.pixel_variance_ratio[position] * n_good
        closure = restoration.flux_closure
        for key in self._closure:
            self._closure[key] += float(closure[key])
        if closure["sigma"]:
            self._closure_variance += ((closure["model"] - closure["data"]) / closure["sigma"]) ** 2
        self.add_timing("registration", registration)
        for stage, seconds in restoration.timings.items():
            self.add_timing(stage, seconds)
        self._tiles.append(
            {
                "x": [tile.inner.x.start, tile.inner.x.stop],
                "y": [tile.inner.y.start, tile.inner.y.stop],
                "n_exposures": len(tile.members),
                "n_iterations": int(restoration.n_iterations),
                "converged": bool(restoration.converged),
                "history": [_plain(entry) for entry in restoration.history],
            }
        )

    def add_point_errors(self, errors: np.ndarray) -> None:
        """Record the flux errors, (h, w) in nJy, of point sources in a part of the patch."""
        # The depth is the same from one pixel to the next.
        seen = errors[::_DEPTH_STEP, ::_DEPTH_STEP]
        self._point_errors.append(seen[np.isfinite(seen)])

    def to_dict(
        self,
        exposures: Sequence[PatchExposure],
        cells: CellAccumulator | None,
        **header: Any,
    ) -> dict[str, Any]:
        """Return everything as plain types.

        Parameters
        ----------
        exposures : `~collections.abc.Sequence` [`~lsst.latent_coadds.adapters.PatchExposure`]
            Exposures that were used.
        cells : `~lsst.latent_coadds.adapters.CellAccumulator` or `None`
            Their weights; `None` if nothing was restored.
        **header
            Further entries, which come first.

        Returns
        -------
        metrics : `dict`
            Figures; see the description of the dataset in the documentation.
        """
        weights = {} if cells is None else dict(enumerate(cells.weight.mean(axis=(1, 2)).tolist()))
        total = sum(weights.values())
        inputs = [
            self._describe(exposure, weights.get(index, 0.0) / total if total else 0.0)
            for index, exposure in enumerate(exposures)
        ]
        sigma = math.sqrt(self._closure_variance)
        difference = self._closure["model"] - self._closure["data"]
        return _plain(
            {
                **header,
                "device": self._device,
                "n_inputs": len(exposures),
                "n_offered": self._n_offered,
                "rejected_inputs": self._rejected,
                "inputs": inputs,
                "visits": self._summarise_visits(exposures),
                "n_iterations": max((tile["n_iterations"] for tile in self._tiles), default=0),
                "converged": all(tile["converged"] for tile in self._tiles),
                "flux_closure": {**self._closure, "sigma": difference / sigma if sigma else 0.0},
                "timings": self._timings,
                "peak_memory": peak_memory() / 2**30,
                "psf_error": max(self._psf_errors.values(), default=0.0),
                **_limiting_magnitudes(self._point_errors),
                **self._plan,
                "tiles": self._tiles,
            }
        )

    def _describe(self, exposure: PatchExposure, weight_fraction: float) -> dict[str, Any]:
        reader = exposure.reader
        figures = self._figures.get(reader.name, _ExposureFigures())
        return {
            "instrument": reader.instrument,
            "visit": reader.visit,
            "detector": reader.detector,
            "weight_fraction": weight_fraction,
            "n_good": exposure.n_good,
            "n_invalid": exposure.n_invalid,
            "chi2": _reduced([figures]),
            "psf_error": self._psf_errors.get(reader.name, 0.0),
        }

    def _summarise_visits(self, exposures: Sequence[PatchExposure]) -> dict[str, dict[str, float]]:
        several = len({exposure.reader.instrument for exposure in exposures}) > 1
        by_visit: dict[str, list[_ExposureFigures]] = {}
        for exposure in exposures:
            reader = exposure.reader
            visit = f"{reader.instrument} {reader.visit}" if several else str(reader.visit)
            figures = self._figures.get(reader.name, _ExposureFigures())
            by_visit.setdefault(visit, []).append(figures)
        return {
            visit: {"chi2": _reduced(figures), "n_good": sum(f.n_good for f in figures)}
            for visit, figures in by_visit.items()
        }


def _reduced(figures: Sequence[_ExposureFigures]) -> float:
    """Return chi² over what the interpolated noise should give."""
    expected = sum(f.expected_sum for f in figures)
    return sum(f.chi2_sum for f in figures) / expected if expected else math.nan


def _limiting_magnitudes(point_errors: Sequence[np.ndarray]) -> dict[str, float]:
    """Return AB magnitudes of five sigma: the median over the area, and of its shallowest tenth."""
    errors = np.concatenate(point_errors) if point_errors else np.zeros(0)
    typical, worst = np.quantile(errors, (0.5, 0.9)) if errors.size else (math.nan, math.nan)
    return {
        name: float(to_magnitude(_DETECTION * np.asarray(error)))
        for name, error in (("limiting_magnitude", typical), ("limiting_magnitude_shallow", worst))
    }


def _plain(value: Any) -> Any:
    """Turn numpy and torch scalars, tuples and mappings into plain types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        return value.item()
    return value
