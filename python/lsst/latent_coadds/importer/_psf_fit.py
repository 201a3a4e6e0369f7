# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("PsfSettings", "fit_psf")

import dataclasses
import logging
from typing import TYPE_CHECKING

import galsim
import numpy as np
from astropy.table import Table

from ..repository import LANCZOS, make_grid_psf
from ._psf import PsfFit, kernel_fwhm
from ._star_fit import fit_star

if TYPE_CHECKING:
    import piff

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PsfSettings:
    """How a PSF model is fitted to stars.

    Parameters
    ----------
    model : {'auto', 'grid', 'moffat'}, optional
        ``grid`` is a pixel grid that follows the stars wherever they say
        more than noise; ``moffat`` an elliptical Moffat profile. ``auto``
        takes the grid when the stars' joint signal-to-noise ratio reaches
        ``grid_snr``.
    grid_snr : `float`, optional
        See ``model``.
    stamp_radius : `float`, optional
        Half the side of the stamps, in units of the FWHM.
    order : `int`, optional
        Order of the polynomial in position; by default 0 for fewer than 20
        stars, else 1. A Moffat profile is constant.
    betas : `tuple` [`float`, ...], optional
        Moffat slopes to choose from.
    """

    model: str = "auto"
    grid_snr: float = 150.0
    stamp_radius: float = 4.0
    order: int | None = None
    betas: tuple[float, ...] = (2.5, 3.0, 3.5, 4.5, 6.0)


def fit_psf(
    image: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    stars: Table,
    settings: PsfSettings | None = None,
) -> PsfFit:
    """Fit a Piff model to stars.

    Parameters
    ----------
    image, variance : `numpy.ndarray`
        Background-subtracted pixels and their variance, ``(H, W)``.
    bad : `numpy.ndarray`
        Boolean ``(H, W)``, `True` where a pixel must not be used.
    stars : `astropy.table.Table`
        Clean stars: columns ``x``, ``y``, ``fwhm``, ``snr``.
    settings : `PsfSettings`, optional
        How.

    Returns
    -------
    fit : `PsfFit`
        The model.

    Raises
    ------
    ValueError
        Raised if there are no stars, or the model is unknown.

    Notes
    -----
    The grid is sampled at a third of the FWHM, which is all that a
    seeing-limited profile needs and keeps pixel noise out. Its wings, where
    one star's noise exceeds the profile, follow the Moffat model plus the
    mean over azimuth of what the stars add to it.
    """
    settings = settings or PsfSettings()
    if settings.model not in ("auto", "grid", "moffat"):
        raise ValueError(f"Unknown PSF model {settings.model!r}; the known ones are auto, grid and moffat.")
    if len(stars) == 0:
        raise ValueError(
            "No clean star was found to fit a PSF to; give a PSF stamp, or lower the "
            "star selection's signal-to-noise ratio."
        )
    fwhm = float(np.median(stars["fwhm"]))
    half = int(np.ceil(settings.stamp_radius * fwhm))
    piff_stars = _make_stars(image, variance, bad, stars, half)
    moffat = _fit_moffat(piff_stars, stars, settings)
    snr = float(np.sqrt(np.sum(np.asarray(stars["snr"], dtype=float) ** 2)))
    use_grid = settings.model == "grid" or (settings.model == "auto" and snr >= settings.grid_snr)
    psf, name = moffat, "moffat"
    if use_grid:
        try:
            psf, name = _fit_grid(piff_stars, moffat, fwhm, half, settings), "grid"
        except (RuntimeError, np.linalg.LinAlgError) as e:
            if settings.model == "grid":
                raise ValueError(f"the pixel grid cannot be fitted ({e}); use the Moffat model.") from e
            _LOG.warning("The pixel grid cannot be fitted (%s); the PSF is a Moffat profile.", e)
    fit = PsfFit(psf, 2 * half + 1, fwhm, name, len(stars), float("nan"))
    width = kernel_fwhm(fit.kernel(float(np.mean(stars["x"])), float(np.mean(stars["y"]))))
    return dataclasses.replace(fit, fwhm=width, chi2=_chi2(psf, piff_stars, 2.0 * width))


def _make_stars(
    image: np.ndarray, variance: np.ndarray, bad: np.ndarray, stars: Table, half: int
) -> list[piff.Star]:
    """Cut Piff stars out of an exposure."""
    import piff

    unit = galsim.PixelScale(1.0)
    usable = ~bad & np.isfinite(image) & (variance > 0.0)
    weight = np.where(usable, 1.0 / np.where(usable, variance, 1.0), 0.0)
    pixels = galsim.Image(np.where(usable, image, 0.0), xmin=0, ymin=0, wcs=unit)
    weights = galsim.Image(weight, xmin=0, ymin=0, wcs=unit)
    result = []
    for star in stars:
        x, y = float(star["x"]), float(star["y"])
        stamp = galsim.BoundsI(round(x) - half, round(x) + half, round(y) - half, round(y) + half)
        stamp = stamp & pixels.bounds
        data = piff.StarData(pixels[stamp], galsim.PositionD(x, y), weight=weights[stamp])
        result.append(piff.Star(data, None))
    return result


