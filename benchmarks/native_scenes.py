# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exposures on their own detectors, drawn with GalSim, with known truth.

Each exposure has a rotation, a dither and a distortion of its own, two
detectors with a gap between them, and a PSF that changes across each. Nothing
here comes from the package: neither the mapping, nor the PSFs, nor the
sampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import galsim
import numpy as np
from scenes import SCALE, STAMP, Scene, SourceField

from lsst.latent_coadds.restoration import ExposureStack, FrameGeometry, psf_basis_terms

_STEP = 16
"""Spacing of the positions at which the mapping of a frame is given, in pixels."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How exposures lie on the sky.

    Attributes
    ----------
    native_scale : `float`
        Pixel scale of the detectors in arcsec.
    oversampling : `float`
        Native pixels over latent pixels, in one dimension.
    seeing : `tuple` [`float`, `float`]
        Range of FWHM in arcsec.
    rotations : `str`
        ``"any"``, ``"small"`` (two degrees), or ``"none"``.
    psf_variation : `float`
        Relative change of the FWHM from one edge of a detector to the other.
    distortion : `float`
        Cubic term, per pixel squared, about an axis 4000 pixels away.
    gap : `float`
        Width of the gap between the detectors in pixels; 0 for one detector
        that covers everything.
    bad_columns : `int`
        Masked columns per detector.
    """

    native_scale: float = SCALE
    oversampling: float = 1.0
    seeing: tuple[float, float] = (0.5, 1.0)
    rotations: str = "any"
    psf_variation: float = 0.1
    distortion: float = 3e-10
    gap: float = 14.0
    bad_columns: int = 2


