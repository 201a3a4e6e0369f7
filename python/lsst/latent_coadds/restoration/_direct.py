# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plain coadd: the control against which a restoration is judged."""

from __future__ import annotations

__all__ = ("DirectCoadd", "direct_coadd", "restore_direct")

import dataclasses
import time
from collections.abc import Callable

import torch

from ._assemble import assemble
from ._peaks import local_maximum
from ._restoration import Restoration
from ._settings import DirectSettings
from ._stack import ExposureStack


@dataclasses.dataclass(frozen=True)
class DirectCoadd:
    """A weighted mean of exposures.

    Attributes
    ----------
    image, variance : `torch.Tensor`, shape (H, W)
        The mean, 0 without data, and its variance, infinite without data.
    psf : `torch.Tensor`, shape (k, k)
        The mean of the PSFs with the mean weights of the exposures.
    kept : `torch.Tensor` of bool, shape (T, h, w)
        The pixels of the exposures that were used.
    """

    image: torch.Tensor
    variance: torch.Tensor
    psf: torch.Tensor
    kept: torch.Tensor


def direct_coadd(stack: ExposureStack, settings: DirectSettings) -> DirectCoadd:
    """Return the inverse-variance coadd of a stack.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    settings : `DirectSettings`
        Weights and clipping.

    Returns
    -------
    coadd : `DirectCoadd`
        The mean, its variance and its PSF.

    Notes
    -----
    Exposures with pixels of their own are interpolated onto the latent grid.
    Where exposures with different seeing have different good pixels the true
    PSF changes from pixel to pixel; the PSF returned is the average one.
    """
    frames, stack = stack, stack.register()
    kept = stack.good & ~find_outliers(stack, settings.clip_sigma) if settings.clip else stack.good
    if settings.weighting == "pixel":
        weight = stack.inverse_variance * kept
    else:
        weight = stack.exposure_weights()[:, None, None] * kept
    total = weight.sum(dim=0)
    covered = total > 0
    norm = torch.where(covered, 1.0 / total, torch.zeros_like(total))
    image = (weight * stack.image).sum(dim=0) * norm
    variance = torch.where(kept, weight**2 * stack.variance, torch.zeros_like(weight)).sum(dim=0) * norm**2
    variance = torch.where(covered, variance, torch.full_like(variance, torch.inf))
    psf_weight = weight.sum(dim=(1, 2))
    psf = (psf_weight[:, None, None] * stack.mean_psf).sum(dim=0)
    if frames is not stack:
        outliers = stack.good & ~kept
        kept = torch.stack([~frames.to_frame(t, outliers[t]) for t in range(stack.n_exposures)]) & frames.good
    return DirectCoadd(image, variance, psf / psf.sum(), kept)


def find_outliers(stack: ExposureStack, n_sigma: float) -> torch.Tensor:
    """Find pixels that one exposure has and the others do not.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    n_sigma : `float`
        Deviation from the median, in sigma of the exposure.

    Returns
    -------
    outliers : `torch.Tensor` of bool, shape (T, H, W)
        Nothing is found where fewer than three exposures are good.

    Notes
    -----
    Seeing differs between exposures, so in stars a deviation of up to the
    local maximum of the median image is tolerated in addition.
    """
    missing = torch.full((), torch.nan, dtype=stack.image.dtype, device=stack.image.device)
    median = torch.nanmedian(torch.where(stack.good, stack.image, missing), dim=0).values.nan_to_num(0.0)
    peak = local_maximum(median, 2).clamp_min(0.0)
    sigma = torch.where(stack.good, stack.variance, torch.zeros_like(stack.variance)).sqrt()
    outliers = (stack.image - median).abs() > n_sigma * sigma + peak
    return outliers & stack.good & (stack.n_image >= 3)


def restore_direct(
    stack: ExposureStack,
    settings: DirectSettings,
    *,
    generator: torch.Generator,
    progress: Callable[[int, int, float], None] | None = None,
) -> Restoration:
    """Return the coadd of a stack as a `Restoration`.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    settings : `DirectSettings`
        Weights and clipping.
    generator, progress
        Not used; every restorer takes them.

    Notes
    -----
    The noise of the coadd is white where that of the exposures is, so there
    are no noise realizations. The model of an exposure is the coadd itself:
    it is not deconvolved, and its ``chi2`` is therefore large on stars.
    """
    start = time.perf_counter()
    coadd = direct_coadd(stack, settings)
    return assemble(
        stack,
        image=coadd.image,
        variance=coadd.variance,
        psf=coadd.psf,
        model=lambda t: stack.to_frame(t, coadd.image),
        clipped=lambda t, residual: stack.good[t] & ~coadd.kept[t],
        noise_realizations=coadd.image.new_zeros((0, *stack.shape)),
        history=[],
        n_iterations=0,
        converged=True,
        method="direct",
        settings=settings,
        timings={"coadd": time.perf_counter() - start},
    )
