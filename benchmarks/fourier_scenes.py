# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated fields with known truth at the target PSF, with numpy alone.

Sources are points, Gaussians and exponential profiles of any size, whose
transforms are known; PSFs are Moffat profiles that are sampled three times per
pixel. Nothing here comes from the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

SCALE = 0.168
"""Pixel scale in arcsec."""

STAMP = 41
"""Width of the PSF stamps in pixels."""

_FINE = 3
"""Samples per pixel and axis; the narrowest PSF is 3 pixels wide."""

_WING = 32
"""Radius in pixels at which PSFs end."""

PROFILES = {"Gaussian": (0.0, 1.0), "exponential": (2.0 / 3.0, 1.476)}
"""Profiles of galaxies: t of a transform ``(1 + t q)**(-1 / t)``, where q is half of k C k
with the covariance C, and the variance over that of a Gaussian with the same half-light radius.
"""


@dataclasses.dataclass
class Field:
    """Exposures of a field, and what is in it.

    ``image``, ``variance``, ``good`` are (T, H, W); ``psf`` is (T, k, k) with
    sums of one. ``sources`` has rows of x, y, S/N, flux, and the covariance
    xx, xy, yy in px^2; fluxes count within the stamps of the PSFs. ``profile``
    is one of the `PROFILES` of galaxies. ``flux_error`` is the Cramer-Rao
    error of an isolated star without masks.
    """

    image: np.ndarray
    variance: np.ndarray
    good: np.ndarray
    psf: np.ndarray
    clean: np.ndarray
    sigma: np.ndarray
    flux_error: float
    sources: np.ndarray
    profile: str = "Gaussian"

    def truth(self, fwhm: float = 2.0) -> np.ndarray:
        """Return the noiseless sky (H, W) at a Gaussian PSF, at pixel centres."""
        size = self.image.shape[1]
        fy, fx = _frequencies(size)
        spread = (fwhm / 2.3548200450309493) ** 2
        transform = _transform(self.sources, fy, fx, self.profile)
        transform = transform * np.exp(-2.0 * np.pi**2 * spread * (fy**2 + fx**2))
        return _FINE**2 * _at_pixels(transform, size)


