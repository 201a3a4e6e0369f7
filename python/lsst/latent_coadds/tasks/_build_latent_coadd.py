# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("BuildLatentCoaddTask",)

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from astropy.table import Table

from lsst.daf.butler import DeferredDatasetHandle
from lsst.pipe.base import (
    AnnotatedPartialOutputsError,
    InputQuantizedConnection,
    NoWorkFound,
    OutputQuantizedConnection,
    PipelineTask,
    QuantumContext,
    Struct,
)
from lsst.utils.timer import timeMethod

from ..adapters import (
    BadInputError,
    ExposureReader,
    PatchGrid,
    UnusableInputsError,
    make_cell_coadd,
    make_exposure_f,
    make_n_image,
    parse_oversampling,
    read_calibration_table,
)
from ..restoration import CalibrationSettings
from ._config import BuildLatentCoaddConfig
from ._configure_patch import configure_patch
from ._device import wait_for_device
from ._metrics import MetricsRecorder
from ._open_exposures import ExposureOpener
from ._reporter import LogReporter
from ._resources import choose_max_memory
from ._restore_patch import prepare_exposures, restore_patch
from ._selection import describe_selection, select_exposures, split_exposures


class BuildLatentCoaddTask(PipelineTask):
    """Restore the sky that the exposures of a patch have in common."""

    ConfigClass = BuildLatentCoaddConfig
    _DefaultName: ClassVar[str] = "buildLatentCoadd"
    config: BuildLatentCoaddConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.restorer = self.config.restorer.apply()

    def runQuantum(
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        # Docstring inherited.
        # pipetask sets one OpenMP thread; the quantum was granted more.
        torch.set_num_threads(max(1, butlerQC.resources.num_cores))
        inputs = self.open_inputs(butlerQC, inputRefs)
        try:
            outputs = self.run(
                exposures=inputs.exposures,
                patch=inputs.patch,
                band=inputs.band,
                rejected=inputs.rejected,
                known_calibration=inputs.known_calibration,
                max_memory=choose_max_memory(self.config.max_memory, butlerQC.resources, self.log),
            )
        except UnusableInputsError as error:
            metrics = {"rejected_inputs": error.reasons, "n_inputs": 0, "n_offered": inputs.n_offered}
            butlerQC.put(metrics, outputRefs.latent_coadd_metrics)
            raise AnnotatedPartialOutputsError.annotate(error, self, log=self.log) from error
        outputs.latent_coadd_metrics["unselected_visits"] = inputs.unselected_visits
        butlerQC.put(outputs, outputRefs)

    def open_inputs(self, butlerQC: QuantumContext, inputRefs: InputQuantizedConnection) -> Struct:
        """Open all that a quantum reads; pixels are read later.

        Parameters
        ----------
        butlerQC : `lsst.pipe.base.QuantumContext`
            Client of the repository.
        inputRefs : `lsst.pipe.base.InputQuantizedConnection`
            Datasets of the quantum.

        Returns
        -------
        inputs : `lsst.pipe.base.Struct`
            ``exposures``, ``patch``, ``band`` and ``rejected`` as `run` takes
            them; ``n_offered``, the number of images; and
            ``unselected_visits``, a sorted list.
        """
        data_id = butlerQC.quantum.dataId
        assert data_id is not None, "Quanta of this task have a data ID."
        patch = PatchGrid.from_sky_map(
            butlerQC.get(inputRefs.sky_map),
            skymap=str(data_id["skymap"]),
            tract=int(data_id["tract"]),
            patch=int(data_id["patch"]),
        )
        opener = self._make_opener(butlerQC, inputRefs)
        images = butlerQC.get(getattr(inputRefs, self.config.input_kind))
        handles = [handle for handle in images if opener.selects(handle)]
        rejected: list[BadInputError] = []
        return Struct(
            exposures=self._open(opener, handles, rejected),
            patch=patch,
            band=str(data_id["band"]),
            rejected=rejected,
            n_offered=len(handles),
            known_calibration=(
                butlerQC.get(inputRefs.known_calibration)
                if self.config.exposure_calibration == "read"
                else None
            ),
            unselected_visits=sorted(opener.unselected_visits),
        )

    def _make_opener(self, butlerQC: QuantumContext, inputRefs: InputQuantizedConnection) -> ExposureOpener:
        """Read what is needed to open the exposures."""
        config = self.config
        visits = None
        if config.use_visit_selection:
            visits = [int(visit) for chosen in butlerQC.get(inputRefs.visit_selection) for visit in chosen]
        return ExposureOpener(
            visit_summaries=butlerQC.get(inputRefs.visit_summaries) if config.use_visit_summary else None,
            sky_corrections=(
                butlerQC.get(inputRefs.sky_corrections) if config.subtract_sky_correction else None
            ),
            backgrounds=butlerQC.get(inputRefs.backgrounds) if config.restore_background else None,
            visits=visits,
            warping_order=config.warping_order,
        )

    def _open(
        self,
        opener: ExposureOpener,
        handles: Sequence[DeferredDatasetHandle],
        rejected: list[BadInputError],
    ) -> list[ExposureReader]:
        readers: list[ExposureReader] = []
        for handle in handles:
            try:
                readers.append(opener.open(handle))
            except BadInputError as error:
                if self.config.bad_inputs == "fail":
                    raise
                rejected.append(error)
        return readers

    @timeMethod
    def run(
        self,
        *,
        exposures: Sequence[ExposureReader],
        patch: PatchGrid,
        band: str,
        rejected: Sequence[BadInputError] = (),
        max_memory: float | None = None,
        known_calibration: Table | None = None,
    ) -> Struct:
        """Restore a patch.

        Parameters
        ----------
        exposures : `~collections.abc.Sequence` [`~lsst.latent_coadds.adapters.ExposureReader`]
            Detector images, or warps, which are split into their detectors here.
        patch : `~lsst.latent_coadds.adapters.PatchGrid`
            Grid of the patch.
        band : `str`
            Band of the exposures.
        rejected : `~collections.abc.Sequence` [`~lsst.latent_coadds.adapters.BadInputError`], optional
            Exposures that could not even be opened, for the metrics.
        max_memory : `float`, optional
            Memory that the process should stay below, in GiB; by default as
            configured.
        known_calibration : `astropy.table.Table`, optional
            What was learned about the exposures before; see
            `~lsst.latent_coadds.adapters.read_calibration_table`.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``latent_coadd`` (`lsst.images.cells.CellCoadd`, or
            `lsst.afw.image.ExposureF` if so configured),
            ``latent_coadd_n_image`` (`lsst.images.Image`),
            ``latent_coadd_metrics`` (`dict`), and
            ``latent_coadd_calibration`` (`astropy.table.Table`) if the
            exposures are calibrated.

        Raises
        ------
        lsst.pipe.base.NoWorkFound
            If no exposure overlaps the patch.
        lsst.latent_coadds.adapters.UnusableInputsError
            If exposures overlap the patch, and none can be used.
        lsst.latent_coadds.restoration.RestorationError
            If a fit diverges; nothing is written then.
        ValueError
            If the oversampling does not fit the patch.
        """
        started = time.perf_counter()
        exposures, rejected = split_exposures(exposures, rejected, self.config)
        metrics = MetricsRecorder(len(exposures) + len(rejected))
        patch = patch.refined(parse_oversampling(self.config.oversampling))
        exposures = select_exposures(exposures, self.config, metrics, self.log)
        settings = configure_patch(self.config, self.restorer, exposures, patch, max_memory)
        if known_calibration is not None:
            learned = read_calibration_table(known_calibration, exposures)
            settings = dataclasses.replace(settings, learned=learned)
        n_threads = torch.get_num_threads()
        metrics.describe_plan(max_memory=settings.max_memory, n_threads=n_threads)
        self.log.info("Planning for %.2f GiB and %d thread(s)", settings.max_memory, n_threads)

        def on_bad(error: BadInputError) -> None:
            if self.config.bad_inputs == "fail":
                raise error
            self.log.warning("Leaving out %s", error)
            metrics.reject(error)

        for error in rejected:
            on_bad(error)
        prepared = prepare_exposures(exposures, patch, settings, on_bad)
        if not prepared:
            raise self._explain_nothing(patch, metrics)
        metrics.add_timing("reading", time.perf_counter() - started)
        with wait_for_device(settings, self.config, metrics, self.log) as settings:
            self.log.info(
                "Restoring tract %d, patch %d, band %s from %d exposures with %s on %s",
                *(patch.tract, patch.patch, band, len(prepared), self.config.restorer.name, settings.device),
            )
            result = restore_patch(
                prepared,
                patch,
                self.restorer,
                settings,
                metrics,
                LogReporter(self.log),
                self._calibration_settings(),
            )
        if not result.planes.n_image.any():
            # The good pixels are all in the halo, beyond the patch.
            for exposure in prepared:
                if exposure.covers(patch.outer_bbox):
                    on_bad(exposure.make_masked_error())
            raise self._explain_nothing(patch, metrics)
        assembly = time.perf_counter()
        coadd = make_cell_coadd(
            result.planes, result.cells, prepared, patch, band=band, output_psf=result.psf
        )
        if self.config.output_storage_class == "ExposureF":
            coadd = make_exposure_f(coadd, prepared, result.cells)
        n_image = make_n_image(result.planes, patch)
        metrics.add_timing("assembly", time.perf_counter() - assembly)
        metrics.add_timing("total", time.perf_counter() - started)
        described = metrics.to_dict(
            prepared,
            result.cells,
            restorer=self.config.restorer.name,
            settings=self.config.restorer.active.toDict(),
            selection=describe_selection(self.config),
            skymap=patch.skymap,
            tract=patch.tract,
            patch=patch.patch,
            band=band,
            geometry="native" if settings.native else "registered",
            oversampling=str(patch.oversampling),
        )
        self._record(described)
        outputs = Struct(latent_coadd=coadd, latent_coadd_n_image=n_image, latent_coadd_metrics=described)
        if result.calibration is not None:
            outputs.latent_coadd_calibration = result.calibration
        return outputs

    def _calibration_settings(self) -> CalibrationSettings | None:
        if self.config.exposure_calibration != "learn":
            return None
        return CalibrationSettings(**self.config.calibration.toDict())

    def _explain_nothing(self, patch: PatchGrid, metrics: MetricsRecorder) -> BaseException:
        """Return the error for a patch that no exposure contributes to."""
        if metrics.rejected:
            return UnusableInputsError(metrics.rejected)
        return NoWorkFound(f"No exposure overlaps tract {patch.tract}, patch {patch.patch}.")

    def _record(self, metrics: dict[str, Any]) -> None:
        """Copy the leading figures to the task metadata, and log them."""
        for name in ("restorer", "device", "n_inputs", "n_iterations", "converged"):
            self.metadata[name] = metrics[name]
        self.metadata["n_rejected_inputs"] = len(metrics["rejected_inputs"])
        chi2 = ", ".join(f"{visit}: {figures['chi2']:.3f}" for visit, figures in metrics["visits"].items())
        self.log.info(
            "Done in %.1f s on %s; reduced chi2 by visit: %s",
            *(metrics["timings"]["total"], metrics["device"], chi2),
        )
