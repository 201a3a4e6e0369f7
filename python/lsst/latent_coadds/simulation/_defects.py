# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("add_bad_columns", "add_cosmic_rays", "saturate")

import numpy as np


def saturate(image: np.ndarray, level: float) -> np.ndarray:
    """Cut an image off at the saturation level, and let the charge bleed.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        Changed in place.
    level : `float`
        Greatest value that a pixel may have.

    Returns
    -------
    saturated : `numpy.ndarray`, ``(h, w)``, `bool`
        Pixels that reached the level, with their neighbours.
    """
    saturated = image >= level
    excess = np.where(saturated, image - level, 0).sum(axis=0)
    trail = saturated.copy()
    for x in np.nonzero(excess)[0]:
        rows = np.nonzero(saturated[:, x])[0]
        length = int(min(excess[x] / level, 0.25 * image.shape[0]) / 2)
        trail[max(rows[0] - length, 0) : rows[-1] + length + 1, x] = True
    image[trail] = level
    grown = np.pad(trail, 1)
    return np.logical_or.reduce(
        [grown[1 + dy : grown.shape[0] - 1 + dy, 1 + dx : grown.shape[1] - 1 + dx] for dy, dx in _NEIGHBOURS]
    )


_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def add_cosmic_rays(
    rng: np.random.Generator, image: np.ndarray, *, expected: float, noise: float, unmasked_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Add the tracks of cosmic rays.

    Parameters
    ----------
    rng : `numpy.random.Generator`
        Source of their number, places and charges.
    image : `numpy.ndarray`, ``(h, w)``
        Changed in place.
    expected : `float`
        Mean number of tracks.
    noise : `float`
        Standard deviation of the sky; a track adds 20 to 400 times as much
        to each of its pixels.
    unmasked_fraction : `float`
        Part of the tracks that nobody noticed.

    Returns
    -------
    masked, unmasked : `numpy.ndarray`, ``(h, w)``, `bool`
        Pixels of the tracks that the mask should have, and of the others.
    """
    masked = np.zeros(image.shape, dtype=bool)
    unmasked = np.zeros(image.shape, dtype=bool)
    for _ in range(rng.poisson(expected)):
        length = 1.5 + rng.exponential(8.0)
        angle = rng.uniform(0, np.pi)
        start = rng.uniform(0, 1, 2) * image.shape
        steps = np.arange(0, length, 0.5)
        rows = np.round(start[0] + steps * np.sin(angle)).astype(int)
        columns = np.round(start[1] + steps * np.cos(angle)).astype(int)
        inside = (rows >= 0) & (rows < image.shape[0]) & (columns >= 0) & (columns < image.shape[1])
        track = np.zeros(image.shape, dtype=bool)
        track[rows[inside], columns[inside]] = True
        charge = noise * 10 ** rng.uniform(1.3, 2.6)
        image[track] += charge * rng.uniform(0.5, 1.5, int(track.sum()))
        (unmasked if rng.random() < unmasked_fraction else masked)[track] = True
    return masked, unmasked & ~masked


def add_bad_columns(rng: np.random.Generator, image: np.ndarray, *, number: int, noise: float) -> np.ndarray:
    """Spoil parts of some columns.

    Parameters
    ----------
    rng : `numpy.random.Generator`
        Source of their places.
    image : `numpy.ndarray`, ``(h, w)``
        Changed in place.
    number : `int`
        How many columns.
    noise : `float`
        Standard deviation of the sky.

    Returns
    -------
    bad : `numpy.ndarray`, ``(h, w)``, `bool`
        Pixels that are spoilt.
    """
    bad = np.zeros(image.shape, dtype=bool)
    for _ in range(number):
        column = rng.integers(0, image.shape[1])
        first = rng.integers(0, image.shape[0] // 2)
        bad[first:, column] = True
    image[bad] += noise * rng.uniform(-30, 30, int(bad.sum()))
    return bad
