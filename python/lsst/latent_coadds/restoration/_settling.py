# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a fit has settled everywhere."""

from __future__ import annotations

__all__ = ("Settling",)

import math

import torch

from ._kernels import FWHM_PER_SIGMA, centred_rfft2, gaussian_kernel
from ._point_sources import MatchedFilter

_BORDER = 2.0
"""Where a tile ends, sources settle late; what is nearer than this, in resolutions, does not count."""


class Settling:
    """Compares what updates still change with the noise of stars.

    Parameters
    ----------
    matched : `MatchedFilter`
        Knows the noise.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    target_fwhm : `float`
        FWHM of the result.
    limit : `float`
        Change, in sigma of the peak of a star, below which a fit has settled.

    Notes
    -----
    The loss of all pixels does not tell: a blend of two stars in a large tile
    may be sigmas from its solution where the mean loss hardly falls.
    """

    def __init__(self, matched: MatchedFilter, spread: float, target_fwhm: float, limit: float) -> None:
        self._operator = matched.operator
        self._limit = limit
        shape = matched.operator.fft_shape
        fwhm = math.sqrt(max(0.0, target_fwhm**2 - spread**2))
        size = min(21, (min(shape) - 1) // 2 * 2 + 1)
        self._narrow = centred_rfft2(gaussian_kernel(fwhm, size).to(matched.device), shape).real
        # Height of the target PSF; without one, that of the narrowest that is sampled well.
        height = 1.0 / (2.0 * math.pi * (max(target_fwhm, 2.0) / FWHM_PER_SIGMA) ** 2)
        share = 1.0 if matched.coverage is None else matched.coverage.clamp(0.0, 1.0).sqrt()
        self._per_noise = share / (matched.flux_error * height)
        self._border = matched.operator.margin + math.ceil(_BORDER * matched.resolution)

    def largest(self, change: torch.Tensor) -> float:
        """Return the largest change of the result, in sigma, from the padded transform of that of h."""
        moved = self._operator.untransform(change * self._narrow.to(change)) * self._per_noise
        border = min(self._border, (min(moved.shape) - 1) // 2)
        return float(moved[border:-border, border:-border].abs().max())

    def is_settled(self, change: torch.Tensor) -> bool:
        """Return whether a change (padded transform) is below the limit everywhere."""
        return self.largest(change) <= self._limit
