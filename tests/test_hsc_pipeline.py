# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pipelines for HSC, and a run on calexps written by afw.

Skipped where there is no full stack with obs_subaru.
"""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from lsst.daf.butler import Butler, DimensionUniverse
from lsst.latent_coadds.qa import aperture_flux
from lsst.pipe.base import Pipeline, Struct
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

pytest.importorskip("lsst.afw.image", reason="needs lsst.afw, of a full stack")
pytest.importorskip("lsst.obs.subaru", reason="needs lsst.obs.subaru, of a full stack")

PIPELINES = resources.files("lsst.latent_coadds") / "resources" / "pipelines" / "HSC"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
needs_drp_pipe = pytest.mark.skipif(
    "DRP_PIPE_DIR" not in os.environ, reason="needs drp_pipe, of a full stack"
)


def _load(name: str) -> PipelineGraph:
    graph = Pipeline.from_uri(str(PIPELINES / name)).to_graph()
    graph.resolve(dimensions=DimensionUniverse(), dataset_types={})
    return graph


def test_latent_coadd_pipeline() -> None:
    graph = _load("latent_coadd.yaml")
    storage = {
        name: node.storage_class_name for name, node in graph.dataset_types.items() if node is not None
    }
    expected = {
        "calexp": "ExposureF",
        "finalVisitSummary": "ExposureCatalog",
        "skyCorr": "Background",
        "skyMap": "SkyMap",
        "deepCoaddVisits": "StructuredDataDict",
        "latent_coadd": "CellCoadd",
        "latent_coadd_n_image": "ImageV2",
        "latent_coadd_metrics": "StructuredDataDict",
    }
    assert expected.items() <= storage.items()


@needs_drp_pipe
def test_pipeline_that_replaces_the_coaddition() -> None:
    graph = _load("DRP-latent.yaml")
    assert "assembleCoadd" not in graph.tasks
    assert graph.producer_of("deepCoadd").label == "buildLatentCoadd"
    assert graph.dataset_types["deepCoadd"].storage_class_name == "ExposureF"
    assert {task.label for task in graph.consumers_of("deepCoadd")} >= {"detection", "deblend"}
    assert graph.producer_of("deepCoaddVisits").label == "selectDeepCoaddVisits"
    assert graph.producer_of("deepCoadd_forced_src").label == "forcedPhotCoadd"


@needs_drp_pipe
def test_pipeline_beside_the_coaddition() -> None:
    graph = _load("DRP-beside.yaml")
    assert graph.producer_of("deepCoadd").label == "assembleCoadd"
    assert graph.producer_of("latentCoadd").label == "buildLatentCoadd"
    assert graph.producer_of("latentCoadd_meas").label == "measureLatent"
    assert graph.producer_of("deepCoadd_meas").label == "measure"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from hsc_exposures import HscScene
        from hsc_repository import write_repository
    finally:
        sys.path.remove(str(BENCHMARKS))
    root = tmp_path_factory.mktemp("hsc") / "repo"
    write_repository(root, HscScene.small())
    return root


def _run(repo: Path, name: str, **config: object) -> None:
    pipeline = Pipeline.from_uri(str(PIPELINES / "latent_coadd.yaml"))
    options = {
        "restorer.name": "direct",
        "device": "cpu",
        "use_visit_selection": False,
        "output_storage_class": "ExposureF",
    }
    options |= config
    for key, value in options.items():
        pipeline.addConfigOverride("buildLatentCoadd", key, value)
    butler = SimplePipelineExecutor.prep_butler(str(repo), inputs=["HSC/defaults"], output=f"u/{name}")
    where = "skymap='hsc_simulated' AND tract=0 AND patch=4 AND band='i'"
    executor = SimplePipelineExecutor.from_pipeline(pipeline, where=where, butler=butler, output=f"u/{name}")
    quanta = executor.run(register_dataset_types=True, save_versions=False)
    assert len(quanta) == 1


def _measure(repo: Path, name: str) -> Struct:
    """Return fluxes as fractions of the true ones, offsets, and the sky."""
    butler = Butler.from_config(repo, collections=f"u/{name}")
    data_id = {"skymap": "hsc_simulated", "tract": 0, "patch": 4, "band": "i"}
    exposure = butler.get("latent_coadd", data_id)
    truth = np.load(repo / "truth.npz")
    x, y = exposure.getWcs().skyToPixelArray(truth["ra"], truth["dec"], degrees=True)
    x, y = x - exposure.getBBox().getMinX(), y - exposure.getBBox().getMinY()
    # A point between the sources: half of the pixels hold no light of a star.
    sky = float(np.nanpercentile(exposure.image.array, 30))
    image = exposure.image.array - sky
    fluxes = [aperture_flux(image, *point, 9.0) for point in zip(x, y, strict=True)]
    rows, columns = np.indices(image.shape)
    offsets = []
    for column, row in zip(x, y, strict=True):
        weight = np.where(np.hypot(columns - column, rows - row) < 8, np.nan_to_num(image), 0.0)
        weight /= weight.sum()
        offsets.append(np.hypot((weight * columns).sum() - column, (weight * rows).sum() - row))
    return Struct(flux=np.array(fluxes) / truth["flux"], offset=float(np.nanmedian(offsets)), sky=sky)


@pytest.fixture(scope="module")
def final(repository: Path) -> Struct:
    _run(repository, "final")
    return _measure(repository, "final")


def test_final_calibrations_are_used(final: Struct) -> None:
    assert np.nanmedian(final.flux) == pytest.approx(1.0, abs=0.02)
    assert final.offset < 0.1


def test_without_the_summary_the_calexps_own_errors_show(repository: Path, final: Struct) -> None:
    # The calexps have no statistics of their own.
    limits = {
        "max_residual_ellipticity": None,
        "visit_summary_min_values": {},
        "visit_summary_max_values": {},
    }
    _run(repository, "own", use_visit_summary=False, **limits)
    own = _measure(repository, "own")
    # wrong_scale is 0.05, and wrong_pixels 0.7.
    assert np.nanmedian(own.flux / final.flux) == pytest.approx(1.05, abs=0.01)
    assert own.offset > 0.4


def test_sky_correction_is_used(repository: Path, final: Struct) -> None:
    _run(repository, "without", subtract_sky_correction=False)
    left = _measure(repository, "without")
    # sky_left is one sigma of a pixel, 8 nJy.
    assert left.sky - final.sky == pytest.approx(8.0, abs=0.5)
