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
"""

from __future__ import annotations

import argparse
from typing import Any

import galsim
import measure
import numpy as np
import torch
from scenes import SCALE, Scene, SceneMaker

from lsst.latent_coadds.qa import aperture_flux, format_table, measure_star
from lsst.latent_coadds.restoration import Restoration, restore

_ALONE = {"point_threshold": 0.0}

VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("`imagemm`", "imagemm", {}),
    ("`combined`", "combined", {}),
    ("`astroclearnet`", "astroclearnet", {}),
    ("– points left to the network", "astroclearnet", _ALONE),
    ("– and no linear correction", "astroclearnet", {**_ALONE, "residual_damping": 0.0}),
)

LEVELS = (100, 300, 1000, 6000)

_SIZE = 140

_HEADER = ("", "S/N", "beyond 3 px: % of peak", "in sigma", "within 1.5 px, %", "flux, %", "FWHM / target")


def make_scene(seed: int) -> tuple[Scene, np.ndarray]:
    """Return exposures of nine stars, and the truth at the target PSF."""
    maker = SceneMaker(seed, size=_SIZE, n_exposures=10)
    stars = maker.stars(maker.grid(34.0, border=19.0), LEVELS)
    truth = galsim.ImageD(_SIZE, _SIZE, scale=SCALE)
    for x, y, _, flux in stars:
        place = galsim.PositionD(x + 1, y + 1)
        profile = galsim.Gaussian(fwhm=2 * SCALE, flux=flux)
        profile.drawImage(truth, center=place, add_to_image=True, method="no_pixel")
    return maker.draw(stars, n_rays=4), truth.array


def measure_profiles(restoration: Restoration, scene: Scene, truth: np.ndarray) -> list[tuple[float, ...]]:
    """Return a row for each star.

    Columns: S/N; deepest and highest deviation from 3 to 14 px, over the
    peak and over the coadd's noise; mean deviation within 1.5 px over the
    peak; flux in 3 px over the truth minus one; FWHM over that of the PSF.
    """
    image, psf = (plane.numpy().astype(float) for plane in (restoration.image, restoration.psf))
    rows, columns = np.indices(image.shape)
    middle = float(psf.shape[0] // 2)
    target = measure_star(psf, middle, middle)
    assert target is not None
    table = []
    for x, y, signal, flux in scene.stars:
        distance = np.hypot(columns - x, rows - y)
        error = image - truth
        beyond = error[(distance > 3.0) & (distance < 14.0)]
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scenes = [make_scene(seed) for seed in range(1, arguments.seeds + 1)]
    lines: list[list[object]] = []
    for name, method, settings in VARIANTS:
        rows: list[tuple[float, ...]] = []
        for seed, (scene, truth) in enumerate(scenes, 1):
            generator = torch.Generator().manual_seed(seed)
            stack = measure.make_stack(scene)
            restoration = restore(stack, method, generator=generator, n_realizations=0, **settings)
            rows += measure_profiles(restoration, scene, truth)
        table = np.array(rows)
        for level in LEVELS:
            m = np.nanmedian(table[table[:, 0] == level], axis=0)
            figures = [f"{100 * m[1]:+.2f} to {100 * m[2]:+.2f}", f"{m[3]:+.1f} to {m[4]:+.1f}"]
            figures += [f"{100 * m[5]:+.2f}", f"{100 * m[6]:+.2f}", f"{m[7]:.3f}"]
            lines.append([name, level, *figures])
        print(name, flush=True)
    print(format_table(_HEADER, lines))


if __name__ == "__main__":
    main()
