# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Exposures are chosen by their summary statistics, as by pipe_tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import (
    BadInputError,
    ExposureFReader,
    FinalCalibration,
    InputProblem,
    SummaryLimits,
    UnknownStatisticError,
    UnusableInputsError,
    VisitImageReader,
)
from lsst.latent_coadds.tests import MockVisits, make_mock_patch
from lsst.latent_coadds.tests._mock import read_mock
from lsst.pex.config import FieldValidationError
from lsst.pipe.base import Struct


def _readers(**statistics: list[float]) -> list[VisitImageReader]:
    readers = []
    for visit, values in enumerate(zip(*statistics.values(), strict=True)):
        image = MockVisits().make(visit)
        for name, value in zip(statistics, values, strict=True):
            setattr(image.summary_stats, name, value)
        readers.append(read_mock(image, visit))
    return readers


def _run(readers: list[VisitImageReader], **settings: object) -> Struct:
    config = BuildLatentCoaddConfig()
    config.restorer.name = "direct"
    config.device = "cpu"
    # What is left out by choice fails nothing.
    config.bad_inputs = "fail"
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    return BuildLatentCoaddTask(config=config).run(exposures=readers, patch=make_mock_patch(), band="i")


def _visits(result: Struct) -> list[int]:
    return sorted({int(visit) for visit in result.latent_coadd.provenance.inputs["visit"]})


def test_short_effective_exposures_are_left_out() -> None:
    result = _run(_readers(effTime=[12.0, 31.0, float("nan"), 30.0]), min_effective_time=20.0)
    assert _visits(result) == [1, 3]
    reasons = list(result.latent_coadd_metrics["rejected_inputs"].values())
    assert len(reasons) == 2
    assert "effTime) of its visit is 12 s, and min_effective_time is 20" in reasons[0]
    assert "is nan s" in reasons[1]
    assert "switch this limit off" in reasons[1]
    assert result.latent_coadd_metrics["selection"]["min_effective_time"] == 20.0


def test_any_statistic_can_have_limits() -> None:
    readers = _readers(nPsfStar=[5, 40, 50, 60], psfTraceRadiusDelta=[0.1, 0.9, 0.2, 0.3])
    limits: dict[str, Any] = {
        "visit_summary_min_values": {"nPsfStar": 6},
        "visit_summary_max_values": {"psfTraceRadiusDelta": 0.7},
    }
    result = _run(readers, **limits)
    assert _visits(result) == [2, 3]
    reasons = " ".join(result.latent_coadd_metrics["rejected_inputs"].values())
    assert "nPsfStar is 5, and visit_summary_min_values has 6" in reasons
    assert "psfTraceRadiusDelta is 0.9, and visit_summary_max_values has 0.7" in reasons


def test_residual_ellipticity_combines_both_components() -> None:
    readers = _readers(psfStarDeltaE1Median=[0.003, 0.006], psfStarDeltaE2Median=[-0.004, 0.006])
    assert _visits(_run(readers, max_residual_ellipticity=0.007)) == [0]


def test_excluded_detectors() -> None:
    readers = [read_mock(MockVisits().make(visit), visit, detector=visit) for visit in range(3)]
    assert _visits(_run(readers, exclude_detectors=[1])) == [0, 2]


def test_misspelt_statistic_fails() -> None:
    with pytest.raises(UnknownStatisticError, match="no summary statistic 'nPsfStars'.*'nPsfStar'"):
        _run(_readers(nPsfStar=[5]), visit_summary_min_values={"nPsfStars": 6})


def test_limits_that_nothing_meets_say_so() -> None:
    with pytest.raises(UnusableInputsError, match="min_effective_time is 100"):
        _run(_readers(effTime=[30.0, 31.0]), min_effective_time=100.0)


def test_warps_were_chosen_already() -> None:
    (reader,) = _readers(nPsfStar=[5])
    limits = SummaryLimits(minimum={"nPsfStar": 6})
    with pytest.raises(BadInputError, match="nPsfStar is 5"):
        limits.check(reader)
    reader.is_warp = True
    limits.check(reader)


def test_warps_have_no_effective_time() -> None:
    config = BuildLatentCoaddConfig()
    config.input_kind, config.input_storage_class = "warps", "CellCoadd"
    config.validate()
    config.min_effective_time = 10.0
    with pytest.raises(FieldValidationError, match="Warps have no summary statistics"):
        config.validate()


