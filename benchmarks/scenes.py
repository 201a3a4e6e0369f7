# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated exposures with known truth, drawn with GalSim.

Nothing here comes from the package: neither the PSFs nor the convolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import galsim
import numpy as np

SCALE = 0.168
"""Pixel scale in arcsec."""

STAMP = 41
"""Width of the PSF stamps in pixels, as for HSC."""


@dataclasses.dataclass
class Scene:
    """Exposures of one field, and the truth.

    ``stars`` has rows of x, y, S/N, flux; ``galaxies`` rows of x, y, flux.
    ``clean`` is ``image`` without noise and cosmic rays, ``hits`` where a
    cosmic ray is, ``flux_error`` the Cramer-Rao error of an isolated star.
    """

    image: np.ndarray
    variance: np.ndarray
    psf: np.ndarray
    clean: np.ndarray
    hits: np.ndarray
    sigma: np.ndarray
    flux_error: float
    stars: np.ndarray
    galaxies: np.ndarray

    @property
    def good(self) -> np.ndarray:
        """All pixels are good."""
        return np.ones(self.image.shape, dtype=bool)

    @property
    def coadd_sigma(self) -> float:
        """Noise per pixel of the inverse-variance coadd."""
        return float((1.0 / self.sigma**2).sum() ** -0.5)


class SourceField:
    """Places sources; a base class of what draws them.

    Attributes
    ----------
    rng : `numpy.random.Generator`
        Source of positions.
    size : `int`
        Width of the scene in pixels.
    flux_error : `float`
        Cramer-Rao error of the flux of an isolated star.
    """

    rng: np.random.Generator
    size: int
    flux_error: float

    def grid(self, pitch: float, *, border: float = 18.0, jitter: float = 3.0) -> np.ndarray:
        """Return positions (N, 2) near a square grid, in random order."""
        line = np.arange(border, self.size - border, pitch)
        positions = np.array([(x, y) for y in line for x in line])
        positions = positions + self.rng.uniform(-jitter, jitter, positions.shape)
        return positions[self.rng.permutation(len(positions))]

    def stars(self, positions: np.ndarray, signal_to_noise: Sequence[float]) -> np.ndarray:
        """Return rows of x, y, S/N, flux."""
        s = np.asarray([signal_to_noise[i % len(signal_to_noise)] for i in range(len(positions))])
        return np.column_stack([positions, s, s * self.flux_error])


class SceneMaker(SourceField):
    """Draw scenes with the same exposures and different contents.

    Parameters
    ----------
    seed : `int`
        Seed of everything.
    size : `int`
        Width of the scene in pixels.
    n_exposures : `int`
        Number of exposures.
    flux_scale_error, shift : `float`
        Unmodelled relative flux error and misregistration (pixels) of the
        first two exposures.
    """

    def __init__(
        self,
        seed: int,
        *,
        size: int = 320,
        n_exposures: int = 10,
        flux_scale_error: float = 0.0,
        shift: float = 0.0,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.rng, self.size, self.n = rng, size, n_exposures
        self.psfs = []
        for _ in range(n_exposures):
            e, angle = rng.uniform(0.0, 0.06), rng.uniform(0.0, 2 * np.pi)
            profile = galsim.Moffat(beta=rng.uniform(2.8, 4.0), fwhm=rng.uniform(0.5, 1.0))
            self.psfs.append(profile.shear(g1=e * np.cos(angle), g2=e * np.sin(angle)))
        self.sigma = rng.uniform(0.2, 0.32, n_exposures)
        stamps = [p.drawImage(nx=STAMP, ny=STAMP, scale=SCALE).array.astype(float) for p in self.psfs]
        # Fluxes count within the stamp of the PSF: that is what its user can know.
        self.inside = np.array([stamp.sum() for stamp in stamps])
        self.psf = np.stack([stamp / stamp.sum() for stamp in stamps])
        self.flux_error = float(((self.psf**2).sum(axis=(1, 2)) / self.sigma**2).sum() ** -0.5)
        self.scale = np.ones(n_exposures)
        self.scale[:2] += flux_scale_error
        self.shift = np.zeros(n_exposures)
        self.shift[:2] = shift

    def draw(
        self,
        stars: np.ndarray,
        galaxies: Sequence[tuple[float, float, galsim.GSObject]] = (),
        *,
        n_rays: int = 8,
    ) -> Scene:
        """Draw the exposures of stars and galaxies with noise and rays."""
        clean = np.stack([self._draw_one(t, stars, galaxies) for t in range(self.n)])
        image = clean + self.rng.normal(size=clean.shape) * self.sigma[:, None, None]
        hits = np.zeros(clean.shape[1:], dtype=bool)
        for t in range(self.n):
            for _ in range(n_rays):
                x, y = self.rng.uniform(12, self.size - 12, 2)
                angle, length = self.rng.uniform(0, np.pi), self.rng.uniform(1, 10)
                charge = 10 ** self.rng.uniform(1, 3) * self.sigma[t]
                steps = np.arange(0.0, length, 0.7)
                rows = (y + steps * np.sin(angle)).astype(int)
                columns = (x + steps * np.cos(angle)).astype(int)
                inside = (rows < self.size) & (columns >= 0) & (columns < self.size)
                np.add.at(image[t], (rows[inside], columns[inside]), charge)
                hits[rows[inside], columns[inside]] = True
        variance = np.broadcast_to(self.sigma[:, None, None] ** 2, image.shape).copy()
        table = np.array([(x, y, profile.flux) for x, y, profile in galaxies]).reshape(-1, 3)
        return Scene(
            image, variance, self.psf, clean, hits, self.sigma, self.flux_error, np.asarray(stars), table
        )

    def _draw_one(
        self, t: int, stars: np.ndarray, galaxies: Sequence[tuple[float, float, galsim.GSObject]]
    ) -> np.ndarray:
        plane = galsim.ImageD(self.size, self.size, scale=SCALE)
        psf = self.psfs[t].withScaledFlux(self.scale[t] / self.inside[t])
        for x, y, _, flux in stars:
            self._add(plane, psf.withScaledFlux(flux), x + self.shift[t], y)
        for x, y, profile in galaxies:
            self._add(plane, galsim.Convolve(profile, psf), x + self.shift[t], y)
        return plane.array

    @staticmethod
    def _add(plane: galsim.Image, profile: galsim.GSObject, x: float, y: float, half: int = 28) -> None:
        bounds = galsim.BoundsI(int(x) + 1 - half, int(x) + 2 + half, int(y) + 1 - half, int(y) + 2 + half)
        bounds = bounds & plane.bounds
        stamp = galsim.ImageD(bounds, scale=SCALE)
        profile.drawImage(image=stamp, center=galsim.PositionD(x + 1, y + 1))
        plane[bounds] += stamp
