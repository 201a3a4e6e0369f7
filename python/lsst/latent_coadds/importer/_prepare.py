# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("PreparedExposure", "prepare_exposure")

import dataclasses
from typing import Any

import numpy as np
from astropy.table import Table
from astropy.wcs import WCS

from ._background import residual_background
from ._calibration import Offset, flux_scale, match_stars, measure_stars, registration
from ._cosmic_rays import find_cosmic_rays, find_saturated
from ._errors import BadExposureError
from ._exposure import PlainExposure
from ._mask import excluded_pixels
from ._projection import pixel_scale, serialisable_wcs, shifted_wcs
from ._psf import PsfFit, psf_from_stamp
from ._psf_fit import fit_psf
from ._settings import ImportSettings
from ._stars import find_sources, select_stars
from ._variance import background_variance, detector_variance, noise_scale

_DEFAULT_FWHM = 3.0
_MOST_SCALE_ERROR = 0.05
_MOST_SHIFT_ERROR = 0.3


@dataclasses.dataclass
class PreparedExposure:
    """An exposure ready to be written.

    Parameters
    ----------
    exposure : `PlainExposure`
        What it came as; its arrays are no longer current.
    image, variance : `numpy.ndarray`
        ``(H, W)``, nJy and nJy squared.
    mask : `dict` [`str`, `numpy.ndarray`]
        Boolean ``(H, W)`` by mask plane.
    wcs : `astropy.wcs.WCS`
        Celestial WCS, shifted if registration was applied.
    psf : `PsfFit`
        PSF model.
    stars : `astropy.table.Table`
        As `measure_stars` makes it, fluxes in nJy, before any correction.
    row : `dict`
        What the report says about it.
    """

    exposure: PlainExposure
    image: np.ndarray
    variance: np.ndarray
    mask: dict[str, np.ndarray]
    wcs: WCS
    psf: PsfFit
    stars: Table
    row: dict[str, Any]


def prepare_exposure(
    exposure: PlainExposure, settings: ImportSettings, reference: PreparedExposure | None = None
) -> PreparedExposure:
    """Make an exposure complete: variance, mask, PSF, calibration.

    Parameters
    ----------
    exposure : `PlainExposure`
        The exposure as read.
    settings : `ImportSettings`
        What to do.
    reference : `PreparedExposure`, optional
        Exposure against which flux scale and registration are measured;
        `None` for the reference itself.

    Returns
    -------
    prepared : `PreparedExposure`
        Ready to be written.

    Raises
    ------
    BadExposureError
        Raised with the remedy if something is missing that cannot be
        measured.
    """
    try:
        wcs, wcs_error = serialisable_wcs(exposure.wcs, exposure.image.shape)
        mask = dict(exposure.mask)
        look = settings.cosmic_rays == "always" or (settings.cosmic_rays == "auto" and not exposure.has_mask)
        if look and exposure.saturation is not None:
            mask["SATURATED"] = find_saturated(exposure.image, exposure.saturation)
        image, level = _subtract_background(exposure, mask, settings)
        variance, origin = _make_variance(exposure, image, excluded_pixels(mask, exposure.image.shape))
        if look:
            mask["COSMIC_RAY"] = _find_rays(
                exposure, image, variance, excluded_pixels(mask, exposure.image.shape), settings
            )
        bad = excluded_pixels(mask, exposure.image.shape)
        sources = find_sources(image, variance, bad)
        psf, n_stars = _make_psf(exposure, image, variance, bad, sources, settings)
    except BadExposureError:
        raise
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as e:
        raise BadExposureError(exposure.name, str(e)) from e
    zero_point = settings.nominal_zero_point if exposure.zero_point is None else exposure.zero_point
    unit = 10.0 ** (0.4 * (31.4 - zero_point))
    stars = measure_stars(image * unit, variance * unit**2, bad, sources, psf, wcs)
    scatter = noise_scale(image, variance, ~bad)
    if not (np.isfinite(scatter) and scatter > 0.0):
        raise BadExposureError(
            exposure.name,
            f"its background scatters by {scatter} of what the variance says: most pixels are equal. "
            "Give a mask or weight that leaves out what is no sky.",
        )
    row = _describe(exposure, psf, n_stars, mask, wcs) | {
        "variance_from": origin,
        "noise_scale": scatter,
        "background": level,
        "zero_point": zero_point,
        "calibrated": exposure.zero_point is not None,
        "wcs_error": wcs_error,
    }
    prepared = PreparedExposure(exposure, image * unit, variance * unit**2, mask, wcs, psf, stars, row)
    _calibrate(prepared, reference, settings)
    return prepared


def _subtract_background(
    exposure: PlainExposure, mask: dict[str, np.ndarray], settings: ImportSettings
) -> tuple[np.ndarray, float]:
    """Image without residual sky, and the level that was in it."""
    mask.setdefault("NO_DATA", np.zeros(exposure.image.shape, dtype=bool))
    bad = excluded_pixels(mask, exposure.image.shape)
    if bad.all():
        raise BadExposureError(exposure.name, "every pixel is masked; leave this exposure out, or its mask.")
    mesh = settings.mesh if settings.background == "mesh" else None
    background, level = residual_background(exposure.image, bad, mesh=mesh)
    return exposure.image if settings.background == "off" else exposure.image - background, level


