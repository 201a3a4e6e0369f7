# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Submissions to the batch production service: what jobs ask for, and how they run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsst.daf.butler import Butler, Config
from lsst.images.cells import CellCoadd
from lsst.latent_coadds.tests import MockRepository, MockVisits
from lsst.latent_coadds.workflow import MemoryRequest, cluster_by_memory, round_up_request
from lsst.pipe.base import Pipeline
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

CONFIGURATIONS = resources.files("lsst.latent_coadds") / "resources" / "bps"
SERVICES = {
    "parsl_local": "lsst.ctrl.bps.parsl",
    "parsl_slurm": "lsst.ctrl.bps.parsl",
    "parsl_slurm_gpu": "lsst.ctrl.bps.parsl",
    "htcondor": "lsst.ctrl.bps.htcondor",
    "htcondor_gpu": "lsst.ctrl.bps.htcondor",
    "panda": "lsst.ctrl.bps.panda",
}
N_VISITS = {0: 12, 1: 2}
"""Visits by patch."""


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


needs_bps = pytest.mark.skipif(not is_installed("lsst.ctrl.bps"), reason="needs lsst-ctrl-bps")
needs_parsl = pytest.mark.skipif(not is_installed("lsst.ctrl.bps.parsl"), reason="needs lsst-ctrl-bps-parsl")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """Two patches, of which the first has more visits."""
    result = MockRepository(tmp_path_factory.mktemp("bps") / "repo", n_patches=2)
    visits = MockVisits()
    images = []
    for visit in range(N_VISITS[0]):
        offset = (0.0, 0.0) if visit < N_VISITS[1] else (6.4, 0.0)
        size = 150 if visit < N_VISITS[1] else 40
        images.append(visits.make(visit, size=size, offset=offset, fwhm=3.5, rotation=0.0, stamp_size=15))
    result.add(images)
    return result


@pytest.fixture(scope="module")
def graph(repository: MockRepository) -> Path:
    """The quantum graph, as bps would have it made."""
    pipeline = Pipeline.from_uri("resource://lsst.latent_coadds/resources/pipelines/latent_coadd.yaml")
    pipeline.addConfigOverride("buildLatentCoadd", "restorer.name", "direct")
    builder = AllDimensionsQuantumGraphBuilder(
        pipeline.to_graph(),
        repository.butler,
        input_collections=repository.inputs.split(","),
        output_run="u/test/run",
        where=repository.data_query,
    )
    path = repository.root.parent / "graph.qg"
    builder.finish(output="u/test").write(path)
    return path


def load(path: str | Path, **settings: Any) -> Any:
    """Read a configuration with the defaults of bps, as its commands do."""
    from lsst.ctrl.bps import BpsConfig

    config = BpsConfig(
        str(path), defaults=Config(ResourcePath("resource://lsst.ctrl.bps/etc/bps_defaults.yaml"))
    )
    for key, value in settings.items():
        config["." + key.replace("__", ".")] = value
    return config


def transform_graph(path: str | Path, graph: Path, directory: Path, **settings: Any) -> tuple[Any, Any]:
    """Make the workflow of a submission, and its configuration."""
    from lsst.ctrl.bps.pre_transform import cluster_quanta, read_quantum_graph
    from lsst.ctrl.bps.transform import transform

    names = {"uniqProcName": "test", "timestamp": "now", "operator": "me", "submitPath": str(directory)}
    config = load(path, runQgraphFile=str(graph), **names, **settings)
    config[".bps_defined.runQgraphFile"] = str(graph)
    config[".bps_defined.uniqProcName"] = "test"
    config[".payload.butlerConfig"] = "REPO"
    return transform(config, cluster_quanta(config, read_quantum_graph(graph), "test"), str(directory))


def quantum_jobs(workflow: Any) -> dict[int, Any]:
    """Return the jobs of our task by patch."""
    jobs = [workflow.get_job(name) for name in workflow]
    return {job.tags["patch"]: job for job in jobs if job.label.startswith("buildLatentCoadd")}


def command_line(job: Any) -> str:
    return job.arguments.format(**job.cmdvals)


def test_request_is_what_the_tiles_take() -> None:
    request = MemoryRequest(patch_size=4200, tile_size=512, halo=40, cache_memory=0.0, base=900)
    # Interpreter, planes of the output, and a tile of 592 pixels with 50
    # exposures of 112 bytes and 300 bytes for the latent image.
    expected = 900 * 2**20 + 40 * 4200**2 + 3e8 + 592**2 * (300 + 112 * 50)
    assert request.mebibytes(50, 50) == pytest.approx(expected / 2**20, abs=1)
    assert MemoryRequest(restorer="direct").mebibytes(50, 50) < MemoryRequest().mebibytes(50, 50)
    assert MemoryRequest(on_device=True).mebibytes(50, 50) < MemoryRequest().mebibytes(50, 50)


