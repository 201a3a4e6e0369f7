# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The least error of fluxes, over the Cramer-Rao error, in closed form.

    python benchmarks/flux_bounds.py --seeds 12

For an isolated star in the exposures of the other benchmarks, at the sky's
noise: an aperture and the PSF as weight on the plain coadd, and linear unbiased
estimates of what an aperture or a Gaussian weight sees of the deconvolved sky
at the target PSF. With B the power of the PSFs over their variances, the last
ones have the variance ``mean(|weight * psf|^2 / B)`` over all frequencies.
"""

from __future__ import annotations

import argparse

import numpy as np
from measure import APERTURE
from scenes import SceneMaker

from lsst.latent_coadds.qa import aperture_weights, format_table

SIZE = 128
VARIANCES = (2.0, 4.0, 6.0, 8.0, 10.0)


def at_origin(stamps: np.ndarray) -> np.ndarray:
    """Return transforms (..., SIZE, SIZE) of centred stamps."""
    k = stamps.shape[-1]
    padded = np.zeros((*stamps.shape[:-2], SIZE, SIZE))
    padded[..., :k, :k] = stamps
    return np.fft.fft2(np.roll(padded, (-(k // 2), -(k // 2)), axis=(-2, -1)))


def gaussian(variance: float) -> np.ndarray:
    """Return the transform of a sampled Gaussian with a sum of one."""
    offset = np.arange(81) - 40
    stamp = np.exp(-0.5 * (offset[:, None] ** 2 + offset**2) / variance)
    return at_origin(stamp / stamp.sum()).real


def bounds(seed: int, target_fwhm: float) -> dict[str, float]:
    """Return errors over the Cramer-Rao error by the name of the estimate."""
    maker = SceneMaker(seed, size=64)
    weight = 1.0 / maker.sigma**2
    coadd = (weight[:, None, None] * maker.psf).sum(axis=0) / weight.sum()
    power = (weight[:, None, None] * np.abs(at_origin(maker.psf)) ** 2).sum(axis=0)
    psf = gaussian((target_fwhm / 2.35482) ** 2)
    disc = aperture_weights(coadd.shape, coadd.shape[1] // 2, coadd.shape[0] // 2, APERTURE)
    aperture = at_origin(disc)

    def linear(functional: np.ndarray) -> float:
        seen = functional * psf
        return float(np.sqrt((np.abs(seen) ** 2 / power).mean()) / seen.mean().real / maker.flux_error)

    plain = weight.sum() ** -0.5 / maker.flux_error
    return {
        "plain coadd, aperture of 3 px": plain * (disc**2).sum() ** 0.5 / float((disc * coadd).sum()),
        "plain coadd, its PSF as weight": plain / float((coadd**2).sum() ** 0.5),
        "deconvolved, aperture of 3 px": linear(aperture),
        **{f"deconvolved, Gaussian of {2.35482 * v**0.5:.1f} px": linear(gaussian(v)) for v in VARIANCES},
    }


def main() -> None:
    """Print mean, least and largest over seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--target-fwhm", type=float, default=2.0)
    arguments = parser.parse_args()
    found = [bounds(seed, arguments.target_fwhm) for seed in range(1, arguments.seeds + 1)]
    rows = []
    for name in found[0]:
        values = [entry[name] for entry in found]
        rows.append([name, *(f"{f(values):.3f}" for f in (np.mean, min, max))])
    print(format_table(["error over the Cramer-Rao error", "mean", "least", "largest"], rows))


if __name__ == "__main__":
    main()
