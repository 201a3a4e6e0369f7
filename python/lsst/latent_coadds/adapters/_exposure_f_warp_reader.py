# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Warps of the afw stack."""

from __future__ import annotations

__all__ = ("ExposureFWarpReader",)

import functools
from collections.abc import Mapping
from typing import Any

from astropy.coordinates import SkyCoord

from lsst.images import TractFrame

from ._exposure_f_reader import ExposureFReader
from ._exposure_reader import InputPart
from ._warp_reader import WarpReader, mean_variance_ratio


class ExposureFWarpReader(WarpReader, ExposureFReader):
    """Access to a warp that is an `lsst.afw.image.Exposure`.

    Parameters
    ----------
    source : `lsst.afw.image.Exposure` or `lsst.daf.butler.DeferredDatasetHandle`
        The warp (``deepCoadd_directWarp``, ``direct_warp``), or a handle that
        reads it when needed.
    data_id : `~collections.abc.Mapping`
        See `ExposureReader`.
    dataset_type : `str`, optional
        See `ExposureReader`.
    order : `int`, optional
        Order of the Lanczos kernel that made the warp.
    """

    def __init__(
        self,
        source: Any,
        data_id: Mapping[str, Any],
        dataset_type: str = "deepCoadd_directWarp",
        order: int = 5,
    ) -> None:
        self._frame_of = (str(data_id["skymap"]), int(data_id["tract"]))
        super().__init__(source, data_id, dataset_type)
        self.pixel_variance_ratio = mean_variance_ratio(order)

    def _make_frame(self) -> TractFrame:
        skymap, tract = self._frame_of
        return TractFrame(skymap=skymap, tract=tract, bbox=self._bbox)

    def _find_parts(self) -> tuple[InputPart, ...]:
        inputs = self._component("coaddInputs")
        ccds = [] if inputs is None else [ccd for ccd in inputs.ccds if ccd.getWcs() is not None]
        if not ccds:
            return super()._find_parts()
        return tuple(
            InputPart(int(ccd["ccd"]), _find_corners(ccd), functools.partial(_copy_record, ccd))
            for ccd in ccds
        )


def _find_corners(ccd: Any) -> SkyCoord:
    """Return the corners of a detector on the sky."""
    from lsst.geom import Box2D

    polygon = ccd.getValidPolygon()
    vertices = Box2D(ccd.getBBox()).getCorners() if polygon is None else polygon.getVertices()
    sky = [ccd.getWcs().pixelToSky(vertex) for vertex in vertices]
    return SkyCoord([p.getRa().asDegrees() for p in sky], [p.getDec().asDegrees() for p in sky], unit="deg")


def _copy_record(ccd: Any, record: Any) -> None:
    """Copy what a warp knows of a detector."""
    record.setBBox(ccd.getBBox())
    for name in ("Wcs", "Psf", "PhotoCalib", "ValidPolygon", "VisitInfo", "ApCorrMap"):
        getattr(record, f"set{name}")(getattr(ccd, f"get{name}")())
