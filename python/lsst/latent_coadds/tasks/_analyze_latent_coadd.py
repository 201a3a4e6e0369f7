# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("AnalyzeLatentCoaddConfig", "AnalyzeLatentCoaddConnections", "AnalyzeLatentCoaddTask")

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from lsst.pex.config import ChoiceField, ConfigField, Field, RangeField
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

from ..adapters import CoaddPlanes, make_metric_bundle
from ..qa import PATCH_NUMBERS, PatchAnalysis, PatchLimits, analyze_patch
from ._coadd_plots import draw_coadd_plots
from ._restorers import make_config_class

LimitsConfig: Any = make_config_class(PatchLimits, "LimitsConfig")
# Pickling a config needs its class to be importable by name.
LimitsConfig.__module__ = __name__

_DIMENSIONS = ("skymap", "tract", "patch", "band")


def _plot(name: str, doc: str) -> connectionTypes.Output:
    return connectionTypes.Output(
        doc=doc, name=f"{{output_name}}_{name}_plot", storageClass="Plot", dimensions=_DIMENSIONS
    )


class AnalyzeLatentCoaddConnections(
    PipelineTaskConnections,
    dimensions=_DIMENSIONS,
    defaultTemplates={"output_name": "latent_coadd", "reference_name": "direct_coadd"},
):
    """Datasets of `AnalyzeLatentCoaddTask`."""

    latent_coadd = connectionTypes.Input(
        doc="The restored patch.",
        name="{output_name}",
        storageClass="CellCoadd",
        dimensions=_DIMENSIONS,
    )
    latent_coadd_metrics = connectionTypes.Input(
        doc="How it was restored.",
        name="{output_name}_metrics",
        storageClass="StructuredDataDict",
        dimensions=_DIMENSIONS,
    )
    reference = connectionTypes.Input(
        doc="Another coadd of the same patch, such as the plain one or the standard one.",
        name="{reference_name}",
        storageClass="CellCoadd",
        dimensions=_DIMENSIONS,
        multiple=True,
    )
    analysis = connectionTypes.Output(
        doc="Numbers, checks, and places that deserve a look.",
        name="{output_name}_analysis",
        storageClass="StructuredDataDict",
        dimensions=_DIMENSIONS,
    )
    metric_bundle = connectionTypes.Output(
        doc="The numbers as lsst.analysis.tools reads them.",
        name="{output_name}_analysis_metrics",
        storageClass="MetricMeasurementBundle",
        dimensions=_DIMENSIONS,
    )

    image_plot = _plot("image", "The coadd, to look at.")
    reference_plot = _plot("reference", "The reference, with the same stretch.")
    detail_plot = _plot("detail", "Details of both.")
    photometry_plot = _plot("photometry", "Flux ratio to the reference, and counts, against magnitude.")
    star_plot = _plot("star", "FWHM of stars, and what the PSF leaves of them, against magnitude.")
    noise_plot = _plot("noise", "Correlation of the noise, and noise of apertures.")
    artifact_plot = _plot("artifact", "Map of what was clipped or rejected, and of what looks wrong.")
    fit_plot = _plot("fit", "Reduced chi2 of the visits, and history of the loss.")

    def __init__(self, *, config: AnalyzeLatentCoaddConfig) -> None:
        super().__init__(config=config)
        self.latent_coadd = dataclasses.replace(self.latent_coadd, storageClass=config.coadd_storage_class)
        if config.reference == "none":
            del self.reference
            del self.reference_plot
        else:
            # A regular input is always required; one that may be missing has
            # to exist before the pipeline runs.
            required = config.reference == "required"
            self.reference = (connectionTypes.Input if required else connectionTypes.PrerequisiteInput)(
                doc=self.reference.doc,
                name=self.reference.name,
                storageClass=config.reference_storage_class,
                dimensions=_DIMENSIONS,
                multiple=True,
                minimum=int(required),
            )
        if not config.write_metric_bundle:
            del self.metric_bundle
        if not config.write_plots:
            for name in [name for name in self.outputs if name.endswith("_plot")]:
                delattr(self, name)


class AnalyzeLatentCoaddConfig(PipelineTaskConfig, pipelineConnections=AnalyzeLatentCoaddConnections):
    """Configuration of `AnalyzeLatentCoaddTask`."""

    coadd_storage_class = ChoiceField[str](
        doc="Type of the coadd.",
        allowed={"CellCoadd": "that of lsst.images", "ExposureF": "that of lsst.afw; needs a full stack"},
        default="CellCoadd",
        optional=False,
    )
    reference = ChoiceField[str](
        doc="Whether the coadd is compared with another one (connections.reference_name).",
        allowed={
            "none": "it is not",
            "optional": "it is, where the other one was there before the pipeline ran",
            "required": "it is, and patches without the other one are left out",
        },
        default="optional",
        optional=False,
    )
    reference_storage_class = ChoiceField[str](
        doc="Type of the reference.",
        allowed={"CellCoadd": "that of lsst.images", "ExposureF": "that of lsst.afw; needs a full stack"},
        default="CellCoadd",
        optional=False,
    )
    threshold = RangeField(dtype=float, doc="Significance of sources and of holes.", default=5.0, min=3.0)
    max_sources = RangeField(
        dtype=int, doc="Shapes are measured of the brightest so many lone sources.", default=400, min=1
    )
    limits: Any = ConfigField(doc="How far figures may be from what they should be.", dtype=LimitsConfig)
    write_plots = Field[bool](doc="Write plots; they need matplotlib.", default=True)
    preview_size = RangeField(
        dtype=int, doc="Largest side of the pictures of the whole patch, in pixels.", default=1000, min=100
    )
    write_metric_bundle = Field[bool](
        doc="Write the numbers as a MetricMeasurementBundle, too; needs lsst.analysis.tools.", default=False
    )


