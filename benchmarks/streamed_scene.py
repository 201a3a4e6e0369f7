# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exposures of a patch that are drawn as they are asked for, tile by tile.

Everything at a pixel follows from the seed and the pixel, so that tiles that
overlap agree and a patch of any size needs no memory. Needs NumPy and torch.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from lsst.latent_coadds.restoration import (
    ExposureStack,
    FrameGeometry,
    WholeField,
    Window,
    evaluate_psf_basis,
    fit_psf_basis,
    move_psf_basis,
)

BLOCK = 256
"""Side of the blocks of sky and of noise that have a seed of their own."""

NODE_STEP = 16
"""Spacing of the nodes of a mapping, in pixels."""

MAX_CACHED_BLOCKS = 256


@dataclasses.dataclass(frozen=True)
class Visit:
    """Where one exposure points, and through which air.

    Attributes
    ----------
    fwhm, beta, ellipticity, angle : `float`
        Moffat profile at the middle of the patch, pixel response included, in
        patch pixels.
    gradient : `tuple` [ `float`, `float` ]
        Relative change of the width from the middle of the patch to its
        edges along x and y.
    sigma : `float`
        Noise of a pixel.
    rotation : `float`
        Angle of the detectors, in radians.
    offset : `tuple` [ `float`, `float` ]
        Detector pixel at the middle of the patch.
    edge : `tuple` [ `float`, `float`, `float` ]
        The visit sees where the first two, times x and y from the middle of
        the patch in half sizes of it, are less than the third together.
    """

    fwhm: float
    beta: float
    ellipticity: float
    angle: float
    gradient: tuple[float, float]
    sigma: float
    rotation: float
    offset: tuple[float, float]
    edge: tuple[float, float, float] = (0.0, 0.0, 1.0)


