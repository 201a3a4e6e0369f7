# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("make_catalog",)

import astropy.units as u
import numpy as np
from astropy.table import QTable

from ._settings import AB_ZERO_POINT, SceneSettings

# Sources this far outside the tract still reach into exposures of its edge.
_MARGIN = 60


def make_catalog(settings: SceneSettings) -> QTable:
    """Draw the stars and galaxies of a scene.

    Parameters
    ----------
    settings : `SceneSettings`
        The scene.

    Returns
    -------
    catalog : `astropy.table.QTable`
        One row per source: ``id``; ``is_star``; ``ra`` and ``dec``; ``x`` and
        ``y`` in tract pixels; ``mag`` and ``flux`` (nJy); for galaxies the
        Sersic ``index``, the ``half_light_radius`` along the geometric mean
        of the axes, and the reduced shear ``g1``, ``g2`` with respect to
        east and north.
    """
    rng = np.random.default_rng([settings.seed, 1])
    bbox = settings.sky_map.tracts[0].bbox
    width, height = bbox.x.size + 2 * _MARGIN, bbox.y.size + 2 * _MARGIN
    area = width * height * (settings.pixel_scale / 60) ** 2
    n_stars, n_galaxies = (round(area * d) for d in (settings.star_density, settings.galaxy_density))
    mag = np.concatenate(
        [
            rng.uniform(18.3, settings.faintest, n_stars),
            _galaxy_magnitudes(rng, n_galaxies, settings.faintest),
            settings.bright_stars,
        ]
    )
    n = mag.size
    is_star = np.ones(n, dtype=bool)
    is_star[n_stars : n_stars + n_galaxies] = False
    x = rng.uniform(-_MARGIN, bbox.x.size + _MARGIN, n)
    y = rng.uniform(-_MARGIN, bbox.y.size + _MARGIN, n)
    flux = 10 ** (0.4 * (AB_ZERO_POINT - mag))
    # Saturated stars are spread over the tract, clear of its edge.
    n_bright = len(settings.bright_stars)
    fraction = (np.arange(n_bright) + rng.uniform(0.25, 0.75, n_bright)) / max(n_bright, 1)
    x[n - n_bright :] = bbox.x.size * fraction
    y[n - n_bright :] = bbox.y.size * rng.uniform(0.15, 0.85, n_bright)
    for i in range(round(settings.lone_fraction * n_stars)):
        x[i], y[i] = _find_lone_place(rng, i, x, y, flux)
    sky = settings.sky_map.tracts[0].wcs.pixel_to_world(x, y)
    shapes = _galaxy_shapes(rng, mag)
    for column in shapes.values():
        column[is_star] = 0
    return QTable(
        {
            "id": np.arange(n),
            "is_star": is_star,
            "ra": sky.ra.to(u.deg),
            "dec": sky.dec.to(u.deg),
            "x": x * u.pix,
            "y": y * u.pix,
            "mag": mag * u.mag,
            "flux": flux * u.nJy,
            "half_light_radius": shapes.pop("half_light_radius") * u.arcsec,
            **shapes,
        }
    )


def _find_lone_place(
    rng: np.random.Generator, i: int, x: np.ndarray, y: np.ndarray, flux: np.ndarray
) -> tuple[float, float]:
    """Choose, of many places, the one with the least light of neighbours."""
    places = rng.uniform((x.min(), y.min()), (x.max(), y.max()), (60, 2))
    distance = np.hypot(places[:, :1] - x, places[:, 1:] - y)
    distance[:, i] = np.inf
    light = np.sum(flux * (distance < 18) + flux * (distance < 60) * 1e-3, axis=1)
    best = places[np.argmin(light)]
    return float(best[0]), float(best[1])


def _galaxy_magnitudes(rng: np.random.Generator, n: int, faintest: float) -> np.ndarray:
    """Draw magnitudes from counts that grow as 10^(0.3 m), from 19 on."""
    slope = 0.3 * np.log(10)
    lowest = np.exp(slope * (19.0 - faintest))
    return faintest + np.log(rng.uniform(lowest, 1.0, n)) / slope


def _galaxy_shapes(rng: np.random.Generator, mag: np.ndarray) -> dict[str, np.ndarray]:
    radius = 0.9 * 10 ** (-0.13 * (mag - 20.0)) * np.exp(0.35 * rng.normal(size=mag.size))
    g = np.clip(np.abs(rng.normal(0, 0.28, mag.size)), 0, 0.7)
    angle = rng.uniform(0, np.pi, mag.size)
    return {
        "index": rng.choice([1.0, 1.0, 1.0, 2.5, 4.0], mag.size),
        "half_light_radius": np.clip(radius, 0.12, 2.0),
        "g1": g * np.cos(2 * angle),
        "g2": g * np.sin(2 * angle),
    }
