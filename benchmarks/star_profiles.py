# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bright stars in restored images, against the target PSF itself.

Rings, crescents, cores and fluxes; some 50 s of CPU time per seed::

    python benchmarks/star_profiles.py --seeds 2

and the same of stars on bright galaxies::

    python benchmarks/star_profiles.py --seeds 2 --on-galaxies
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import galsim
import measure
import numpy as np
import torch
from scenes import SCALE, Scene, SceneMaker

from lsst.latent_coadds.qa import aperture_flux, format_table, measure_star
from lsst.latent_coadds.restoration import Restoration, _points_apart, restore
from lsst.latent_coadds.restoration._point_sources import PointSources

_Patch = Callable[[], contextlib.AbstractContextManager[Any]]

_ALONE = {"point_threshold": 0.0}

_Variant = tuple[str, str, dict[str, Any], _Patch]

VARIANTS: tuple[_Variant, ...] = (
    ("`imagemm`", "imagemm", {}, contextlib.nullcontext),
    ("`combined`", "combined", {}, contextlib.nullcontext),
    ("`astroclearnet`", "astroclearnet", {}, contextlib.nullcontext),
    ("– points left to the network", "astroclearnet", _ALONE, contextlib.nullcontext),
    (
        "– and no linear correction",
        "astroclearnet",
        {**_ALONE, "residual_damping": 0.0},
        contextlib.nullcontext,
    ),
)

LEVELS = (100, 300, 1000, 6000)

_SIZE = 140

_ON_GALAXIES = (20, 100, 300, 1000)
"""S/N of stars on galaxies."""

_HEADER = ("", "S/N", "beyond 3 px: % of peak", "in sigma", "within 1.5 px, %", "flux, %", "FWHM / target")


def _one_look() -> contextlib.AbstractContextManager[Any]:
    """Find no points on galaxies."""
    return mock.patch.object(
        _points_apart, "find_blended_points", lambda stack, matched, *_: PointSources.none(matched.device)
    )


_GALAXY_VARIANTS: tuple[_Variant, ...] = (
    ("`imagemm`", "imagemm", {}, contextlib.nullcontext),
    ("`astroclearnet`", "astroclearnet", {}, contextlib.nullcontext),
    ("– without the second look for points", "astroclearnet", {}, _one_look),
)


def make_scene(seed: int) -> tuple[Scene, np.ndarray, np.ndarray]:
    """Return exposures of nine stars, and the truth at the target PSF without and with stars."""
    maker = SceneMaker(seed, size=_SIZE, n_exposures=10)
    stars = maker.stars(maker.grid(34.0, border=19.0), LEVELS)
    others = np.zeros((_SIZE, _SIZE))
    return maker.draw(stars, n_rays=4), others, _draw_stars(stars, _SIZE)


