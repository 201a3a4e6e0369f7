# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a fit has settled everywhere."""

from __future__ import annotations

__all__ = ("SETTLING_UPDATES", "Settling")

import copy
import math
import sys
from collections.abc import Sequence

import torch

from ._kernels import FWHM_PER_SIGMA, centred_rfft2, gaussian_kernel
from ._operators import ConvolutionOperator
from ._peaks import local_maximum
from ._point_sources import MatchedFilter
from ._windows import LocalWindow, plan_windows

_BORDER = 2.0
"""Where a tile ends, sources settle late; what is nearer than this, in resolutions, does not count."""

_LEAST_INSIDE = 8
"""Part of the side of an image, as 1 / this, beyond which the border does not reach."""

_AROUND = 2.0
"""How far, in resolutions, from what still changes the image may change."""

_APERTURE = 0.5
"""Sigma of the aperture in which fluxes must have settled, in resolutions."""

_FLUX_WEIGHT = 0.25
"""How much a sigma of such a flux counts: with as much as one of a height, fits of
sparse fields took 40 updates in place of 20.
"""

_IN_WINDOWS = 1.0 / 3.0
"""Limits in windows over those of the whole image: there is what creeps, and it begins at rest again."""

SETTLING_UPDATES = 10
"""Updates whose change is looked at: in three of them what creeps hardly moves, and is far from its end."""

_LONGEST = 100
"""Updates up to which a whole image goes on for the sake of single places."""


class Settling:
    """Compares what updates still change with the noise, in the cores of stars and in apertures.

    Parameters
    ----------
    matched : `MatchedFilter`
        Knows the noise.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    target_fwhm : `float`
        FWHM of the result.
    scale : `float`
        Standard deviation of the widest components of the latent image in pixels.
    limit : `float`
        Change, in sigma of the height of a star, below which a place has
        settled; that of the flux in an aperture may be four times as large.

    Notes
    -----
    The loss of all pixels does not tell: a blend of two stars in a large tile
    may be sigmas from its solution where the mean loss hardly falls. What has
    settled is left as it is while the fit goes on elsewhere, so that a place
    has as many updates as it needs, whatever else is in its tile.
    """

    def __init__(
        self, matched: MatchedFilter, spread: float, target_fwhm: float, scale: float, limit: float
    ) -> None:
        self._operator = matched.operator
        self._scale = scale
        self._is_part = False
        self._limit = limit
        shape = matched.operator.fft_shape
        largest = (min(shape) - 1) // 2 * 2 + 1
        # Height of the target PSF; without one, that of the narrowest that is sampled well.
        height = 1.0 / (2.0 * math.pi * (max(target_fwhm, 2.0) / FWHM_PER_SIGMA) ** 2)
        narrow = gaussian_kernel(math.sqrt(max(0.0, target_fwhm**2 - spread**2)), min(21, largest))
        # The flux in a Gaussian aperture, whose noise is that of the exposures themselves.
        sigma = _APERTURE * matched.resolution
        size = min(2 * math.ceil(3.0 * sigma) + 1, largest)
        broad = gaussian_kernel(FWHM_PER_SIGMA * sigma, size) * (2.0 * math.sqrt(math.pi) * sigma)
        kernels = (narrow / (matched.flux_error * height), broad * (_FLUX_WEIGHT * math.sqrt(matched.weight)))
        self._stamps = [kernel.to(matched.device) for kernel in kernels]
        self._kernels = [centred_rfft2(stamp, shape).real for stamp in self._stamps]
        self._share = None if matched.coverage is None else matched.coverage.clamp_min(0.0).sqrt()
        self._around = math.ceil(_AROUND * matched.resolution)
        inside = min(math.ceil(_BORDER * matched.resolution), min(matched.operator.shape) // _LEAST_INSIDE)
        self._border = matched.operator.margin + inside

    @property
    def longest(self) -> int:
        """Updates after which places that have not settled go on in windows, even if they are many."""
        return sys.maxsize if self._is_part else _LONGEST

    def part(self, operator: ConvolutionOperator, corner: tuple[int, int]) -> Settling:
        """Return the same for a part of the latent image that begins at a corner (row, column)."""
        part = copy.copy(self)
        part._operator, part._border, part._is_part = operator, 0, True
        part._limit = _IN_WINDOWS * self._limit
        part._kernels = [centred_rfft2(stamp.double(), operator.fft_shape).real for stamp in self._stamps]
        if self._share is not None:
            rows, columns = (slice(c, c + n) for c, n in zip(corner, operator.latent_shape, strict=True))
            part._share = self._share[rows, columns]
        return part

    def windows(self, places: torch.Tensor, *, at_any_cost: bool = False) -> list[LocalWindow] | None:
        """Return windows (see `plan_windows`) around places (latent shape), if they are worth it."""
        if self._is_part:
            return None
        return plan_windows(self._operator, places, self._scale, self._around, at_any_cost=at_any_cost)

    def unsettled(self, course: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return the places that still change, and what is near.

        Parameters
        ----------
        course : `~collections.abc.Sequence` [ `torch.Tensor` ]
            Padded transforms of the latent image, before the updates that
            are looked at and after each.

        Returns
        -------
        places : `torch.Tensor`, shape ``latent_shape``, or `None`
            1 there, 0 elsewhere, and at the border; `None` if all have settled.

        Notes
        -----
        A place has settled when the updates stayed within the limits. With
        momentum they go to and fro, and may end where they began.
        """
        *before, last = course
        still = torch.zeros(self._operator.latent_shape, device=last.device, dtype=last.real.dtype)
        moved = still
        for kernel in self._kernels:
            lowest = highest = still
            for earlier in before:
                apart = self._operator.untransform((earlier - last) * kernel.to(last))
                lowest, highest = torch.minimum(lowest, apart), torch.maximum(highest, apart)
            moved = torch.maximum(moved, highest - lowest)
        if self._share is not None:
            moved = moved * self._share
        places = (moved > self._limit).to(moved) * self._inside(moved)
        return local_maximum(places, self._around) if bool(places.any()) else None

    def with_border(self, places: torch.Tensor) -> torch.Tensor:
        """Return places and the border, of which `unsettled` knows nothing."""
        return torch.where(self._inside(places) > 0.0, places, 1.0)

    def _inside(self, like: torch.Tensor) -> torch.Tensor:
        """Return 1 (latent shape) where no border is near, 0 elsewhere."""
        inside = torch.zeros_like(like)
        height, width = like.shape
        inside[self._border : height - self._border, self._border : width - self._border] = 1.0
        return inside
