# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stacks that a network is trained on."""

from __future__ import annotations

__all__ = ("Member", "Twin")

import dataclasses
from collections.abc import Callable

import torch

from ._problem import Region, TrainingProblem

Predictor = Callable[[Region, int | None], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Twin:
    """A stack to which sources of known light were added.

    Attributes
    ----------
    predict, problem
        As for `Member`, with the sources.
    sources : `torch.Tensor`, shape (h, w)
        The light that was added to the latent image.
    softness : `float`
        Light per pixel above which errors count by their ratio to it.
    """

    predict: Predictor
    problem: TrainingProblem
    sources: torch.Tensor
    softness: float

    def error(self, latent: torch.Tensor, plain: torch.Tensor, region: Region) -> torch.Tensor:
        """Return the gradient of half the squared error of a region.

        Parameters
        ----------
        latent, plain : `torch.Tensor`, shape (h, w)
            What the network makes of the region with the sources, and without.
        region : `tuple` [ `slice`, `slice` ]
            The region.

        Notes
        -----
        The error is that of ``asinh(light / softness)``: in the wings of a
        star it counts as much as in the core, and in faint stars as much as
        in bright ones.
        """
        truth = plain + self.sources[region]
        difference = torch.asinh(latent / self.softness) - torch.asinh(truth / self.softness)
        return difference / torch.sqrt(latent**2 + self.softness**2)


@dataclasses.dataclass
class Member:
    """One of the stacks that a network is trained on.

    Attributes
    ----------
    predict : `~collections.abc.Callable`
        Returns the latent image of a region, with the network as it is, for
        inputs turned in one of eight ways, or the mean of all.
    problem : `TrainingProblem`
        Data and forward model.
    rejected : `torch.Tensor` of bool, shape (T, H, W)
        Pixels that are left out.
    implant : `~collections.abc.Callable`, optional
        Returns a `Twin` of the stack, for `problem` and a random generator.
    """

    predict: Predictor
    problem: TrainingProblem
    rejected: torch.Tensor
    implant: Callable[[TrainingProblem, torch.Generator], Twin] | None = None

    def whole(self, turn: int | None) -> torch.Tensor:
        """Return the whole latent image."""
        height, width = self.problem.operator.latent_shape
        with torch.no_grad():
            return self.predict((slice(0, height), slice(0, width)), turn)

    def reject(self, latent: torch.Tensor, n_sigma: float) -> None:
        """Leave out what of single exposures a latent image lacks."""
        found = self.problem.find_outliers(latent, n_sigma)
        self.rejected = self.rejected | found
        self.problem = self.problem.without(found)
