# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Pipelines of HSC and of LSSTCam, run whole in a full stack.

Skipped where there is no full stack with obs_subaru and drp_pipe.
"""

from __future__ import annotations

import importlib
import os
import sys
import unittest
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lsst.daf.butler import Butler
from lsst.latent_coadds.qa import aperture_flux
from lsst.pipe.base import Pipeline
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor
from lsst.pipe.base.tests.pipelineStepTester import PipelineStepTester

pytest.importorskip("lsst.afw.image", reason="needs lsst.afw, of a full stack")
pytest.importorskip("lsst.obs.subaru", reason="needs lsst.obs.subaru, of a full stack")
if "DRP_PIPE_DIR" not in os.environ:
    pytest.skip("needs drp_pipe, of a full stack", allow_module_level=True)

PIPELINES = resources.files("lsst.latent_coadds") / "resources" / "pipelines"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BANDS = ("i", "r")
PATCH = {"skymap": "hsc_simulated", "tract": 0, "patch": 4}
SMALL_PATCH: dict[str, object] = {"detection.minFractionSources": 0.002}
"""There is not room for as many empty places as detection asks for."""
INPUTS = {"calexp", "finalVisitSummary", "skyCorr", "skyMap"}


def _has_deblender() -> bool:
    try:
        component = importlib.import_module("lsst.scarlet.lite.component")
    except ImportError:
        return False
    # A name that meas_extensions_scarlet asks for, and some versions lack.
    return hasattr(component, "CubeComponent")


needs_deblender = pytest.mark.skipif(
    not _has_deblender(), reason="needs a scarlet_lite that fits meas_extensions_scarlet"
)


def _make_repository(root: Path, **options: object) -> Path:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from hsc_exposures import HscScene
        from hsc_repository import write_repository
    finally:
        sys.path.remove(str(BENCHMARKS))
    write_repository(root, HscScene.small(bands=BANDS), **options)
    return root


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_repository(tmp_path_factory.mktemp("hsc") / "repo")


def _run(repo: Path, pipeline: Pipeline, output: str, *, labels: dict[str, int]) -> Butler:
    """Run a pipeline on both bands, and check how often each task ran."""
    butler = SimplePipelineExecutor.prep_butler(str(repo), inputs=["HSC/defaults"], output=output)
    where = "instrument='HSC' AND skymap='hsc_simulated' AND tract=0 AND patch=4"
    executor = SimplePipelineExecutor.from_pipeline(pipeline, where=where, butler=butler, output=output)
    counts = {label: len(quanta) for label, quanta in executor.predicted.quanta_by_task.items()}
    assert counts == labels
    assert len(executor.run(register_dataset_types=True, save_versions=False)) == sum(labels.values())
    return Butler.from_config(repo, collections=[output, "HSC/defaults"])


def _load(name: str, **config: dict[str, object]) -> Pipeline:
    pipeline = Pipeline.from_uri(str(PIPELINES / name))
    pipeline.addConfigOverride("buildLatentCoadd", "restorer.name", "direct")
    pipeline.addConfigOverride("buildLatentCoadd", "device", "cpu")
    for label, options in config.items():
        for key, value in options.items():
            pipeline.addConfigOverride(label, key, value)
    return pipeline


def _check_fluxes(butler: Butler, repo: Path, name: str, *more: str) -> None:
    """Compare fluxes of isolated stars with the truth."""
    truth = np.load(repo / "truth.npz")
    for band in BANDS:
        data_id = {**PATCH, "band": band}
        catalog = butler.get(f"{name}_meas", data_id)
        others = [butler.get(f"{name}_{kind}", data_id) for kind in more]
        wcs = butler.get(f"{name}.wcs", data_id)
        x, y = wcs.skyToPixelArray(truth["ra"], truth["dec"], degrees=True)
        distance = np.hypot(x[:, None] - catalog.getX(), y[:, None] - catalog.getY())
        distance[:, catalog["deblend_nChild"] > 0] = np.inf
        nearest = distance.argmin(axis=1)
        found = distance.min(axis=1) < 1.5
        assert found.sum() >= 5
        for measured in (catalog, *others):
            # Not PSF fluxes: exposures end within the only cell, whose PSF is a mean.
            flux = measured["base_CircularApertureFlux_9_0_instFlux"][nearest]
            good = found & np.isfinite(flux) & ~measured["base_CircularApertureFlux_9_0_flag"][nearest]
            good &= ~catalog["base_PixelFlags_flag_edge"][nearest]
            assert good.sum() >= 3
            assert np.median(flux[good] / truth[f"flux_{band}"][good]) == pytest.approx(1.0, abs=0.03)


def test_steps_need_what_they_say(tmp_path: Path) -> None:
    Butler.makeRepo(tmp_path / "repo")
    tester = PipelineStepTester(
        filename=str(PIPELINES / "HSC" / "DRP-latent.yaml"),
        step_suffixes=["#coadds", "#catalogs"],
        initial_dataset_types=[],
        expected_inputs=INPUTS | {"finalized_src_table", "preSourceTable_visit"},
        expected_outputs={"deepCoadd", "deepCoadd_mergeDet", "deepCoadd_meas", "deepCoadd_forced_src"},
        pipeline_patches={},
    )
    with Butler.from_config(tmp_path / "repo", writeable=True) as butler:
        tester.run(butler, unittest.TestCase())


@needs_deblender
def test_latent_coadds_instead_of_the_standard_ones(repository: Path) -> None:
    # There are no catalogs of visits, whose flags could be propagated.
    pipeline = _load("HSC/DRP-latent.yaml", measure={"doPropagateFlags": False}, detection=SMALL_PATCH)
    labels = {
        "selectDeepCoaddVisits": 2,
        "buildLatentCoadd": 2,
        "detection": 2,
        "mergeDetections": 1,
        "deblend": 1,
        "measure": 2,
        "mergeMeasurements": 1,
        "forcedPhotCoadd": 2,
    }
    butler = _run(repository, pipeline, "u/instead", labels=labels)
    merged = butler.get("deepCoadd_mergeDet", PATCH)
    assert {name for name in merged.schema.getNames() if name.startswith("merge_footprint_")} >= {
        "merge_footprint_i",
        "merge_footprint_r",
    }
    assert (merged["merge_footprint_i"] & merged["merge_footprint_r"]).any()
    _check_fluxes(butler, repository, "deepCoadd", "forced_src")


@pytest.mark.slow
@needs_deblender
def test_latent_coadds_beside_the_standard_ones(repository: Path) -> None:
    pipeline = _load(
        "HSC/DRP-beside.yaml",
        detection=SMALL_PATCH,
        detectionLatent=SMALL_PATCH,
        measure={"doPropagateFlags": False},
        measureLatent={"doPropagateFlags": False},
        assembleCoadd={"doAttachTransmissionCurve": False},
        makePsfMatchedWarp={"modelPsf.defaultFwhm": 9.0},
    )
    one_a_band = ("selectDeepCoaddVisits", "assembleCoadd", "buildLatentCoadd", "detection", "measure")
    one_a_patch = ("mergeDetections", "deblend", "mergeMeasurements", "mergeDetectionsLatent")
    labels = dict.fromkeys((*one_a_band, "forcedPhotCoadd", "detectionLatent", "measureLatent"), 2)
    labels |= dict.fromkeys((*one_a_patch, "deblendLatent", "deconvolve"), 1) | {"deconvolve": 2}
    labels |= {"makeDirectWarp": 6, "makePsfMatchedWarp": 6}
    butler = _run(repository, pipeline, "u/beside", labels=labels)
    assert all(len(butler.get("deepCoadd_forced_src", {**PATCH, "band": band})) for band in BANDS)
    _check_fluxes(butler, repository, "latentCoadd")


def test_lsstcam_on_exposures_with_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lsst.obs.subaru import HyperSuprimeCam

    # HSC stands in for LSSTCam, whose names the datasets have.
    module = ModuleType("lsst.obs.lsst")
    module.LsstCam = HyperSuprimeCam  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lsst.obs.lsst", module)
    repo = _make_repository(tmp_path / "repo", names="base-v2")
    pipeline = _load("LSSTCam/latent_coadd.yaml", buildLatentCoadd={"output_storage_class": "ExposureF"})
    pipeline.addConfigOverride("buildLatentCoadd", "subtract_sky_correction", True)
    standard = "$DRP_PIPE_DIR/pipelines/_ingredients/base-v2.yaml#selectDeepCoaddVisits"
    pipeline.mergePipeline(Pipeline.from_uri(standard))
    labels = {"selectDeepCoaddVisits": 2, "buildLatentCoadd": 2}
    butler = _run(repo, pipeline, "u/lsstcam", labels=labels)
    truth = np.load(repo / "truth.npz")
    for band in BANDS:
        exposure = butler.get("latent_coadd", {**PATCH, "band": band})
        assert sorted(record.getId() for record in exposure.info.getCoaddInputs().visits) == (
            [1000, 1002, 1004] if band == "i" else [1006, 1008, 1010]
        )
        metrics = butler.get("latent_coadd_metrics", {**PATCH, "band": band})
        assert metrics["rejected_inputs"] == {}
        assert metrics["selection"]["max_residual_ellipticity"] == 0.19
        x, y = exposure.getWcs().skyToPixelArray(truth["ra"], truth["dec"], degrees=True)
        x, y = x - exposure.getBBox().getMinX(), y - exposure.getBBox().getMinY()
        image = exposure.image.array - np.nanpercentile(exposure.image.array, 30)
        fluxes = np.array([aperture_flux(image, *point, 9.0) for point in zip(x, y, strict=True)])
        assert np.nanmedian(fluxes / truth[f"flux_{band}"]) == pytest.approx(1.0, abs=0.03)
