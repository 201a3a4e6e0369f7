# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""A quantum stays within what it was granted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import astropy.units as u
import pytest
import torch

from lsst.daf.butler import Butler
from lsst.latent_coadds import BuildLatentCoaddConfig
from lsst.latent_coadds.tasks import choose_max_memory
from lsst.latent_coadds.tests import MockRepository, MockVisits
from lsst.pipe.base import ExecutionResources, Pipeline
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor
from lsst.utils.logging import getLogger


@pytest.fixture
def two_threads() -> Iterator[int]:
    """A number of threads that differs from the present one."""
    before = torch.get_num_threads()
    yield before + 1
    torch.set_num_threads(before)


def test_quantum_uses_what_it_was_granted(tmp_path: Path, two_threads: int) -> None:
    repository = MockRepository(tmp_path / "repo")
    repository.add(MockVisits(n_visits=2).make(visit) for visit in range(2))
    pipeline = Pipeline("latent coadd")
    pipeline.addTask("lsst.latent_coadds.BuildLatentCoaddTask", "buildLatentCoadd")
    pipeline.addConfigOverride("buildLatentCoadd", "restorer.name", "direct")
    executor = SimplePipelineExecutor.from_pipeline(
        pipeline,
        butler=SimplePipelineExecutor.prep_butler(
            str(repository.root), inputs=repository.inputs.split(","), output=repository.output
        ),
        where=repository.data_query,
        resources=ExecutionResources(num_cores=two_threads, max_mem="2 GiB"),
    )
    executor.run(register_dataset_types=True)
    butler = Butler.from_config(repository.root, collections=repository.output)
    metrics = butler.get("latent_coadd_metrics", skymap="mock", tract=0, patch=0, band="i")
    assert metrics["max_memory"] == 2.0
    assert metrics["n_threads"] == two_threads


@pytest.mark.parametrize(
    ("configured", "granted", "expected"),
    [
        (None, None, 4.0),
        (None, 2048 * u.MiB, 2.0),
        (None, "1500 MB", 1500e6 / 2**30),
        (3.0, None, 3.0),
        (3.0, 8 * u.GiB, 3.0),
        (3.0, 2 * u.GiB, 3.0),
    ],
)
def test_what_is_configured_wins(configured: float | None, granted: object, expected: float) -> None:
    resources = ExecutionResources(max_mem=granted)
    assert choose_max_memory(configured, resources) == pytest.approx(expected)


def test_configuration_beyond_the_grant_is_told(caplog: pytest.LogCaptureFixture) -> None:
    log = getLogger("lsst.latent_coadds.test")
    with caplog.at_level(logging.WARNING):
        choose_max_memory(2.0, ExecutionResources(max_mem="2 GiB"), log)
        assert not caplog.records
        choose_max_memory(3.0, ExecutionResources(max_mem="2 GiB"), log)
    assert "granted 2.00 GiB" in caplog.text


def test_no_memory_is_configured_by_default() -> None:
    assert BuildLatentCoaddConfig().max_memory is None
