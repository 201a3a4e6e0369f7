# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = (
    "SummarizeLatentCoaddsConfig",
    "SummarizeLatentCoaddsConnections",
    "SummarizeLatentCoaddsTask",
    "make_summary_table",
)

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import astropy.units as u
import numpy as np
from astropy.table import Table

from lsst.pex.config import Field
from lsst.pipe.base import (
    InputQuantizedConnection,
    OutputQuantizedConnection,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    QuantumContext,
    Struct,
    connectionTypes,
)
from lsst.utils.timer import timeMethod

from ..adapters import make_metric_bundle
from ..qa import PATCH_NUMBERS, tract_figure


class SummarizeLatentCoaddsConnections(
    PipelineTaskConnections,
    dimensions=("skymap", "tract", "band"),
    defaultTemplates={"output_name": "latent_coadd"},
):
    """Datasets of `SummarizeLatentCoaddsTask`."""

    analyses = connectionTypes.Input(
        doc="What was found in each patch.",
        name="{output_name}_analysis",
        storageClass="StructuredDataDict",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
    )
    summary = connectionTypes.Output(
        doc="A row for each patch, those of the greatest concern first.",
        name="{output_name}_summary",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract", "band"),
    )
    summary_plot = connectionTypes.Output(
        doc="Maps of the leading numbers over the tract.",
        name="{output_name}_summary_plot",
        storageClass="Plot",
        dimensions=("skymap", "tract", "band"),
    )
    metric_bundle = connectionTypes.Output(
        doc="Medians and extremes as lsst.analysis.tools reads them.",
        name="{output_name}_summary_metrics",
        storageClass="MetricMeasurementBundle",
        dimensions=("skymap", "tract", "band"),
    )

    def __init__(self, *, config: SummarizeLatentCoaddsConfig) -> None:
        super().__init__(config=config)
        if not config.write_plots:
            del self.summary_plot
        if not config.write_metric_bundle:
            del self.metric_bundle


class SummarizeLatentCoaddsConfig(PipelineTaskConfig, pipelineConnections=SummarizeLatentCoaddsConnections):
    """Configuration of `SummarizeLatentCoaddsTask`."""

    write_plots = Field[bool](doc="Write plots; they need matplotlib.", default=True)
    write_metric_bundle = Field[bool](
        doc="Write a MetricMeasurementBundle, too; needs lsst.analysis.tools.", default=False
    )


class SummarizeLatentCoaddsTask(PipelineTask):
    """Gather what was found in the patches of a tract."""

    ConfigClass = SummarizeLatentCoaddsConfig
    _DefaultName: ClassVar[str] = "summarizeLatentCoadds"
    config: SummarizeLatentCoaddsConfig

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        # Docstring inherited.
        outputs = self.run(analyses=butlerQC.get(inputRefs.analyses))
        for name, value in outputs.getDict().items():
            if value is not None:
                butlerQC.put(value, getattr(outputRefs, name))

    @timeMethod
    def run(self, *, analyses: Sequence[Mapping[str, Any]]) -> Struct:
        """Summarize a tract in a band.

        Parameters
        ----------
        analyses : `~collections.abc.Sequence` [`~collections.abc.Mapping`]
            ``analysis`` of `AnalyzeLatentCoaddTask` for each patch.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``summary`` (`astropy.table.Table`), ``summary_plot``
            (`matplotlib.figure.Figure`, or `None`) and ``metric_bundle`` (or
            `None`).
        """
        table = make_summary_table(analyses)
        self.metadata["n_patches"] = len(table)
        self.metadata["n_patches_of_concern"] = int(np.count_nonzero(table["concern"] > 1))
        self.log.info(
            "%d of %d patches are beyond a limit; the worst is patch %d (%s)",
            *(self.metadata["n_patches_of_concern"], len(table), table["patch"][0], table["worst_check"][0]),
        )
        bundle = None
        if self.config.write_metric_bundle:
            names = [name for name in PATCH_NUMBERS if name in table.colnames]
            numbers = {f"{name}_median": float(np.nanmedian(table[name])) for name in names}
            numbers["n_patches_of_concern"] = float(self.metadata["n_patches_of_concern"])
            units = {f"{name}_median": info.unit for name, info in PATCH_NUMBERS.items()}
            bundle = make_metric_bundle("summarizeLatentCoadds", numbers, units)
        return Struct(
            summary=table,
            summary_plot=tract_figure(analyses) if self.config.write_plots else None,
            metric_bundle=bundle,
        )


def make_summary_table(analyses: Sequence[Mapping[str, Any]]) -> Table:
    """Make a row of each patch, the worst first.

    Parameters
    ----------
    analyses : `~collections.abc.Sequence` [`~collections.abc.Mapping`]
        What was found in the patches.

    Returns
    -------
    table : `astropy.table.Table`
        Columns ``tract``, ``patch``, ``band``, ``concern``, ``worst_check``,
        ``n_failed_checks`` and ``n_artifacts``, and one for each number that
        any patch has, NaN where a patch lacks it.
    """
    ordered = sorted(analyses, key=lambda analysis: (-float(analysis["concern"]), analysis["patch"]))
    table = Table(
        {
            "tract": [int(a["tract"]) for a in ordered],
            "patch": [int(a["patch"]) for a in ordered],
            "band": [str(a["band"]) for a in ordered],
            "concern": [float(a["concern"]) for a in ordered],
            "worst_check": [str(a["checks"][0]["name"]) if a["checks"] else "" for a in ordered],
            "n_failed_checks": [sum(not check["passed"] for check in a["checks"]) for a in ordered],
            "n_artifacts": [len(a["artifacts"]) for a in ordered],
        }
    )
    for name, info in PATCH_NUMBERS.items():
        if any(name in a["numbers"] for a in ordered):
            table[name] = [float(a["numbers"].get(name, np.nan)) for a in ordered]
            table[name].unit = u.Unit(info.unit) if info.unit else None
            table[name].description = info.doc
    return table
