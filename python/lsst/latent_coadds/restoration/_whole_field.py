# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("WholeField",)

from collections.abc import Sequence
from typing import Any

import torch

from ._errors import InvalidStackError
from ._kernels import centred_rfft2, matching_kernels


class WholeField:
    """What parts of one image have in common: the exposures of all of it.

    Parameters
    ----------
    psf : array-like, shape (P, k, k)
        Typical PSF of each exposure on the latent grid; ``k`` is odd. Any
        positive sum: normalised here.
    weights : array-like, shape (P,)
        Weight of each, per latent pixel: the usual inverse variance of its
        pixels times their area in latent pixels, times the share of the image
        that it covers. Only their ratios matter.
    names : `~collections.abc.Sequence` [ `str` ], optional
        Their labels, as those of `ExposureStack`.

    Raises
    ------
    InvalidStackError
        The arrays do not fit together, or are not finite and positive.

    Notes
    -----
    Not every exposure reaches every part of an image. What counts as a
    source, and what is deconvolved how far, follows from the PSFs of all
    exposures together; so parts that overlap agree there.
    """

    def __init__(self, psf: Any, weights: Any, names: Sequence[str] | None = None) -> None:
        self.psf, self.weights = (torch.as_tensor(a).detach().to(torch.float64).cpu() for a in (psf, weights))
        if self.psf.ndim != 3 or self.psf.shape[1] % 2 == 0 or self.psf.shape[1] != self.psf.shape[2]:
            raise InvalidStackError(
                f"The PSFs of a field must have shape (P, k, k), k odd, not {tuple(self.psf.shape)}."
            )
        total = self.psf.sum(dim=(1, 2))
        usable = bool(
            torch.isfinite(self.psf).all() & (total > 0.0).all() & torch.isfinite(self.weights).all()
        )
        if not usable or self.weights.shape != total.shape or not bool((self.weights > 0.0).all()):
            raise InvalidStackError(
                "Give each exposure of a field a finite PSF with a positive sum and a positive weight."
            )
        self.names = tuple(names) if names is not None else tuple(str(p) for p in range(len(total)))
        if len(self.names) != len(total):
            raise InvalidStackError(f"{len(self.names)} names for {len(total)} exposures of a field.")
        self.psf = self.psf / total[:, None, None]

    def curvature(self, spread: float, fft_shape: tuple[int, int]) -> torch.Tensor:
        """Return the transform of the weighted sum of autocorrelations of the PSFs, real, float64.

        Parameters
        ----------
        spread : `float`
            FWHM (px) of the Gaussian that the PSFs are divided by.
        fft_shape : `tuple` [ `int`, `int` ]
            Shape of the padded latent image.
        """
        total = torch.zeros((fft_shape[0], fft_shape[1] // 2 + 1), dtype=torch.float64)
        for kernel, weight in zip(matching_kernels(self.psf, spread), self.weights.tolist(), strict=True):
            transfer = centred_rfft2(kernel, fft_shape)
            total += weight * (transfer.real**2 + transfer.imag**2)
        return total