def _make_variance(exposure: PlainExposure, image: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, str]:
    """Variance in counts squared, and where it comes from."""
    if exposure.variance is not None:
        return exposure.variance, "given"
    if exposure.gain is not None and exposure.sky is not None:
        return (
            detector_variance(
                image, gain=exposure.gain, read_noise=exposure.read_noise or 0.0, sky=exposure.sky
            ),
            "detector",
        )
    return background_variance(image, ~bad, gain=exposure.gain), "background"


def _find_rays(
    exposure: PlainExposure,
    image: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    settings: ImportSettings,
) -> np.ndarray:
    """Cosmic rays, with stars protected by their FWHM."""
    if exposure.psf is not None:
        fwhm = exposure.psf.fwhm
    elif exposure.psf_stamp is not None:
        fwhm = psf_from_stamp(exposure.psf_stamp).fwhm
    else:
        sources = find_sources(image, variance, bad)
        stars = sources[select_stars(sources, image.shape, settings.stars)]
        fwhm = float(np.median(stars["fwhm"])) if len(stars) else _DEFAULT_FWHM
    return find_cosmic_rays(image, variance, bad, fwhm=fwhm, settings=settings.cosmic_ray_settings)


def _make_psf(
    exposure: PlainExposure,
    image: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    sources: Table,
    settings: ImportSettings,
) -> tuple[PsfFit, int]:
    if exposure.psf is not None:
        return exposure.psf, 0
    if exposure.psf_stamp is not None:
        return psf_from_stamp(exposure.psf_stamp), 0
    stars = sources[select_stars(sources, image.shape, settings.stars)]
    fit = fit_psf(image, variance, bad, stars, settings.psf)
    return fit, len(stars)


def _describe(
    exposure: PlainExposure, psf: PsfFit, n_stars: int, mask: dict[str, np.ndarray], wcs: WCS
) -> dict[str, Any]:
    identity = exposure.identity
    fraction = {plane: float(np.mean(pixels)) for plane, pixels in mask.items()}
    return {
        "name": exposure.name,
        "visit": identity.visit,
        "detector": identity.detector,
        "date": identity.begin.utc.isot,
        "filter": identity.physical_filter,
        "band": identity.band,
        "fwhm": psf.fwhm,
        "seeing": psf.fwhm * pixel_scale(wcs, exposure.image.shape),
        "psf_model": psf.model,
        "psf_chi2": psf.chi2,
        "n_stars": n_stars,
        "cosmic_ray": fraction.get("COSMIC_RAY", 0.0),
        "saturated": fraction.get("SATURATED", 0.0),
        "masked": float(np.mean(excluded_pixels(mask, exposure.image.shape))),
    }


def _calibrate(
    prepared: PreparedExposure, reference: PreparedExposure | None, settings: ImportSettings
) -> None:
    """Measure against the reference and, if asked, correct image, variance and WCS."""
    scale, dx, dy = Offset(1.0, 0.0, 0.0, 0), Offset(0.0, 0.0, 0.0, 0), Offset(0.0, 0.0, 0.0, 0)
    same_band, doubt = True, ""
    if reference is not None:
        bands = [p.exposure.identity.band for p in (reference, prepared)]
        same_band = bands[0] == bands[1]
        radius = settings.match_radius / pixel_scale(prepared.wcs, prepared.image.shape)
        pairs = match_stars(reference.stars, prepared.stars, prepared.wcs, radius=radius)
        dx, dy = registration(pairs)
        # Colours of stars are no differences of transparency.
        scale = flux_scale(pairs) if same_band else dataclasses.replace(scale, error=float("nan"))
        doubt = _doubt(scale if same_band else None, dx, dy, settings)
    trusted = reference is not None and not doubt
    apply_flux = trusted and same_band and settings.flux_scale == "apply"
    apply_shift = trusted and settings.registration == "apply"
    if apply_flux:
        prepared.image = prepared.image * scale.value
        prepared.variance = prepared.variance * scale.value**2
    if apply_shift:
        prepared.wcs = shifted_wcs(prepared.wcs, dx.value, dy.value)
    prepared.row |= {
        "n_matched": dx.n,
        "calibration": _outcome(reference is None, same_band, doubt, settings),
        "flux_scale": scale.value,
        "flux_scale_error": scale.error,
        "flux_scale_applied": apply_flux,
        "dx": dx.value,
        "dx_error": dx.error,
        "dy": dy.value,
        "dy_error": dy.error,
        "shift_applied": apply_shift,
        "star_scatter": float(np.hypot(dx.scatter, dy.scatter)),
    }


def _doubt(scale: Offset | None, dx: Offset, dy: Offset, settings: ImportSettings) -> str:
    """Why the matches are not to be trusted; empty where they are."""
    if dx.n < settings.min_stars:
        return f"{dx.n} matched"
    if not max(dx.error, dy.error) < _MOST_SHIFT_ERROR:
        return f"shift error {max(dx.error, dy.error):.2f} px"
    if scale is not None and not scale.error < _MOST_SCALE_ERROR:
        return f"flux scale error {scale.error:.2f}"
    return ""


def _outcome(is_reference: bool, same_band: bool, doubt: str, settings: ImportSettings) -> str:
    """Say for the report what became of the calibration."""
    asked = [name for name in ("flux_scale", "registration") if getattr(settings, name) == "apply"]
    if is_reference:
        return "reference"
    if doubt and asked:
        return f"not applied: {doubt}"
    if not asked:
        return "not asked for"
    if not same_band and "flux_scale" in asked:
        return "shift only: other band" if "registration" in asked else "not applied: other band"
    return "applied" if len(asked) == 2 else f"{asked[0]} only"
