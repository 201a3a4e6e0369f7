# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("draw_sources",)

from collections.abc import Callable

import astropy.units as u
import galsim
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from astropy.wcs import WCS

# Wings of bright stars need a finer grid in Fourier space than usual.
_ACCURATE = galsim.GSParams(folding_threshold=5e-4, maximum_fft_size=16384)


def draw_sources(
    catalog: QTable,
    wcs: WCS,
    shape: tuple[int, int],
    psf: Callable[[float, float], galsim.GSObject],
    *,
    integrate_pixels: bool,
    noise: float,
) -> np.ndarray:
    """Draw a catalogue onto a pixel grid, without noise.

    Parameters
    ----------
    catalog : `astropy.table.QTable`
        Sources, as from `make_catalog`.
    wcs : `astropy.wcs.WCS`
        Maps pixels, with ``(0, 0)`` the centre of the first one, to the sky.
    shape : `tuple` [`int`, `int`]
        Height and width of the grid.
    psf : callable
        Takes the pixel coordinates x and y of a source and returns the PSF
        there, with a pixel as its unit of length.
    integrate_pixels : `bool`
        Whether a pixel value is an integral over the pixel, as a detector
        has it, or a sample, as where ``psf`` includes the pixel already.
    noise : `float`
        Standard deviation, in nJy per pixel, that the wings of a source may
        be cut off well below.

    Returns
    -------
    image : `numpy.ndarray`, ``(h, w)``, `float64`
        Flux per pixel in nJy.
    """
    height, width = shape
    canvas = galsim.ImageD(galsim.BoundsI(0, width - 1, 0, height - 1), scale=1.0, init_value=0)
    sky = SkyCoord(catalog["ra"], catalog["dec"])
    x, y = wcs.world_to_pixel(sky)
    to_pixels = _sky_to_pixel_matrices(wcs, sky)
    for row, xi, yi, matrix in zip(catalog, x, y, to_pixels, strict=True):
        flux = row["flux"].to_value(u.nJy)
        half = _stamp_half_size(row, flux / noise, matrix)
        bounds = galsim.BoundsI(round(xi) - half, round(xi) + half, round(yi) - half, round(yi) + half)
        bounds = bounds & canvas.bounds
        if not bounds.isDefined():
            continue
        profile = psf(float(xi), float(yi)).withGSParams(_ACCURATE) if flux > 1e4 * noise else psf(xi, yi)
        if not row["is_star"]:
            profile = galsim.Convolve(_galaxy(row, matrix), profile)
        profile.withFlux(flux).drawImage(
            image=canvas[bounds],
            center=(xi, yi),
            method="auto" if integrate_pixels else "no_pixel",
            add_to_image=True,
        )
    return canvas.array


def _galaxy(row: QTable.Row, to_pixels: np.ndarray) -> galsim.GSObject:
    radius = row["half_light_radius"].to_value(u.arcsec)
    galaxy = galsim.Sersic(n=row["index"], half_light_radius=radius, trunc=5 * radius)
    return galaxy.shear(g1=row["g1"], g2=row["g2"]).transform(*to_pixels.ravel())


def _stamp_half_size(row: QTable.Row, signal: float, to_pixels: np.ndarray) -> int:
    """Half a stamp's side that leaves out less than the noise in its wings."""
    scale = np.sqrt(abs(np.linalg.det(to_pixels)))
    size = 5.5 * row["half_light_radius"].to_value(u.arcsec) * scale
    wings = 14 + 4.5 * max(signal, 1.0) ** 0.3
    return int(np.ceil(min(size + wings, 400)))


def _sky_to_pixel_matrices(wcs: WCS, sky: SkyCoord) -> np.ndarray:
    """Return ``(n, 2, 2)`` matrices from east and north to x and y.

    One arcsecond in each direction, so small that curvature does not count.
    """
    step = 1.0 * u.arcsec
    columns = []
    for angle in (90 * u.deg, 0 * u.deg):
        plus = np.array(wcs.world_to_pixel(sky.directional_offset_by(angle, step)))
        minus = np.array(wcs.world_to_pixel(sky.directional_offset_by(angle + 180 * u.deg, step)))
        columns.append((plus - minus).T / 2)
    return np.stack(columns, axis=-1)
