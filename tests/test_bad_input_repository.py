# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A bad dataset costs its own patch at most, and what is written stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lsst.daf.butler import Butler
from lsst.images import VisitImage
from lsst.latent_coadds.tests import MockRepository, MockVisits

pytest.importorskip("lsst.ctrl.mpexec")

BAD = 9
DIRECT = {"restorer.name": "direct"}


def make_sound_visits() -> Iterator[VisitImage]:
    """Exposures that cover all of three patches in a row."""
    visits = MockVisits(n_visits=2)
    for visit in range(2):
        yield visits.make(visit, size=260)


def make_small_visit() -> VisitImage:
    """An exposure that only the easternmost patch sees."""
    # 64 pixels of 0.2 arcsec from patch to patch; east is at small x.
    return MockVisits().make(BAD, size=40, offset=(12.8, 0.0), rotation=0.0)


@pytest.fixture
def repository(tmp_path: Path) -> MockRepository:
    result = MockRepository(tmp_path / "repo", n_patches=3)
    result.add(make_sound_visits())
    return result


def get_ids(repository: MockRepository) -> dict[int, object]:
    return {patch: ref.id for patch, ref in repository.find().items()}


def test_one_bad_quantum_leaves_the_others_alone(repository: MockRepository) -> None:
    bad = make_small_visit()
    bad.variance.array[:] = np.nan
    repository.add([bad])
    failed = repository.run("-j", "2", config=DIRECT | {"bad_inputs": "fail"})
    assert failed.returncode != 0
    assert f"calexp@{{instrument: 'Mock', visit: {BAD}, detector: 0}}: bad variance" in failed.stdout
    assert "write the variance plane again" in failed.stdout
    written = get_ids(repository)
    assert set(written) == {1, 2}
    # A changed configuration needs a new run; the old one stays in the chain.
    mended = repository.run("-j", "2", "--skip-existing-in", repository.output, config=DIRECT)
    assert mended.returncode == 0, mended.stdout
    assert f"Leaving out calexp@{{instrument: 'Mock', visit: {BAD}, detector: 0}}" in mended.stdout
    found = get_ids(repository)
    assert set(found) == {0, 1, 2}
    assert {patch: found[patch] for patch in written} == written


def test_unreadable_file_is_left_out(repository: MockRepository) -> None:
    (ref,) = repository.add([make_small_visit()])
    path = repository.get_path(ref)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = repository.run(config=DIRECT)
    assert done.returncode == 0, done.stdout
    assert set(repository.find()) == {0, 1, 2}
    butler = Butler.from_config(repository.root)
    metrics = butler.get(repository.find("latent_coadd_metrics")[0])
    ((name, message),) = metrics["rejected_inputs"].items()
    assert f"visit: {BAD}" in name
    assert "leave" in message or "write the dataset again" in message


def test_patch_without_any_usable_exposure(tmp_path: Path) -> None:
    repository = MockRepository(tmp_path / "repo", n_patches=3)
    masked = MockVisits(n_visits=1).make(0, size=260)
    half = np.zeros((260, 260), dtype=bool)
    # All of the easternmost patch and some of the next.
    half[:, :130] = True
    masked.mask.set("NO_DATA", half)
    repository.add([masked])
    done = repository.run(config=DIRECT)
    assert set(repository.find()) == {1, 2}
    assert "None of the 1 exposures that overlap the patch can be used" in done.stdout
    # The metrics say why, for that patch too.
    butler = Butler.from_config(repository.root)
    refs = repository.find("latent_coadd_metrics")
    assert set(refs) == {0, 1, 2}
    assert "no good pixels" in str(butler.get(refs[0])["rejected_inputs"])


def test_patch_without_exposures_is_no_error(tmp_path: Path) -> None:
    repository = MockRepository(tmp_path / "repo", n_patches=3)
    repository.add([make_small_visit()])
    done = repository.run(config=DIRECT)
    assert done.returncode == 0, done.stdout
    assert set(repository.find()) == {0}


def test_patch_that_the_sky_map_lacks(repository: MockRepository) -> None:
    repository.data_query += " AND patch=99"
    done = repository.run(config=DIRECT)
    assert repository.find() == {}
    assert "patch" in done.stdout
    assert "99" in done.stdout


def test_sky_map_geometry_without_a_patch_of_the_repository(repository: MockRepository) -> None:
    butler = Butler.from_config(repository.root, writeable=True)
    geometry = repository.geometry.to_dict()
    del geometry["tracts"]["0"]["patches"]["2"]
    butler.collections.register("u/test/broken")
    butler.put(geometry, "sky_map_geometry", skymap="mock", run="u/test/broken")
    repository.inputs = f"u/test/broken,{repository.calexp_run}"
    done = repository.run(config=DIRECT)
    assert done.returncode != 0
    assert "has no patch 2; it has 0 to 1. Correct the data query" in done.stdout
    assert set(repository.find()) == {0, 1}


def test_unknown_restorer_and_mask_plane(repository: MockRepository) -> None:
    refused = repository.run(config={"restorer.name": "imagem"})
    assert refused.returncode != 0
    assert "There is no restorer 'imagem'; the known ones are ['" in refused.stdout
    config = DIRECT | {"bad_mask_planes": '["BAD", "SATURATEDD"]'}
    failed = repository.run(config=config)
    assert failed.returncode != 0
    assert "there is no mask plane 'SATURATEDD'" in failed.stdout
    assert repository.find() == {}
