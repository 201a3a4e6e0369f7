# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PatchGrid",)

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from lsst.images import YX, Box, SkyProjection, TractFrame

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
    """

    skymap: str
    tract: int
    patch: int
    index: YX[int]
    inner_bbox: Box
    outer_bbox: Box
    sky_projection: SkyProjection[TractFrame]

    @classmethod
    def from_sky_map(cls, sky_map: Mapping[str, Any], *, skymap: str, tract: int, patch: int) -> Self:
        """Look a patch up in a sky map.

        Parameters
        ----------
        sky_map : `~collections.abc.Mapping`
            The ``sky_map_geometry`` dataset.
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
