# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("box_region", "enclosing_region", "sky_polygon")

from collections.abc import Iterable

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs.wcsapi import BaseHighLevelWCS

from lsst.images import Box
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d


def sky_polygon(sky: SkyCoord) -> ConvexPolygon:
    """Return the smallest convex polygon that holds all of some positions.

    Parameters
    ----------
    sky : `astropy.coordinates.SkyCoord`
        Three positions or more, within one hemisphere.

    Returns
    -------
    polygon : `lsst.sphgeom.ConvexPolygon`
        Their convex hull.
    """
    icrs = sky.icrs
    return ConvexPolygon.convexHull(
        [
            UnitVector3d(LonLat.fromRadians(lon, lat))
            for lon, lat in zip(np.ravel(icrs.ra.rad), np.ravel(icrs.dec.rad), strict=True)
        ]
    )


def box_region(wcs: BaseHighLevelWCS, bbox: Box, *, n_edge: int = 8) -> ConvexPolygon:
    """Return the region of the sky that a pixel box covers.

    Parameters
    ----------
    wcs : `astropy.wcs.wcsapi.BaseHighLevelWCS`
        Maps pixels, with ``(0, 0)`` the centre of the first one of the
        grid that ``bbox`` refers to, to the sky.
    bbox : `lsst.images.Box`
        Pixels to cover, to their outer edges.
    n_edge : `int`, optional
        Number of points along each edge, for projections in which edges
        are not great circles.

    Returns
    -------
    polygon : `lsst.sphgeom.ConvexPolygon`
        Region that covers the box.
    """
    x = np.linspace(bbox.x.start - 0.5, bbox.x.stop - 0.5, n_edge)
    y = np.linspace(bbox.y.start - 0.5, bbox.y.stop - 0.5, n_edge)
    xx, yy = np.meshgrid(x, y)
    on_edge = (xx == x[0]) | (xx == x[-1]) | (yy == y[0]) | (yy == y[-1])
    return sky_polygon(wcs.pixel_to_world(xx[on_edge], yy[on_edge]))


def enclosing_region(regions: Iterable[ConvexPolygon]) -> ConvexPolygon:
    """Return the convex hull of some regions.

    Parameters
    ----------
    regions : iterable of `lsst.sphgeom.ConvexPolygon`
        One region or more.

    Returns
    -------
    polygon : `lsst.sphgeom.ConvexPolygon`
        A region that holds them all.
    """
    return ConvexPolygon.convexHull([v for region in regions for v in region.getVertices()])


def covers(outer: ConvexPolygon, inner: ConvexPolygon, *, tolerance: float = 1e-10) -> bool:
    """Tell whether a region holds another one, up to rounding.

    Parameters
    ----------
    outer, inner : `lsst.sphgeom.ConvexPolygon`
        Regions to compare.
    tolerance : `float`, optional
        Distance in radians up to which two vertices are the same.

    Returns
    -------
    covers : `bool`
        `True` if every vertex of ``inner`` is inside ``outer``.
    """
    vertices = np.array([[v.x(), v.y(), v.z()] for v in outer.getVertices()])
    for vertex in inner.getVertices():
        distance = np.linalg.norm(vertices - [vertex.x(), vertex.y(), vertex.z()], axis=1).min()
        if distance > tolerance and not outer.contains(vertex):
            return False
    return True
