# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("StarSelection", "find_sources", "select_stars", "stellar_fwhm")

import dataclasses

import galsim
import numpy as np
import sep
from astropy.table import Table

_FWHM_OF_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))


@dataclasses.dataclass(frozen=True)
class StarSelection:
    """What a source must be to serve as a star.

    Parameters
    ----------
    min_snr : `float`, optional
        Smallest signal-to-noise ratio.
    size_tolerance : `float`, optional
        Largest relative deviation from the FWHM of the stellar locus.
    max_ellipticity : `float`, optional
        Largest distortion ``|e|`` away from that of the median star.
    isolation : `float`, optional
        Smallest distance to a source of at least a tenth of the flux, and
        half that distance to the edge, in units of the FWHM.
    max_stars : `int`, optional
        Brightest stars to keep.
    """

    min_snr: float = 40.0
    size_tolerance: float = 0.12
    max_ellipticity: float = 0.15
    isolation: float = 4.0
    max_stars: int = 100


def find_sources(
    image: np.ndarray, variance: np.ndarray, bad: np.ndarray, *, threshold: float = 5.0
) -> Table:
    """Detect sources and measure their adaptive moments.

    Parameters
    ----------
    image : `numpy.ndarray`
        Background-subtracted pixels, ``(H, W)``.
    variance : `numpy.ndarray`
        Their variance, ``(H, W)``.
    bad : `numpy.ndarray`
        Boolean ``(H, W)``, `True` where a pixel must not be used.
    threshold : `float`, optional
        Detection threshold in standard deviations of the smoothed image.

    Returns
    -------
    sources : `astropy.table.Table`
        Columns ``x``, ``y`` (0-based pixels), ``flux``, ``snr``, ``fwhm``
        (pixels), ``e1``, ``e2``, ``n_bad`` (bad pixels within one FWHM),
        sorted from bright to faint. Sources whose moments did not converge are
        left out.
    """
    clean = np.where(bad, 0.0, image)
    sigma = np.sqrt(np.where(bad | ~(variance > 0.0), 1.0, variance))
    detected = sep.extract(
        np.ascontiguousarray(clean, dtype=np.float64),
        threshold,
        err=np.ascontiguousarray(sigma, dtype=np.float64),
        mask=bad,
        minarea=6,
        deblend_cont=0.002,
    )
    rows = [
        row
        for source in detected
        if (row := _measure_moments(clean, sigma, bad, float(source["x"]), float(source["y"]))) is not None
    ]
    names = ("x", "y", "flux", "snr", "fwhm", "e1", "e2", "n_bad")
    table = Table(rows=rows, names=names) if rows else Table(names=names, dtype=(float,) * 8)
    table.sort("flux", reverse=True)
    return _without_duplicates(table)


def _measure_moments(
    image: np.ndarray, sigma: np.ndarray, bad: np.ndarray, x: float, y: float, *, radius: int = 20
) -> tuple[float, ...] | None:
    """Adaptive moments of the source nearest to a position."""
    height, width = image.shape
    xc, yc = round(x), round(y)
    x0, x1 = max(xc - radius, 0), min(xc + radius + 1, width)
    y0, y1 = max(yc - radius, 0), min(yc + radius + 1, height)
    if x1 - x0 < 9 or y1 - y0 < 9:
        return None
    stamp = galsim.Image(np.ascontiguousarray(image[y0:y1, x0:x1]), xmin=x0, ymin=y0)
    use = galsim.Image((~bad[y0:y1, x0:x1]).astype(np.int32), xmin=x0, ymin=y0)
    moments = galsim.hsm.FindAdaptiveMom(
        stamp, weight=use, guess_centroid=galsim.PositionD(x, y), guess_sig=2.0, strict=False
    )
    centre = moments.moments_centroid
    if moments.error_message or not moments.moments_sigma > 0.0 or np.hypot(centre.x - x, centre.y - y) > 5.0:
        return None
    fwhm = moments.moments_sigma * _FWHM_OF_SIGMA
    # A Gaussian filter of the source's own width gathers noise over 4 pi
    # sigma^2 pixels and keeps half of ... all of the flux when matched.
    noise = float(np.median(sigma[y0:y1, x0:x1])) * np.sqrt(4.0 * np.pi) * moments.moments_sigma
    yy, xx = np.mgrid[y0:y1, x0:x1]
    n_bad = int(np.sum(bad[y0:y1, x0:x1] & (np.hypot(xx - centre.x, yy - centre.y) < fwhm)))
    shape = moments.observed_shape
    flux = float(moments.moments_amp)
    return (centre.x, centre.y, flux, flux / noise, fwhm, shape.e1, shape.e2, n_bad)


