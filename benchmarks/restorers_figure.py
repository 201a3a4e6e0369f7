# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw the picture of doc/restorers.md; some three minutes of CPU time.

python benchmarks/restorers_figure.py doc/images/restorers.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import galsim
import matplotlib
import measure
import numpy as np
import torch
from scenes import SCALE, Scene, SceneMaker

from lsst.latent_coadds.restoration import restore

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_SIZE = 224

_GALAXIES = (
    (118, 112, 1500, 0.9, galsim.DeVaucouleurs, 0.18, 30),
    (190, 150, 500, 0.45, galsim.Exponential, 0.24, 120),
    (30, 150, 150, 0.5, galsim.Exponential, 0.21, 160),
    (140, 42, 200, 0.9, galsim.Exponential, 0.18, 60),
    (66, 200, 400, 0.6, galsim.Exponential, 0.27, 45),
)
"""x, y, S/N of a star of that flux, half-light radius in arcsec, profile, shear and its angle in degrees."""

_PANELS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("direct, clipped", "direct", {"clip": True}),
    ("imagemm, published form", "imagemm", {"form": "published", "n_realizations": 0}),
    ("imagemm", "imagemm", {"n_realizations": 0}),
    ("astroclearnet, published form", "astroclearnet", {"form": "published", "n_iter": 400}),
    ("combined", "combined", {"n_realizations": 0}),
    ("astroclearnet", "astroclearnet", {"n_realizations": 0}),
)


def make_scene() -> tuple[Scene, np.ndarray]:
    """Return exposures of stars and galaxies, and the truth at the target PSF."""
    maker = SceneMaker(77, size=_SIZE, n_exposures=8)
    stars = maker.stars(maker.grid(36.0), (10, 20, 50, 100, 300, 1000))
    galaxies = []
    for x, y, signal, radius, profile, shear, angle in _GALAXIES:
        galaxy = profile(half_light_radius=radius, flux=signal * maker.flux_error)
        galaxies.append((x, y, galaxy.shear(g=shear, beta=angle * galsim.degrees)))
        # A star in the middle of a galaxy would hide what becomes of it.
        stars = stars[np.hypot(stars[:, 0] - x, stars[:, 1] - y) > 9.0]
    target = galsim.Gaussian(fwhm=2 * SCALE)
    truth = galsim.ImageD(_SIZE, _SIZE, scale=SCALE)
    profiles = [(x, y, target.withFlux(flux)) for x, y, _, flux in stars]
    profiles += [(x, y, galsim.Convolve(galaxy, target)) for x, y, galaxy in galaxies]
    for x, y, profile in profiles:
        place = galsim.PositionD(x + 1, y + 1)
        profile.drawImage(truth, center=place, add_to_image=True, method="no_pixel")
    return maker.draw(stars, galaxies), truth.array


def main() -> None:
    """Restore the scene in all ways, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scene, truth = make_scene()
    sharpest = int(np.argmax((scene.psf**2).sum(axis=(1, 2))))
    panels = [("one exposure (best seeing)", scene.image[sharpest], scene.sigma[sharpest])]
    for title, method, settings in _PANELS:
        generator = torch.Generator().manual_seed(1)
        restoration = restore(measure.make_stack(scene), method, generator=generator, **settings)
        panels.append((title, restoration.image.numpy(), scene.coadd_sigma))
        print(title, flush=True)
    panels.append(("truth", truth, scene.coadd_sigma))
    figure, axes = plt.subplots(2, 4, figsize=(11.2, 5.9))
    for axis, (title, image, sigma) in zip(axes.flat, panels, strict=True):
        stretched = np.arcsinh(image / (0.7 * sigma))
        axis.imshow(stretched, origin="lower", cmap="gray", vmin=-1.0, vmax=np.arcsinh(45.0))
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.95, 0.03, 0.08)
    figure.savefig(arguments.output, dpi=100)


if __name__ == "__main__":
    main()
