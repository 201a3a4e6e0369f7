# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the numbers of a patch are: units and descriptions."""

from __future__ import annotations

__all__ = ("PATCH_NUMBERS", "NumberInfo")

import dataclasses


@dataclasses.dataclass(frozen=True)
class NumberInfo:
    """What a number is.

    Parameters
    ----------
    unit : `str`
        Unit as astropy writes it; empty if there is none.
    doc : `str`
        Description.
    decimals : `int`, optional
        Digits after the decimal point that mean something.
    """

    unit: str
    doc: str
    decimals: int = 3


PATCH_NUMBERS = {
    "n_inputs": NumberInfo("", "Exposures that were used", 0),
    "rejected_input_fraction": NumberInfo("", "Fraction of the exposures that could not be used"),
    "chi2_median": NumberInfo("", "Reduced chi² of the visits, median"),
    "chi2_worst": NumberInfo("", "Reduced chi² of the visit that is farthest from one"),
    "n_iterations": NumberInfo("", "Updates of the slowest tile", 0),
    "flux_closure_sigma": NumberInfo("", "Sum of the model minus that of the data, over its error", 1),
    "run_time": NumberInfo("s", "Wall time of the restoration", 1),
    "n_detections": NumberInfo("", "Sources found", 0),
    "reference_n_detections": NumberInfo("", "Sources found in the reference", 0),
    "depth": NumberInfo("mag", "Magnitude of a point source of five times its noise", 2),
    "reference_depth": NumberInfo("mag", "The same in the reference", 2),
    "limiting_magnitude": NumberInfo(
        "mag", "Magnitude at which half of the points exceed 5 sigma of the exposures", 2
    ),
    "area": NumberInfo("arcmin2", "Area with data"),
    "psf_fwhm": NumberInfo("pix", "FWHM of the attached PSF"),
    "reference_psf_fwhm": NumberInfo("pix", "FWHM of the reference's PSF"),
    "n_stars": NumberInfo("", "Lone stars that were measured", 0),
    "star_fwhm": NumberInfo("pix", "FWHM of lone bright stars, median"),
    "star_fwhm_scatter": NumberInfo("pix", "FWHM of lone bright stars, scatter"),
    "psf_residual": NumberInfo(
        "", "Largest pixel of what the PSF leaves of bright stars, over their peak", 4
    ),
    "ring_depth": NumberInfo("", "Depth of rings around the brightest stars, over their peak", 4),
    "flux_ratio": NumberInfo("", "Flux of stars over that in the reference, median", 4),
    "flux_ratio_scatter": NumberInfo("", "Flux of stars over that in the reference, scatter", 4),
    "disagreement_density": NumberInfo(
        "arcmin-2", "Places that disagree with the reference, nothing clipped", 2
    ),
    "hole_density": NumberInfo("arcmin-2", "Holes deeper than noise makes them", 2),
    "n_clipped_clusters": NumberInfo("", "Groups of clipped pixels", 0),
    "sky_mean": NumberInfo("nJy", "Empty sky, mean"),
    "sky_rms": NumberInfo("nJy", "Empty sky, standard deviation per pixel"),
    "reference_sky_rms": NumberInfo("nJy", "Empty sky of the reference, standard deviation per pixel"),
    "sky_rms_over_sigma": NumberInfo("", "The same of the coadd, over the variance plane's"),
    "sky_spread_over_noise": NumberInfo(
        "",
        "How far a sixth of empty sky lies below its median, over that of the realizations (or the variance)",
    ),
    "noise_rms_over_sigma": NumberInfo("", "Noise realizations there, over the variance plane's"),
    "sky_correlation_1": NumberInfo("", "Correlation of neighbouring pixels of empty sky"),
    "aperture_noise_ratio": NumberInfo("", "Noise of a 3 px aperture, over that of white noise", 2),
    "no_data_fraction": NumberInfo("", "Pixels without data", 4),
    "saturated_fraction": NumberInfo("", "Pixels that are SATURATED", 4),
    "rejected_fraction": NumberInfo("", "Pixels that are REJECTED", 4),
    "clipped_fraction": NumberInfo("", "Pixels that are CLIPPED", 4),
    "cosmic_ray_fraction": NumberInfo("", "Pixels with a COSMIC_RAY", 4),
    "sensor_edge_fraction": NumberInfo("", "Pixels at a SENSOR_EDGE", 4),
    "inexact_psf_fraction": NumberInfo("", "Pixels with an INEXACT_PSF", 4),
}
"""All numbers that `analyze_patch` may give, in the order of their display."""
