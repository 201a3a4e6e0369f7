# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("PatchGeometry", "SkyMapGeometry", "TractGeometry")

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from astropy.coordinates import SkyCoord, UnitSphericalRepresentation
from astropy.wcs import WCS

from lsst.images import Box, SkyProjection, TractFrame
from lsst.sphgeom import ConvexPolygon

from ._regions import box_region

_VERSION = 1


def _box_to_dict(box: Box) -> dict[str, dict[str, int]]:
    return {
        "x": {"start": box.x.start, "stop": box.x.stop},
        "y": {"start": box.y.start, "stop": box.y.stop},
    }


def _box_from_dict(data: Mapping[str, Mapping[str, int]]) -> Box:
    return Box.factory[
        int(data["y"]["start"]) : int(data["y"]["stop"]), int(data["x"]["start"]) : int(data["x"]["stop"])
    ]


@dataclasses.dataclass(frozen=True)
class PatchGeometry:
    """One patch: a rectangle of a tract.

    Parameters
    ----------
    index : `tuple` [`int`, `int`]
        Column and row of the patch in its tract.
    inner_bbox : `lsst.images.Box`
        Pixels that belong to this patch alone.
    outer_bbox : `lsst.images.Box`
        Pixels of the patch's images; they overlap those of its neighbours.
    """

    index: tuple[int, int]
    inner_bbox: Box
    outer_bbox: Box


@dataclasses.dataclass(frozen=True)
class TractGeometry:
    """One tract: a tangent-plane pixel grid cut into patches.

    Parameters
    ----------
    wcs_header : `dict` [`str`, `float` or `str`]
        FITS keywords of the projection, as for an image whose first pixel
        is ``(0, 0)`` of the tract.
    bbox : `lsst.images.Box`
        All pixels of the tract.
    patches : `dict` [`int`, `PatchGeometry`]
        The patches by their ID.
    """

    wcs_header: dict[str, float | str]
    bbox: Box
    patches: dict[int, PatchGeometry]

    @property
    def wcs(self) -> WCS:
        """Projection of tract pixels to the sky (`astropy.wcs.WCS`)."""
        return WCS(self.wcs_header)

    def sky_projection(self, *, skymap: str, tract: int) -> SkyProjection[TractFrame]:
        """Return the projection as `lsst.images` has it.

        Parameters
        ----------
        skymap : `str`
            Name of the sky map.
        tract : `int`
            ID of this tract.

        Returns
        -------
        sky_projection : `lsst.images.SkyProjection`
            Maps tract pixels to the sky.
        """
        frame = TractFrame(skymap=skymap, tract=tract, bbox=self.bbox)
        return SkyProjection.from_fits_wcs(self.wcs, frame, pixel_bounds=self.bbox)

    def region(self, patch: int | None = None) -> ConvexPolygon:
        """Return the part of the sky that the tract or a patch covers.

        Parameters
        ----------
        patch : `int`, optional
            ID of a patch, whose outer box is taken; the tract by default.

        Returns
        -------
        region : `lsst.sphgeom.ConvexPolygon`
            Region on the sky.
        """
        bbox = self.bbox if patch is None else self.patches[patch].outer_bbox
        return box_region(self.wcs, bbox, n_edge=2)


