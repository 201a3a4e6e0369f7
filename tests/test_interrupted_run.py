# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A killed run, resumed as the README says, ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lsst.daf.butler import Butler, DatasetRef
from lsst.images.cells import CellCoadd
from lsst.latent_coadds.tests import MockRepository, MockVisits

pytest.importorskip("lsst.ctrl.mpexec")

RESUME = ("--extend-run", "--skip-existing", "--clobber-outputs")
OUTPUTS = ("latent_coadd", "latent_coadd_n_image", "latent_coadd_metrics", "buildLatentCoadd_metadata")


@pytest.fixture
def repository(tmp_path: Path) -> MockRepository:
    result = MockRepository(tmp_path / "repo", n_patches=4)
    visits = MockVisits(n_visits=3)
    result.add(visits.make(visit, size=330) for visit in range(3))
    return result


def run_and_kill(repository: MockRepository, moment: str, timeout: float = 240.0) -> None:
    """Start the pipeline, and kill all of it when a file appears."""
    command = repository.command("-j", "2")
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    log = repository.root.parent / "killed.log"
    with open(log, "w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env=environ
        )
        try:
            end = time.monotonic() + timeout
            while not list(repository.root.glob(moment)):
                assert process.poll() is None, f"The run ended by itself: {log.read_text()}"
                assert time.monotonic() < end, f"No {moment} in {timeout} s: {log.read_text()}"
                time.sleep(0.002)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def roll_back(repository: MockRepository) -> None:
    """Open the repository for writing, as the README says to."""
    code = f"from lsst.daf.butler import Butler; Butler.from_config({str(repository.root)!r}, writeable=True)"
    subprocess.run([sys.executable, "-c", code], check=True)


def predict_ref(repository: MockRepository, like: DatasetRef, patch: int) -> DatasetRef:
    data_id = repository.butler.registry.expandDataId(like.dataId, patch=patch)
    return DatasetRef(like.datasetType, data_id, run=like.run)


def check_outputs(repository: MockRepository, patches: set[int]) -> None:
    """Check that every patch is there exactly once, and readable."""
    butler = Butler.from_config(repository.root)
    for dataset_type in OUTPUTS:
        refs = repository.find(dataset_type)
        assert set(refs) == patches
        for ref in refs.values():
            assert butler.get(ref) is not None
    for patch, ref in repository.find().items():
        coadd = butler.get(ref)
        assert isinstance(coadd, CellCoadd)
        assert coadd.bbox == repository.geometry.tracts[0].patches[patch].outer_bbox
        n_image = butler.get(repository.find("latent_coadd_n_image")[patch]).array
        assert np.isfinite(coadd.image.array[n_image > 0]).all()
        assert n_image.max() == 3


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("u/**/latent_coadd/**/*.fits", id="while an output is written"),
        pytest.param("u/**/buildLatentCoadd_metadata_*.json", id="when a patch is done"),
    ],
)
def test_killed_run_resumes(repository: MockRepository, moment: str) -> None:
    run_and_kill(repository, moment)
    roll_back(repository)
    done = repository.find("buildLatentCoadd_metadata")
    kept = {patch: ref.id for patch, ref in repository.find().items() if patch in done}
    resumed = repository.run("-j", "2", *RESUME)
    assert resumed.returncode == 0, resumed.stdout
    check_outputs(repository, {0, 1, 2, 3})
    assert {patch: repository.find()[patch].id for patch in kept} == kept


def test_truncated_orphan_is_replaced(repository: MockRepository) -> None:
    everything = repository.data_query
    repository.data_query += " AND patch=0"
    first = repository.run()
    assert first.returncode == 0, first.stdout
    (finished,) = repository.find().values()
    # What a power cut may leave: a file that no record knows.
    orphan = Path(repository.butler.getURI(predict_ref(repository, finished, 2), predict=True).ospath)
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(repository.get_path(finished).read_bytes()[:4000])
    repository.data_query = everything
    resumed = repository.run("-j", "2", *RESUME)
    assert resumed.returncode == 0, resumed.stdout
    check_outputs(repository, {0, 1, 2, 3})
    assert repository.find()[0] == finished


def test_opening_for_writing_rolls_back_half_a_transaction(repository: MockRepository) -> None:
    database = repository.root / "gen3.sqlite3"
    interrupted = (
        "import os, signal, sqlite3\n"
        f"connection = sqlite3.connect({str(database)!r}, isolation_level=None)\n"
        # A small cache makes SQLite write pages before the commit.
        "connection.execute('PRAGMA cache_size = 2')\n"
        "connection.execute('BEGIN')\n"
        "connection.execute('CREATE TABLE half_written (x TEXT)')\n"
        "connection.executemany('INSERT INTO half_written VALUES (?)', [('x' * 1000,)] * 1000)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", interrupted], check=False).returncode == -signal.SIGKILL
    assert database.with_name("gen3.sqlite3-journal").exists()
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as reader, pytest.raises(sqlite3.Error):
        reader.execute("SELECT * FROM sqlite_master").fetchall()
    roll_back(repository)
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as reader:
        assert "half_written" not in {row[0] for row in reader.execute("SELECT name FROM sqlite_master")}
    reopened = Butler.from_config(repository.root)
    assert len(reopened.query_datasets("calexp", collections=repository.calexp_run)) == 3
