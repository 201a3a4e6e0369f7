# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("Offset", "flux_scale", "match_stars", "measure_stars", "registration")

import dataclasses

import galsim
import numpy as np
from astropy.table import Table
from astropy.wcs import WCS

from ._psf import PsfFit
from ._star_fit import fit_star


@dataclasses.dataclass(frozen=True)
class Offset:
    """A quantity averaged over stars.

    Parameters
    ----------
    value : `float`
        The mean; NaN without stars.
    error : `float`
        Its uncertainty, from the stars' own errors and their scatter.
    scatter : `float`
        Scatter from star to star beyond the stars' own errors.
    n : `int`
        Stars that were kept.
    """

    value: float
    error: float
    scatter: float
    n: int


def measure_stars(
    image: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    sources: Table,
    psf: PsfFit,
    wcs: WCS,
    *,
    min_snr: float = 30.0,
    size_tolerance: float = 0.25,
    max_stars: int = 300,
) -> Table:
    """Fit the PSF to every source of its size.

    Parameters
    ----------
    image, variance : `numpy.ndarray`
        Background-subtracted pixels and their variance, ``(H, W)``.
    bad : `numpy.ndarray`
        Boolean ``(H, W)``, `True` where a pixel must not be used.
    sources : `astropy.table.Table`
        As `find_sources` makes it.
    psf : `PsfFit`
        PSF of this exposure, so that flux and centre are those for which the
        model holds, whatever its own normalisation and centring.
    wcs : `astropy.wcs.WCS`
        WCS of this exposure.
    min_snr : `float`, optional
        Least signal-to-noise ratio.
    size_tolerance : `float`, optional
        Largest relative deviation from the size of the PSF.
    max_stars : `int`, optional
        Brightest stars to measure.

    Returns
    -------
    stars : `astropy.table.Table`
        Columns ``x``, ``y``, ``position_error`` (pixels), ``flux``,
        ``flux_error`` (units of the image), ``chi2``, ``ra``, ``dec``
        (degrees).
    """
    names = ("x", "y", "position_error", "flux", "flux_error", "chi2")
    rows: list[tuple[float, ...]] = []
    weight = np.where(bad | ~(variance > 0.0), 0.0, 1.0 / np.where(variance > 0.0, variance, 1.0))
    kernel = psf.kernel(0.5 * image.shape[1], 0.5 * image.shape[0])
    size = _moment_fwhm(kernel)
    for source in sources:
        x, y = float(source["x"]), float(source["y"])
        edge = min(x, y, image.shape[1] - 1 - x, image.shape[0] - 1 - y)
        compact = abs(float(source["fwhm"]) / size - 1.0) < size_tolerance
        if source["snr"] < min_snr or edge < psf.fwhm or not compact:
            continue
        fit = fit_star(
            psf.psf,
            image,
            weight,
            x=x,
            y=y,
            radius=max(2.0 * psf.fwhm, 5.0),
            norm=psf.norm,
        )
        if fit.converged and fit.chi2 < 25.0:
            if len(rows) == max_stars:
                break
            rows.append((fit.x, fit.y, fit.position_error, fit.flux, fit.flux_error, fit.chi2))
    table = Table(rows=rows, names=names) if rows else Table(names=names, dtype=(float,) * len(names))
    table["ra"], table["dec"] = wcs.all_pix2world(table["x"], table["y"], 0)
    return table


def _moment_fwhm(kernel: np.ndarray) -> float:
    """FWHM of the Gaussian that the adaptive moments of a kernel describe."""
    moments = galsim.hsm.FindAdaptiveMom(galsim.Image(np.ascontiguousarray(kernel)), strict=False)
    return float(2.0 * np.sqrt(2.0 * np.log(2.0)) * moments.moments_sigma)


