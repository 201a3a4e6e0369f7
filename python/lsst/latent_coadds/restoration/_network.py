# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Networks that turn exposures into a latent image."""

from __future__ import annotations

__all__ = ("LatentNetwork", "PublishedNetwork")

import torch
from torch import nn
from torch.nn import functional


class ChannelNorm(nn.Module):
    """Normalise the channels of each pixel by themselves.

    Unlike a normalisation over the image, what comes out for a pixel depends
    on its neighbourhood alone: a network that was trained on crops does the
    same on a whole patch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        return (x - mean) * torch.rsqrt(variance + 1e-3) * self.gain + self.bias


def _normalisation(kind: str, channels: int) -> nn.Module:
    if kind == "channel":
        return ChannelNorm(channels)
    if kind == "group":
        return nn.GroupNorm(4, channels)
    return nn.Identity()


class _Block(nn.Sequential):
    def __init__(self, n_in: int, n_out: int, kind: str) -> None:
        super().__init__(nn.Conv2d(n_in, n_out, 3, padding=1), _normalisation(kind, n_out), nn.SiLU())


class LatentNetwork(nn.Module):
    """An encoder shared by all exposures, pooled, and an hourglass.

    Parameters
    ----------
    n_features : `int`
        Number of feature images that do not belong to one exposure.
    width : `int`
        Channels of the hourglass; a multiple of 4.
    n_encoder : `int`
        Channels of the encoder of exposures.
    depth : `int`
        Number of times that the resolution is halved.
    normalisation : `str`
        ``"channel"``, ``"group"`` or ``"none"``.

    Notes
    -----
    The weights do not depend on the number of exposures: encoded exposures
    are pooled to their weighted mean and standard deviation. The last layer
    starts at zero, so that an untrained network returns zero. Pixels are
    pooled in cells, the width of the largest of which is ``cell``: another
    place of the image in these cells is not quite the same image.
    """

    def __init__(
        self,
        n_features: int,
        *,
        width: int = 16,
        n_encoder: int = 4,
        depth: int = 3,
        normalisation: str = "channel",
    ) -> None:
        super().__init__()
        self.cell = 2**depth
        self.encoder = nn.Sequential(
            nn.Conv2d(2, n_encoder, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(n_encoder, n_encoder, 3, padding=1),
            nn.SiLU(),
        )
        self.first = _Block(n_features + 2 * n_encoder, width, normalisation)
        self.down = nn.ModuleList(_Block(width, width, normalisation) for _ in range(depth))
        self.waist = _Block(width, width, normalisation)
        self.up = nn.ModuleList(_Block(2 * width, width, normalisation) for _ in range(depth))
        last = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.last = last

    def forward(self, features: torch.Tensor, exposures: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return one image (H, W).

        Parameters
        ----------
        features : `torch.Tensor`, shape (F, H, W)
            Feature images.
        exposures : `torch.Tensor`, shape (T, 2, H, W)
            Each exposure, and its difference from the coadd.
        weights : `torch.Tensor`, shape (T,)
            Weights of the pooling; they sum to one.
        """
        height, width = features.shape[-2:]
        pad = (0, -width % self.cell, 0, -height % self.cell)
        features, exposures = (functional.pad(a, pad, mode="replicate") for a in (features[None], exposures))
        # Convolutions of few channels are fastest so.
        features, exposures = (a.contiguous(memory_format=torch.channels_last) for a in (features, exposures))
        encoded = self.encoder(exposures)
        pooling = weights[:, None, None, None]
        mean = (pooling * encoded).sum(dim=0, keepdim=True)
        scatter = (pooling * (encoded - mean) ** 2).sum(dim=0, keepdim=True)
        x = self.first(torch.cat([features, mean, torch.sqrt(scatter + 1e-4)], dim=1))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(functional.avg_pool2d(x, 2))
        x = self.waist(x)
        for block in self.up:
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skips.pop()], dim=1))
        return self.last(x)[0, 0, :height, :width]


class PublishedNetwork(nn.Module):
    """AstroClearNet as published, as far as its description goes.

    Parallel depthwise convolutions per exposure, mixing across exposures, and
    a non-negative latent image through a ReLU. Its numbers of layers and
    channels are not public; these are ours.

    Parameters
    ----------
    n_exposures : `int`
        Number of exposures; the weights are bound to it.
    width : `int`
        Channels of the mixing layers.
    """

    def __init__(self, n_exposures: int, *, width: int = 16) -> None:
        super().__init__()
        per_exposure = 2
        self.layers = nn.Sequential(
            nn.Conv2d(n_exposures, per_exposure * n_exposures, 5, padding=2, groups=n_exposures),
            nn.ReLU(),
            nn.Conv2d(
                per_exposure * n_exposures, per_exposure * n_exposures, 5, padding=2, groups=n_exposures
            ),
            nn.ReLU(),
            nn.Conv2d(per_exposure * n_exposures, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, exposures: torch.Tensor) -> torch.Tensor:
        """Return the latent image (H, W) of exposures (T, H, W)."""
        return self.layers(exposures[None])[0, 0]
