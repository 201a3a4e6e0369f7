# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
"""Plain FITS exposures with known truth, for tests of the importer."""

from __future__ import annotations

__all__ = ("PlainScene",)

import dataclasses
from pathlib import Path
from typing import Any

import galsim
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

_SCALE = 0.2


@dataclasses.dataclass(frozen=True)
class PlainScene:
    """Stars and a galaxy on the sky, which `draw` puts into exposures.

    Parameters
    ----------
    size : `int`, optional
        Side of the exposures in pixels.
    flux : `float`, optional
        Counts of the brightest star.
    sky : `float`, optional
        Counts per pixel that were subtracted.
    gain : `float`, optional
        Electrons per count.
    read_noise : `float`, optional
        Electrons.
    """

    size: int = 160
    flux: float = 60000.0
    sky: float = 200.0
    gain: float = 2.0
    read_noise: float = 5.0

    @property
    def positions(self) -> np.ndarray:
        """Pixels of the stars in an exposure without a shift, ``(N, 2)`` (`numpy.ndarray`)."""
        rng = np.random.default_rng(3)
        grid = np.array(
            [(30, 30), (80, 28), (130, 32), (28, 80), (132, 84), (30, 130), (82, 128), (130, 130)]
        )
        return grid + rng.uniform(-3.0, 3.0, grid.shape)

    @property
    def fluxes(self) -> np.ndarray:
        """Counts of the stars, ``(N,)`` (`numpy.ndarray`)."""
        return self.flux * np.array([1.0, 0.5, 0.3, 0.6, 0.2, 0.4, 0.8, 0.15])

    @property
    def variance(self) -> float:
        """Variance of the empty sky in counts squared (`float`)."""
        return self.sky / self.gain + (self.read_noise / self.gain) ** 2

    def wcs(self) -> WCS:
        """Return the WCS that stars obey in an exposure without a shift.

        Returns
        -------
        wcs : `astropy.wcs.WCS`
            TAN, rotated by 30 degrees.
        """
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = [150.0, 2.0]
        wcs.wcs.crpix = [self.size / 2, self.size / 2]
        c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
        wcs.wcs.cd = _SCALE / 3600 * np.array([[-c, s], [s, c]])
        return wcs

    def psf(self, fwhm: float) -> galsim.GSObject:
        """Return the PSF.

        Parameters
        ----------
        fwhm : `float`
            Of the atmosphere, in pixels.

        Returns
        -------
        psf : `galsim.GSObject`
            In units of pixels.
        """
        return galsim.Moffat(beta=3.2, fwhm=fwhm, trunc=8 * fwhm).shear(g1=0.03, g2=-0.02)

    def draw(
        self,
        *,
        fwhm: float = 4.0,
        scale: float = 1.0,
        shift: tuple[float, float] = (0.0, 0.0),
        seed: int = 1,
        rays: int = 0,
        background: float = 0.0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw an exposure whose header will not tell its shift.

        Parameters
        ----------
        fwhm : `float`, optional
            Of the atmosphere, in pixels.
        scale : `float`, optional
            Transparency.
        shift : `tuple` [`float`, `float`], optional
            Pixels in x and y by which all sources lie off the WCS.
        seed : `int`, optional
            Of the noise.
        rays : `int`, optional
            Number of cosmic rays.
        background : `float`, optional
            Sky that was left in.

        Returns
        -------
        image : `numpy.ndarray`
            Counts.
        rays : `numpy.ndarray`
            Where cosmic rays are, boolean.
        """
        rng = np.random.default_rng(seed)
        image = galsim.Image(self.size, self.size, xmin=0, ymin=0, scale=1.0, dtype=float)
        psf = self.psf(fwhm)
        for (x, y), flux in zip(self.positions, self.fluxes, strict=True):
            self._add(image, psf.withFlux(flux * scale), x + shift[0], y + shift[1])
        galaxy = galsim.Exponential(half_light_radius=6.0).withFlux(0.5 * self.flux * scale)
        self._add(image, galsim.Convolve(galaxy, psf), 80.3 + shift[0], 80.7 + shift[1])
        pixels = image.array
        electrons = rng.poisson(np.clip((pixels + self.sky) * self.gain, 0, None))
        noisy = (electrons + rng.normal(0.0, self.read_noise, pixels.shape)) / self.gain - self.sky
        hit = np.zeros(pixels.shape, dtype=bool)
        for _ in range(rays):
            x, y = rng.uniform(15, self.size - 15, 2)
            angle, length = rng.uniform(0, np.pi), rng.uniform(4, 14)
            steps = np.arange(0, length, 0.5)
            columns = np.round(x + steps * np.cos(angle)).astype(int)
            rows = np.round(y + steps * np.sin(angle)).astype(int)
            inside = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
            hit[rows[inside], columns[inside]] = True
        return noisy + hit * 40.0 * np.sqrt(self.variance) + background, hit

    @staticmethod
    def _add(image: galsim.Image, profile: galsim.GSObject, x: float, y: float) -> None:
        reach = 48
        bounds = galsim.BoundsI(round(x) - reach, round(x) + reach, round(y) - reach, round(y) + reach)
        stamp = galsim.Image(bounds, scale=1.0, dtype=float)
        profile.drawImage(stamp, center=(x, y))
        common = bounds & image.bounds
        image[common] += stamp[common]

    def header(self, date: str = "2020-01-02T03:04:05") -> fits.Header:
        """Return a header without what `draw` keeps to itself.

        Parameters
        ----------
        date : `str`, optional
            Value of DATE-OBS.

        Returns
        -------
        header : `astropy.io.fits.Header`
            WCS, date, filter, gain, read noise, sky, saturation.
        """
        header = self.wcs().to_header()
        header.update(
            {
                "DATE-OBS": date,
                "EXPTIME": 30.0,
                "FILTER": "r",
                "GAIN": self.gain,
                "RDNOISE": self.read_noise,
                "SKYLEVEL": self.sky,
                "SATURATE": 60000.0,
            }
        )
        return header

    def write(self, path: Path, *, date: str = "2020-01-02T03:04:05", **drawing: Any) -> Path:
        """Draw an exposure into a FITS file.

        Parameters
        ----------
        path : `pathlib.Path`
            File to write.
        date : `str`, optional
            Value of DATE-OBS.
        **drawing
            As for `draw`.

        Returns
        -------
        path : `pathlib.Path`
            The file.
        """
        image, _ = self.draw(**drawing)
        fits.PrimaryHDU(image.astype(np.float32), self.header(date)).writeto(path)
        return path
