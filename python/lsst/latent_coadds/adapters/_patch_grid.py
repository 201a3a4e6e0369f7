# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PatchGrid", "parse_oversampling")

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Self

import numpy as np

from lsst.images import YX, Box, SkyFrame, SkyProjection, TractFrame, Transform

from ..repository import SkyMapGeometry
from ._errors import PatchNotFoundError


@dataclasses.dataclass(frozen=True)
class PatchGrid:
    """Pixel grid of a patch, with its place on the sky.

    Attributes
    ----------
    skymap : `str`
        Name of the sky map.
    tract, patch : `int`
        Identifiers.
    index : `lsst.images.YX` [`int`]
        Row and column of the patch in its tract.
    inner_bbox, outer_bbox : `lsst.images.Box`
        The patch without and with the border that it shares with its
        neighbours, in tract pixels.
    sky_projection : `lsst.images.SkyProjection`
        Mapping from tract pixels to the sky.
    oversampling : `fractions.Fraction`, optional
        How many pixels lie along one of the sky map's own.
    """

    skymap: str
    tract: int
    patch: int
    index: YX[int]
    inner_bbox: Box
    outer_bbox: Box
    sky_projection: SkyProjection[TractFrame]
    oversampling: Fraction = Fraction(1)

    @classmethod
    def from_sky_map(cls, sky_map: Any, *, skymap: str, tract: int, patch: int) -> Self:
        """Look a patch up in a sky map.

        Parameters
        ----------
        sky_map : `~collections.abc.Mapping` or `lsst.skymap.BaseSkyMap`
            The ``sky_map_geometry`` dataset, or the ``skyMap`` of a stack.
        skymap : `str`
            Name of the sky map.
        tract, patch : `int`
            Identifiers.

        Returns
        -------
        grid : `PatchGrid`
            Grid of the patch.

        Raises
        ------
        PatchNotFoundError
            If the sky map has no such tract or patch.
        """
        if not isinstance(sky_map, Mapping):
            return cls._from_legacy(sky_map, skymap=skymap, tract=tract, patch=patch)
        tracts = SkyMapGeometry.from_dict(sky_map).tracts
        remedy = "Correct the data query, or write sky_map_geometry anew."
        if tract not in tracts:
            raise PatchNotFoundError(
                f"Sky map {skymap!r} has no tract {tract}; it has {sorted(tracts)}. {remedy}"
            )
        patches = tracts[tract].patches
        if patch not in patches:
            raise PatchNotFoundError(
                f"Tract {tract} of sky map {skymap!r} has no patch {patch}; it has {min(patches)} to "
                f"{max(patches)}. {remedy}"
            )
        found = patches[patch]
        return cls(
            skymap=skymap,
            tract=tract,
            patch=patch,
            index=YX(y=found.index[1], x=found.index[0]),
            inner_bbox=found.inner_bbox,
            outer_bbox=found.outer_bbox,
            sky_projection=tracts[tract].sky_projection(skymap=skymap, tract=tract),
        )

    @classmethod
    def _from_legacy(cls, sky_map: Any, *, skymap: str, tract: int, patch: int) -> Self:
        """Look a patch up in a `lsst.skymap.BaseSkyMap`."""
        try:
            tract_info = sky_map[tract]
            patch_info = tract_info[patch]
        except LookupError as error:
            raise PatchNotFoundError(
                f"Sky map {skymap!r} has no tract {tract} with a patch {patch} ({error}); correct the data "
                "query."
            ) from error
        index = patch_info.getIndex()
        frame = TractFrame(skymap=skymap, tract=tract, bbox=Box.from_legacy(tract_info.getBBox()))
        return cls(
            skymap=skymap,
            tract=tract,
            patch=patch,
            index=YX(y=index[1], x=index[0]),
            inner_bbox=Box.from_legacy(patch_info.getInnerBBox()),
            outer_bbox=Box.from_legacy(patch_info.getOuterBBox()),
            sky_projection=SkyProjection.from_legacy(tract_info.getWcs(), frame),
        )

    def refined(self, factor: Fraction) -> PatchGrid:
        """Return the same patch on a finer grid.

        Parameters
        ----------
        factor : `fractions.Fraction`
            How many fine pixels lie along one of this grid's.

        Returns
        -------
        grid : `PatchGrid`
            The grid whose pixel ``factor * (p + 0.5) - 0.5`` has the centre
            of pixel ``p``. All patches of a tract get one common grid.

        Raises
        ------
        ValueError
            If the patch's edges do not lie on edges of the finer pixels.
        """
        if factor == 1:
            return self
        projection = self.sky_projection
        frame = projection.pixel_frame
        fine = TractFrame(skymap=frame.skymap, tract=frame.tract, bbox=_scale_outwards(frame.bbox, factor))
        shift = float((1 / factor - 1) / 2)
        matrix = np.array([[float(1 / factor), 0.0, shift], [0.0, float(1 / factor), shift], [0.0, 0.0, 1.0]])
        to_coarse = Transform.affine(fine, frame, matrix)

        def refine(transform: Transform[TractFrame, SkyFrame]) -> Transform[TractFrame, SkyFrame]:
            return to_coarse.then(transform, remember_components=False)

        approximation = projection.fits_approximation
        return dataclasses.replace(
            self,
            inner_bbox=self._scale(self.inner_bbox, factor),
            outer_bbox=self._scale(self.outer_bbox, factor),
            sky_projection=SkyProjection(
                refine(projection.pixel_to_sky_transform),
                refine(approximation.pixel_to_sky_transform) if approximation is not None else None,
            ),
            oversampling=self.oversampling * factor,
        )

    def _scale(self, box: Box, factor: Fraction) -> Box:
        edges = [factor * edge for edge in (box.y.start, box.y.stop, box.x.start, box.x.stop)]
        if any(edge.denominator != 1 for edge in edges):
            raise ValueError(
                f"Oversampling by {factor} does not fit patch {self.patch} of tract {self.tract}, whose box "
                f"is {box}: its edges would not lie between pixels. Take an oversampling that makes them "
                "integers, such as 2."
            )
        y0, y1, x0, x1 = (int(edge) for edge in edges)
        return Box.factory[y0:y1, x0:x1]


def _scale_outwards(box: Box, factor: Fraction) -> Box:
    y0, x0 = (int(factor * interval.start // 1) for interval in (box.y, box.x))
    y1, x1 = (-int(-factor * interval.stop // 1) for interval in (box.y, box.x))
    return Box.factory[y0:y1, x0:x1]


def parse_oversampling(text: str) -> Fraction:
    """Return the oversampling that a text such as ``3/2`` stands for.

    Raises
    ------
    ValueError
        If it is not a fraction from 1 to 4.
    """
    try:
        factor = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is no fraction; write the oversampling as '1', '3/2' or '2'.") from None
    if not 1 <= factor <= 4:
        raise ValueError(f"An oversampling lies between 1 and 4, not at {text}.")
    return factor