def test_request_grows_with_the_visits() -> None:
    request = MemoryRequest(cache_memory=0.0)
    few, more, many = (request.mebibytes(n, 4 * n) for n in (10, 20, 40))
    assert few < more < many
    assert many - more == pytest.approx(2 * (more - few), rel=0.1)
    assert request.mebibytes(0, 0) > 900


@pytest.mark.parametrize(
    ("n_visits", "n_detectors", "expected"),
    [
        (10, 10, 10),  # detectors that hold the whole patch
        (10, 40, 13),  # detectors as large as the patch: (1 + 592 / 4280)**2 each
        (10, 1000, 51),  # nine in a row: (1 + 9 * 592 / 4280)**2 each
        (1, 2, 2),
        (0, 0, 0),
    ],
)
def test_detectors_that_reach_a_tile(n_visits: int, n_detectors: int, expected: int) -> None:
    assert MemoryRequest().count_overlapping(n_visits, n_detectors) == expected


def test_native_pixels_take_more_memory() -> None:
    registered, native = (MemoryRequest(native=native, cache_memory=0.0) for native in (False, True))
    # Detectors that hold the whole patch: boxes around a turned tile have
    # 1 + |sin 2 t| of its area, 1 + 2 / pi in the mean.
    more = (native.mebibytes(100, 100) - registered.mebibytes(100, 100)) * 2**20
    assert more == pytest.approx(2 / np.pi * 100 * 112 * 592**2, rel=0.01)
    assert native.count_overlapping(10, 40) > registered.count_overlapping(10, 40)


def test_requests_come_in_few_sizes() -> None:
    sizes = [round_up_request(mebibytes) for mebibytes in range(1, 100_000, 37)]
    assert sorted(set(sizes))[:6] == [1024, 1536, 2048, 3072, 4096, 6144]
    for mebibytes, size in zip(range(1, 100_000, 37), sizes, strict=True):
        assert mebibytes <= size <= max(1024, 1.5 * mebibytes)


@needs_bps
@pytest.mark.parametrize("name", sorted(SERVICES))
def test_configuration_is_complete(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lsst.ctrl.bps import BpsConfig
    from lsst.utils import doImport

    # What the plugin brings in a stack.
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "bps_usdf.yaml").write_text("computeSite: usdf\n")
    monkeypatch.setenv("CTRL_BPS_PANDA_DIR", str(tmp_path))
    config = BpsConfig(str(CONFIGURATIONS / f"{name}.yaml"))
    assert config["wmsServiceClass"].startswith(f"{SERVICES[name]}.")
    assert doImport(config["clusterAlgorithm"]) is cluster_by_memory
    assert Pipeline.from_uri(config["pipelineYaml"]).task_labels
    found, request = config.search("requestMemory", {"curvals": {"curr_pipetask": "buildLatentCoadd"}})
    assert found and request >= 4096
    assert config[".finalJob.requestMemory"] < 32768


def test_every_configuration_is_tested() -> None:
    assert {path.stem for path in Path(str(CONFIGURATIONS)).glob("*.yaml")} == {"latent_coadd", *SERVICES}


@needs_bps
@pytest.mark.parametrize("name", ["parsl_local", "parsl_slurm", "parsl_slurm_gpu", "htcondor_gpu"])
def test_jobs_ask_for_what_their_visits_take(name: str, graph: Path, tmp_path: Path) -> None:
    if not is_installed(SERVICES[name]):
        pytest.skip(f"needs {SERVICES[name]}")
    settings = {"latentCoaddMemory__tileSize": 2500, "latentCoaddMemory__base": 1800}
    path = CONFIGURATIONS / f"{name}.yaml"
    workflow, config = transform_graph(path, graph, tmp_path, **settings)
    on_device = name.endswith("_gpu")
    jobs = quantum_jobs(workflow)
    request = MemoryRequest("direct", on_device, tile_size=2500, base=1800)
    for patch, job in jobs.items():
        expected = round_up_request(request.mebibytes(N_VISITS[patch], N_VISITS[patch]))
        assert job.request_memory == expected
        assert f"--memory-per-quantum {expected}MB" in command_line(job)
        assert f"-n {job.request_cpus} " in command_line(job)
        assert job.request_cpus == (16 if name == "parsl_slurm_gpu" else 4)
        assert job.number_of_retries > 0
    assert jobs[0].request_memory > jobs[1].request_memory
    prepare = doprepare(config, workflow, tmp_path)
    if name == "htcondor_gpu":
        (submit,) = tmp_path.rglob(f"{jobs[0].name}.sub")
        assert "+RequestGPUs = 1" in submit.read_text()
        assert "pow(2, NumJobStarts)), 131072" in submit.read_text()
    else:
        assert {job.generic.label for job in prepare.jobs.values()} > {job.label for job in jobs.values()}


def doprepare(config: Any, workflow: Any, directory: Path) -> Any:
    from lsst.utils import doImport

    return doImport(config["wmsServiceClass"])(config).prepare(config, workflow, str(directory))