def _make_summary(n: int) -> Any:
    """Return a visit summary with statistics around the usual limits."""
    table = pytest.importorskip("lsst.afw.table", reason="needs lsst.afw, of a full stack")
    from lsst.afw.geom import makeCdMatrix, makeSkyWcs
    from lsst.afw.image import ExposureSummaryStats, PhotoCalib
    from lsst.geom import Point2D, SpherePoint, arcseconds, degrees
    from lsst.meas.algorithms import SingleGaussianPsf

    rng = np.random.default_rng(4)
    schema = table.ExposureTable.makeMinimalSchema()
    ExposureSummaryStats.update_schema(schema)
    schema.addField("visit", type="L", doc="Visit")
    schema.addField("band", type=str, size=8, doc="Band")
    summary = table.ExposureCatalog(schema)
    spread = {
        "psfStarScaledDeltaSizeScatter": 0.019,
        "psfTraceRadiusDelta": 0.7,
        "psfApFluxDelta": 0.24,
        "psfApCorrSigmaScaledDelta": 0.22,
        "starEMedian": 0.4,
        "starUnNormalizedEMedian": 2.8,
        "effTime": 30.0,
    }
    wcs = makeSkyWcs(Point2D(0, 0), SpherePoint(150, 2, degrees), makeCdMatrix(scale=0.2 * arcseconds))
    for detector in range(n):
        values: dict[str, Any] = {
            name: limit * rng.uniform(0.5, 1.05) if rng.uniform() > 0.02 else float("nan")
            for name, limit in spread.items()
        }
        deltas = {f"psfStarDeltaE{i}Median": rng.normal(0, 0.003) for i in (1, 2)}
        values |= deltas | {"nPsfStar": int(rng.integers(5, 40)), "pixelScale": 0.2, "psfSigma": 2.0}
        row = summary.addNew()
        row.setId(detector)
        row["visit"], row["band"] = 7, "i"
        ExposureSummaryStats(**values).update_record(row)
        row.setWcs(wcs if rng.uniform() > 0.1 else None)
        row.setPsf(SingleGaussianPsf(21, 21, 2.0))
        row.setPhotoCalib(PhotoCalib(1.0))
    return summary


def _is_chosen(summary: Any, detector: int, limits: SummaryLimits) -> bool:
    from lsst.afw.image import ExposureF

    problems = (InputProblem.NO_CALIBRATION, InputProblem.NOT_SELECTED)
    data_id = {"instrument": "Mock", "visit": 7, "detector": detector}
    try:
        calibration = FinalCalibration.from_summary(summary, detector, "calexp")
        limits.check(ExposureFReader(ExposureF(8, 8), data_id, "calexp", calibration))
    except BadInputError as error:
        if error.problem not in problems:
            raise
        return False
    return True


def _choose(summary: Any, limits: SummaryLimits) -> set[int]:
    return {row.getId() for row in summary if _is_chosen(summary, row.getId(), limits)}


def test_same_choice_of_detectors_as_pipe_tasks() -> None:
    summary = _make_summary(120)
    select = pytest.importorskip("lsst.pipe.tasks.selectImages", reason="needs lsst.pipe.tasks")
    config = select.PsfWcsSelectImagesConfig()
    limits = SummaryLimits(
        minimum={"nPsfStar": config.minNPsfStarPerBand["i"]},
        maximum={
            "psfStarScaledDeltaSizeScatter": config.maxScaledSizeScatter,
            "psfTraceRadiusDelta": config.maxPsfTraceRadiusDelta,
            "psfApFluxDelta": config.maxPsfApFluxDelta,
            "psfApCorrSigmaScaledDelta": config.maxPsfApCorrSigmaScaledDelta,
            "starEMedian": config.maxStarEPerBand["i"],
            "starUnNormalizedEMedian": config.maxStarUnNormalizedEPerBand["i"],
        },
        max_residual_ellipticity=config.maxEllipResidual,
    )
    task = select.PsfWcsSelectImagesTask(config=config)
    usable = [row.getId() for row in summary if row.getWcs() is not None]
    expected = {detector for detector in usable if task.isValid(summary, detector)}
    assert 10 < len(expected) < 100
    assert _choose(summary, limits) == expected


def test_effective_time_is_the_mean_of_the_visit_as_in_pipe_tasks() -> None:
    summary = _make_summary(20)
    select = pytest.importorskip("lsst.pipe.tasks.selectImages", reason="needs lsst.pipe.tasks")
    values = [row["effTime"] for row in summary if row.getWcs() is not None]
    mean = float(np.nanmean(values))
    n_usable = len(values)
    for limit in (mean - 0.01, mean + 0.01):
        chosen = _choose(summary, SummaryLimits(min_effective_time=limit))
        meets = select._meetsVisitSummaryMinValues(7, summary, {"effTime": limit})
        assert len(chosen) == (n_usable if meets else 0)
