# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a fitted image to a `Restoration`."""

from __future__ import annotations

__all__ = ("assemble",)

import math
from collections.abc import Callable
from typing import Any

import torch

from ._errors import RestorationError
from ._restoration import Restoration
from ._stack import ExposureStack


def assemble(
    stack: ExposureStack,
    *,
    image: torch.Tensor,
    variance: torch.Tensor,
    psf: torch.Tensor,
    model: Callable[[int], torch.Tensor],
    clipped: Callable[[int, torch.Tensor], torch.Tensor],
    noise_realizations: torch.Tensor,
    history: list[dict[str, Any]],
    n_iterations: int,
    converged: bool,
    method: str,
    settings: Any,
    timings: dict[str, float],
) -> Restoration:
    """Check a fitted image and describe it.

    Parameters
    ----------
    stack : `ExposureStack`
        What was restored, on the device where it was.
    image, variance : `torch.Tensor`, shape (H, W)
        The result.
    psf : `torch.Tensor`, shape (k, k)
        Its PSF.
    model : `~collections.abc.Callable`
        Returns the prediction (h, w) of an exposure by its number.
    clipped : `~collections.abc.Callable`
        Returns a boolean plane (h, w) for an exposure and its residuals in
        sigma: the pixels that lost more than half of their weight.
    noise_realizations : `torch.Tensor`, shape (N, H, W)
        Samples of the noise.
    history, n_iterations, converged, method, settings, timings
        As in `Restoration`.

    Raises
    ------
    RestorationError
        The image is not finite.
    """
    n_image = stack.n_image
    no_data = n_image == 0
    image = image.masked_fill(no_data, 0.0)
    if not bool(torch.isfinite(image).all()):
        raise RestorationError(
            f"Restorer {method!r} returned non-finite pixels; check the scale of the input."
        )
    variance = variance.masked_fill(no_data, torch.inf)
    n = stack.n_exposures
    chi2 = torch.full((n,), torch.nan, dtype=torch.float32)
    clipped_any = torch.zeros_like(no_data)
    model_sum = data_sum = variance_sum = 0.0
    for t in range(n):
        prediction = model(t)
        residual = torch.where(
            stack.good[t],
            (stack.image[t] - prediction) / stack.variance[t].sqrt(),
            torch.zeros_like(prediction),
        )
        lost = clipped(t, residual) & stack.good[t]
        clipped_any |= stack.to_latent(t, lost)
        kept = stack.good[t] & ~lost
        if bool(kept.any()):
            chi2[t] = float((residual[kept].double() ** 2).mean())
            model_sum += float(prediction[kept].double().sum())
            data_sum += float(stack.image[t][kept].double().sum())
            variance_sum += float(stack.variance[t][kept].double().sum())
    rejected = (n_image < n) & ~no_data
    sigma = (model_sum - data_sum) / math.sqrt(variance_sum) if variance_sum > 0 else math.nan
    return Restoration(
        image=_plain(image),
        variance=_plain(variance),
        psf=_plain(psf),
        weight=_plain(1.0 / variance),
        n_image=n_image.cpu(),
        mask={"NO_DATA": no_data.cpu(), "REJECTED": rejected.cpu(), "CLIPPED": clipped_any.cpu()},
        chi2=chi2,
        n_good=stack.good.sum(dim=(1, 2)).cpu(),
        flux_closure={"model": model_sum, "data": data_sum, "sigma": sigma},
        history=history,
        n_iterations=n_iterations,
        converged=converged,
        noise_realizations=_plain(noise_realizations),
        method=method,
        settings=settings,
        device=str(stack.image.device),
        timings=timings,
        _model=lambda t: _plain(model(t)),
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32)
