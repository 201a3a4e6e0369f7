# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PixelMapping",)

import numpy as np

from lsst.images import Box

from ._exposure_reader import ExposureReader
from ._patch_grid import PatchGrid

_GRID_STEP = 16
"""Spacing, in pixels, of the positions where the WCSs are evaluated; bilinear
interpolation between them is good to some 1e-4 px for wide-field cameras.
"""


class PixelMapping:
    """Mapping from tract pixels to the pixels of a detector.

    Parameters
    ----------
    patch : `PatchGrid`
        Grid to map from.
    reader : `ExposureReader`
        Detector image to map to.
    """

    def __init__(self, patch: PatchGrid, reader: ExposureReader) -> None:
        self._transform = patch.sky_projection.pixel_to_sky_transform.then(
            reader.sky_projection.sky_to_pixel_transform, remember_components=False
        )

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map positions exactly.

        Parameters
        ----------
        x, y : `numpy.ndarray`
            Tract pixel coordinates.

        Returns
        -------
        x, y : `numpy.ndarray`
            Detector pixel coordinates.
        """
        mapped = self._transform.apply_forward(
            x=np.asarray(x, dtype=np.float64), y=np.asarray(y, dtype=np.float64)
        )
        return np.asarray(mapped.x), np.asarray(mapped.y)

    def inverse(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map detector pixel coordinates to tract pixel coordinates."""
        mapped = self._transform.apply_inverse(
            x=np.asarray(x, dtype=np.float64), y=np.asarray(y, dtype=np.float64)
        )
        return np.asarray(mapped.x), np.asarray(mapped.y)

    def grid(self, bbox: Box) -> tuple[np.ndarray, np.ndarray]:
        """Map every pixel of a box, by interpolation between exact positions.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Tract pixels to map.

        Returns
        -------
        x, y : `numpy.ndarray`, (H, W), float64
            Detector pixel coordinates of the pixel centres.
        """
        nodes_x = _nodes(bbox.x.start, bbox.x.stop)
        nodes_y = _nodes(bbox.y.start, bbox.y.stop)
        node_x, node_y = self(*np.meshgrid(nodes_x, nodes_y))
        to_rows = _interpolation_matrix(nodes_y, np.arange(bbox.y.start, bbox.y.stop))
        to_columns = _interpolation_matrix(nodes_x, np.arange(bbox.x.start, bbox.x.stop))
        return to_rows @ node_x @ to_columns.T, to_rows @ node_y @ to_columns.T

    def nodes(self, bbox: Box, shape: tuple[int, int], step: int) -> tuple[np.ndarray, np.ndarray]:
        """Map a grid of detector positions to tract pixels.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Detector pixels that matter.
        shape : `tuple` [`int`, `int`]
            Rows and columns, counted from the start of ``bbox``, that the
            nodes are to enclose.
        step : `int`
            Spacing of the nodes in detector pixels.

        Returns
        -------
        x, y : `numpy.ndarray`, (ny, nx), float64
            Tract pixel coordinates. Well beyond ``bbox``, where a WCS may
            not be meant to be used, they go on linearly.
        """
        rows, columns = (np.arange(max(1, -(-(n - 1) // step)) + 2) * float(step) for n in shape)
        near_y = rows.clip(max=bbox.y.size + 2.0 * step)
        near_x = columns.clip(max=bbox.x.size + 2.0 * step)
        x, y = self.inverse(*np.meshgrid(near_x + bbox.x.start, near_y + bbox.y.start))
        matrix = np.linalg.inv(self.jacobian(float(x.mean()), float(y.mean())))
        beyond_x, beyond_y = np.meshgrid(columns - near_x, rows - near_y)
        return (
            x + matrix[0, 0] * beyond_x + matrix[0, 1] * beyond_y,
            y + matrix[1, 0] * beyond_x + matrix[1, 1] * beyond_y,
        )

    def jacobian(self, x: float, y: float, step: float = 1.0) -> np.ndarray:
        """Return d(detector x, y) / d(tract x, y) at a position, (2, 2)."""
        xs = np.array([x + step, x - step, x, x])
        ys = np.array([y, y, y + step, y - step])
        mapped_x, mapped_y = self(xs, ys)
        return np.array(
            [
                [mapped_x[0] - mapped_x[1], mapped_x[2] - mapped_x[3]],
                [mapped_y[0] - mapped_y[1], mapped_y[2] - mapped_y[3]],
            ]
        ) / (2 * step)


def _nodes(start: int, stop: int) -> np.ndarray:
    """Return positions that are the same for all boxes that share them."""
    first, last = start // _GRID_STEP, -(-stop // _GRID_STEP)
    return np.arange(first, last + 1) * float(_GRID_STEP) - 0.5


def _interpolation_matrix(nodes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    spacing = nodes[1] - nodes[0]
    index = np.clip(((positions - nodes[0]) / spacing).astype(int), 0, len(nodes) - 2)
    fraction = (positions - nodes[index]) / spacing
    matrix = np.zeros((len(positions), len(nodes)))
    matrix[np.arange(len(positions)), index] = 1 - fraction
    matrix[np.arange(len(positions)), index + 1] = fraction
    return matrix
