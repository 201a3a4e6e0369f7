# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the pixels of exposures lie on the latent grid."""

from __future__ import annotations

__all__ = ("FrameGeometry",)

from typing import Any

import numpy as np
import torch

from ._errors import InvalidStackError

_N_TAPS = 4
"""Nodes per axis that an interpolated position depends on."""

_LATENT_STEP = 16
"""Spacing in latent pixels at which the inverse mapping is solved for."""


class FrameGeometry:
    """Mapping from each exposure's own pixels to the latent grid.

    Parameters
    ----------
    latent_shape : `tuple` [ `int`, `int` ]
        Shape (H, W) of the latent image.
    x, y : array-like, shape (T, ny, nx), float64
        Latent pixel coordinates of nodes: node (i, j) lies at row ``i * step``
        and column ``j * step`` of the exposure. Integers are pixel centres,
        and latent pixel (0, 0) is at (0, 0).
    step : `int`
        Spacing of the nodes in pixels of the exposure.

    Raises
    ------
    InvalidStackError
        The nodes do not make a mapping; the message says why.

    Notes
    -----
    Positions between nodes come from cubic polynomials through four nodes
    along each axis. Just outside of the nodes these are extrapolated, and
    further out the mapping goes on as its mean affine part.
    """

    def __init__(self, latent_shape: tuple[int, int], x: Any, y: Any, step: int) -> None:
        self.latent_shape = (int(latent_shape[0]), int(latent_shape[1]))
        self.step = int(step)
        self.x, self.y = (torch.as_tensor(np.array(a, dtype=np.float64)) for a in (x, y))
        if self.x.ndim != 3 or self.x.shape != self.y.shape or min(self.x.shape[1:], default=0) < 2:
            raise InvalidStackError(
                f"x and y must have one shape (T, ny, nx) with ny, nx > 1, not {tuple(self.x.shape)} and "
                f"{tuple(self.y.shape)}."
            )
        if self.step < 1 or min(self.latent_shape) < 1:
            raise InvalidStackError("step and latent_shape must be positive.")
        for t in range(len(self.x)):
            if not bool(torch.isfinite(self.x[t]).all() & torch.isfinite(self.y[t]).all()):
                raise InvalidStackError(f"The mapping of exposure {t} is not finite; leave it out.")
        self._affine = [self._fit_affine(t) for t in range(len(self.x))]

    @property
    def n_exposures(self) -> int:
        """Number of exposures, T."""
        return self.x.shape[0]

    @property
    def frame_limit(self) -> tuple[int, int]:
        """Largest shape (height, width) of exposures that the nodes enclose."""
        return (self.x.shape[1] - 1) * self.step + 1, (self.x.shape[2] - 1) * self.step + 1

    def select(self, which: slice) -> FrameGeometry:
        """Return the geometry of some of the exposures."""
        return FrameGeometry(self.latent_shape, self.x[which], self.y[which], self.step)

    def _fit_affine(self, t: int) -> torch.Tensor:
        """Return d(latent x, y) / d(frame x, y), (2, 2), on average."""
        ny, nx = self.x.shape[1:]
        rows, columns = ((torch.arange(n, dtype=torch.float64) - 0.5 * (n - 1)) * self.step for n in (ny, nx))
        matrix = torch.empty((2, 2), dtype=torch.float64)
        for i, nodes in enumerate((self.x[t], self.y[t])):
            matrix[i, 0] = (nodes.mean(dim=0) * columns).sum() / (columns**2).sum()
            matrix[i, 1] = (nodes.mean(dim=1) * rows).sum() / (rows**2).sum()
        if not float(torch.linalg.det(matrix).abs()) > 1e-6:
            raise InvalidStackError(f"The mapping of exposure {t} is degenerate; leave it out.")
        return matrix

    def affine(self, t: int) -> torch.Tensor:
        """Return d(latent x, y) / d(frame x, y), (2, 2), of an exposure on average."""
        return self._affine[t]

    def evaluate(self, t: int, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map any positions on exposure ``t``, float64, to latent pixel coordinates."""
        ny, nx = self.x.shape[1:]
        near_x = x.clamp(-self.step, nx * self.step)
        near_y = y.clamp(-self.step, ny * self.step)
        column, weights_x = _lagrange(near_x / self.step, nx)
        row, weights_y = _lagrange(near_y / self.step, ny)
        results = []
        for i, nodes in enumerate((self.x[t], self.y[t])):
            total = self._affine[t][i, 0] * (x - near_x) + self._affine[t][i, 1] * (y - near_y)
            for j, weight_y in enumerate(weights_y):
                for k, weight_x in enumerate(weights_x):
                    total = total + weight_y * weight_x * nodes[row + j, column + k]
            results.append(total)
        return results[0], results[1]

    def positions(self, t: int, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latent coordinates x and y, float64, of the pixels of exposure ``t``."""
        ny, nx = self.x.shape[1:]
        rows = interpolation_matrix(torch.arange(shape[0], dtype=torch.float64) / self.step, ny)
        columns = interpolation_matrix(torch.arange(shape[1], dtype=torch.float64) / self.step, nx)
        return rows @ self.x[t] @ columns.T, rows @ self.y[t] @ columns.T

    def area(self, t: int, shape: tuple[int, int]) -> torch.Tensor:
        """Return the area in latent pixels of each pixel of exposure ``t``, float64."""
        x, y = self.positions(t, shape)
        return pixel_area(x, y)

    def inverse(self, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the position x and y on exposure ``t``, float64, of the latent pixels (H, W)."""
        height, width = self.latent_shape
        nodes = [node_positions(n, _LATENT_STEP) for n in (height, width)]
        y, x = torch.meshgrid(*nodes, indexing="ij")
        solution = self._solve(t, x, y)
        rows, columns = (
            interpolation_matrix(torch.arange(n, dtype=torch.float64) / _LATENT_STEP, len(node))
            for n, node in zip((height, width), nodes, strict=True)
        )
        return rows @ solution[0] @ columns.T, rows @ solution[1] @ columns.T

    def _solve(self, t: int, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inverse = torch.linalg.inv(self._affine[t])
        frame_x, frame_y = torch.zeros_like(x), torch.zeros_like(y)
        for _ in range(30):
            seen_x, seen_y = self.evaluate(t, frame_x, frame_y)
            dx, dy = x - seen_x, y - seen_y
            frame_x = frame_x + inverse[0, 0] * dx + inverse[0, 1] * dy
            frame_y = frame_y + inverse[1, 0] * dx + inverse[1, 1] * dy
            if float(torch.maximum(dx.abs().max(), dy.abs().max())) < 1e-7:
                break
        return frame_x, frame_y

    def covered(self, t: int, shape: tuple[int, int]) -> torch.Tensor:
        """Return which pixels of exposure ``t`` have their centres on latent pixels."""
        x, y = self.positions(t, shape)
        height, width = self.latent_shape
        return (x > -0.5) & (y > -0.5) & (x < width - 0.5) & (y < height - 0.5)


def flags_to_latent(frames: FrameGeometry | None, t: int, plane: torch.Tensor) -> torch.Tensor:
    """Return flags (h, w) of exposure ``t`` on the latent grid (H, W).

    Each latent pixel has the flag of the nearest pixel of the exposure, and
    none where the exposure does not reach.
    """
    if frames is None:
        return plane
    x, y = (torch.round(p).long() for p in frames.inverse(t))
    height, width = plane.shape
    inside = ((x >= 0) & (y >= 0) & (x < width) & (y < height)).to(plane.device)
    x, y = x.clamp(0, width - 1).to(plane.device), y.clamp(0, height - 1).to(plane.device)
    return plane[y, x] & inside


def flags_to_frame(
    frames: FrameGeometry | None, t: int, plane: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """Return flags (H, W) of the latent grid on exposure ``t`` (h, w), from the nearest pixels."""
    if frames is None:
        return plane
    x, y = (torch.round(p).long().to(plane.device) for p in frames.positions(t, shape))
    return plane[y.clamp(0, plane.shape[0] - 1), x.clamp(0, plane.shape[1] - 1)]


def images_to_latent(
    frames: FrameGeometry | None, images: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return exposures without gaps on the latent grid, for networks and other rough uses.

    Parameters
    ----------
    frames : `FrameGeometry` or `None`
        Where the pixels lie; `None` returns the images as they are.
    images : `torch.Tensor`, shape (T, h, w)
        Exposures; every pixel has a value.
    weights : `torch.Tensor`, shape (T,)
        Weights of the mean that goes where an exposure does not reach.

    Returns
    -------
    registered : `torch.Tensor`, shape (T, H, W)
        Cubic interpolation, in flux per latent pixel.
    """
    if frames is None:
        return images
    planes, reached = [], []
    height, width = images.shape[1:]
    for t, image in enumerate(images):
        x, y = frames.inverse(t)
        inside = (x > -0.5) & (y > -0.5) & (x < width - 0.5) & (y < height - 0.5)
        planes.append(interpolate(image, x, y, mode="bicubic") * pixel_area(x, y).to(image))
        reached.append(inside.to(image))
    registered, shares = torch.stack(planes), torch.stack(reached)
    shares = shares * weights[:, None, None]
    mean = (shares * registered).sum(dim=0) / shares.sum(dim=0).clamp_min(1e-6 * float(weights.sum()))
    return torch.where(shares > 0, registered, mean)


def interpolate(
    plane: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *, mode: str = "bilinear"
) -> torch.Tensor:
    """Return a plane (H, W) at positions; outside of it, the value of the nearest pixel."""
    grid = torch.stack(
        [2.0 * p / max(1, n - 1) - 1.0 for p, n in zip((x, y), plane.shape[::-1], strict=True)], dim=-1
    )
    sampled = torch.nn.functional.grid_sample(
        plane[None, None], grid[None].to(plane), mode=mode, padding_mode="border", align_corners=True
    )
    return sampled[0, 0]


def node_positions(n: int, step: int) -> torch.Tensor:
    """Return positions of nodes from 0 that reach to pixel ``n - 1``."""
    return torch.arange(max(1, -(-(n - 1) // step)) + 1, dtype=torch.float64) * step


def interpolation_matrix(positions: torch.Tensor, n_nodes: int) -> torch.Tensor:
    """Return the matrix (n, n_nodes) of cubic interpolation between nodes.

    Parameters
    ----------
    positions : `torch.Tensor`, shape (n,)
        Positions in units of the spacing of nodes.
    n_nodes : `int`
        Number of nodes.
    """
    start, weights = _lagrange(positions, n_nodes)
    matrix = positions.new_zeros((len(positions), n_nodes))
    for j, weight in enumerate(weights):
        matrix[torch.arange(len(positions)), start + j] = weight
    return matrix


def _lagrange(positions: torch.Tensor, n_nodes: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the first of the nodes around positions, and their weights."""
    n_taps = min(_N_TAPS, n_nodes)
    start = (torch.floor(positions).long() - (n_taps - 1) // 2).clamp(0, n_nodes - n_taps)
    offset = positions - start
    weights = []
    for j in range(n_taps):
        weight = torch.ones_like(positions)
        for k in range(n_taps):
            if k != j:
                weight = weight * (offset - k) / (j - k)
        weights.append(weight)
    return start, weights


def pixel_area(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the area of pixels from the positions of their centres."""
    dx_dy, dx_dx = torch.gradient(x)
    dy_dy, dy_dx = torch.gradient(y)
    return (dx_dx * dy_dy - dx_dy * dy_dx).abs()