def make_galaxies(seed: int) -> tuple[Scene, np.ndarray, np.ndarray]:
    """Return the same of sixteen galaxies with a star on each, 7 to 15 px from its centre."""
    size = 240
    maker = SceneMaker(seed + 7000, size=size, n_exposures=10)
    stars, galaxies = [], []
    for k, (x, y) in enumerate(maker.grid(52.0, border=30.0)):
        shape = {"half_light_radius": maker.rng.uniform(0.5, 1.2), "flux": (200, 500, 1500)[k % 3]}
        profile = (galsim.DeVaucouleurs if k % 2 else galsim.Exponential)(**shape) * maker.flux_error
        galaxies.append((x, y, profile.shear(g1=maker.rng.uniform(-0.2, 0.2))))
        angle, distance = maker.rng.uniform(0.0, 2.0 * np.pi), maker.rng.uniform(7.0, 15.0)
        signal = _ON_GALAXIES[k // 4 % len(_ON_GALAXIES)]
        place = (x + distance * np.cos(angle), y + distance * np.sin(angle))
        stars.append((*place, signal, signal * maker.flux_error))
    others = galsim.ImageD(size, size, scale=SCALE)
    for x, y, profile in galaxies:
        seen = galsim.Convolve(profile, galsim.Gaussian(fwhm=2 * SCALE))
        seen.drawImage(others, center=galsim.PositionD(x + 1, y + 1), add_to_image=True, method="no_pixel")
    return maker.draw(np.array(stars), galaxies), others.array, _draw_stars(np.array(stars), size)


def _draw_stars(stars: np.ndarray, size: int) -> np.ndarray:
    truth = galsim.ImageD(size, size, scale=SCALE)
    for x, y, _, flux in stars:
        place = galsim.PositionD(x + 1, y + 1)
        profile = galsim.Gaussian(fwhm=2 * SCALE, flux=flux)
        profile.drawImage(truth, center=place, add_to_image=True, method="no_pixel")
    return truth.array


def measure_profiles(
    restoration: Restoration, scene: Scene, others: np.ndarray, truth: np.ndarray, outer: float
) -> list[tuple[float, ...]]:
    """Return a row for each star.

    Columns: S/N; deepest and highest deviation from 3 px to ``outer``, over the
    peak and over the coadd's noise; mean deviation within 1.5 px over the
    peak; flux in 3 px over the truth minus one; FWHM over that of the PSF.
    """
    image, psf = (plane.numpy().astype(float) for plane in (restoration.image, restoration.psf))
    image = image - others
    rows, columns = np.indices(image.shape)
    middle = float(psf.shape[0] // 2)
    target = measure_star(psf, middle, middle)
    assert target is not None
    table: list[tuple[float, ...]] = []
    for x, y, signal, flux in scene.stars:
        distance = np.hypot(columns - x, rows - y)
        error = image - truth
        beyond = error[(distance > 3.0) & (distance < outer)]
        peak = flux * 4.0 * np.log(2.0) / (np.pi * 2.0**2)
        shape = measure_star(image, x, y)
        table.append(
            (
                signal,
                beyond.min() / peak,
                beyond.max() / peak,
                beyond.min() / scene.coadd_sigma,
                beyond.max() / scene.coadd_sigma,
                error[distance < 1.5].mean() / peak,
                aperture_flux(image, x, y, measure.APERTURE, psf=psf) / flux - 1.0,
                np.nan if shape is None else shape.fwhm / target.fwhm,
            )
        )
    return table


def main() -> None:
    """Restore the scenes in all ways, and print medians over stars."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--on-galaxies", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make, levels, variants, outer = make_scene, LEVELS, VARIANTS, 14.0
    if arguments.on_galaxies:
        # Farther away is the core of the galaxy.
        make, levels, variants, outer = make_galaxies, _ON_GALAXIES, _GALAXY_VARIANTS, 7.0
    scenes = [make(seed) for seed in range(1, arguments.seeds + 1)]
    lines: list[list[object]] = []
    for name, method, settings, patch in variants:
        rows: list[tuple[float, ...]] = []
        for seed, (scene, others, truth) in enumerate(scenes, 1):
            generator = torch.Generator().manual_seed(seed)
            stack = measure.make_stack(scene)
            with patch():
                restoration = restore(stack, method, generator=generator, n_realizations=0, **settings)
            rows += measure_profiles(restoration, scene, others, truth, outer)
        table = np.array(rows)
        for level in levels:
            m = np.nanmedian(table[table[:, 0] == level], axis=0)
            figures = [f"{100 * m[1]:+.2f} to {100 * m[2]:+.2f}", f"{m[3]:+.1f} to {m[4]:+.1f}"]
            figures += [f"{100 * m[5]:+.2f}", f"{100 * m[6]:+.2f}", f"{m[7]:.3f}"]
            lines.append([name, level, *figures])
        print(name, flush=True)
    print(format_table(_HEADER, lines))


if __name__ == "__main__":
    main()
