# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: help, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lsst.daf.butler import Butler
from lsst.latent_coadds.cli import main

TINY = ["--n-visits", "1", "--n-detectors", "1", "--n-x", "1", "--inner-size", "60"]


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_help_names_every_command(runner: CliRunner) -> None:
    result = runner.invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in ("demo", "evaluate", "import", "report", "simulate"):
        assert f"  {name} " in result.output


@pytest.mark.parametrize("name", ["demo", "evaluate", "import", "report", "simulate"])
def test_help_of_each_command(runner: CliRunner, name: str) -> None:
    result = runner.invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")


def test_unknown_command(runner: CliRunner) -> None:
    result = runner.invoke(main, ["deconvolve"])
    assert result.exit_code == 2
    assert "No such command 'deconvolve'" in result.output


def test_simulate(runner: CliRunner, tmp_path: Path) -> None:
    root = tmp_path / "scene"
    result = runner.invoke(main, ["simulate", str(root), *TINY])
    assert result.exit_code == 0, result.output
    assert str(root / "repo") in result.output
    refs = Butler.from_config(root / "repo").query_datasets("calexp", "LatentSim/calexps")
    assert len(refs) == 1
    again = runner.invoke(main, ["simulate", str(root), *TINY, "--seed", "9"])
    assert again.exit_code == 1
    assert "other settings" in again.output


def test_simulate_leaves_other_files_alone(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "thesis.txt").write_text("text")
    result = runner.invoke(main, ["simulate", str(tmp_path), *TINY])
    assert result.exit_code == 1
    assert "butler.yaml" in result.output


def test_values_that_make_no_scene(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(main, ["simulate", str(tmp_path), "--n-visits", "0"])
    assert result.exit_code == 2
    assert "--n-visits" in result.output
