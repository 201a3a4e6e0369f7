# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("cover_exposures",)

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from ..repository import SkyMapGeometry
from ._projection import local_jacobian


def cover_exposures(
    name: str,
    exposures: Sequence[tuple[WCS, tuple[int, int]]],
    *,
    patch_size: int = 2000,
    border: int = 100,
    scale: float | None = None,
    orientation: str = "reference",
    margin: int = 4,
) -> SkyMapGeometry:
    """Make a sky map of one tract that covers some exposures.

    Parameters
    ----------
    name : `str`
        Name of the sky map.
    exposures : sequence of `tuple`
        WCS and shape (height, width) of each; the first is the reference.
    patch_size : `int`, optional
        Largest side of a patch without its border, in pixels.
    border : `int`, optional
        How far neighbouring patches reach into each other, in pixels.
    scale : `float`, optional
        Side of a tract pixel in arcseconds; by default that of the reference.
    orientation : {'reference', 'north'}, optional
        ``reference`` lays the tract's pixels on those of the reference, so
        that it is not interpolated; ``north`` has north up and east left.
    margin : `int`, optional
        Pixels between the exposures and the tract's edge.

    Returns
    -------
    geometry : `lsst.latent_coadds.repository.SkyMapGeometry`
        The sky map.

    Raises
    ------
    ValueError
        Raised if the orientation is unknown.
    """
    if orientation not in ("reference", "north"):
        raise ValueError(f"Unknown orientation {orientation!r}; use 'reference' or 'north'.")
    wcs, (height, width) = exposures[0]
    x, y = (width - 1) // 2, (height - 1) // 2
    jacobian = local_jacobian(wcs, x, y)
    side = scale / 3600.0 if scale is not None else float(np.sqrt(abs(np.linalg.det(jacobian))))
    if orientation == "reference":
        left, _, right = np.linalg.svd(jacobian)
        matrix = side * left @ right
    else:
        matrix = side * np.diag([-1.0, 1.0])
    header = _tan_header(SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg"), matrix)
    corners = np.concatenate([_corners(w, shape, WCS(header)) for w, shape in exposures])
    low = np.floor(corners.min(axis=0)).astype(int) - margin
    high = np.ceil(corners.max(axis=0)).astype(int) + margin
    n_x, n_y = (max(1, math.ceil((b - a + 1) / patch_size)) for a, b in zip(low, high, strict=True))
    size = tuple(math.ceil((b - a + 1) / n) for a, b, n in zip(low, high, (n_x, n_y), strict=True))
    header["CRPIX1"], header["CRPIX2"] = (float(1 - v) for v in low)
    plain = SkyMapGeometry.from_grid(
        name,
        SkyCoord(header["CRVAL1"], header["CRVAL2"], unit="deg"),
        n_x=n_x,
        n_y=n_y,
        inner_size=(size[0], size[1]),
        border=border,
        pixel_scale=3600.0 * side,
    )
    return SkyMapGeometry(name, {0: dataclasses.replace(plain.tracts[0], wcs_header=header)})


def _tan_header(centre: SkyCoord, matrix: np.ndarray) -> dict[str, float | str]:
    """TAN header whose tangent point is pixel (0, 0)."""
    return {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CUNIT1": "deg",
        "CUNIT2": "deg",
        "RADESYS": "ICRS",
        "CRPIX1": 1.0,
        "CRPIX2": 1.0,
        "CRVAL1": float(centre.ra.deg),
        "CRVAL2": float(centre.dec.deg),
        "CD1_1": float(matrix[0, 0]),
        "CD1_2": float(matrix[0, 1]),
        "CD2_1": float(matrix[1, 0]),
        "CD2_2": float(matrix[1, 1]),
    }


def _corners(wcs: WCS, shape: tuple[int, int], tract: WCS) -> np.ndarray:
    x, y = np.array([0, shape[1] - 1, 0, shape[1] - 1]), np.array([0, 0, shape[0] - 1, shape[0] - 1])
    return np.stack(tract.all_world2pix(*wcs.all_pix2world(x, y, 0), 0), axis=1)
