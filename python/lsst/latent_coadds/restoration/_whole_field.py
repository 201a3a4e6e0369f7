# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("WholeField",)

import math
from collections.abc import Sequence
from typing import Any

import torch

from ._errors import InvalidStackError
from ._kernels import centred_rfft2, matching_kernels

_SAME = 1.02
"""Ratio of the sharpness of exposures up to which they are alike."""

_STEP = 1.25
"""Largest ratio of the sharpness of one mixture to that of the next."""

_STEEPEST = 1e4
"""Logarithm of the largest ratio of weights that a tilt makes."""

_HALVINGS = 60
"""Of the interval in which a tilt is."""


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
        return self.curvatures(spread, fft_shape, [self.weights])[0]

    def curvatures(
        self, spread: float, fft_shape: tuple[int, int], weights: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return what `curvature` does, for several sets of weights (P,)."""
        kernels = matching_kernels(self.psf, spread)
        size = kernels.shape[-1]
        reach = 2 * size - 1
        transfer = centred_rfft2(kernels, (reach, reach))
        power = transfer.real**2 + transfer.imag**2
        index = torch.arange(1 - size, size)
        rows, columns = (index % n for n in fft_shape)
        places = (rows[:, None] * fft_shape[1] + columns).reshape(-1)
        result = []
        for chosen in weights:
            sums = torch.fft.irfft2(torch.tensordot(chosen, power, dims=1), s=(reach, reach))
            plane = torch.zeros(fft_shape, dtype=torch.float64)
            centred = torch.roll(sums, (size - 1, size - 1), dims=(0, 1))
            plane.view(-1).index_add_(0, places, centred.reshape(-1))
            result.append(torch.fft.rfft2(plane).real)
        return result

    def mixtures(self, spread: float) -> tuple[list[float], list[torch.Tensor], int]:
        """Return mixtures of the exposures, from the bluntest to the sharpest.

        Parameters
        ----------
        spread : `float`
            FWHM (px) of the Gaussian that the PSFs are divided by.

        Returns
        -------
        levels : `list` [ `float` ]
            Mean sharpness of each, ascending: the weighted mean of the sums
            of squared kernels.
        weights : `list` [ `torch.Tensor` ]
            Weights (P,) of the exposures in each.
        middle : `int`
            Which of them is that of all exposures as they are.

        Notes
        -----
        The first and the last consist of single exposures. Between them the
        weights are tilted, by a factor that is an exponential function of
        the sharpness: no other weights with that mean are closer to those of all exposures
        (in the sense of Kullback and Leibler).
        """
        sharpness = (matching_kernels(self.psf, spread) ** 2).sum(dim=(1, 2))
        mean = float((self.weights * sharpness).sum() / self.weights.sum())
        least, most = float(sharpness.min()), float(sharpness.max())
        if most < _SAME * least:
            return [mean], [self.weights], 0
        below, above = (_between(mean, end) for end in (least, most))
        levels = [*reversed(below), mean, *above]
        weights = [self.weights if level == mean else self._tilted(sharpness, level) for level in levels]
        return levels, weights, len(below)

    def _tilted(self, sharpness: torch.Tensor, level: float) -> torch.Tensor:
        """Return weights (P,), tilted so that the mean sharpness is a level."""
        scale = float(sharpness.max() - sharpness.min())
        low, high = -_STEEPEST / scale, _STEEPEST / scale
        tilted = self.weights
        for _ in range(_HALVINGS):
            tilt = 0.5 * (low + high)
            factor = tilt * (sharpness - level)
            tilted = self.weights * torch.exp(factor - factor.max())
            if float((tilted * sharpness).sum() / tilted.sum()) < level:
                low = tilt
            else:
                high = tilt
        return tilted


def _between(mean: float, end: float) -> list[float]:
    """Return levels from a mean (left out) to an end, in ratios of `_STEP` at most."""
    n = math.ceil(abs(math.log(end / mean)) / math.log(_STEP))
    return [mean * (end / mean) ** (k / n) for k in range(1, n + 1)]
