# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The patches of a repository that an evaluation is made on."""

from __future__ import annotations

__all__ = ("Field", "FieldError", "FieldSpec")

import dataclasses
from typing import Any

from lsst.daf.butler import Butler
from lsst.pipe.base import Pipeline, QuantumContext, Struct
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.pipeline import LabelSpecifier

from ..tasks import BuildLatentCoaddTask

PIPELINE = "resource://lsst.latent_coadds/resources/pipelines/latent_coadd.yaml"
"""The pipeline for repositories of lsst.images datasets."""


class FieldError(ValueError):
    """A repository has nothing to evaluate, or the pipeline has no such task."""


@dataclasses.dataclass(frozen=True)
class FieldSpec:
    """Which patches of which repository.

    Parameters
    ----------
    repo : `str`
        Butler repository.
    collections : `tuple` [`str`, ...]
        Collections with the exposures and the sky map.
    data_query : `str`, optional
        Which patches, as for pipetask.
    pipeline : `str`, optional
        Pipeline with the task.
    label : `str`, optional
        Label of the task in it.
    overrides : `tuple` [`tuple` [`str`, `str`], ...], optional
        Fields of the task's configuration, and their values.
    """

    repo: str
    collections: tuple[str, ...]
    data_query: str = ""
    pipeline: str = PIPELINE
    label: str = "buildLatentCoadd"
    overrides: tuple[tuple[str, str], ...] = ()


class Field:
    """Patches and their exposures, ready to be opened.

    Parameters
    ----------
    spec : `FieldSpec`
        Which.

    Raises
    ------
    FieldError
        If there is none, or the pipeline lacks the task.
    """

    def __init__(self, spec: FieldSpec) -> None:
        pipeline = Pipeline.from_uri(spec.pipeline)
        if spec.label not in pipeline.task_labels:
            raise FieldError(
                f"{spec.pipeline} has no task {spec.label}; it has {sorted(pipeline.task_labels)}."
            )
        pipeline = pipeline.subsetFromLabels(LabelSpecifier(labels={spec.label}))
        for name, value in spec.overrides:
            pipeline.addConfigOverride(spec.label, name, _parse(value))
        # Never writeable: nothing of the repository can be changed.
        self._butler = Butler.from_config(spec.repo, collections=list(spec.collections), writeable=False)
        graph = pipeline.to_graph()
        self.config: Any = graph.tasks[spec.label].config
        quantum_graph = AllDimensionsQuantumGraphBuilder(
            graph,
            self._butler,
            where=spec.data_query,
            input_collections=list(spec.collections),
            output_run="u/evaluation/not/written",
        ).build(attach_datastore_records=False)
        self._nodes = sorted(quantum_graph, key=lambda node: str(node.quantum.dataId))
        if not self._nodes:
            raise FieldError(
                f"No patch of {spec.repo} has exposures in {', '.join(spec.collections)}"
                + (f" where {spec.data_query}." if spec.data_query else ".")
            )

    def __len__(self) -> int:
        return len(self._nodes)

    def describe(self, index: int) -> str:
        """Return the name of a patch (`str`)."""
        data_id = self._nodes[index].quantum.dataId
        assert data_id is not None, "Quanta of the task have a data ID."
        return "tract {tract}, patch {patch}, band {band}".format(**dict(data_id.required))

    def make_task(self, **changes: Any) -> BuildLatentCoaddTask:
        """Return the task.

        Parameters
        ----------
        **changes
            ``restorer`` names another restorer than the configured one.
        """
        config: Any = self.config.copy()
        if "restorer" in changes:
            config.restorer.name = changes["restorer"]
        config.validate()
        config.freeze()
        return BuildLatentCoaddTask(config=config)

    def open(self, index: int) -> Struct:
        """Open the exposures of a patch.

        Parameters
        ----------
        index : `int`
            Which of the patches.

        Returns
        -------
        inputs : `lsst.pipe.base.Struct`
            See `lsst.latent_coadds.BuildLatentCoaddTask.open_inputs`.
        """
        node = self._nodes[index]
        context = QuantumContext(self._butler, node.quantum)
        input_refs, _ = node.task_node.get_connections().buildDatasetRefs(node.quantum)
        return self.make_task().open_inputs(context, input_refs)


def _parse(value: str) -> Any:
    """Return what a text on a command line means, as pipetask reads it."""
    import ast

    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