@dataclasses.dataclass(frozen=True)
class SkyMapGeometry:
    """Pixel geometry of a sky map: what the dimension records leave out.

    Parameters
    ----------
    name : `str`
        Name of the sky map.
    tracts : `dict` [`int`, `TractGeometry`]
        The tracts by their ID.

    Notes
    -----
    Boxes are half-open and in tract pixels; integer coordinates are pixel
    centres.  The inner boxes tile the tract; the outer ones reach ``border``
    pixels further on every side, but never out of the tract.
    """

    name: str
    tracts: dict[int, TractGeometry]

    @classmethod
    def from_grid(
        cls,
        name: str,
        center: SkyCoord,
        *,
        n_x: int,
        n_y: int,
        inner_size: int | tuple[int, int],
        border: int,
        pixel_scale: float,
        tract: int = 0,
    ) -> Self:
        """Make a sky map of one tract, north up and east left.

        Parameters
        ----------
        name : `str`
            Name of the sky map.
        center : `astropy.coordinates.SkyCoord`
            Tangent point, which is the centre of the tract.
        n_x, n_y : `int`
            Number of patches along each axis.
        inner_size : `int` or `tuple` [`int`, `int`]
            Side of a patch's inner box in pixels, or its width and height.
        border : `int`
            How far an outer box reaches beyond the inner one, in pixels.
        pixel_scale : `float`
            Side of a pixel in arcseconds.
        tract : `int`, optional
            ID of the tract.

        Returns
        -------
        geometry : `SkyMapGeometry`
            The sky map.

        Raises
        ------
        ValueError
            Raised if a number of patches, a size or the scale is not
            positive, or the border is negative.
        """
        width, height = (inner_size, inner_size) if isinstance(inner_size, int) else inner_size
        if min(n_x, n_y, width, height) < 1 or border < 0 or not pixel_scale > 0:
            raise ValueError(
                f"A sky map needs positive numbers and sizes of patches and a positive scale; got "
                f"{n_x}×{n_y} patches of {width}×{height} pixels, border {border}, {pixel_scale} arcsec."
            )
        bbox = Box.factory[0 : n_y * height, 0 : n_x * width]
        patches = {}
        for j in range(n_y):
            for i in range(n_x):
                inner = Box.factory[j * height : (j + 1) * height, i * width : (i + 1) * width]
                outer = inner.dilated_by(border).intersection(bbox)
                patches[j * n_x + i] = PatchGeometry((i, j), inner, outer)
        header = _tan_header(center, bbox, pixel_scale)
        return cls(name, {tract: TractGeometry(header, bbox, patches)})

    @classmethod
    def enclosing(
        cls,
        name: str,
        sky: SkyCoord,
        *,
        inner_size: int,
        border: int,
        pixel_scale: float,
        margin: int = 0,
        tract: int = 0,
    ) -> Self:
        """Make a sky map of one tract that holds all of some positions.

        Parameters
        ----------
        name : `str`
            Name of the sky map.
        sky : `astropy.coordinates.SkyCoord`
            Positions to hold, such as the corners of exposures.
        inner_size, border, pixel_scale, tract
            As in `from_grid`.
        margin : `int`, optional
            Least distance of a position to the tract's edge, in pixels.

        Returns
        -------
        geometry : `SkyMapGeometry`
            The sky map, with as many patches as are needed.
        """
        mean = sky.icrs.cartesian.mean()
        center = SkyCoord(mean.represent_as(UnitSphericalRepresentation), frame="icrs")
        wcs = WCS(_tan_header(center, Box.factory[0:1, 0:1], pixel_scale))
        x, y = (np.ravel(v) for v in wcs.world_to_pixel(sky))
        middle = wcs.pixel_to_world((x.max() + x.min()) / 2, (y.max() + y.min()) / 2)
        n_x, n_y = (max(1, math.ceil((np.ptp(v) + 2 * margin + 2) / inner_size)) for v in (x, y))
        return cls.from_grid(
            name,
            middle,
            n_x=n_x,
            n_y=n_y,
            inner_size=inner_size,
            border=border,
            pixel_scale=pixel_scale,
            tract=tract,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for a ``sky_map_geometry`` dataset.

        Returns
        -------
        data : `dict`
            Nested dictionaries with strings as keys.
        """
        tracts = {}
        for tract_id, tract in self.tracts.items():
            patches = {
                str(patch_id): {
                    "index": {"x": patch.index[0], "y": patch.index[1]},
                    "inner_bbox": _box_to_dict(patch.inner_bbox),
                    "outer_bbox": _box_to_dict(patch.outer_bbox),
                }
                for patch_id, patch in tract.patches.items()
            }
            tracts[str(tract_id)] = {
                "wcs": dict(tract.wcs_header),
                "bbox": _box_to_dict(tract.bbox),
                "patches": patches,
            }
        return {"version": _VERSION, "skymap": self.name, "tracts": tracts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Parameters
        ----------
        data : mapping
            Content of a ``sky_map_geometry`` dataset.

        Returns
        -------
        geometry : `SkyMapGeometry`
            The sky map.

        Raises
        ------
        ValueError
            Raised if the version is unknown or something is missing.
        """
        if data.get("version") != _VERSION:
            raise ValueError(
                f"sky_map_geometry has version {data.get('version')!r}; this code reads {_VERSION}."
            )
        try:
            tracts = {
                int(tract_id): TractGeometry(
                    dict(tract["wcs"]),
                    _box_from_dict(tract["bbox"]),
                    {int(k): _patch_from_dict(v) for k, v in tract["patches"].items()},
                )
                for tract_id, tract in data["tracts"].items()
            }
            return cls(data["skymap"], tracts)
        except KeyError as e:
            raise ValueError(f"sky_map_geometry lacks {e}; write it again with register_sky_map.") from e

    def digest(self) -> bytes:
        """Return 40 bytes that stand for this geometry.

        Returns
        -------
        digest : `bytes`
            The same for equal geometries, and in all likelihood not for
            others.
        """
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=40).digest()


def _patch_from_dict(data: Mapping[str, Any]) -> PatchGeometry:
    return PatchGeometry(
        (int(data["index"]["x"]), int(data["index"]["y"])),
        _box_from_dict(data["inner_bbox"]),
        _box_from_dict(data["outer_bbox"]),
    )


def _tan_header(center: SkyCoord, bbox: Box, pixel_scale: float) -> dict[str, float | str]:
    scale = pixel_scale / 3600
    return {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CUNIT1": "deg",
        "CUNIT2": "deg",
        "RADESYS": "ICRS",
        "CRPIX1": (bbox.x.size + 1) / 2,
        "CRPIX2": (bbox.y.size + 1) / 2,
        "CRVAL1": float(center.icrs.ra.deg),
        "CRVAL2": float(center.icrs.dec.deg),
        "CD1_1": -scale,
        "CD1_2": 0.0,
        "CD2_1": 0.0,
        "CD2_2": scale,
    }
