# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("ExposureOpener",)

from collections.abc import Iterable
from typing import Any

from lsst.daf.butler import DeferredDatasetHandle

from ..adapters import (
    BadInputError,
    CellCoaddWarpReader,
    ExposureFReader,
    ExposureFWarpReader,
    ExposureReader,
    FinalCalibration,
    InputProblem,
    VisitImageReader,
    name_exposure,
)


class ExposureOpener:
    """Join each detector image with what calibrates it; open warps as they are.

    Parameters
    ----------
    visit_summaries, sky_corrections, backgrounds : `~collections.abc.Iterable`, optional
        Handles (`lsst.daf.butler.DeferredDatasetHandle`) of the visit
        summaries, of the sky corrections to subtract, and of the backgrounds
        to add again. `None` where they are not used.
    visits : `~collections.abc.Iterable` [`int`], optional
        Visits to use; by default all.
    warping_order : `int`, optional
        Order of the Lanczos kernel that made warps.

    Attributes
    ----------
    unselected_visits : `set` [`int`]
        Visits that `selects` has denied so far.
    """

    def __init__(
        self,
        *,
        visit_summaries: Iterable[DeferredDatasetHandle] | None = None,
        sky_corrections: Iterable[DeferredDatasetHandle] | None = None,
        backgrounds: Iterable[DeferredDatasetHandle] | None = None,
        visits: Iterable[int] | None = None,
        warping_order: int = 5,
    ) -> None:
        self._summaries = _index(visit_summaries, "visit")
        self._sky_corrections = _index(sky_corrections, "visit", "detector")
        self._backgrounds = _index(backgrounds, "visit", "detector")
        self._visits = None if visits is None else frozenset(visits)
        self._warping_order = warping_order
        self._loaded: dict[int, Any] = {}
        self.unselected_visits: set[int] = set()

    def selects(self, handle: DeferredDatasetHandle) -> bool:
        """Return whether the image's visit is one to use."""
        visit = int(handle.dataId["visit"])
        if self._visits is None or visit in self._visits:
            return True
        self.unselected_visits.add(visit)
        return False

    def open(self, handle: DeferredDatasetHandle) -> ExposureReader:
        """Return a reader for a detector image or a warp.

        Parameters
        ----------
        handle : `lsst.daf.butler.DeferredDatasetHandle`
            The image.

        Returns
        -------
        reader : `~lsst.latent_coadds.adapters.ExposureReader`
            Reader for the image's type.

        Raises
        ------
        BadInputError
            If the image, or something that calibrates it, is not usable.
        """
        data_id = dict(handle.dataId.mapping) if handle.dataId.hasFull() else dict(handle.dataId.required)
        dataset_type = handle.ref.datasetType
        if "patch" in dataset_type.dimensions:
            is_afw = dataset_type.storageClass_name.startswith("Exposure")
            reader = ExposureFWarpReader if is_afw else CellCoaddWarpReader
            return reader(handle, data_id, dataset_type.name, self._warping_order)
        if not dataset_type.storageClass_name.startswith("Exposure"):
            return VisitImageReader(handle, data_id, dataset_type.name)
        visit, detector = int(data_id["visit"]), int(data_id["detector"])
        name = name_exposure(dataset_type.name, data_id)
        backgrounds: dict[str, Any] = {
            "sky_correction": _find(self._sky_corrections, (visit, detector), name, "sky correction"),
            "background": _find(self._backgrounds, (visit, detector), name, "background"),
        }
        summary = _find(self._summaries, (visit,), name, "visit summary")
        if summary is None:
            calibration = FinalCalibration(**backgrounds)
        else:
            if visit not in self._loaded:
                self._loaded[visit] = summary.get()
            calibration = FinalCalibration.from_summary(self._loaded[visit], detector, name, **backgrounds)
        return ExposureFReader(handle, data_id, dataset_type.name, calibration)


Handles = dict[tuple[int, ...], DeferredDatasetHandle]


def _index(handles: Iterable[DeferredDatasetHandle] | None, *dimensions: str) -> Handles | None:
    if handles is None:
        return None
    return {tuple(int(handle.dataId[d]) for d in dimensions): handle for handle in handles}


def _find(
    handles: Handles | None, key: tuple[int, ...], name: str, what: str
) -> DeferredDatasetHandle | None:
    if handles is None:
        return None
    if key not in handles:
        raise BadInputError(
            name,
            InputProblem.NO_CALIBRATION,
            f"There is no {what} for it in the input collections; make one, or switch its use off in the "
            "task's configuration.",
        )
    return handles[key]
