# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("PsfFit", "kernel_fwhm", "psf_from_stamp")

import dataclasses
from typing import TYPE_CHECKING

import galsim
import numpy as np
import scipy.ndimage

from ..repository import make_grid_psf

if TYPE_CHECKING:
    import piff

_MOST_OFFSET = 0.1


@dataclasses.dataclass(frozen=True)
class PsfFit:
    """A Piff model and how well it fits.

    Parameters
    ----------
    psf : `piff.PSF`
        The model, in pixels of the exposure.
    stamp_size : `int`
        Odd side of the stamps on which it is defined.
    fwhm : `float`
        Full width at half maximum in pixels.
    model : `str`
        ``grid``, ``moffat`` or ``stamp``.
    n_stars : `int`
        Stars that were used.
    chi2 : `float`
        Reduced chi-square within two FWHM of the stars; NaN for a stamp.
    """

    psf: piff.PSF
    stamp_size: int
    fwhm: float
    model: str
    n_stars: int
    chi2: float

    @property
    def norm(self) -> float:
        """Sum of the model over its stamp (`float`)."""
        return float(self.psf.draw(0.0, 0.0, stamp_size=self.stamp_size, center=True).array.sum())

    def kernel(self, x: float, y: float) -> np.ndarray:
        """Stamp centred on its middle pixel, summing to one.

        Parameters
        ----------
        x, y : `float`
            Where the star would be.

        Returns
        -------
        kernel : `numpy.ndarray`
            ``(stamp_size, stamp_size)`` float64.
        """
        stamp = self.psf.draw(x, y, stamp_size=self.stamp_size, center=True).array
        return stamp / stamp.sum()


def kernel_fwhm(kernel: np.ndarray, *, zoom: int = 8) -> float:
    """Diameter of the circle with the area in which a kernel is at least half its maximum.

    Parameters
    ----------
    kernel : `numpy.ndarray`
        ``(k, k)``, with its peak well inside.
    zoom : `int`, optional
        Cubic subdivision of the pixels.

    Returns
    -------
    fwhm : `float`
        In pixels of the kernel.
    """
    peak = np.unravel_index(np.argmax(kernel), kernel.shape)
    r = min(16, *peak, *(n - 1 - p for n, p in zip(kernel.shape, peak, strict=True)))
    core = kernel[peak[0] - r : peak[0] + r + 1, peak[1] - r : peak[1] + r + 1]
    size = 2 * r * zoom + 1
    grid = np.linspace(0.0, 2.0 * r, size)
    fine = scipy.ndimage.map_coordinates(core, np.meshgrid(grid, grid, indexing="ij"), order=3)
    labels, _ = scipy.ndimage.label(fine >= 0.5 * fine.max())
    inside = labels == labels[np.unravel_index(np.argmax(fine), fine.shape)]
    return float(2.0 * np.sqrt(inside.sum() / np.pi) / zoom)


def psf_from_stamp(stamp: np.ndarray) -> PsfFit:
    """Wrap a PSF stamp in a Piff model that is constant over the exposure.

    Parameters
    ----------
    stamp : `numpy.ndarray`
        ``(k, k)``, k odd, with the star on the middle pixel.

    Returns
    -------
    fit : `PsfFit`
        A model that draws this stamp again, normalised to unit sum.

    Raises
    ------
    ValueError
        Raised if the stamp is not square and odd-sized, not finite, its sum
        is not positive, or the star is more than a tenth of a pixel off the
        middle.
    """
    if stamp.ndim != 2 or stamp.shape[0] != stamp.shape[1] or stamp.shape[0] % 2 == 0:
        raise ValueError(
            f"A PSF stamp must be square with an odd side, so that a star can sit on its middle pixel; "
            f"this one has shape {stamp.shape}. Crop or resample it."
        )
    total = float(stamp.sum())
    if not np.isfinite(total) or not total > 0.0:
        raise ValueError(f"The PSF stamp sums to {total}; it must be finite and sum to a positive number.")
    pixels = np.asarray(stamp, dtype=float) / total
    x, y = _stamp_offset(pixels)
    if not np.hypot(x, y) <= _MOST_OFFSET:
        raise ValueError(
            f"The star of the PSF stamp lies ({x:+.2f}, {y:+.2f}) pixels off the middle pixel, which would "
            f"move the exposure; shift it to within {_MOST_OFFSET} px, or leave it out to have it fitted."
        )
    psf = make_grid_psf(pixels.ravel()[:, None], scale=1.0, size=stamp.shape[0], order=0)
    return PsfFit(psf, stamp.shape[0], kernel_fwhm(pixels), "stamp", 0, float("nan"))


def _stamp_offset(pixels: np.ndarray) -> tuple[float, float]:
    """Centroid of a stamp from its middle pixel, by adaptive moments where they converge."""
    middle = pixels.shape[0] // 2
    moments = galsim.hsm.FindAdaptiveMom(
        galsim.Image(np.ascontiguousarray(pixels), xmin=-middle, ymin=-middle), strict=False
    )
    if not moments.error_message:
        return float(moments.moments_centroid.x), float(moments.moments_centroid.y)
    y, x = np.mgrid[-middle : middle + 1, -middle : middle + 1]
    return float(np.sum(x * pixels)), float(np.sum(y * pixels))
