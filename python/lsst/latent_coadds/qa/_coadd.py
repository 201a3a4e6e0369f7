# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Coadds as the analysis sees them."""

from __future__ import annotations

__all__ = ("CoaddLike", "central_kernel", "match_psf")

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class CoaddLike(Protocol):
    """A coadd as plain arrays, in pixel coordinates of its own.

    `lsst.latent_coadds.adapters.CoaddPlanes` is one.
    """

    @property
    def image(self) -> np.ndarray:
        """Pixels in nJy (`numpy.ndarray`, ``(h, w)``)."""

    @property
    def variance(self) -> np.ndarray:
        """Their variance in nJy² (`numpy.ndarray`, ``(h, w)``)."""

    @property
    def mask(self) -> Mapping[str, np.ndarray]:
        """Mask planes by name (`~collections.abc.Mapping` of boolean arrays)."""

    @property
    def noise(self) -> np.ndarray:
        """Noise realizations (`numpy.ndarray`, ``(n, h, w)``), maybe none."""

    @property
    def good(self) -> np.ndarray:
        """Pixels with data (`numpy.ndarray` of `bool`, ``(h, w)``)."""

    @property
    def pixel_scale(self) -> float:
        """Side of a pixel in arcseconds (`float`)."""

    def kernel(self, x: float, y: float) -> np.ndarray | None:
        """Return the centred PSF at a position, `None` where there is none."""


def central_kernel(coadd: CoaddLike) -> np.ndarray:
    """Return the PSF nearest to the middle of a coadd that has one.

    Parameters
    ----------
    coadd : `CoaddLike`
        The coadd.

    Returns
    -------
    kernel : `numpy.ndarray`, ``(k, k)``
        Its sum is one.

    Raises
    ------
    ValueError
        If there is none at any of the places that were tried.
    """
    height, width = coadd.image.shape
    places = [(i, j) for i in np.linspace(0.05, 0.95, 10) for j in np.linspace(0.05, 0.95, 10)]
    places.sort(key=lambda place: abs(place[0] - 0.5) + abs(place[1] - 0.5))
    for i, j in [(0.5, 0.5), *places]:
        kernel = coadd.kernel(j * (width - 1), i * (height - 1))
        if kernel is not None:
            return kernel / kernel.sum()
    raise ValueError("The coadd has no PSF anywhere; was any exposure used in it?")


def match_psf(
    latent: CoaddLike, reference: CoaddLike, *, block: int = 150, damping: float = 1e-3
) -> np.ndarray:
    """Blur a sharp coadd to the PSF of another one on the same pixels.

    Parameters
    ----------
    latent, reference : `CoaddLike`
        The sharp and the blurred coadd, of one shape.
    block : `int`, optional
        Side of the squares in which the PSFs are taken to be constant.
    damping : `float`, optional
        Where the transform of the sharp PSF is smaller than this, the
        division by it fades out.

    Returns
    -------
    blurred : `numpy.ndarray`, ``(h, w)``
        NaN where one of them has no PSF.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if latent.image.shape != reference.image.shape:
        raise ValueError(f"Coadds of {latent.image.shape} and {reference.image.shape} have no common pixels.")
    height, width = latent.image.shape
    image = np.nan_to_num(latent.image)
    result = np.full((height, width), np.nan)
    for y0 in range(0, height, block):
        for x0 in range(0, width, block):
            y1, x1 = min(y0 + block, height), min(x0 + block, width)
            center = (x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2
            sharp, blurred = latent.kernel(*center), reference.kernel(*center)
            if sharp is None or blurred is None:
                continue
            margin = max(*sharp.shape, *blurred.shape)
            rows = slice(max(y0 - margin, 0), y1 + margin)
            columns = slice(max(x0 - margin, 0), x1 + margin)
            matched = _blur(image[rows, columns], sharp, blurred, margin, damping)
            result[y0:y1, x0:x1] = matched[
                y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start
            ]
    return result


def _blur(
    image: np.ndarray, sharp: np.ndarray, blurred: np.ndarray, margin: int, damping: float
) -> np.ndarray:
    size = [n + margin for n in image.shape]
    numerator, denominator = (_transform(kernel / kernel.sum(), size) for kernel in (blurred, sharp))
    ratio = numerator * denominator.conj() / (np.abs(denominator) ** 2 + damping**2)
    # The damping takes a millionth of the flux, which is put back.
    ratio /= ratio[0, 0].real
    return np.fft.irfft2(np.fft.rfft2(image, size) * ratio, size)[: image.shape[0], : image.shape[1]]


def _transform(kernel: np.ndarray, size: list[int]) -> np.ndarray:
    padded = np.zeros(size)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    return np.fft.rfft2(np.roll(padded, [-(n // 2) for n in kernel.shape], axis=(0, 1)))
