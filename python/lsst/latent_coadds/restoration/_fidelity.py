# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a prediction is from the data."""

from __future__ import annotations

__all__ = ("HuberFidelity",)

import torch


class HuberFidelity:
    """Masked Huber loss of residuals in units of sigma.

    Parameters
    ----------
    image : `torch.Tensor`, shape (T, H, W)
        The data; 0 where not good.
    inverse_sigma : `torch.Tensor`, shape (T, H, W)
        Inverse standard deviation; 0 where not good.
    delta : `float`
        Residual, in sigma, beyond which the loss is linear.

    Notes
    -----
    With ``r = (model - image) * inverse_sigma`` the loss of a pixel is
    ``r^2 / 2`` for ``|r| <= delta`` and ``delta (|r| - delta / 2)`` beyond.
    """

    def __init__(self, image: torch.Tensor, inverse_sigma: torch.Tensor, delta: float) -> None:
        self.image = image
        self.inverse_sigma = inverse_sigma
        self.delta = delta

    def without(self, rejected: torch.Tensor) -> HuberFidelity:
        """Return the same without the pixels (T, H, W) that are `True`."""
        return HuberFidelity(self.image, self.inverse_sigma.masked_fill(rejected, 0.0), self.delta)

    def residual(self, model: torch.Tensor, which: slice) -> torch.Tensor:
        """Return residuals of exposures ``which`` in sigma, (n, H, W)."""
        return (model - self.image[which]) * self.inverse_sigma[which]

    def value(self, residual: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of residuals, a float64 scalar."""
        clipped = residual.clamp(-self.delta, self.delta)
        # Equal to r^2 / 2 inside and to delta (|r| - delta / 2) outside.
        return (clipped * (residual - 0.5 * clipped)).sum(dtype=torch.float64)

    def weight(self, residual: torch.Tensor) -> torch.Tensor:
        """Return the robust weight of residuals r: 1, or ``delta / |r|``."""
        return self.delta / residual.abs().clamp_min(self.delta)

    def value_and_gradient(self, model: torch.Tensor, which: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss and its gradient with respect to the model.

        Parameters
        ----------
        model : `torch.Tensor`, shape (n, H, W)
            Prediction of exposures ``which``; overwritten.
        which : `slice`
            The exposures.

        Returns
        -------
        value : `torch.Tensor`
            Scalar, float64.
        gradient : `torch.Tensor`, shape (n, H, W)
            Derivative with respect to the model.
        """
        residual = model.sub_(self.image[which]).mul_(self.inverse_sigma[which])
        clipped = residual.clamp(-self.delta, self.delta)
        value = residual.sub_(clipped, alpha=0.5).mul_(clipped).sum(dtype=torch.float64)
        return value, clipped.mul_(self.inverse_sigma[which])