class StreamedScene:
    """A field of stars, seen in many visits.

    Parameters
    ----------
    size : `int`
        Side of the patch.
    n_exposures : `int`
        Number of visits.
    native : `bool`, optional
        Whether visits have rotated, dithered, distorted pixels of their own,
        with gaps between detectors, or are on the grid of the patch.
    seed : `int`, optional
        Everything follows from it.
    variation : `float`, optional
        Relative change of the PSF's width across the patch.
    degree : `int`, optional
        Largest degree of the polynomials that stand for the PSFs.
    stamp : `int`, optional
        Diameter of PSFs, odd.
    density : `float`, optional
        Stars per 1000 pixels.
    partial : `float`, optional
        Share of the visits that end at a straight edge within the patch.
    """

    detector = (2048, 4096)
    gap = 60
    distortion = 2e-10
    gain = 66.0

    def __init__(
        self,
        size: int,
        n_exposures: int,
        *,
        native: bool = False,
        seed: int = 1,
        variation: float = 0.1,
        degree: int = 2,
        stamp: int = 43,
        density: float = 0.5,
        partial: float = 0.0,
    ) -> None:
        self.area = Window(0, size, 0, size)
        self.native = native
        self.seed = seed
        self.degree = degree
        self.half = stamp // 2
        self.density = density
        self.visits = [self._make_visit(t, variation, partial) for t in range(n_exposures)]
        self._patch_psf = functools.cache(self._make_patch_psf)
        typical = [
            evaluate_psf_basis(self._patch_psf(t), np.zeros(1), np.zeros(1))[0] for t in range(n_exposures)
        ]
        self.field = WholeField(np.stack(typical), [visit.sigma**-2 for visit in self.visits])
        self._stars = functools.lru_cache(maxsize=MAX_CACHED_BLOCKS)(self._make_stars)

    def _make_visit(self, t: int, variation: float, partial: float) -> Visit:
        rng = np.random.default_rng([self.seed, 1, t])
        gradient = rng.normal(size=2)
        gradient *= 0.5 * variation / np.hypot(*gradient)
        side = np.random.default_rng([self.seed, 4, t])
        angle, cut = side.uniform(0.0, 2.0 * np.pi), side.uniform(-0.7, 0.7)
        ends = side.uniform() < partial
        return Visit(
            edge=(float(np.cos(angle)), float(np.sin(angle)), float(cut)) if ends else (0.0, 0.0, 1.0),
            fwhm=float(rng.uniform(3.0, 6.0)),
            beta=float(rng.uniform(2.8, 4.0)),
            ellipticity=float(rng.uniform(0.0, 0.06)),
            angle=float(rng.uniform(0.0, np.pi)),
            gradient=(float(gradient[0]), float(gradient[1])),
            sigma=float(rng.uniform(0.8, 1.3)),
            rotation=float(np.deg2rad(rng.normal(0.0, 3.0) + 180.0 * (t % 2))),
            offset=(float(rng.uniform(-300, 300)), float(rng.uniform(-300, 300))),
        )

    def _make_stars(self, row: int, column: int) -> np.ndarray:
        """Return x, y and flux of the stars of a block, (n, 3)."""
        rng = np.random.default_rng([self.seed, 2, row + 1000, column + 1000])
        n = rng.poisson(self.density * BLOCK * BLOCK / 1000)
        x, y = rng.uniform(0, BLOCK, (2, n))
        flux = (60.0 * rng.pareto(0.9, n) + 10.0).clip(max=1e5)
        return np.stack([x + column * BLOCK, y + row * BLOCK, flux], axis=1)

    def stars(self, window: Window) -> np.ndarray:
        """Return x, y and flux of the stars in a window, (n, 3)."""
        blocks = [
            self._stars(row, column)
            for row in range(window.y_start // BLOCK, (window.y_stop - 1) // BLOCK + 1)
            for column in range(window.x_start // BLOCK, (window.x_stop - 1) // BLOCK + 1)
        ]
        stars = np.concatenate(blocks)
        inside = (
            (stars[:, 0] >= window.x_start)
            & (stars[:, 0] < window.x_stop)
            & (stars[:, 1] >= window.y_start)
            & (stars[:, 1] < window.y_stop)
        )
        return stars[inside]

    def _noise(self, t: int, window: Window) -> np.ndarray:
        noise = np.empty(window.shape, dtype=np.float32)
        for row in range(window.y_start // BLOCK, (window.y_stop - 1) // BLOCK + 1):
            for column in range(window.x_start // BLOCK, (window.x_stop - 1) // BLOCK + 1):
                rng = np.random.default_rng([self.seed, 3, t, row + 1000, column + 1000])
                block = rng.standard_normal((BLOCK, BLOCK), dtype=np.float32)
                y0, x0 = row * BLOCK, column * BLOCK
                y = slice(max(y0, window.y_start), min(y0 + BLOCK, window.y_stop))
                x = slice(max(x0, window.x_start), min(x0 + BLOCK, window.x_stop))
                noise[
                    y.start - window.y_start : y.stop - window.y_start,
                    x.start - window.x_start : x.stop - window.x_start,
                ] = block[y.start - y0 : y.stop - y0, x.start - x0 : x.stop - x0]
        return noise

    def _profile(self, t: int, x: float, y: float, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        """Evaluate the PSF at (x, y) at offsets in patch pixels, unit sum."""
        visit, middle = self.visits[t], 0.5 * (self.area.x_stop - 1)
        size = (x - middle) / middle * visit.gradient[0] + (y - middle) / middle * visit.gradient[1]
        radius = visit.fwhm * (1.0 + size) / (2.0 * np.sqrt(2.0 ** (1.0 / visit.beta) - 1.0))
        c, s, q = np.cos(visit.angle), np.sin(visit.angle), 1.0 + visit.ellipticity
        r2 = ((dx * c + dy * s) * q) ** 2 + ((dy * c - dx * s) / q) ** 2
        norm = (visit.beta - 1.0) / (np.pi * radius**2)
        norm /= 1.0 - (1.0 + (self.half / radius) ** 2) ** (1.0 - visit.beta)
        return np.where(dx**2 + dy**2 <= self.half**2, norm * (1.0 + r2 / radius**2) ** -visit.beta, 0.0)

    def to_native(self, t: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map patch pixels to pixels of a visit's camera."""
        if not self.native:
            return np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        visit, middle = self.visits[t], 0.5 * (self.area.x_stop - 1)
        c, s = np.cos(visit.rotation), np.sin(visit.rotation)
        u, v = x - middle, y - middle
        u, v = c * u - s * v, s * u + c * v
        stretch = 1.0 + self.distortion * (u**2 + v**2)
        return u * stretch + visit.offset[0], v * stretch + visit.offset[1]

    def to_patch(self, t: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map pixels of a visit's camera to patch pixels."""
        if not self.native:
            return np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        visit, middle = self.visits[t], 0.5 * (self.area.x_stop - 1)
        p, q = x - visit.offset[0], y - visit.offset[1]
        u, v = p, q
        for _ in range(6):
            stretch = 1.0 + self.distortion * (u**2 + v**2)
            u, v = p / stretch, q / stretch
        c, s = np.cos(visit.rotation), np.sin(visit.rotation)
        return c * u + s * v + middle, c * v - s * u + middle

    def _footprint(self, t: int, outer: Window) -> Window:
        """Return the pixels of a visit that a window needs."""
        if not self.native:
            return outer
        x = np.linspace(outer.x_start - 0.5, outer.x_stop - 0.5, 9)
        y = np.linspace(outer.y_start - 0.5, outer.y_stop - 0.5, 9)
        x, y = self.to_native(t, *np.meshgrid(x, y))
        x0, x1, y0, y1 = (
            int(f(a)) for a in (x, y) for f in (lambda a: np.floor(a.min()), lambda a: np.ceil(a.max()))
        )
        return Window(y0, y1 + 1, x0, x1 + 1)

    def _draw(self, t: int, window: Window, stars: np.ndarray) -> np.ndarray:
        """Draw the stars on the pixels of a visit."""
        image = np.zeros(window.shape)
        x, y = self.to_native(t, stars[:, 0], stars[:, 1])
        (xr, yr), (xu, yu) = (self.to_patch(t, x + a, y + b) for a, b in ((1.0, 0.0), (0.0, 1.0)))
        reach = self.half + 1
        for n, (star_x, star_y, flux) in enumerate(stars):
            matrix = np.array([[xr[n] - star_x, xu[n] - star_x], [yr[n] - star_y, yu[n] - star_y]])
            column, row = round(float(x[n])), round(float(y[n]))
            rows = np.arange(max(row - reach, window.y_start), min(row + reach + 1, window.y_stop))
            columns = np.arange(max(column - reach, window.x_start), min(column + reach + 1, window.x_stop))
            if not (len(rows) and len(columns)):
                continue
            a, b = columns[None, :] - x[n], rows[:, None] - y[n]
            dx, dy = matrix[0, 0] * a + matrix[0, 1] * b, matrix[1, 0] * a + matrix[1, 1] * b
            stamp = self._profile(t, star_x, star_y, dx, dy) * (flux * abs(np.linalg.det(matrix)))
            image[
                rows[0] - window.y_start : rows[-1] + 1 - window.y_start,
                columns[0] - window.x_start : columns[-1] + 1 - window.x_start,
            ] += stamp
        return image

    def psf(self, t: int, outer: Window) -> np.ndarray:
        """Return the basis images (J, k, k) of a visit's PSF over a window.

        They are made of one polynomial for the patch, so that windows agree.
        """
        half = 0.5 * (self.area.x_stop - 1)
        scale = [0.5 * (n - 1) / half for n in (outer.shape[1], outer.shape[0])]
        offset = outer.x_start / half + scale[0] - 1.0, outer.y_start / half + scale[1] - 1.0
        return move_psf_basis(self._patch_psf(t), (scale[0], scale[1]), offset)

    def _make_patch_psf(self, t: int) -> np.ndarray:
        """Return the basis images (J, k, k) of a visit's PSF over the patch."""
        offset = np.arange(-self.half, self.half + 1, dtype=float)
        u, v = (a.ravel() for a in np.meshgrid(*2 * [np.linspace(-1, 1, self.degree + 2)]))
        middle = 0.5 * (self.area.x_stop - 1)
        stamps = np.stack(
            [
                self._profile(t, middle * (1 + a), middle * (1 + b), offset[None, :], offset[:, None])
                for a, b in zip(u, v, strict=True)
            ]
        )
        stamps /= stamps.sum(axis=(1, 2), keepdims=True)
        return fit_psf_basis(stamps, u, v, degree=self.degree)[0]

    def _gaps(self, window: Window) -> np.ndarray:
        """Return which pixels lie between detectors."""
        width, height = (n + self.gap for n in self.detector)
        x = np.arange(window.x_start, window.x_stop) % width >= self.detector[0]
        y = np.arange(window.y_start, window.y_stop) % height >= self.detector[1]
        return x[None, :] | y[:, None]

    def stack(self, outer: Window) -> ExposureStack:
        """Draw what all visits see of a window.

        Parameters
        ----------
        outer : `Window`
            A tile with its halo; the part outside of the patch is drawn too.

        Returns
        -------
        stack : `ExposureStack`
            The exposures.
        """
        every = np.meshgrid(
            np.arange(outer.x_start, outer.x_stop, dtype=np.float64),
            np.arange(outer.y_start, outer.y_stop, dtype=np.float64),
        )
        seen = [t for t in range(len(self.visits)) if self._sees(t, *every).any()]
        footprints = [self._footprint(t, outer) for t in seen]
        shape = tuple(max(f.shape[axis] for f in footprints) for axis in (0, 1))
        n = len(seen)
        image, variance = np.zeros((n, *shape), np.float32), np.ones((n, *shape), np.float32)
        good = np.zeros((n, *shape), dtype=bool)
        stars = self.stars(outer.padded(self.half + 2))
        nodes = []
        for i, (t, found) in enumerate(zip(seen, footprints, strict=True)):
            # All frames have one shape; the smaller ones see a little more.
            whole = Window(found.y_start, found.y_start + shape[0], found.x_start, found.x_start + shape[1])
            sigma = self.visits[t].sigma
            expected = self._draw(t, whole, stars)
            variance[i] = sigma**2 + expected / self.gain
            image[i] = expected + np.sqrt(variance[i]) * self._noise(t, whole)
            good[i] = self._inside(t, whole, outer)
            if self.native:
                x, y = _nodes(shape)
                x, y = self.to_patch(t, x + whole.x_start, y + whole.y_start)
                nodes.append((x - outer.x_start, y - outer.y_start))
                good[i] &= ~self._gaps(whole)
        psf = _pad_basis([self.psf(t, outer) for t in seen])
        middle = [
            (self.area.x_stop - 1 - 2 * start) / (size - 1) - 1.0
            for start, size in zip((outer.x_start, outer.y_start), outer.shape[::-1], strict=True)
        ]
        shared: dict[str, Any] = {
            "origin": (outer.y_start, outer.x_start),
            "reference": np.array([middle] * n),
            "weights": np.array([self.visits[t].sigma ** -2 for t in seen]),
            "field": self.field,
        }
        if not self.native:
            return ExposureStack(image, variance, good, psf, **shared)
        frames = FrameGeometry(
            latent_shape=outer.shape,
            x=np.stack([x for x, _ in nodes]),
            y=np.stack([y for _, y in nodes]),
            step=NODE_STEP,
        )
        return ExposureStack(image, variance, good, psf, frames=frames, **shared)

    def _sees(self, t: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return which positions on the patch a visit reaches."""
        along_x, along_y, most = self.visits[t].edge
        middle = 0.5 * (self.area.x_stop - 1)
        return along_x * (x - middle) + along_y * (y - middle) < most * middle

    def _inside(self, t: int, window: Window, outer: Window) -> np.ndarray:
        x, y = np.meshgrid(
            np.arange(window.x_start, window.x_stop, dtype=np.float64),
            np.arange(window.y_start, window.y_stop, dtype=np.float64),
        )
        x, y = self.to_patch(t, x, y)
        return (
            (x > outer.x_start - 0.5)
            & (x < outer.x_stop - 0.5)
            & (y > outer.y_start - 0.5)
            & (y < outer.y_stop - 0.5)
            & self._sees(t, x, y)
        )


def _nodes(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return positions x, y of nodes that reach past the last pixel."""
    n_y, n_x = (-(-(n - 1) // NODE_STEP) + 2 for n in shape)
    x, y = np.meshgrid(np.arange(n_x) * float(NODE_STEP), np.arange(n_y) * float(NODE_STEP))
    return x, y


def _pad_basis(bases: list[np.ndarray]) -> np.ndarray:
    """Return bases as one array (T, J, k, k), or (T, k, k) if all are constant."""
    n_basis = max(len(basis) for basis in bases)
    padded = np.zeros((len(bases), n_basis, *bases[0].shape[1:]), dtype=np.float32)
    for target, basis in zip(padded, bases, strict=True):
        target[: len(basis)] = basis
    return padded[:, 0] if n_basis == 1 else padded
