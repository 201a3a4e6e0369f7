# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("cluster_by_memory",)

import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lsst.pipe.base.pipeline_graph import TaskImportMode, TaskNode
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.utils import doImportType
from lsst.utils.logging import getLogger

from ..adapters import parse_oversampling
from ..tasks import BuildLatentCoaddConfig, BuildLatentCoaddTask
from ._memory_request import MemoryRequest, round_up_request

if TYPE_CHECKING:
    from lsst.ctrl.bps import BpsConfig, ClusteredQuantumGraph

_LOG = getLogger(__name__)

_SECTION = "latentCoaddMemory"
_EXPOSURES = ("calexps", "warps")


def cluster_by_memory(config: BpsConfig, qgraph: PredictedQuantumGraph, name: str) -> ClusteredQuantumGraph:
    """Make a job of each quantum, with a memory request that suits its inputs.

    This is a ``clusterAlgorithm`` of `lsst.ctrl.bps`. Quanta of
    `~lsst.latent_coadds.tasks.BuildLatentCoaddTask` get a label of their own
    for each size of the request, such as ``buildLatentCoadd_6144``, with all
    settings that the configuration has for the task besides. Other quanta
    are left as they are.

    Parameters
    ----------
    config : `lsst.ctrl.bps.BpsConfig`
        Configuration of the submission; the new labels are added to its
        ``cluster`` section. Of the optional section ``latentCoaddMemory``,
        ``patchSize`` (pixels of the sky map, with the overlap; 4200),
        ``tileSize`` (pixels of the output; 512, or 1024 on a device),
        ``device`` (``cpu``, or ``cuda`` where jobs find a GPU; ``cpu``),
        ``base`` (MiB of a process that has read nothing; 900, or 3000 on a
        device, for the libraries of CUDA) and ``minimum`` (MiB; 1024) are
        used.
    qgraph : `lsst.pipe.base.quantum_graph.PredictedQuantumGraph`
        The quanta.
    name : `str`
        Name of the result.

    Returns
    -------
    clustered : `lsst.ctrl.bps.ClusteredQuantumGraph`
        One cluster for each quantum.

    Raises
    ------
    ValueError
        If the section has an unknown key or value.
    """
    from lsst.ctrl.bps.quantum_clustering_funcs import single_quantum_clustering

    clustered = single_quantum_clustering(config, qgraph, name)
    settings = _read_settings(config)
    requests: dict[uuid.UUID, int] = {}
    for label, node in _find_tasks(qgraph).items():
        request = _make_request(node, settings)
        quanta = qgraph.quanta_by_task[label].values()
        counts = _count_inputs(config[".bps_defined.runQgraphFile"], node, quanta)
        for quantum, (n_visits, n_detectors) in counts.items():
            needed = max(request.mebibytes(n_visits, n_detectors), settings["minimum"])
            requests[quantum] = round_up_request(needed)
        _LOG.info("Memory requests of %s: %s MiB", label, _summarize(requests[q] for q in counts))
    for cluster in clustered.clusters():
        needs = [requests[quantum] for quantum in cluster.qgraph_node_ids if quantum in requests]
        if needs:
            _relabel(config, cluster, max(needs))
    return clustered


def _read_settings(config: BpsConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"patchSize": 4200, "device": "cpu", "minimum": 1024}
    found, section = config.search(_SECTION)
    given = dict(section.items()) if found and isinstance(section, Mapping) else {}
    known = sorted({*settings, "tileSize", "base"})
    if unknown := set(given) - set(known):
        raise ValueError(f"Unknown settings {sorted(unknown)} in {_SECTION}; the known ones are {known}.")
    settings |= given
    if settings["device"] not in ("cpu", "cuda"):
        raise ValueError(f"{_SECTION}.device is {settings['device']!r}; it must be 'cpu' or 'cuda'.")
    on_cpu = settings["device"] == "cpu"
    settings = {"tileSize": 512 if on_cpu else 1024, "base": 900 if on_cpu else 3000} | settings
    for key in ("patchSize", "tileSize", "base", "minimum"):
        if not isinstance(settings[key], int | float) or not settings[key] > 0:
            raise ValueError(f"{_SECTION}.{key} is {settings[key]!r}; it must be a positive number.")
    return settings