def _fit_moffat(stars: list[piff.Star], table: Table, settings: PsfSettings) -> piff.PSF:
    """Fit constant Moffat profiles and return the best."""
    import piff

    # The mean that Piff takes of the stars' parameters is not weighted.

    snr = np.asarray(table["snr"], dtype=float)
    bright = [star for star, value in zip(stars, snr, strict=True) if value > 0.2 * snr.max()][:30]
    best: tuple[float, piff.PSF] | None = None
    for beta in settings.betas:
        # The star profile is fitted with the pixel in it: no further
        # integration over pixels, which is also a hundred times faster.
        psf = piff.SimplePSF(piff.Moffat(beta=beta, include_pixel=False), piff.Mean())
        psf.fit([piff.Star(s.data, None) for s in bright], {0: galsim.PixelScale(1.0)}, None, logger=_LOG)
        if best is None or psf.chisq < best[0]:
            best = (psf.chisq, psf)
    assert best is not None
    return best[1]


def _fit_grid(
    stars: list[piff.Star], moffat: piff.PSF, fwhm: float, half: int, settings: PsfSettings
) -> piff.PSF:
    """Pixel grid with regularised wings."""
    import piff

    scale = max(1.0, fwhm / 3.0)
    # Piff asks that a star's stamp cover the grid.
    size = int((2 * half + 1) / scale)
    size -= 1 - size % 2
    order = settings.order
    if order is None:
        order = 0 if len(stars) < 20 else 1
    # Stamps that the edge of the exposure cuts cannot carry the grid alone,
    # but Piff only looks at the longer side.
    psf = piff.SimplePSF(
        piff.PixelGrid(scale, size, interp=LANCZOS), piff.BasisPolynomial(order=order), chisq_thresh=0.01
    )
    psf.fit([piff.Star(s.data, None) for s in stars], {0: galsim.PixelScale(1.0)}, None, logger=_LOG)
    coefficients = np.array(psf.interp.q, dtype=float)
    centre = stars[0].image_pos
    wide = 2 * int(np.ceil((half + 6) / scale)) + 1
    smooth = moffat.draw(
        centre.x, centre.y, image=galsim.Image(wide, wide, dtype=float, scale=scale), center=True
    ).array
    return make_grid_psf(
        _regularise_wings(coefficients, smooth, scale=scale, size=size, fwhm=fwhm),
        scale=scale,
        size=wide,
        order=order,
    )


def _regularise_wings(
    coefficients: np.ndarray, smooth: np.ndarray, *, scale: float, size: int, fwhm: float
) -> np.ndarray:
    """Replace the wings of a grid by a smooth profile and the azimuthal mean of the rest.

    Parameters
    ----------
    coefficients : `numpy.ndarray`
        ``(size**2, n_basis)``; the first basis function is the constant.
    smooth : `numpy.ndarray`
        ``(wide, wide)``, wide >= size, the smooth profile.
    scale : `float`
        Side of a grid pixel in image pixels.
    size : `int`
        Side of the grid.
    fwhm : `float`
        In image pixels. The grid is kept within 1.25 FWHM and has faded out
        at 2.25 FWHM.

    Returns
    -------
    coefficients : `numpy.ndarray`
        ``(wide**2, n_basis)``, the constant part summing to one.
    """
    wide = smooth.shape[0]
    pad = (wide - size) // 2
    yy, xx = np.mgrid[:wide, :wide] - wide // 2
    radius = np.hypot(xx, yy) * scale
    phase = np.clip((radius / fwhm - 1.25) / 1.0, 0.0, 1.0)
    taper = 0.5 * (1.0 + np.cos(np.pi * phase))
    # A thin ring has too few pixels far in, and is not needed there.
    ring = np.round(radius / max(scale, 0.35 * fwhm)).astype(int)
    reach = 0.5 * size * scale
    edge = 0.5 * (1.0 + np.cos(np.pi * np.clip((radius / reach - 0.7) / 0.3, 0.0, 1.0)))
    result = []
    for j, column in enumerate(coefficients.T):
        grid = np.pad(column.reshape(size, size), pad)
        inside = np.pad(np.ones((size, size), dtype=bool), pad)
        if j > 0:
            result.append((grid * taper).ravel())
            continue
        # Scale the smooth profile to the flux that the grid puts in its core.
        core = radius < 1.25 * fwhm
        level = smooth * (grid[core].sum() / smooth[core].sum())
        rest = np.where(inside, grid - level, 0.0)
        count = np.bincount(ring[inside], minlength=ring.max() + 1)
        mean = (np.bincount(ring[inside], rest[inside], ring.max() + 1) / np.maximum(count, 1))[ring] * edge
        result.append((level + taper * rest + (1.0 - taper) * mean).ravel())
    stacked = np.stack(result, axis=1)
    return stacked / stacked[:, 0].sum()


def _chi2(psf: piff.PSF, stars: list[piff.Star], radius: float) -> float:
    """Reduced chi-square near the stars, each with its own flux, centre and level."""
    total, n = 0.0, 0
    for star in stars:
        image, weight = star.image, star.weight
        fit = fit_star(
            psf,
            image.array,
            weight.array,
            x=star.image_pos.x,
            y=star.image_pos.y,
            x0=image.xmin,
            y0=image.ymin,
            radius=radius,
        )
        total, n = total + fit.chi2 * fit.n_dof, n + fit.n_dof
    return total / max(n, 1)
