# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a network is to explain."""

from __future__ import annotations

__all__ = ("Region", "TrainingProblem")

import dataclasses

import torch

from ._fidelity import HuberFidelity
from ._operators import ConvolutionOperator
from ._rejection import reject_outliers

Region = tuple[slice, slice]


@dataclasses.dataclass(frozen=True)
class TrainingProblem:
    """What is to be fitted, and what is held out.

    Attributes
    ----------
    kernels : `torch.Tensor`, shape (T, k, k)
        Kernels of the forward model.
    operator : `ConvolutionOperator`
        The forward model of whole exposures.
    training, held_out : `HuberFidelity`
        Data terms of two disjoint sets of pixels.
    light : `torch.Tensor`, optional
        Padded transform of the light that was subtracted from the data.
    """

    kernels: torch.Tensor
    operator: ConvolutionOperator
    training: HuberFidelity
    held_out: HuberFidelity
    light: torch.Tensor | None = None

    def loss(self, fidelity: HuberFidelity, latent: torch.Tensor) -> float:
        """Return the mean loss per pixel of a latent image."""
        value = 0.0
        lifted = self.operator.lift(self.operator.transform(latent))
        for which in self.operator.chunks():
            residual = fidelity.residual(self.operator.predict(lifted, which), which)
            value += float(fidelity.value(residual))
        return value / max(1, int((fidelity.inverse_sigma > 0).sum()))

    def without(self, rejected: torch.Tensor) -> TrainingProblem:
        """Return the problem without the pixels (T, H, W) that are `True`."""
        training, held_out = self.training.without(rejected), self.held_out.without(rejected)
        return dataclasses.replace(self, training=training, held_out=held_out)

    def find_outliers(self, latent: torch.Tensor, n_sigma: float) -> torch.Tensor:
        """Return what of single exposures (T, H, W) a latent image lacks."""
        transform, image = self.operator.transform(latent), self.training.image
        if self.light is not None:
            image = image.clone()
            # Beside a bright source more is tolerated, whatever models it.
            lifted = self.operator.lift(self.light)
            for which in self.operator.chunks():
                image[which] += self.operator.predict(lifted, which)
            transform = transform + self.light
        fidelity = HuberFidelity(
            image,
            self.training.inverse_sigma + self.held_out.inverse_sigma,
            self.training.delta,
        )
        return reject_outliers(self.operator, fidelity, transform, n_sigma)

    def implanted(self, latent: torch.Tensor) -> TrainingProblem:
        """Return the problem with a latent image added to the training data."""
        data = self.training
        image = data.image + self.operator.forward(latent)
        return dataclasses.replace(self, training=HuberFidelity(image, data.inverse_sigma, data.delta))

    def crop(self, region: Region) -> ConvolutionOperator:
        """Return the operator for a region of the latent image."""
        full = self.operator
        height, width = (s.stop - s.start for s in region)
        if (height, width) == full.latent_shape:
            return full
        shape = (height - 2 * full.margin, width - 2 * full.margin)
        origin = (region[0].start, region[1].start)
        return ConvolutionOperator(self.kernels, shape, margin=full.margin, extent=full.shape, origin=origin)

    def cut(self, region: Region) -> HuberFidelity:
        """Return the training data of a region of the latent image."""
        if self.operator.sampler is not None:
            # Only the whole image is asked for; see `train`.
            return self.training
        margin = self.operator.margin
        rows, columns = (slice(s.start, s.stop - 2 * margin) for s in region)
        full = self.training
        return HuberFidelity(full.image[:, rows, columns], full.inverse_sigma[:, rows, columns], full.delta)
