# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a calibration of exposures learns, and how far it trusts what is there."""

from __future__ import annotations

__all__ = ("CalibrationSettings",)

import dataclasses

from ._settings import _Checked, _setting


@dataclasses.dataclass(frozen=True)
class CalibrationSettings(_Checked):
    """Settings of the calibration of exposures.

    Each ``..._sigma`` is the standard deviation of a Gaussian prior around
    what the pipeline says; 0 leaves that quantity as it is.
    """

    size_sigma: float = _setting(
        0.1, "Prior of the logarithm of the size of a PSF; 0 leaves sizes as they are.", min=0.0
    )
    shear_sigma: float = _setting(
        0.05,
        "Prior of each component of the shear of a PSF, (a - b) / (a + b) of what would make a round PSF "
        "elliptical; 0 leaves ellipticities as they are.",
        min=0.0,
    )
    shift_sigma: float = _setting(
        0.2, "Prior of shifts along x and y, in latent pixels; 0 leaves registrations as they are.", min=0.0
    )
    scale_sigma: float = _setting(
        0.05, "Prior of the logarithm of flux scales; 0 leaves scales as they are.", min=0.0
    )
    background_sigma: float = _setting(
        0.1,
        "Prior of background offsets, in units of the noise of a pixel; 0 leaves backgrounds as they are.",
        min=0.0,
    )
    wing_sigma: float = _setting(
        0.5,
        "Prior of the logarithm of the factor by which the wings of a PSF are steeper, roughly that of the "
        "exponent of a Moffat profile, while its core stays; 0 (here or in size_sigma) leaves wings alone.",
        min=0.0,
    )
    gradient_sigma: float = _setting(
        0.05,
        "Prior of what the logarithm of the size of a PSF gains from the middle of the field to its edge, "
        "and (as much less as shear_sigma is than size_sigma) its shear; 0 makes corrections the same "
        "everywhere.",
        min=0.0,
    )
    adapt_priors: bool = _setting(
        True,
        "Make priors as narrow as the corrections turn out to be, and leave wings and changes over the field "
        "alone where stars do not ask for them, so that noise of the stars does not become errors where "
        "nothing is wrong?",
    )
    kernel_sigma: float = _setting(
        0.0,
        "Prior of each element of a free kernel that PSFs are convolved with, after their size and shear are "
        "corrected: part of the flux that is moved by one pixel; 0 does without such kernels.",
        min=0.0,
        max=1.0,
    )
    kernel_radius: int = _setting(2, "Half the width of that kernel, in latent pixels.", min=1, max=4)
    reference: str = _setting(
        "auto",
        "What tells an error that all PSFs have in common from structure of the sky: 'stars' (they are "
        "points), 'pipeline' (the mean of PSFs is right) or 'auto' (stars, where there are min_stars).",
        choices=("auto", "stars", "pipeline"),
    )
    min_stars: int = _setting(5, "Least number of stars that can be the reference.", min=1)
    max_stars: int = _setting(200, "Largest number of sources to use, the brightest.", min=1)
    min_signal_to_noise: float = _setting(
        30.0, "Least signal-to-noise ratio of a source, all exposures together.", min=5.0
    )
    model_error: float = _setting(
        0.005, "Error of the PSF model that is added to the noise, as a part of the light.", min=0.0
    )
    n_rounds: int = _setting(3, "How often the sky is restored and the exposures are corrected.", min=1)
    sky_updates: int = _setting(10, "Updates of ImageMM for the sky of a round.", min=1)

    @property
    def prior_sigma(self) -> tuple[float, ...]:
        """Prior of each of `CALIBRATION_PARAMETERS`."""
        sheared = self.gradient_sigma * min(1.0, self.shear_sigma / max(self.size_sigma, 1e-9))
        return (
            self.size_sigma,
            *((self.shear_sigma,) * 2),
            *((self.shift_sigma,) * 2),
            self.scale_sigma,
            self.wing_sigma if self.size_sigma > 0.0 else 0.0,
            *((self.gradient_sigma if self.size_sigma > 0.0 else 0.0,) * 2),
            *((sheared if self.shear_sigma > 0.0 else 0.0,) * 4),
        )
