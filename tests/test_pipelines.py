# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Every pipeline that needs no other package resolves, and those of LSSTCam
run on its dataset type names, with an instrument that stands in for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lsst.daf.butler import Butler, DatasetType, DimensionUniverse
from lsst.latent_coadds.repository import put_calexp
from lsst.latent_coadds.tests import MockRepository, MockVisits
from lsst.pipe.base import Instrument, Pipeline
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

PIPELINES = resources.files("lsst.latent_coadds") / "resources" / "pipelines"
STANDARD_LIMITS = (
    ("nPsfStar", "minNPsfStarPerBand"),
    ("psfStarScaledDeltaSizeScatter", "maxScaledSizeScatter"),
    ("psfTraceRadiusDelta", "maxPsfTraceRadiusDelta"),
    ("psfApFluxDelta", "maxPsfApFluxDelta"),
    ("psfApCorrSigmaScaledDelta", "maxPsfApCorrSigmaScaledDelta"),
    ("starEMedian", "maxStarEPerBand"),
    ("starUnNormalizedEMedian", "maxStarUnNormalizedEPerBand"),
)


class StandIn(Instrument):
    """An instrument without a camera, for packages that are not installed."""

    def register(self, registry: Any, *, update: bool = False) -> None:
        raise NotImplementedError

    def getRawFormatter(self, dataId: Any) -> type:
        raise NotImplementedError

    @classmethod
    def getName(cls) -> str:
        return "Mock"