class FieldMaker:
    """Draw fields with random exposures.

    Parameters
    ----------
    seed : `int`
        Seed of everything.
    size : `int`
        Width of the field in pixels.
    n_exposures : `int`
        Number of exposures.
    profile : `str`
        Profile of galaxies, one of the `PROFILES`.
    """

    def __init__(
        self, seed: int, *, size: int = 128, n_exposures: int = 9, profile: str = "Gaussian"
    ) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.size, self.n, self.profile = size, n_exposures, profile
        self._fy, self._fx = _frequencies(size)
        self._shape = (len(self._fy), len(self._fy))
        pixel = np.sinc(self._fy) * np.sinc(self._fx)
        self._transfer = np.stack([self._moffat() * pixel for _ in range(n_exposures)])
        self.sigma = rng.uniform(0.2, 0.32, n_exposures)
        at_origin = np.fft.irfft2(self._transfer, self._shape)[:, ::_FINE, ::_FINE]
        half = STAMP // 2
        stamps = np.roll(at_origin, (half, half), axis=(1, 2))[:, :STAMP, :STAMP]
        inside = stamps.sum(axis=(1, 2))
        # Fluxes count within the stamp: that is what its user can know.
        self._transfer /= inside[:, None, None]
        self.psf = stamps / inside[:, None, None]
        self.flux_error = float(((self.psf**2).sum(axis=(1, 2)) / self.sigma**2).sum() ** -0.5)

    def _moffat(self) -> np.ndarray:
        """Return the transform of an elliptical Moffat profile, sum one."""
        rng, n = self.rng, self._shape[0]
        beta, fwhm = rng.uniform(2.8, 4.0), rng.uniform(0.5, 1.0) / SCALE
        e, angle = rng.uniform(0.0, 0.06), rng.uniform(0.0, 2.0 * np.pi)
        g1, g2 = e * np.cos(angle), e * np.sin(angle)
        y, x = (np.fft.fftfreq(n, 1.0 / n) / _FINE for _ in range(2))
        y, x = y[:, None], x[None, :]
        u, v = (1.0 - g1) * x - g2 * y, (1.0 + g1) * y - g2 * x
        radius = 0.5 * fwhm / np.sqrt(2.0 ** (1.0 / beta) - 1.0)
        profile = (1.0 + (u**2 + v**2) / ((1.0 - e**2) * radius**2)) ** -beta
        profile[x**2 + y**2 > _WING**2] = 0.0
        return np.fft.rfft2(profile / profile.sum())

    def grid(self, pitch: float, *, border: float = 16.0, jitter: float = 3.0) -> np.ndarray:
        """Return positions (N, 2) near a square grid, in random order."""
        n = int((self.size - 1 - 2.0 * border) // pitch) + 1
        line = 0.5 * (self.size - 1 - (n - 1) * pitch) + pitch * np.arange(n)
        positions = np.array([(x, y) for y in line for x in line])
        positions += self.rng.uniform(-jitter, jitter, positions.shape)
        return positions[self.rng.permutation(len(positions))]

    def stars(self, positions: np.ndarray, signal_to_noise: Sequence[float]) -> np.ndarray:
        """Return rows of sources that are points."""
        s = np.array([signal_to_noise[i % len(signal_to_noise)] for i in range(len(positions))])
        zero = np.zeros((len(s), 3))
        return np.column_stack([positions, s, s * self.flux_error, zero]).reshape(-1, 7)

    def galaxies(self, positions: np.ndarray, signal_to_noise: Sequence[float]) -> np.ndarray:
        """Return rows of sources that are elliptical, S/N that of a star of their flux."""
        rows = self.stars(positions, signal_to_noise)
        size = PROFILES[self.profile][1] * self.rng.uniform(1.0, 2.5, len(rows)) ** 2
        e1, e2 = self.rng.uniform(-0.3, 0.3, (2, len(rows)))
        rows[:, 4:] = np.column_stack([size * (1.0 + e1), size * e2, size * (1.0 - e1)])
        return rows

    def masks(self, n_strips: int, width: int = 24) -> np.ndarray:
        """Return good pixels (T, H, W): strips and 1 % single pixels are not."""
        good = self.rng.uniform(size=(self.n, self.size, self.size)) > 0.01
        for _ in range(n_strips):
            t, start = self.rng.integers(self.n), self.rng.integers(0, self.size - width)
            if self.rng.uniform() < 0.5:
                good[t, start : start + width] = False
            else:
                good[t, :, start : start + width] = False
        return good

    def draw(self, sources: np.ndarray, good: np.ndarray | None = None) -> Field:
        """Draw the exposures of sources, with noise."""
        clean = self._draw_clean(sources)
        image = clean + self.rng.normal(size=clean.shape) * self.sigma[:, None, None]
        variance = np.broadcast_to(self.sigma[:, None, None] ** 2, image.shape).copy()
        good = np.ones(image.shape, dtype=bool) if good is None else good
        return Field(
            image, variance, good, self.psf, clean, self.sigma, self.flux_error, sources, self.profile
        )

    def _draw_clean(self, sources: np.ndarray) -> np.ndarray:
        sky = _transform(sources, self._fy, self._fx, self.profile)
        return _at_pixels(sky * self._transfer, self.size)


def _frequencies(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies along y (n, 1) and x (1, m) in cycles per pixel, for fields of a width."""
    n = _FINE * (size + 2 * _WING)
    return np.fft.fftfreq(n, 1.0 / _FINE)[:, None], np.fft.rfftfreq(n, 1.0 / _FINE)[None]


def _transform(sources: np.ndarray, fy: np.ndarray, fx: np.ndarray, profile: str) -> np.ndarray:
    """Return the transform (n, m) of sources."""
    peaked = PROFILES[profile][0]
    sky = np.zeros((len(fy), fx.shape[1]), dtype=complex)
    points = (sources[:, 4:] == 0.0).all(axis=1)
    for rows in (sources[points], *sources[~points][:, None]):
        x, y = rows[:, 0] + _WING, rows[:, 1] + _WING
        part = (np.exp(-2j * np.pi * fy * y) * rows[:, 3]) @ np.exp(-2j * np.pi * fx.T * x).T
        if rows[:1, 4:].any():
            xx, xy, yy = rows[0, 4:]
            q = 2.0 * np.pi**2 * (xx * fx**2 + 2.0 * xy * fx * fy + yy * fy**2)
            part = part * (np.exp(-q) if peaked == 0.0 else (1.0 + peaked * q) ** (-1.0 / peaked))
        sky += part
    return sky


def _at_pixels(transform: np.ndarray, size: int) -> np.ndarray:
    """Return pixels (..., size, size) of what has a transform (..., n, m)."""
    n = transform.shape[-2]
    full = np.fft.irfft2(transform, (n, n))[..., ::_FINE, ::_FINE]
    return full[..., _WING : _WING + size, _WING : _WING + size]
