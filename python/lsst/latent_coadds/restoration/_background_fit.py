# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Levels of the sky that exposures have in excess of each other."""

from __future__ import annotations

__all__ = ("fit_backgrounds",)

import dataclasses
from collections.abc import Sequence

import torch

from ._calibration_settings import CalibrationSettings
from ._exposure_calibration import ExposureCalibration
from ._restoration import Restoration
from ._stack import ExposureStack

_WING_LIGHT = 0.02
"""Light from outside of a PSF's stamp that a background may have, in sigma."""


def fit_backgrounds(
    calibration: ExposureCalibration,
    stacks: Sequence[ExposureStack],
    skies: Sequence[tuple[ExposureStack, Restoration]],
    members: Sequence[Sequence[int]],
    weights: torch.Tensor,
    settings: CalibrationSettings,
) -> ExposureCalibration:
    """Update backgrounds with what the sky leaves where there is little light.

    Parameters
    ----------
    calibration : `ExposureCalibration`
        What is known of the exposures by now.
    stacks : `~collections.abc.Sequence` [ `ExposureStack` ]
        The exposures as they came.
    skies : `~collections.abc.Sequence`
        Pairs of a stack with that applied, and its restoration.
    members : `~collections.abc.Sequence`
        For each of them, which exposures of the calibration are in the stack.
    weights : `torch.Tensor`, shape (T,)
        Weights of the exposures in the mean that is zero; their sum is 1.
    settings : `CalibrationSettings`
        How far to trust what is there.

    Returns
    -------
    calibration : `ExposureCalibration`
        With new backgrounds and their errors.
    """
    n = len(calibration.names)
    total, weight = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for (corrected, sky), numbers in zip(skies, members, strict=True):
        for position, t in enumerate(numbers):
            model = sky.model(position).to(corrected.image)
            sigma = corrected.variance[position].sqrt()
            residual = corrected.image[position] - model
            empty = corrected.good[position] & (model < sigma) & (residual.abs() < 4.0 * sigma)
            empty &= ~_under_wings(model, sigma, corrected.mean_psf[position])
            here = 1.0 / corrected.variance[position][empty].double()
            total[t] += float((here * residual[empty].double()).sum())
            weight[t] += float(here.sum())
    scale = calibration.flux_scale
    noise = _typical_noise(stacks, members, n)
    error = scale / weight.clamp_min(1e-300).sqrt()
    known = calibration.background + scale * total / weight.clamp_min(1e-300)
    known = known - scale * (weights * known / scale).sum()
    prior = (settings.background_sigma * noise) ** 2
    if settings.adapt_priors and bool((weight > 0).any()):
        # As `ExposurePrior.narrow` does.
        excess = (((known / error) ** 2)[weight > 0].mean() - 1.0).clamp_min(0.01)
        prior = torch.minimum(prior, excess * error**2)
    background = torch.where(weight > 0, known * prior / (prior + error**2), torch.zeros_like(known))
    return dataclasses.replace(calibration, background=background, background_error=error.clamp_max(noise))


def _typical_noise(stacks: Sequence[ExposureStack], members: Sequence[Sequence[int]], n: int) -> torch.Tensor:
    """Return the typical noise of a pixel of each exposure."""
    noise = torch.zeros(n, dtype=torch.float64)
    for stack, numbers in zip(stacks, members, strict=True):
        for t, weight in zip(numbers, stack.exposure_weights().tolist(), strict=True):
            noise[t] = max(float(noise[t]), weight**-0.5 if weight > 0 else 0.0)
    return noise


def _under_wings(model: torch.Tensor, sigma: torch.Tensor, psf: torch.Tensor) -> torch.Tensor:
    """Return pixels (h, w) that get light from beyond the stamp of a PSF (k, k) of a star."""
    k = psf.shape[-1]
    edge = torch.cat([psf[0], psf[-1], psf[:, 0], psf[:, -1]]).mean().clamp_min(0.0) / psf.max()
    widest = model[None, None]
    for size in ((2 * k + 1, 1), (1, 2 * k + 1)):
        widest = torch.nn.functional.max_pool2d(widest, size, stride=1, padding=(size[0] // 2, size[1] // 2))
    return widest[0, 0] * edge > _WING_LIGHT * sigma
