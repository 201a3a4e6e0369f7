# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Warps of lsst.images."""

from __future__ import annotations

__all__ = ("CellCoaddWarpReader",)

from collections.abc import Mapping
from typing import Any

import astropy.table

from lsst.images.cells import CellCoadd
from lsst.images.psfs import PointSpreadFunction

from ._errors import InputProblem
from ._exposure_reader import InputPart
from ._visit_image_reader import VisitImageReader
from ._warp_reader import WarpReader, mean_variance_ratio


class CellCoaddWarpReader(WarpReader, VisitImageReader):
    """Access to a warp that is an `lsst.images.cells.CellCoadd` of one visit.

    Parameters
    ----------
    source : `lsst.images.cells.CellCoadd` or `lsst.daf.butler.DeferredDatasetHandle`
        The warp, or a handle that reads it when needed. No other type of
        lsst.images has the pixels of a tract and a PSF.
    data_id : `~collections.abc.Mapping`
        See `ExposureReader`.
    dataset_type : `str`, optional
        See `ExposureReader`.
    order : `int`, optional
        Order of the Lanczos kernel that made the warp.
    """

    _image_class = CellCoadd

    def __init__(
        self, source: Any, data_id: Mapping[str, Any], dataset_type: str = "direct_warp", order: int = 5
    ) -> None:
        super().__init__(source, data_id, dataset_type)
        self.pixel_variance_ratio = mean_variance_ratio(order)
        self._inputs: astropy.table.Table | None = None
        self._was_read = False

    @property
    def psf(self) -> PointSpreadFunction:
        """The PSF in each cell (`lsst.images.cells.CellPointSpreadFunction`)."""
        if self._psf is None:
            # A cut-out would have the cells that it touches, and no others.
            self._psf = self._component("psf", InputProblem.NO_PSF)
        return self._psf

    def _keep(self, exposure: Any) -> None:
        # A cut-out lists the detectors that it has, the first one all that matter.
        if self._was_read:
            return
        self._was_read = True
        try:
            self._inputs = exposure.provenance.inputs
        except AttributeError:
            self._inputs = None

    def _find_parts(self) -> tuple[InputPart, ...]:
        if not self._was_read:
            self._keep(self._read_exposure(self._whole))
        if self._inputs is None:
            return super()._find_parts()
        parts = []
        for row in self._inputs:
            polygon = row["polygon"]
            corners = self.sky_projection.pixel_to_sky(x=polygon.x_vertices, y=polygon.y_vertices)
            parts.append(InputPart(int(row["detector"]), corners, self.fill_record))
        return tuple(parts)
