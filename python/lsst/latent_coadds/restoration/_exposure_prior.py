# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What corrections of exposures are expected to be, before and after they were seen."""

from __future__ import annotations

__all__ = ("ExposurePrior",)

import math
from collections.abc import Sequence

import torch

_ALIKE = ([0], [1, 2], [3, 4], [5], [6], [7, 8], [9, 10, 11, 12])
"""Parameters that share a prior."""

_OPTIONAL = (6, 7, 9)
"""First parameters of groups that are left alone where nothing asks for them."""

_ANCHORED = (3, 5)
"""First parameters of groups whose means are held at zero otherwise."""

_GRADIENTS = range(7, 13)

_PINNED = 1e6
"""Precision of a mean that is pinned, over that of what scatters about it."""

_LEAST_PRIOR = 0.1
"""Narrowest prior, over the error of a correction."""

_SIGNIFICANT = 6.0
"""Mean square of means, over those of their errors, from which on they are no noise."""


class ExposurePrior:
    """Gaussian prior of the corrections of exposures.

    Parameters
    ----------
    sigma : `~collections.abc.Sequence` [ `float` ]
        Standard deviation of each parameter, P of them; 0 keeps it.

    Notes
    -----
    At first each correction is expected near zero, by itself. Once they are
    known, `narrow` tells what the exposures have in common from what they
    differ by: corrections are then expected near their mean, which is free
    within ``sigma``, with the scatter that they turned out to have. So what
    a few stars cannot tell for one exposure, all exposures tell together.
    """

    def __init__(self, sigma: Sequence[float]) -> None:
        self._sigma = torch.tensor(sigma, dtype=torch.float64)
        self._scatter = self._sigma.clone()
        self._common = torch.zeros(len(sigma), dtype=torch.bool)
        self._pinned = torch.zeros(len(sigma), dtype=torch.bool)

    @property
    def free(self) -> list[int]:
        """Numbers of the parameters that are not kept."""
        return torch.nonzero(self._scatter > 0.0).flatten().tolist()

    def hold(self, numbers: Sequence[int]) -> None:
        """Keep some parameters as they are."""
        self._scatter[list(numbers)] = 0.0

    def hold_details(self) -> None:
        """Keep wings, and what varies over the field."""
        self.hold([6, *_GRADIENTS])

    def pin_gradients(self) -> None:
        """Have no gradient that all exposures share.

        A few galaxies that are taken for stars would make one; gradients in
        which exposures differ they do not make.
        """
        self._pinned[list(_GRADIENTS)] = True

    def precision(self, n_exposures: int) -> torch.Tensor:
        """Return the inverse covariance (F, T, T) of the free parameters."""
        free = self.free
        unit = torch.eye(n_exposures, dtype=torch.float64)
        mean = torch.full_like(unit, 1.0 / n_exposures)
        scatter, sigma = (p[free][:, None, None] ** -2 for p in (self._scatter, self._sigma))
        common, pinned = (p[free][:, None, None] for p in (self._common, self._pinned))
        of_mean = torch.where(common, sigma, torch.where(pinned, _PINNED * scatter, scatter))
        return scatter * (unit - mean) + of_mean * mean

    def narrow(self, parameters: torch.Tensor, errors: torch.Tensor, mean_errors: torch.Tensor) -> list[int]:
        """Take priors that are as narrow as corrections turn out to be.

        Where corrections scatter by no more than their errors there is
        nothing to correct, and noise of the stars is not to become errors of
        PSFs. (The variance of the prior that makes the corrections most
        likely is their mean square less that of their errors.)

        Parameters
        ----------
        parameters, errors : `torch.Tensor`, shape (T, P)
            Corrections, and their errors.
        mean_errors : `torch.Tensor`, shape (P,)
            Errors of their weighted means.

        Returns
        -------
        idle : `list` [ `int` ]
            Numbers of optional parameters that nothing asks for; they are
            kept from now on, and should be zero.
        """
        idle: list[int] = []
        for group in _ALIKE:
            first = group[0]
            if float(self._scatter[first]) <= 0.0:
                continue
            value, error = parameters[:, group], errors[:, group].clamp_min(1e-300)
            known = error < 0.9 * self._sigma[group]
            if not bool(known.any()):
                idle += group if first in _OPTIONAL else []
                continue
            weight = known / error**2
            mean = (weight * value).sum(dim=0) / weight.sum(dim=0).clamp_min(1e-300)
            n_means = int(known.any(dim=0).sum())
            n_known = int(known.sum())
            pinned = bool(self._pinned[first])
            common = first not in _ANCHORED and not pinned and n_known > n_means
            if common:
                ratio = mean / mean_errors[group].clamp_min(1e-300)
                common = float((ratio**2).sum()) / n_means > _SIGNIFICANT
            offset = value - mean if common or pinned else value
            n = max(1, n_known - n_means) if common or pinned else n_known
            square = float((known * (offset / error) ** 2).sum()) / n
            noise = (known * error**2).sum() / n_known
            excess = (known * offset**2).sum() / n - noise
            # Half of all scatter that is mere noise is larger than its errors.
            quiet = square < 1.0 + 2.0 * math.sqrt(2.0 / n)
            if quiet and first in _OPTIONAL and not common:
                idle += group
                continue
            least = _LEAST_PRIOR**2 * noise
            excess = least if quiet else torch.maximum(excess, least)
            self._common[group] = common
            self._scatter[group] = torch.minimum(excess.sqrt(), self._sigma[group])
        self.hold(idle)
        return idle