@pytest.fixture(autouse=True)
def _instruments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide the instruments that pipelines name, where they are missing."""
    for package, name in (("lsst.obs.subaru", "HyperSuprimeCam"), ("lsst.obs.lsst", "LsstCam")):
        try:
            __import__(package, fromlist=[name])
        except ImportError:
            for module_name in ("lsst.obs", package):
                if module_name not in sys.modules:
                    module = ModuleType(module_name)
                    module.__path__ = []  # type: ignore[attr-defined]
                    monkeypatch.setitem(sys.modules, module_name, module)
            monkeypatch.setattr(sys.modules[package], name, StandIn, raising=False)


def _load(name: str) -> PipelineGraph:
    graph = Pipeline.from_uri(str(PIPELINES / name)).to_graph()
    graph.resolve(dimensions=DimensionUniverse(), dataset_types={})
    return graph


def _storage(graph: PipelineGraph) -> dict[str, str]:
    return {name: node.storage_class_name for name, node in graph.dataset_types.items() if node is not None}


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("latent_coadd.yaml", {"calexp": "VisitImage", "sky_map_geometry": "StructuredDataDict"}),
        (
            "HSC/latent_coadd.yaml",
            {
                "calexp": "ExposureF",
                "finalVisitSummary": "ExposureCatalog",
                "skyCorr": "Background",
                "skyMap": "SkyMap",
                "deepCoaddVisits": "StructuredDataDict",
            },
        ),
        (
            "LSSTCam/latent_coadd.yaml",
            {
                "preliminary_visit_image": "ExposureF",
                "visit_summary": "ExposureCatalog",
                "skyMap": "SkyMap",
                "deep_coadd_visit_selection": "StructuredDataDict",
            },
        ),
    ],
)
def test_inputs_and_outputs(name: str, inputs: dict[str, str]) -> None:
    graph = _load(name)
    storage = _storage(graph)
    outputs = {
        "latent_coadd": "CellCoadd",
        "latent_coadd_n_image": "ImageV2",
        "latent_coadd_metrics": "StructuredDataDict",
    }
    assert inputs.items() <= storage.items()
    assert outputs.items() <= storage.items()
    assert {name for name, _ in graph.iter_overall_inputs()} == inputs.keys()


def _limits(name: str) -> dict[str, float]:
    config = _load(name).tasks["buildLatentCoadd"].config
    assert set(config.visit_summary_min_values) == {"nPsfStar"}
    return {
        **config.visit_summary_min_values,
        **config.visit_summary_max_values,
        "residual": config.max_residual_ellipticity,
        "fwhm": config.max_psf_fwhm,
    }


def _standard_limits(*overrides: Path) -> tuple[dict[str, float], set[int]]:
    warps = pytest.importorskip("lsst.drp.tasks.make_direct_warp", reason="needs drp_tasks, of a full stack")
    config = warps.MakeDirectWarpConfig()
    for path in overrides:
        config.load(str(path))
    limits = {"residual": config.select.maxEllipResidual, "fwhm": config.select.maxPsfFwhm}
    for ours, theirs in STANDARD_LIMITS:
        value = getattr(config.select, theirs)
        if not isinstance(value, float):
            values = set(value.values())
            assert len(values) == 1, "These limits depend on the band."
            (value,) = values
        limits[ours] = value
    return limits, set(config.select.excludeDetectors)


def _find_config(variable: str) -> Callable[[str], Path]:
    if variable not in os.environ:
        pytest.skip(f"needs {variable}, of a full stack")
    return (Path(os.environ[variable]) / "config").joinpath


def test_limits_of_hsc_are_those_of_its_warps() -> None:
    limits, excluded = _standard_limits(_find_config("OBS_SUBARU_DIR")("makeDirectWarp.py"))
    assert _limits("HSC/latent_coadd.yaml") == limits
    assert not excluded


def test_limits_of_lsstcam_are_those_of_its_warps() -> None:
    find = _find_config("OBS_LSST_DIR")
    limits, excluded = _standard_limits(find("makeDirectWarp.py"), find("lsstCam/makeDirectWarp.py"))
    assert _limits("LSSTCam/latent_coadd.yaml") == limits
    config = _load("LSSTCam/latent_coadd.yaml").tasks["buildLatentCoadd"].config
    assert set(config.exclude_detectors) == excluded


@pytest.fixture
def repository(tmp_path: Path) -> MockRepository:
    """Visit images with base-v2 names, of which two visits are selected."""
    repository = MockRepository(tmp_path / "repo", size=48)
    for visit in range(3):
        image = MockVisits(n_visits=3).make(visit)
        image.summary_stats.nPsfStar = 50
        refs = repository.add([image])
        for name in ("preliminary_visit_image", "visit_image"):
            put_calexp(repository.butler, image, "Mock/images", dataset_type=name)
    repository.butler.pruneDatasets(refs, unstore=True, purge=True, disassociate=True)
    dimensions = ("instrument", "skymap", "tract", "patch", "band")
    kind = DatasetType(
        "deep_coadd_visit_selection",
        dimensions,
        "StructuredDataDict",
        universe=repository.butler.dimensions,
    )
    repository.butler.registry.registerDatasetType(kind)
    data_id = {"instrument": "Mock", "skymap": "mock", "tract": 0, "patch": 0, "band": "i"}
    repository.butler.put({0: True, 2: True}, kind, data_id, run="Mock/images")
    return repository


@pytest.mark.parametrize("name", ["preliminary_visit_image", "visit_image"])
def test_lsstcam_on_images_of_lsst_images(repository: MockRepository, name: str) -> None:
    pipeline = Pipeline.from_uri(str(PIPELINES / "LSSTCam" / "latent_coadd.yaml"))
    options: dict[str, object] = {
        "input_storage_class": "VisitImage",
        "sky_map_storage_class": "StructuredDataDict",
        "use_visit_summary": False,
        "connections.input_name": name,
        "connections.sky_map_name": "sky_map_geometry",
        "restorer.name": "direct",
        "device": "cpu",
        # The detector of the mock exposures, and statistics that they lack.
        "exclude_detectors": [],
        "max_residual_ellipticity": None,
        "visit_summary_max_values": {},
    }
    for key, value in options.items():
        pipeline.addConfigOverride("buildLatentCoadd", key, value)
    root = str(repository.root)
    butler = SimplePipelineExecutor.prep_butler(root, inputs=["Mock/images", "skymaps"], output="u/latent")
    where = "instrument='Mock' AND skymap='mock' AND tract=0 AND patch=0 AND band='i'"
    executor = SimplePipelineExecutor.from_pipeline(pipeline, where=where, butler=butler, output="u/latent")
    quanta = executor.run(register_dataset_types=True, save_versions=False)
    assert len(quanta) == 1
    butler = Butler.from_config(root, collections="u/latent")
    data_id = {"skymap": "mock", "tract": 0, "patch": 0, "band": "i"}
    inputs = butler.get("latent_coadd", data_id).provenance.inputs
    assert sorted({int(visit) for visit in inputs["visit"]}) == [0, 2]
    metrics = butler.get("latent_coadd_metrics", data_id)
    assert metrics["unselected_visits"] == [1]
    assert metrics["n_offered"] == 2
    assert metrics["selection"] == {"max_psf_fwhm": 1.8, "visit_summary_min_values": {"nPsfStar": 6.0}}