def _find_tasks(qgraph: PredictedQuantumGraph) -> dict[str, TaskNode]:
    """Return the tasks of ours in a graph by label."""
    ours = {}
    for label, node in qgraph.pipeline_graph.tasks.items():
        # Others need not be importable where the graph is submitted.
        is_ours = node.task_class_name.startswith("lsst.latent_coadds.")
        if is_ours and issubclass(doImportType(node.task_class_name), BuildLatentCoaddTask):
            ours[label] = node
    return ours


def _make_request(node: TaskNode, settings: Mapping[str, Any]) -> MemoryRequest:
    task_class: Any = doImportType(node.task_class_name)
    task_config = task_class.ConfigClass()
    assert isinstance(task_config, BuildLatentCoaddConfig)
    task_config.loadFromString(node.get_config_str())
    return MemoryRequest(
        restorer=task_config.restorer.name,
        on_device=settings["device"] == "cuda" and task_config.device != "cpu",
        native=_is_turned(task_config),
        patch_size=settings["patchSize"] * float(parse_oversampling(task_config.oversampling)),
        tile_size=task_config.tile_size or int(settings["tileSize"]),
        halo=MemoryRequest.halo if task_config.halo is None else task_config.halo,
        cache_memory=task_config.cache_memory,
        base=float(settings["base"]),
    )


def _is_turned(task_config: BuildLatentCoaddConfig) -> bool:
    """Return whether exposures keep pixels that are turned against the patch's."""
    if task_config.input_kind == "warps":
        return False
    if task_config.geometry == "auto":
        return getattr(task_config.restorer.apply(), "prefers_native", False)
    return task_config.geometry == "native"


def _count_inputs(path: str, node: TaskNode, quanta: Iterable[uuid.UUID]) -> dict[uuid.UUID, tuple[int, int]]:
    """Count the visits and the detectors that go into each quantum."""
    connection = next(name for name in _EXPOSURES if name in node.inputs)
    dataset_type = node.inputs[connection].parent_dataset_type_name
    quanta = list(quanta)
    # What bps reads itself has no datasets.
    with PredictedQuantumGraph.open(path, import_mode=TaskImportMode.DO_NOT_IMPORT) as reader:
        reader.read_thin_graph()
        reader.read_quantum_datasets(quanta)
        graph = reader.finish().bipartite_xgraph
    counts = {}
    for quantum in quanta:
        data_ids = [
            graph.nodes[dataset]["data_id"]
            for dataset in graph.predecessors(quantum)
            if graph.nodes[dataset]["dataset_type_name"] == dataset_type
        ]
        counts[quantum] = len({data_id["visit"] for data_id in data_ids}), len(data_ids)
    return counts


def _summarize(requests: Iterable[int]) -> str:
    numbers: dict[int, int] = {}
    for request in requests:
        numbers[request] = numbers.get(request, 0) + 1
    return ", ".join(f"{number} x {request}" for request, number in sorted(numbers.items()))


def _relabel(config: BpsConfig, cluster: Any, mebibytes: int) -> None:
    """Give a cluster the label of its request, and the configuration to that."""
    task_label = cluster.label
    cluster.label = f"{task_label}_{mebibytes}"
    if f".cluster.{cluster.label}.requestMemory" in config:
        return
    found, of_task = config.search(f".pipetask.{task_label}")
    settings = dict(of_task.items()) if found and isinstance(of_task, Mapping) else {}
    settings["requestMemory"] = mebibytes
    for key, value in settings.items():
        config[f".cluster.{cluster.label}.{key}"] = value