class Camera:
    """One exposure's mapping between latent and native pixels.

    Parameters
    ----------
    layout : `Layout`
        The geometry.
    size : `int`
        Width of the latent image in pixels.
    rng : `numpy.random.Generator`
        Source of rotation, dither and PSF.
    """

    def __init__(self, layout: Layout, size: int, rng: np.random.Generator) -> None:
        self.layout = layout
        angle = {
            "any": rng.uniform(0, 2 * np.pi),
            "small": np.deg2rad(rng.uniform(-2, 2)) + 0.5 * np.pi * rng.integers(4),
            "none": 0.0,
        }[layout.rotations]
        cosine, sine = np.cos(angle), np.sin(angle)
        self.matrix = np.array([[cosine, -sine], [sine, cosine]]) / layout.oversampling
        self.center = np.array([0.5, 0.5]) * (size - 1)
        self.axis = 4000.0 * np.array([np.cos(a := rng.uniform(0, 2 * np.pi)), np.sin(a)])
        self.dither = rng.uniform(-60, 60, 2)
        e, direction = rng.uniform(0.0, 0.06), rng.uniform(0.0, 2 * np.pi)
        self.shear = e * np.cos(direction), e * np.sin(direction)
        self.fwhm, self.beta = rng.uniform(*layout.seeing), rng.uniform(2.8, 4.0)
        slope = rng.uniform(0, 2 * np.pi)
        extent = size / layout.oversampling
        self.slope = layout.psf_variation / extent * np.array([np.cos(slope), np.sin(slope)])

    def to_native(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map latent pixels to native ones."""
        q = np.einsum("ij,...j->...i", self.matrix, np.stack([x, y], axis=-1) - self.center) + self.axis
        q = q * (1 + self.layout.distortion * (q**2).sum(axis=-1, keepdims=True)) - self.axis + self.dither
        return q[..., 0], q[..., 1]

    def to_latent(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map native pixels to latent ones."""
        goal = np.stack([x, y], axis=-1) - self.dither + self.axis
        q = goal.copy()
        for _ in range(12):
            q = goal / (1 + self.layout.distortion * (q**2).sum(axis=-1, keepdims=True))
        p = np.einsum("ij,...j->...i", np.linalg.inv(self.matrix), q - self.axis) + self.center
        return p[..., 0], p[..., 1]

    def local_wcs(self, x: float, y: float) -> galsim.JacobianWCS:
        """Return the mapping from native pixels to arcsec at a native position."""
        xs, ys = self.to_latent(np.array([x + 1.0, x - 1, x, x]), np.array([y, y, y + 1.0, y - 1]))
        scale = 0.5 * self.layout.native_scale / self.layout.oversampling
        return galsim.JacobianWCS(*(scale * (v[i] - v[j]) for v in (xs, ys) for i, j in ((0, 1), (2, 3))))

    def psf(self, x: float, y: float) -> galsim.GSObject:
        """Return the PSF, without pixel, at a native position."""
        change = float(self.slope @ (np.array([x, y]) - self.dither))
        profile = galsim.Moffat(beta=self.beta, fwhm=self.fwhm * (1 + change))
        return profile.shear(g1=self.shear[0], g2=self.shear[1])

    def latent_stamp(self, x: float, y: float, size: int) -> np.ndarray:
        """Return the PSF with its native pixel on the latent grid."""
        x, y = (float(v) for v in self.to_native(np.asarray(x), np.asarray(y)))
        seen = galsim.Convolve(self.psf(x, y), self.local_wcs(x, y).toWorld(galsim.Pixel(1.0)))
        scale = self.layout.native_scale / self.layout.oversampling
        return seen.drawImage(nx=size, ny=size, scale=scale, method="no_pixel").array.astype(float)


@dataclasses.dataclass
class Frame:
    """A cut-out of one detector of one exposure.

    ``origin`` is the native position (x, y) of its first pixel.
    """

    camera: Camera
    origin: tuple[int, int]
    image: np.ndarray
    good: np.ndarray
    sigma: float


@dataclasses.dataclass
class NativeScene(Scene):
    """A scene whose exposures have pixels of their own.

    ``stars``, ``galaxies`` and ``hits`` are on the latent grid; ``image``,
    ``variance`` and ``clean`` are empty.
    """

    frames: list[Frame] = dataclasses.field(default_factory=list)
    size: int = 0
    stamp: int = STAMP

    def stack(self, degree: int = 2) -> ExposureStack:
        """Return the frames as they are, with their mapping and PSFs."""
        height = max(frame.image.shape[0] for frame in self.frames)
        width = max(frame.image.shape[1] for frame in self.frames)
        planes = np.zeros((3, len(self.frames), height, width), dtype=np.float32)
        planes[1] = 1.0
        for t, frame in enumerate(self.frames):
            h, w = frame.image.shape
            planes[0, t, :h, :w], planes[1, t], planes[2, t, :h, :w] = frame.image, frame.sigma**2, frame.good
        nodes = np.meshgrid(np.arange(0, width + _STEP, _STEP), np.arange(0, height + _STEP, _STEP))
        maps = [f.camera.to_latent(nodes[0] + f.origin[0], nodes[1] + f.origin[1]) for f in self.frames]
        geometry = FrameGeometry(
            latent_shape=(self.size, self.size),
            x=np.stack([x for x, _ in maps]),
            y=np.stack([y for _, y in maps]),
            step=_STEP,
        )
        psf = np.stack([self._psf_basis(frame, degree) for frame in self.frames])
        return ExposureStack(planes[0], planes[1], planes[2] > 0, psf, frames=geometry)

    def _psf_basis(self, frame: Frame, degree: int) -> np.ndarray:
        """Fit polynomials of the position to stamps, (J, k, k)."""
        line = np.linspace(0.0, self.size - 1.0, 4) if degree else [0.5 * (self.size - 1)]
        points = [(x, y) for y in line for x in line]
        stamps = np.stack([frame.camera.latent_stamp(x, y, self.stamp) for x, y in points])
        stamps /= stamps.sum(axis=(1, 2), keepdims=True)
        u, v = (2 * np.array(points) / (self.size - 1) - 1).T
        basis = np.linalg.lstsq(psf_basis_terms(u, v, degree), stamps.reshape(len(points), -1), rcond=None)[0]
        return basis.reshape(-1, self.stamp, self.stamp)


class NativeSceneMaker(SourceField):
    """Draw scenes that many differently placed detectors have seen.

    Parameters
    ----------
    seed : `int`
        Seed of everything.
    layout : `Layout`
        How the exposures lie on the sky.
    size : `int`
        Width of the latent image in latent pixels.
    n_exposures : `int`
        Number of exposures; each has one or two frames.
    """

    def __init__(self, seed: int, layout: Layout, *, size: int = 320, n_exposures: int = 10) -> None:
        self.rng, self.layout, self.size = np.random.default_rng(seed), layout, size
        self.cameras = [Camera(layout, size, self.rng) for _ in range(n_exposures)]
        self.sigma = self.rng.uniform(0.2, 0.32, n_exposures) * layout.native_scale / SCALE
        half = max(STAMP // 2 * SCALE, 4.0 * layout.seeing[1]) * layout.oversampling / layout.native_scale
        self.stamp = 2 * int(half) + 1
        power = 0.0
        middle = 0.5 * (size - 1)
        for camera, sigma in zip(self.cameras, self.sigma, strict=True):
            stamp = camera.latent_stamp(middle, middle, self.stamp)
            power += (stamp**2).sum() * layout.oversampling**2 / sigma**2
        self.flux_error = float(power**-0.5)

    def draw(
        self,
        stars: np.ndarray,
        galaxies: Sequence[tuple[float, float, galsim.GSObject]] = (),
        *,
        n_rays: int = 8,
    ) -> NativeScene:
        """Draw the frames of stars and galaxies with noise and rays."""
        frames: list[Frame] = []
        hits = np.zeros((self.size, self.size), dtype=bool)
        for camera, sigma in zip(self.cameras, self.sigma, strict=True):
            whole = self._draw_exposure(camera, float(sigma), stars, galaxies)
            self._add_rays(whole, n_rays, hits)
            frames += self._split(whole)
        table = np.array([(x, y, profile.flux) for x, y, profile in galaxies]).reshape(-1, 3)
        none = np.zeros((0, 0, 0))
        return NativeScene(
            image=none,
            variance=none,
            psf=none,
            clean=none,
            hits=hits,
            sigma=self.sigma / self.layout.oversampling,
            flux_error=self.flux_error,
            stars=np.asarray(stars),
            galaxies=table,
            frames=frames,
            size=self.size,
            stamp=self.stamp,
        )

    def _draw_exposure(
        self,
        camera: Camera,
        sigma: float,
        stars: np.ndarray,
        galaxies: Sequence[tuple[float, float, galsim.GSObject]],
    ) -> Frame:
        end = self.size - 0.5
        corners = camera.to_native(np.array([-0.5, end, -0.5, end]), np.array([-0.5, -0.5, end, end]))
        x0, y0 = (int(np.floor(c.min())) for c in corners)
        width, height = (int(np.ceil(c.max())) - c0 + 1 for c, c0 in zip(corners, (x0, y0), strict=True))
        plane = galsim.ImageD(width, height)
        sources = [(x, y, flux, None) for x, y, _, flux in stars]
        sources += [(x, y, 1.0, profile) for x, y, profile in galaxies]
        for x, y, flux, profile in sources:
            self._add(plane, camera, (x0, y0), x, y, flux, profile)
        image = plane.array + self.rng.normal(size=plane.array.shape) * sigma
        x, y = camera.to_latent(
            *np.meshgrid(x0 + np.arange(width, dtype=float), y0 + np.arange(height, dtype=float))
        )
        good = (x > -0.5) & (y > -0.5) & (x < end) & (y < end)
        return Frame(camera, (x0, y0), image, good, sigma)

    def _add(
        self,
        plane: galsim.Image,
        camera: Camera,
        origin: tuple[int, int],
        x: float,
        y: float,
        flux: float,
        galaxy: galsim.GSObject | None,
        half: int = 28,
    ) -> None:
        """Add a source; fluxes count within the stamp of the PSF."""
        native = [float(v) for v in camera.to_native(np.asarray(x), np.asarray(y))]
        profile = camera.psf(*native)
        profile = profile.withFlux(flux / camera.latent_stamp(x, y, self.stamp).sum())
        if galaxy is not None:
            profile = galsim.Convolve(galaxy, profile)
        column, row = native[0] - origin[0] + 1, native[1] - origin[1] + 1
        bounds = galsim.BoundsI(int(column) - half, int(column) + half, int(row) - half, int(row) + half)
        bounds = bounds & plane.bounds
        if not bounds.isDefined():
            return
        stamp = galsim.ImageD(bounds, wcs=camera.local_wcs(*native))
        profile.drawImage(image=stamp, center=galsim.PositionD(column, row))
        plane[bounds] += stamp

    def _add_rays(self, frame: Frame, n_rays: int, hits: np.ndarray) -> None:
        height, width = frame.image.shape
        for _ in range(n_rays):
            x, y = self.rng.uniform(8, width - 8), self.rng.uniform(8, height - 8)
            angle, length = self.rng.uniform(0, np.pi), self.rng.uniform(1, 10)
            steps = np.arange(0.0, length, 0.7)
            rows, columns = (y + steps * np.sin(angle)).astype(int), (x + steps * np.cos(angle)).astype(int)
            inside = (rows < height) & (columns >= 0) & (columns < width)
            rows, columns = rows[inside], columns[inside]
            np.add.at(frame.image, (rows, columns), 10 ** self.rng.uniform(1, 3) * frame.sigma)
            ox, oy = frame.camera.to_latent(columns + float(frame.origin[0]), rows + float(frame.origin[1]))
            ox, oy = np.rint(ox).astype(int), np.rint(oy).astype(int)
            on = (ox >= 0) & (oy >= 0) & (ox < self.size) & (oy < self.size)
            hits[oy[on], ox[on]] = True

    def _split(self, whole: Frame) -> list[Frame]:
        """Cut an exposure into two detectors, and mask columns."""
        height, width = whole.image.shape
        if self.layout.gap:
            middle = int(self.rng.uniform(0.25, 0.75) * width)
            half = int(self.layout.gap / 2)
            ranges = [(0, middle - half), (middle + half, width)]
        else:
            ranges = [(0, width)]
        frames = []
        for start, stop in ranges:
            good = whole.good[:, start:stop].copy()
            good[:, self.rng.integers(0, stop - start, self.layout.bad_columns)] = False
            origin = whole.origin[0] + start, whole.origin[1]
            frames.append(Frame(whole.camera, origin, whole.image[:, start:stop], good, whole.sigma))
        return frames