def _without_duplicates(table: Table) -> Table:
    """Drop the fainter of two sources that converged to one centre."""
    keep = np.ones(len(table), dtype=bool)
    for i in range(len(table)):
        if keep[i]:
            near = np.hypot(table["x"] - table["x"][i], table["y"] - table["y"][i]) < 1.0
            near[: i + 1] = False
            keep &= ~near
    return table[keep]


def stellar_fwhm(fwhm: np.ndarray, weight: np.ndarray, *, tolerance: float = 0.12) -> float:
    """FWHM on which most sources agree, with the smaller one winning a draw.

    Parameters
    ----------
    fwhm : `numpy.ndarray`
        FWHM of the candidates in pixels, ``(N,)``.
    weight : `numpy.ndarray`
        Weights, ``(N,)``, such as the logarithm of the signal-to-noise ratio.
    tolerance : `float`, optional
        Relative half-width of the window that is counted.

    Returns
    -------
    fwhm : `float`
        Weighted mean of the winning window; NaN without candidates.
    """
    if fwhm.size == 0:
        return float("nan")
    windows = np.abs(fwhm[None, :] / fwhm[:, None] - 1.0) < tolerance
    score = windows @ weight
    best = min(np.flatnonzero(score >= 0.9 * score.max()), key=lambda i: fwhm[i])
    return float(np.average(fwhm[windows[best]], weights=weight[windows[best]]))


def select_stars(
    sources: Table, shape: tuple[int, int], selection: StarSelection | None = None
) -> np.ndarray:
    """Choose the sources that are clean, isolated stars.

    Parameters
    ----------
    sources : `astropy.table.Table`
        As `find_sources` makes it.
    shape : `tuple` [`int`, `int`]
        Height and width of the image.
    selection : `StarSelection`, optional
        Thresholds.

    Returns
    -------
    is_star : `numpy.ndarray`
        Boolean, one per source.
    """
    selection = selection or StarSelection()
    x, y, flux, fwhm = (np.asarray(sources[name], dtype=float) for name in ("x", "y", "flux", "fwhm"))
    clean = np.asarray(sources["n_bad"]) == 0
    bright = (np.asarray(sources["snr"]) >= selection.min_snr) & (fwhm > 1.2) & clean
    if not bright.any():
        return bright
    weight = np.log10(np.asarray(sources["snr"], dtype=float)[bright])
    locus = stellar_fwhm(fwhm[bright], weight, tolerance=selection.size_tolerance)
    star = bright & (np.abs(fwhm / locus - 1.0) < selection.size_tolerance)
    e1, e2 = np.asarray(sources["e1"], dtype=float), np.asarray(sources["e2"], dtype=float)
    if star.any():
        star &= np.hypot(e1 - np.median(e1[star]), e2 - np.median(e2[star])) < selection.max_ellipticity
    reach = selection.isolation * locus
    margin = 0.5 * reach
    star &= (x > margin) & (y > margin) & (x < shape[1] - 1 - margin) & (y < shape[0] - 1 - margin)
    distance = np.hypot(x[:, None] - x[None, :], y[:, None] - y[None, :])
    crowded = (distance < reach) & (flux[None, :] > 0.1 * flux[:, None]) & ~np.eye(len(x), dtype=bool)
    star &= ~crowded.any(axis=1)
    star[np.flatnonzero(star)[selection.max_stars :]] = False
    return star
