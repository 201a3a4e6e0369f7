# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration, on a scene small enough for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from lsst.daf.butler import Butler
from lsst.latent_coadds.simulation import read_truth

pytestmark = pytest.mark.slow

OPTIONS = ["--n-visits", "3", "--n-detectors", "1", "--inner-size", "110", "--jobs", "1"]


def run_demo(output: Path) -> subprocess.CompletedProcess[str]:
    code = "from lsst.latent_coadds.cli import main; main(prog_name='latent-coadds')"
    return subprocess.run(
        [sys.executable, "-c", code, "demo", "--output", str(output), *OPTIONS],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "demo"
    result = run_demo(output)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("$ pipetask run") == 1
    assert result.stdout.rstrip().endswith((output / "report" / "index.html").as_uri())
    assert "latent_coadd_n_image" in result.stdout
    return output


def test_outputs(demo: Path) -> None:
    butler = Butler.from_config(demo / "repo")
    for coadd in ("direct_coadd", "latent_coadd"):
        for name in (coadd, f"{coadd}_n_image", f"{coadd}_metrics"):
            refs = butler.query_datasets(name, "LatentSim/imagemm")
            assert sorted(ref.dataId["patch"] for ref in refs) == [0, 1]
    assert len(list((demo / "report" / "patches").glob("*.html"))) == 2
    assert "PSF flux" in (demo / "figures.txt").read_text()
    for patch in (0, 1):
        assert (demo / f"comparison_patch_{patch}.png").read_bytes().startswith(b"\x89PNG")


def test_latent_coadd_is_closer_to_the_truth(demo: Path) -> None:
    butler = Butler.from_config(demo / "repo")
    truth, _ = read_truth(demo / "truth", 0)
    data_id = {"skymap": "latent_sim", "tract": 0, "patch": 0, "band": "i"}
    error = {}
    for name in ("direct_coadd", "latent_coadd"):
        coadd = butler.get(name, data_id, collections="LatentSim/imagemm")
        assert coadd.image.array.shape == truth.shape
        # Nobody knows what is behind a saturated core, and beside it little.
        spoilt = coadd.mask.get("NO_DATA") | coadd.mask.get("SATURATED")
        clean = ~binary_dilation(spoilt, iterations=12)
        clean[:10] = clean[-10:] = clean[:, :10] = clean[:, -10:] = False
        error[name] = np.std((coadd.image.array - truth)[clean])
    assert error["latent_coadd"] < 0.5 * error["direct_coadd"]


def test_second_run_does_nothing_again(demo: Path) -> None:
    result = run_demo(demo)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "$ pipetask run" not in result.stdout
    assert result.stdout.count("is complete already") == 1


def test_half_made_run_goes_on(demo: Path) -> None:
    """What a run that was killed between two patches leaves is completed."""
    butler = Butler.from_config(demo / "repo", writeable=True)
    lost = [
        ref
        for name in (
            "latent_coadd",
            "latent_coadd_metrics",
            "buildLatentCoadd_metadata",
            "buildLatentCoadd_log",
        )
        for ref in butler.query_datasets(name, "LatentSim/imagemm")
        if ref.dataId["patch"] == 1
    ]
    assert len(lost) == 4
    butler.pruneDatasets(lost, disassociate=True, unstore=True, purge=True)
    kept = butler.query_datasets("latent_coadd", "LatentSim/imagemm")
    result = run_demo(demo)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("$ pipetask run") == 1
    assert "--extend-run" in result.stdout
    refs = butler.query_datasets("latent_coadd", "LatentSim/imagemm")
    assert sorted(ref.dataId["patch"] for ref in refs) == [0, 1]
    assert set(kept) < set(refs)