class AnalyzeLatentCoaddTask(PipelineTask):
    """Measure a restored patch without any truth, and draw what was found."""

    ConfigClass = AnalyzeLatentCoaddConfig
    _DefaultName: ClassVar[str] = "analyzeLatentCoadd"
    config: AnalyzeLatentCoaddConfig

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        # Docstring inherited.
        references = butlerQC.get(inputRefs.reference) if self.config.reference != "none" else []
        outputs = self.run(
            latent_coadd=CoaddPlanes.from_coadd(butlerQC.get(inputRefs.latent_coadd)),
            latent_coadd_metrics=butlerQC.get(inputRefs.latent_coadd_metrics),
            reference=CoaddPlanes.from_coadd(references[0]) if references else None,
            reference_name=self.config.connections.reference_name,
        )
        for name, value in outputs.getDict().items():
            ref = getattr(outputRefs, name, None)
            if ref is not None and value is not None:
                butlerQC.put(value, ref)

    @timeMethod
    def run(
        self,
        *,
        latent_coadd: CoaddPlanes,
        latent_coadd_metrics: Mapping[str, Any],
        reference: CoaddPlanes | None = None,
        reference_name: str = "reference",
    ) -> Struct:
        """Analyze a patch.

        Parameters
        ----------
        latent_coadd : `~lsst.latent_coadds.adapters.CoaddPlanes`
            The restored patch.
        latent_coadd_metrics : `~collections.abc.Mapping`
            How it was restored.
        reference : `~lsst.latent_coadds.adapters.CoaddPlanes`, optional
            Another coadd of the same patch.
        reference_name : `str`, optional
            What it is called in plots.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``analysis`` (`dict`), ``metric_bundle`` (or `None`), and the
            plots (`matplotlib.figure.Figure`) with names that end in
            ``_plot``.

        Raises
        ------
        ValueError
            If the coadd has no PSF anywhere.
        """
        found = analyze_patch(
            latent_coadd,
            latent_coadd_metrics,
            reference,
            threshold=self.config.threshold,
            max_sources=self.config.max_sources,
            limits=PatchLimits(**self.config.limits.toDict()),
        )
        self._record(found)
        bundle = None
        if self.config.write_metric_bundle:
            units = {name: info.unit for name, info in PATCH_NUMBERS.items()}
            bundle = make_metric_bundle("analyzeLatentCoadd", found.numbers, units)
        names = ("latent", reference_name)
        plots = {}
        if self.config.write_plots:
            plots = draw_coadd_plots(
                found,
                latent_coadd,
                latent_coadd_metrics,
                reference,
                names=names,
                largest=self.config.preview_size,
            )
        analysis = self._describe(found, latent_coadd, latent_coadd_metrics)
        analysis["reference"] = reference_name if reference is not None else ""
        analysis["metric_bundle"] = bundle is not None
        return Struct(
            analysis=analysis,
            metric_bundle=bundle,
            **{f"{name}_plot": figure for name, figure in plots.items()},
        )

    def _record(self, found: PatchAnalysis) -> None:
        failed = [check for check in found.checks if not check.passed]
        self.metadata["concern"] = found.concern
        self.metadata["n_artifacts"] = len(found.artifacts)
        self.metadata["failed_checks"] = [check.name for check in failed]
        if failed:
            text = ", ".join(f"{check.name} {check.value:.3g}" for check in failed)
            self.log.info("Beyond its limits: %s", text)
        else:
            self.log.info("All of %d checks are within their limits", len(found.checks))

    def _describe(
        self, found: PatchAnalysis, coadd: CoaddPlanes, metrics: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what was found as plain types."""
        limits = self.config.limits.toDict()
        box = coadd.bbox
        return {
            **{name: metrics.get(name) for name in ("skymap", "tract", "patch", "band", "restorer")},
            "bbox": {"x": [box.x.start, box.x.stop], "y": [box.y.start, box.y.stop]},
            "pixel_scale": coadd.pixel_scale,
            "concern": float(found.concern),
            # YAML has NaN, which not every reader of it knows.
            "numbers": {name: value for name, value in found.numbers.items() if np.isfinite(value)},
            "checks": [
                {
                    "name": check.name,
                    "value": check.value,
                    "limit": limits[check.name],
                    "deviation": check.deviation,
                    "passed": bool(check.passed),
                }
                for check in found.checks
            ],
            "artifacts": [
                {
                    "kind": artifact.kind,
                    "x": float(artifact.x + box.x.start),
                    "y": float(artifact.y + box.y.start),
                    "value": float(artifact.value),
                }
                for artifact in found.artifacts
            ],
            "visits": {str(visit): float(v["chi2"]) for visit, v in metrics.get("visits", {}).items()},
            "rejected_inputs": dict(metrics.get("rejected_inputs", {})),
        }
