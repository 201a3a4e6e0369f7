# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("CellAccumulator", "choose_cell_shape", "make_cell_coadd", "make_n_image")

from collections.abc import Sequence
from typing import Any

import astropy.table
import astropy.units as u
import numpy as np

from lsst.images import YX, Box, Image, Mask, NoOverlapError, Polygon
from lsst.images.cells import (
    CellCoadd,
    CellGrid,
    CellGridBounds,
    CellIJ,
    CellPointSpreadFunction,
    CoaddProvenance,
    PatchDefinition,
)

from ._masks import COADD_MASK_SCHEMA
from ._patch_exposure import PatchExposure
from ._patch_grid import PatchGrid
from ._patch_psf import pad_kernels
from ._tile import PatchPlanes, Tile


def choose_cell_shape(shape: Sequence[int], cell_size: int, smallest: int = 32) -> YX[int]:
    """Choose cells that divide a patch evenly.

    Parameters
    ----------
    shape : `~collections.abc.Sequence` [`int`]
        Rows and columns of the patch.
    cell_size : `int`
        Largest side of a cell.
    smallest : `int`, optional
        Where no divisor of a side lies between this and ``cell_size``, the
        whole side becomes one cell.

    Returns
    -------
    cell_shape : `lsst.images.YX` [`int`]
        Rows and columns of a cell.
    """

    def side(length: int) -> int:
        divisors = (n for n in range(min(cell_size, length), smallest - 1, -1) if length % n == 0)
        return next(divisors, length)

    return YX(y=side(shape[0]), x=side(shape[1]))


class CellAccumulator:
    """Weights of the exposures in each cell of a patch.

    Parameters
    ----------
    grid : `lsst.images.cells.CellGrid`
        Cells of the patch.
    n_exposures : `int`
        Number of exposures of the patch.
    """

    def __init__(self, grid: CellGrid, n_exposures: int) -> None:
        self.grid = grid
        size = grid.grid_size
        shape = (n_exposures, size.i, size.j)
        self.weight = np.zeros(shape)
        """Mean inverse variance over the cell, zero where masked."""
        self.covered = np.zeros(shape)
        """Fraction of the cell that the detector covers."""
        self.unmasked = np.zeros(shape)
        """Fraction of the cell with good pixels."""

    def add(self, tile: Tile) -> None:
        """Add the inner part of a tile."""
        start, shape = self.grid.bbox.start, self.grid.cell_shape
        rows = (np.arange(tile.inner.y.start, tile.inner.y.stop) - start.y) // shape.y
        columns = (np.arange(tile.inner.x.start, tile.inner.x.stop) - start.x) // shape.x
        size = self.grid.grid_size
        sum_rows, sum_columns = _membership(rows, size.i), _membership(columns, size.j)
        area = shape.y * shape.x
        for position, member in enumerate(tile.members):
            for target, plane in (
                (self.weight, tile.weight),
                (self.covered, tile.covered),
                (self.unmasked, tile.good),
            ):
                target[member] += sum_rows @ plane[position] @ sum_columns.T / area


