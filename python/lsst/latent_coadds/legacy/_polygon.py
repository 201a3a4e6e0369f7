# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("is_inside",)

import numpy as np


def is_inside(vertices: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which points of a grid lie in a polygon.

    Parameters
    ----------
    vertices : `numpy.ndarray`, (n, 2)
        Corners, in order.
    x, y : `numpy.ndarray`, (w,) and (h,)
        Columns and rows.

    Returns
    -------
    inside : `numpy.ndarray` [`bool`], (h, w)
        `True` where a ray to the left crosses the outline an odd number of
        times.
    """
    inside = np.zeros((len(y), len(x)), dtype=bool)
    for (x1, y1), (x2, y2) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        rows = np.flatnonzero((y1 > y) != (y2 > y))
        crossing = x1 + (y[rows] - y1) * (x2 - x1) / (y2 - y1)
        inside[rows] ^= crossing[:, None] < x[None, :]
    return inside