def match_stars(reference: Table, other: Table, wcs: WCS, *, radius: float) -> Table:
    """Match stars by their position on the sky.

    Parameters
    ----------
    reference, other : `astropy.table.Table`
        As `measure_stars` makes them.
    wcs : `astropy.wcs.WCS`
        WCS of the other exposure.
    radius : `float`
        Largest separation in pixels of the other exposure.

    Returns
    -------
    pairs : `astropy.table.Table`
        Columns ``x``, ``y`` (of the other), ``dx``, ``dy`` (measured minus
        where the reference puts the star), ``position_error``,
        ``log_ratio`` (natural logarithm of reference over other flux) and
        ``log_ratio_error``.
    """
    names = ("x", "y", "dx", "dy", "position_error", "log_ratio", "log_ratio_error")
    rows = []
    if len(reference) and len(other):
        x, y = wcs.all_world2pix(reference["ra"], reference["dec"], 0, quiet=True)
        distance = np.hypot(
            x[:, None] - np.asarray(other["x"])[None, :], y[:, None] - np.asarray(other["y"])[None, :]
        )
        for i, j in enumerate(distance.argmin(axis=1)):
            if distance[i, j] > radius or distance[:, j].argmin() != i:
                continue
            a, b = reference[i], other[j]
            relative = np.hypot(a["flux_error"] / a["flux"], b["flux_error"] / b["flux"])
            position = np.hypot(a["position_error"], b["position_error"])
            ratio = np.log(a["flux"] / b["flux"])
            rows.append((b["x"], b["y"], b["x"] - x[i], b["y"] - y[i], position, ratio, relative))
    return Table(rows=rows, names=names) if rows else Table(names=names, dtype=(float,) * len(names))


def _robust_mean(values: np.ndarray, errors: np.ndarray, *, clip: float = 5.0) -> Offset:
    """Weighted mean with a scatter that is fitted, and outliers clipped about the median."""
    keep = np.isfinite(values) & np.isfinite(errors)
    limit = np.inf
    if keep.sum() >= 4:
        middle = np.median(values[keep])
        spread = 1.4826 * float(np.median(np.abs(values[keep] - middle)))
        keep &= np.abs(values - middle) <= clip * np.hypot(spread, errors)
        # One faint star that is off must not make all stars count alike.
        limit = 1.5 * spread
    v, e = values[keep], errors[keep]
    if v.size == 0:
        return Offset(float("nan"), float("nan"), float("nan"), 0)
    scatter = _intrinsic_scatter(v, e)
    weight = 1.0 / (e**2 + min(scatter, limit) ** 2)
    mean = float(np.average(v, weights=weight))
    chi2 = float(np.sum(weight * (v - mean) ** 2)) / max(v.size - 1, 1)
    return Offset(mean, float(np.sqrt(max(chi2, 1.0) / weight.sum())), scatter, int(keep.sum()))


def _intrinsic_scatter(values: np.ndarray, errors: np.ndarray) -> float:
    """Scatter that makes the reduced chi-square one, 0 where it is below already."""
    n = values.size
    if n < 2:
        return 0.0

    def excess(s: float) -> float:
        weight = 1.0 / (errors**2 + s**2)
        return float(np.sum(weight * (values - np.average(values, weights=weight)) ** 2)) - (n - 1)

    if excess(0.0) <= 0.0:
        return 0.0
    low, high = 0.0, float(np.ptp(values)) + float(errors.max())
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0.0 else (low, middle)
    return 0.5 * (low + high)


def registration(pairs: Table) -> tuple[Offset, Offset]:
    """Residual shift of an exposure against the reference.

    Parameters
    ----------
    pairs : `astropy.table.Table`
        As `match_stars` makes it.

    Returns
    -------
    dx, dy : `Offset`
        Where stars are minus where the reference puts them, in pixels.

    Notes
    -----
    Stars weigh by their errors and by their common scatter, so that proper
    motions of single bright stars do not decide.
    """
    errors = np.asarray(pairs["position_error"], dtype=float)
    dx, dy = (np.asarray(pairs[name], dtype=float) for name in ("dx", "dy"))
    return _robust_mean(dx, errors), _robust_mean(dy, errors)


def flux_scale(pairs: Table) -> Offset:
    """Factor that brings an exposure's fluxes to those of the reference.

    Parameters
    ----------
    pairs : `astropy.table.Table`
        As `match_stars` makes it.

    Returns
    -------
    scale : `Offset`
        The factor; error and scatter are relative.
    """
    mean = _robust_mean(
        np.asarray(pairs["log_ratio"], dtype=float), np.asarray(pairs["log_ratio_error"], dtype=float)
    )
    return dataclasses.replace(mean, value=float(np.exp(mean.value)))