def _membership(groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Return the matrix that sums the entries of each group."""
    return (np.arange(n_groups)[:, None] == groups[None, :]).astype(np.float64)


def make_cell_coadd(
    planes: PatchPlanes,
    cells: CellAccumulator,
    exposures: Sequence[PatchExposure],
    patch: PatchGrid,
    *,
    band: str,
    output_psf: np.ndarray | None,
) -> CellCoadd:
    """Assemble the output dataset.

    Parameters
    ----------
    planes : `PatchPlanes`
        Pixel planes.
    cells : `CellAccumulator`
        Weights of the exposures.
    exposures : `~collections.abc.Sequence` [`PatchExposure`]
        Exposures of the patch.
    patch : `PatchGrid`
        The patch.
    band : `str`
        Band of the exposures.
    output_psf : `numpy.ndarray`, (k, k), or `None`
        PSF of the result everywhere; `None` takes, in each cell, the mean of
        the exposures' PSFs with their weights.

    Returns
    -------
    coadd : `lsst.images.cells.CellCoadd`
        Image in nJy, with mask, variance, PSF and provenance.
    """
    parts = [_locate_parts(exposure, patch) for exposure in exposures]
    contributions, mean_psf = _evaluate_cells(cells, exposures, parts, average=output_psf is None)
    psf, missing = _cell_psf(cells, output_psf, mean_psf)
    bounds = CellGridBounds(grid=cells.grid, bbox=cells.grid.bbox, missing=frozenset(missing))
    bbox = planes.bbox
    mask = Mask(0, schema=COADD_MASK_SCHEMA, bbox=bbox)
    for name, plane in planes.mask.items():
        mask.set(name, plane)
    return CellCoadd(
        Image(planes.image, bbox=bbox, unit=u.nJy),
        mask=mask,
        variance=Image(planes.variance, bbox=bbox, unit=u.nJy**2),
        mask_fractions={"rejected": Image(planes.rejected_fraction, bbox=bbox)},
        noise_realizations=[Image(noise, bbox=bbox, unit=u.nJy) for noise in planes.noise],
        sky_projection=patch.sky_projection,
        band=band,
        psf=CellPointSpreadFunction(psf, bounds=bounds),
        patch=PatchDefinition(
            id=patch.patch, index=patch.index, inner_bbox=patch.inner_bbox, cells=cells.grid
        ),
        provenance=CoaddProvenance(_input_table(exposures, parts, patch, cells), contributions),
    )


def make_n_image(planes: PatchPlanes, patch: PatchGrid) -> Image:
    """Return the number of exposures at each pixel as an image."""
    return Image(planes.n_image, bbox=planes.bbox, sky_projection=patch.sky_projection)


def _contributing(cells: CellAccumulator) -> np.ndarray:
    return cells.weight > 0


_Parts = list[tuple[int, Polygon]]
"""Numbers of detectors, and what they cover of the tract."""


def _locate_parts(exposure: PatchExposure, patch: PatchGrid) -> _Parts:
    """Return the detectors that an exposure is made of."""
    parts = []
    for part in exposure.reader.parts():
        position = patch.sky_projection.sky_to_pixel(part.corners)
        parts.append((part.detector, Polygon(x_vertices=position.x, y_vertices=position.y)))
    return parts


def _detectors_on(parts: _Parts, box: Box) -> list[int]:
    """Return which detectors of a contributing exposure reach a cell."""
    if len(parts) == 1:
        return [parts[0][0]]
    return [detector for detector, polygon in parts if _overlap(polygon, box) is not None]


def _overlap(polygon: Polygon, box: Box) -> Polygon | None:
    """Return what a detector covers of a box."""
    try:
        overlap = polygon.intersection(box.to_polygon())
    except NoOverlapError:
        return None
    # Detectors and boxes are convex, so that anything else has no area.
    return overlap if isinstance(overlap, Polygon) else None


def _evaluate_cells(
    cells: CellAccumulator, exposures: Sequence[PatchExposure], parts: Sequence[_Parts], *, average: bool
) -> tuple[astropy.table.Table, dict[tuple[int, int], np.ndarray]]:
    """Evaluate the PSFs at the centres of the cells; fill the table.

    With ``average``, the means of the PSFs come with it, by cell.
    """
    contributing = _contributing(cells)
    rows: list[tuple[Any, ...]] = []
    means: dict[tuple[int, int], np.ndarray] = {}
    for i, j in np.argwhere(contributing.any(axis=0)).tolist():
        box = cells.grid.bbox_of(CellIJ(i=i, j=j))
        members = np.flatnonzero(contributing[:, i, j]).tolist()
        kernels = []
        for t in members:
            reader = exposures[t].reader
            kernel = exposures[t].psf_kernel(box.x.center, box.y.center)
            xx, yy, xy = _moments(kernel)
            figures = (
                _covers(exposures[t], box.x.center, box.y.center),
                cells.covered[t, i, j],
                cells.unmasked[t, i, j],
                cells.weight[t, i, j],
                xx,
                yy,
                xy,
                not np.isfinite([xx, yy, xy]).all(),
            )
            rows += [
                (i, j, reader.instrument, reader.visit, detector, *figures)
                for detector in _detectors_on(parts[t], box)
            ]
            kernels.append(kernel)
        if average:
            means[i, j] = np.average(pad_kernels(kernels), axis=0, weights=cells.weight[members, i, j])
    table = CoaddProvenance.make_empty_contribution_table(len(rows))
    for n, row in enumerate(rows):
        table[n] = row
    return table, means


def _covers(exposure: PatchExposure, x: float, y: float) -> bool:
    detector_x, detector_y = exposure.mapping(np.array([x]), np.array([y]))
    return bool(exposure.reader.bbox.contains(x=float(detector_x[0]), y=float(detector_y[0])))


def _moments(kernel: np.ndarray) -> tuple[float, float, float]:
    """Return Gaussian-weighted second moments, in square pixels.

    The weight is matched to the kernel, so that for a Gaussian the result is
    its covariance; unweighted moments of a Moffat profile do not converge.
    """
    half_y, half_x = kernel.shape[0] // 2, kernel.shape[1] // 2
    y, x = np.mgrid[-half_y : half_y + 1, -half_x : half_x + 1]
    covariance = 4.0 * np.eye(2)
    for _ in range(100):
        inverse = np.linalg.inv(covariance)
        weight = kernel * np.exp(
            -0.5 * (inverse[0, 0] * x**2 + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y**2)
        )
        total = weight.sum()
        xx, yy, xy = (float((weight * term).sum() / total) for term in (x * x, y * y, x * y))
        measured = 2 * np.array([[xx, xy], [xy, yy]])
        if not np.isfinite(measured).all() or np.linalg.det(measured) <= 0:
            return np.nan, np.nan, np.nan
        if np.abs(measured - covariance).max() < 1e-6:
            break
        covariance = measured
    return measured[0, 0], measured[1, 1], measured[0, 1]


def _cell_psf(
    cells: CellAccumulator, output_psf: np.ndarray | None, means: dict[tuple[int, int], np.ndarray]
) -> tuple[np.ndarray, list[CellIJ]]:
    """Return the PSF in each cell, and the cells without one."""
    grid_size = cells.grid.grid_size
    present = _contributing(cells).any(axis=0)
    if output_psf is None:
        where = list(means)
        stamps = pad_kernels([means[cell] for cell in where])
    else:
        where = [(i, j) for i, j in np.argwhere(present).tolist()]
        stamps = np.broadcast_to(output_psf, (len(where), *output_psf.shape))
    psf = np.full((grid_size.i, grid_size.j, *stamps.shape[1:]), np.nan)
    for (i, j), stamp in zip(where, stamps, strict=True):
        psf[i, j] = stamp
    return psf, [CellIJ(i=i, j=j) for i, j in np.argwhere(~present).tolist()]


def _input_table(
    exposures: Sequence[PatchExposure], parts: Sequence[_Parts], patch: PatchGrid, cells: CellAccumulator
) -> astropy.table.Table:
    rows: list[tuple[Any, ...]] = []
    for t in np.flatnonzero(_contributing(cells).any(axis=(1, 2))).tolist():
        reader = exposures[t].reader
        for detector, polygon in parts[t]:
            overlap = _overlap(polygon, patch.outer_bbox)
            if overlap is not None:
                rows.append(
                    (
                        reader.instrument,
                        reader.visit,
                        detector,
                        reader.physical_filter,
                        reader.day_obs,
                        overlap,
                    )
                )
    table = CoaddProvenance.make_empty_input_table(len(rows))
    for n, row in enumerate(rows):
        table[n] = row
    return table
