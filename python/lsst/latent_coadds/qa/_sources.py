# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sources of a coadd, measured in it and in a reference."""

from __future__ import annotations

__all__ = (
    "AB_ZERO_POINT",
    "CoaddFigures",
    "SourceTable",
    "describe_coadd",
    "measure_sources",
    "to_magnitude",
)

import dataclasses
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, maximum_filter

from ._coadd import CoaddLike, central_kernel
from ._detection import Detections, detect_sources, filter_with_psf, flux_noise_map
from ._noise import autocorrelation
from ._photometry import aperture_flux
from ._star import measure_star
from ._stars import find_isolated_detections, psf_residual, select_stars

AB_ZERO_POINT = 31.4
"""Magnitude of one nanojansky, to the precision that AB fluxes are kept."""

_HALF = 8
"""Residuals of stars reach so many pixels from their middle."""


def to_magnitude(flux: np.ndarray) -> np.ndarray:
    """Return AB magnitudes.

    Parameters
    ----------
    flux : `numpy.ndarray`
        In nJy.

    Returns
    -------
    magnitude : `numpy.ndarray`
        NaN where the flux is not positive.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flux > 0, AB_ZERO_POINT - 2.5 * np.log10(flux), np.nan)


@dataclasses.dataclass(frozen=True)
class CoaddFigures:
    """A coadd's PSF, sources and sky.

    Parameters
    ----------
    psf : `numpy.ndarray`, ``(k, k)``
        PSF in its middle.
    psf_fwhm : `float`
        Width of that, fitted like a star, in pixels.
    flux_noise, hole_noise : `numpy.ndarray`, ``(h, w)``
        See `flux_noise_map`, for sources and for holes.
    detections : `Detections`
        What is found above the threshold.
    clean : `numpy.ndarray`, ``(h, w)``, `bool`
        Pixels with data that are not saturated, clear of the edge.
    empty : `numpy.ndarray`, ``(h, w)``, `bool`
        Pixels of these without any source near.
    sky_mean, sky_rms : `float`
        Mean and standard deviation of the empty pixels in nJy.
    sky_sigma : `float`
        Median of the square root of their variance.
    sky_spread : `float`
        How far below their median the 16th percentile lies, which sources too
        faint to be found, and places where one may have been missed, hardly change.
    sky_correlation : `numpy.ndarray`, ``(2 n + 1, 2 n + 1)``
        Their `autocorrelation`.
    noise_correlation : `numpy.ndarray`, ``(2 n + 1, 2 n + 1)``, or `None`
        That of the noise realizations there, if there are any.
    noise_rms, noise_spread : `float`
        Standard deviation of the noise realizations there, and their spread
        like ``sky_spread``; NaN if there are none.
    """

    psf: np.ndarray
    psf_fwhm: float
    flux_noise: np.ndarray
    hole_noise: np.ndarray
    detections: Detections
    clean: np.ndarray
    empty: np.ndarray
    sky_mean: float
    sky_rms: float
    sky_sigma: float
    sky_spread: float
    sky_correlation: np.ndarray
    noise_correlation: np.ndarray | None
    noise_rms: float
    noise_spread: float

    @property
    def depth(self) -> float:
        """Magnitude of a point source of five times its noise (`float`)."""
        noise = self.flux_noise[self.clean & np.isfinite(self.flux_noise)]
        return float(to_magnitude(np.asarray(5 * np.median(noise)))) if noise.size else np.nan


def describe_coadd(
    coadd: CoaddLike, *, threshold: float = 5.0, max_lag: int = 8, sky: np.ndarray | None = None
) -> CoaddFigures:
    """Find a coadd's sources, and measure its sky.

    Parameters
    ----------
    coadd : `CoaddLike`
        The coadd.
    threshold : `float`, optional
        Significance of a detection.
    max_lag : `int`, optional
        Greatest separation at which noise is correlated, in pixels.
    sky : `numpy.ndarray`, ``(h, w)``, `bool`, optional
        Pixels that another coadd shows empty. For want of noise realizations
        they tell how the noise is distributed, faint sources included.

    Returns
    -------
    figures : `CoaddFigures`
        What was found.
    """
    psf = central_kernel(coadd)
    variance = np.where(coadd.good, coadd.variance, np.inf)
    samples: dict[str, Any] = {"realizations": coadd.noise}
    if len(coadd.noise) == 0 and sky is not None and sky.any():
        samples = {"realizations": coadd.image[None], "sky": sky}
    noise = flux_noise_map(variance, psf, **samples)
    saturated = coadd.mask.get("SATURATED", np.zeros_like(coadd.good))
    clean = coadd.good & ~binary_dilation(saturated | ~coadd.good, iterations=4)
    clean[[*range(4), *range(-4, 0)], :] = clean[:, [*range(4), *range(-4, 0)]] = False
    detections = detect_sources(coadd.image, psf, noise, threshold=threshold, good=clean)
    width = _fitted_width(psf)
    snr = np.where(np.isfinite(noise), filter_with_psf(coadd.image, psf) / noise, np.inf)
    reach = 2 * int(np.ceil(2 * width)) + 1
    empty = clean & (maximum_filter(snr, size=reach) < 4.0)
    sky = coadd.image[empty]
    realizations = len(coadd.noise) > 0 and bool(empty.any())
    errors = coadd.noise[:, empty]
    return CoaddFigures(
        psf=psf,
        psf_fwhm=width,
        flux_noise=noise,
        hole_noise=flux_noise_map(variance, psf, **samples, negative=True),
        detections=detections,
        clean=clean,
        empty=empty,
        sky_mean=float(np.mean(sky)) if sky.size else np.nan,
        sky_rms=float(np.std(sky)) if sky.size else np.nan,
        sky_sigma=float(np.sqrt(np.median(coadd.variance[empty]))) if sky.size else np.nan,
        sky_spread=_lower_spread(sky[None]),
        sky_correlation=autocorrelation(coadd.image, empty, max_lag=max_lag),
        noise_correlation=autocorrelation(coadd.noise, empty, max_lag=max_lag) if realizations else None,
        noise_rms=float(np.std(errors)) if realizations else np.nan,
        noise_spread=_lower_spread(errors),
    )


def _lower_spread(planes: np.ndarray) -> float:
    """Return how far below the median a sixth of the values of each plane (n, pixels) lies, on average."""
    if not planes.size:
        return np.nan
    low, middle = np.quantile(planes, (_ONE_SIGMA_BELOW, 0.5), axis=-1)
    return float(np.mean(middle - low))


_ONE_SIGMA_BELOW = 0.158655
"""Part of a normal distribution that is more than a standard deviation below its mean."""


def _fitted_width(psf: np.ndarray) -> float:
    middle = psf.shape[0] // 2 + _HALF
    shape = measure_star(np.pad(psf, _HALF), middle, middle)
    return shape.fwhm if shape is not None else np.nan


@dataclasses.dataclass(frozen=True)
class SourceTable:
    """Lone sources, brightest first.

    Parameters
    ----------
    x, y : `numpy.ndarray`, ``(n,)``
        Positions in pixels of the coadd.
    magnitude : `numpy.ndarray`, ``(n,)``
        From the aperture flux in the coadd.
    snr : `numpy.ndarray`, ``(n,)``
        Significance of the detection.
    flux, reference_flux : `numpy.ndarray`, ``(n,)``
        In the same aperture in both, in nJy; NaN where there is none.
    fwhm, reference_fwhm : `numpy.ndarray`, ``(n,)``
        In pixels of the respective coadd.
    is_star : `numpy.ndarray`, ``(n,)``, `bool`
        Shaped like a star: in the reference, if there is one.
    residual : `numpy.ndarray`, ``(n, k, k)``
        See `psf_residual`; NaN for what is no star.
    radius : `float`
        Radius of the aperture in pixels of the coadd.
    """

    x: np.ndarray
    y: np.ndarray
    magnitude: np.ndarray
    snr: np.ndarray
    flux: np.ndarray
    reference_flux: np.ndarray
    fwhm: np.ndarray
    reference_fwhm: np.ndarray
    is_star: np.ndarray
    residual: np.ndarray
    radius: float


def measure_sources(
    coadd: CoaddLike,
    figures: CoaddFigures,
    reference: CoaddLike | None = None,
    reference_figures: CoaddFigures | None = None,
    *,
    min_snr: float = 20.0,
    max_sources: int = 400,
) -> SourceTable:
    """Measure lone sources in a coadd, and at the same places in a reference.

    Parameters
    ----------
    coadd, figures
        The coadd, and what `describe_coadd` says of it.
    reference, reference_figures
        The same for a coadd of the same exposures, on the same pixels or on
        coarser ones.
    min_snr : `float`, optional
        Least significance in the coadd.
    max_sources : `int`, optional
        The brightest so many are measured.

    Returns
    -------
    table : `SourceTable`
        What was measured.
    """
    factor = 1.0 if reference is None else coadd.pixel_scale / reference.pixel_scale
    widest = figures.psf_fwhm
    if reference_figures is not None:
        widest = max(widest, reference_figures.psf_fwhm / factor)
    found = figures.detections
    alone = find_isolated_detections(found, radius=3.2 * widest, fraction=0.02)
    found = found[np.flatnonzero(alone & (found.snr >= min_snr))[:max_sources]]
    n = len(found)
    radius = 1.6 * widest
    columns = {name: np.full(n, np.nan) for name in ("flux", "reference_flux", "fwhm", "reference_fwhm")}
    round_, reference_round = np.full(n, np.inf), np.full(n, np.inf)
    shapes = []
    for i, (x, y) in enumerate(zip(found.x, found.y, strict=True)):
        shape = measure_star(coadd.image, x, y)
        shapes.append(shape)
        columns["flux"][i] = _corrected_flux(coadd, x, y, radius)
        if shape is not None:
            columns["fwhm"][i], round_[i] = shape.fwhm, shape.ellipticity
        if reference is not None:
            rx, ry = (x + 0.5) * factor - 0.5, (y + 0.5) * factor - 0.5
            columns["reference_flux"][i] = _corrected_flux(reference, rx, ry, radius * factor)
            shape = measure_star(reference.image, rx, ry)
            if shape is not None:
                columns["reference_fwhm"][i], reference_round[i] = shape.fwhm, shape.ellipticity
    if reference_figures is None:
        stars = select_stars(columns["fwhm"], round_, figures.psf_fwhm, tolerance=0.25)
    else:
        stars = select_stars(
            columns["reference_fwhm"], reference_round, reference_figures.psf_fwhm, tolerance=0.08
        )
    residual = np.full((n, 2 * _HALF + 1, 2 * _HALF + 1), np.nan)
    for i, shape in enumerate(shapes):
        if not stars[i]:
            continue
        stamp = psf_residual(coadd, shape, half=_HALF) if shape is not None else None
        if stamp is not None and stamp.shape == residual.shape[1:]:
            residual[i] = stamp
    return SourceTable(
        x=found.x,
        y=found.y,
        magnitude=to_magnitude(columns["flux"]),
        snr=found.snr,
        **columns,
        is_star=stars,
        residual=residual,
        radius=radius,
    )


def _corrected_flux(coadd: CoaddLike, x: float, y: float, radius: float) -> float:
    kernel = coadd.kernel(x, y)
    if kernel is None:
        return np.nan
    return aperture_flux(coadd.image, x, y, radius, psf=kernel)