@needs_bps
def test_other_settings_of_the_task_are_kept(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"includeConfigs: {CONFIGURATIONS / 'latent_coadd.yaml'}\n"
        "pipetask:\n  buildLatentCoadd:\n    requestCpus: 7\n    requestMemory: 3\n    queue: gpus\n"
        "wmsServiceClass: null\n"
    )
    workflow, config = transform_graph(path, graph, tmp_path)
    for job in quantum_jobs(workflow).values():
        assert job.request_cpus == 7
        assert job.queue == "gpus"
        assert job.request_memory >= 1024
        assert "-n 7 " in command_line(job)


@needs_bps
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tilesize", 512, "Unknown settings"),
        ("device", "gpu", "'cpu' or 'cuda'"),
        ("patchSize", "4200 px", "positive number"),
        ("tileSize", 0, "positive number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    key: str, value: object, message: str, graph: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"includeConfigs: {CONFIGURATIONS / 'latent_coadd.yaml'}\nwmsServiceClass: null\n")
    with pytest.raises(ValueError, match=message):
        transform_graph(path, graph, tmp_path, **{f"latentCoaddMemory__{key}": value})


@needs_parsl
def test_gpus_of_a_node_have_a_worker_each() -> None:
    from lsst.ctrl.bps.parsl.site import SiteConfig

    config = load(CONFIGURATIONS / "parsl_slurm_gpu.yaml", uniqProcName="test", operator="me")
    config[".site.slurm_gpu.scheduler_options"] = "#SBATCH --partition=gpus"
    site = SiteConfig.from_config(config)
    for _ in range(2):  # the options are not added twice
        (executor,) = site.get_executors()
        assert executor.available_accelerators == ["0", "1", "2", "3"]
        assert executor.max_workers_per_node == 4
        lines = executor.provider.scheduler_options.splitlines()
        assert lines.count("#SBATCH --gpus-per-node=4") == 1
        assert "#SBATCH --partition=gpus" in lines


def run(*command: object) -> str:
    """Run a command of the environment, and return what it prints."""
    executable = Path(sys.executable).parent / str(command[0])
    done = subprocess.run(
        [str(executable), *map(str, command[1:])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{executable.parent}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def check_coadds(root: Path, collection: str, patches: Iterable[int]) -> None:
    butler = Butler.from_config(root)
    for patch in patches:
        data_id = {"skymap": "mock", "tract": 0, "patch": patch, "band": "i"}
        coadd = butler.get("latent_coadd", data_id, collections=collection)
        assert isinstance(coadd, CellCoadd)
        metrics = butler.get("latent_coadd_metrics", data_id, collections=collection)
        assert metrics["n_inputs"] == N_VISITS[patch]
        assert metrics["max_memory"] == pytest.approx(1500e6 / 2**30)
        assert metrics["n_threads"] == 1


def test_quantum_backed_butler_replaces_what_was_left_half_written(
    repository: MockRepository, graph: Path
) -> None:
    pytest.importorskip("lsst.ctrl.mpexec")
    quantum_graph = read_graph(graph)
    run("pipetask", "pre-exec-init-qbb", repository.root, graph)
    quanta = quantum_graph.quanta_by_task["buildLatentCoadd"]
    # What a quantum that was killed leaves: a file that is cut off.
    ids = {data_id["patch"]: str(quantum) for data_id, quantum in quanta.items()}
    options = ("-n", 1, "--memory-per-quantum", "1500MB")
    run("pipetask", "run-qbb", repository.root, graph, "--qgraph-node-id", ids[0], *options)
    (first,) = repository.root.glob("u/test/run/latent_coadd/**/*.fits")
    (metadata,) = repository.root.glob("u/test/run/buildLatentCoadd_metadata/**/*.json")
    metadata.unlink()
    first.write_bytes(first.read_bytes()[:4000])
    run("pipetask", "run-qbb", repository.root, graph, *options)
    run(
        "butler",
        "aggregate-graph",
        graph,
        repository.root,
        "--register-dataset-types",
        "--update-output-chain",
    )
    check_coadds(repository.root, "u/test", N_VISITS)


def read_graph(path: Path) -> PredictedQuantumGraph:
    with PredictedQuantumGraph.open(path) as reader:
        reader.read_thin_graph()
        return reader.finish()


@needs_parsl
def test_submission_to_parsl(repository: MockRepository, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"includeConfigs: {CONFIGURATIONS / 'parsl_local.yaml'}\n"
        f"submitPath: {tmp_path}/submit\n"
        f"site:\n  local:\n    run_dir: {tmp_path}/runinfo\n"
        "extraQgraphOptions: '-c buildLatentCoadd:restorer.name=direct'\n"
        "extraRunQuantumOptions: '-n 1 --memory-per-quantum 1500MB'\n"
        "defaultPreCmdOpts: '--log-level=INFO'\n"
    )
    arguments = ("-b", repository.root, "-i", repository.inputs, "-o", "u/test/parsl")
    output = run("bps", "submit", path, *arguments, "-d", f"{repository.data_query} AND patch=1")
    assert "Memory requests of buildLatentCoadd: 1 x " in output
    check_coadds(repository.root, "u/test/parsl", [1])
