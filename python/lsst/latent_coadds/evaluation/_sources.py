# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sources to inject: where, how bright, and of which shape."""

from __future__ import annotations

__all__ = ("SourcePlan", "choose_sites", "make_sources")

import dataclasses

import numpy as np
from astropy.table import Table

from ..qa import AB_ZERO_POINT


@dataclasses.dataclass(frozen=True)
class SourcePlan:
    """Which sources to inject.

    Parameters
    ----------
    brightest, faintest : `float`
        Range of magnitudes, in which they are spread evenly.
    spacing : `float`, optional
        Least distance between two of them, in pixels.
    galaxy_fraction : `float`, optional
        Part of them that are galaxies; the others are stars.
    half_light_radius : `tuple` [`float`, `float`], optional
        Range of the galaxies' half-light radii, in arcsec.
    """

    brightest: float
    faintest: float
    spacing: float = 30.0
    galaxy_fraction: float = 0.5
    half_light_radius: tuple[float, float] = (0.2, 0.5)

    def __post_init__(self) -> None:
        if not self.brightest < self.faintest:
            raise ValueError(
                f"The brightest source ({self.brightest} mag) must be brighter than the faintest "
                f"({self.faintest} mag)."
            )


def choose_sites(
    allowed: np.ndarray, spacing: float, rng: np.random.Generator, *, most: int = 2000
) -> np.ndarray:
    """Choose random positions with room around them.

    Parameters
    ----------
    allowed : `numpy.ndarray`, ``(h, w)``, `bool`
        Pixels in which a position may lie.
    spacing : `float`
        Least distance between two positions in pixels.
    rng : `numpy.random.Generator`
        Source of the positions.
    most : `int`, optional
        Greatest number of positions.

    Returns
    -------
    sites : `numpy.ndarray`, ``(n, 2)``, `float64`
        x and y in pixels, anywhere within pixels.
    """
    rows, columns = np.nonzero(allowed)
    order = rng.permutation(rows.size)
    free = allowed.copy()
    reach = int(np.ceil(spacing))
    yy, xx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # Two positions may each lie half a pixel nearer than their pixels.
    near = np.hypot(yy, xx) < spacing + np.sqrt(2)
    padded = np.pad(free, reach)
    sites = []
    for i in order:
        y, x = rows[i], columns[i]
        if not padded[y + reach, x + reach]:
            continue
        padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1] &= ~near
        sites.append((x, y))
        if len(sites) == most:
            break
    chosen = np.array(sites, dtype=float).reshape(-1, 2)
    return chosen + rng.uniform(-0.5, 0.5, chosen.shape)


def make_sources(sites: np.ndarray, plan: SourcePlan, rng: np.random.Generator) -> Table:
    """Give each position a source.

    Parameters
    ----------
    sites : `numpy.ndarray`, ``(n, 2)``
        Positions x and y in pixels of the patch.
    plan : `SourcePlan`
        Which sources.
    rng : `numpy.random.Generator`
        Source of what is random.

    Returns
    -------
    sources : `astropy.table.Table`
        ``x``, ``y``; ``is_star``; ``magnitude`` and ``flux`` (nJy); for
        galaxies the ``half_light_radius`` (arcsec) along the geometric mean
        of the axes, the Sersic ``index`` (1), and the reduced shear ``g1``,
        ``g2`` with respect to the pixels of the patch.
    """
    n = len(sites)
    # One in each n-th part of the range, so that no magnitude is left out.
    steps = (rng.permutation(n) + rng.uniform(0, 1, n)) / max(n, 1)
    magnitude = plan.brightest + steps * (plan.faintest - plan.brightest)
    is_star = np.ones(n, dtype=bool)
    order = np.argsort(magnitude)
    # Kinds take turns along the range of magnitudes.
    is_star[order] = np.floor(np.arange(n) * plan.galaxy_fraction) == np.floor(
        (np.arange(n) + 1) * plan.galaxy_fraction
    )
    shear = np.clip(np.abs(rng.normal(0, 0.25, n)), 0, 0.6) * ~is_star
    angle = rng.uniform(0, np.pi, n)
    low, high = np.log(plan.half_light_radius)
    return Table(
        {
            "x": sites[:, 0],
            "y": sites[:, 1],
            "is_star": is_star,
            "magnitude": magnitude,
            "flux": 10 ** (0.4 * (AB_ZERO_POINT - magnitude)),
            "half_light_radius": np.exp(rng.uniform(low, high, n)) * ~is_star,
            "index": np.ones(n),
            "g1": shear * np.cos(2 * angle),
            "g2": shear * np.sin(2 * angle),
        }
    )
