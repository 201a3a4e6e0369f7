# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("RegisteredExposure",)

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class RegisteredExposure:
    """A detector image on the pixel grid of a part of the patch.

    Attributes
    ----------
    image, variance : `torch.Tensor`, (H, W), float32
        Pixels in nJy per tract pixel, and the noise power per pixel.
    good : `torch.Tensor` [`bool`], (H, W)
        Pixels to use.
    covered : `torch.Tensor` [`bool`], (H, W)
        Pixels that lie on the detector, masked or not.
    saturated, cosmic_ray : `torch.Tensor` [`bool`], (H, W)
        Mask planes of the nearest detector pixel.
    pixel_variance_ratio : `float`
        Mean of the variance of one interpolated pixel over ``variance``.
    """

    image: torch.Tensor
    variance: torch.Tensor
    good: torch.Tensor
    covered: torch.Tensor
    saturated: torch.Tensor
    cosmic_ray: torch.Tensor
    pixel_variance_ratio: float
