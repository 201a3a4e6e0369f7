# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The result of a restoration."""

from __future__ import annotations

__all__ = ("Restoration",)

import dataclasses
from collections.abc import Callable
from typing import Any

import torch


@dataclasses.dataclass
class Restoration:
    """A restored image and all that is needed to judge it.

    Tensors are float32 on the CPU unless said otherwise.

    Attributes
    ----------
    image : `torch.Tensor`, shape (H, W)
        The restored image, flux per pixel; 0 where there is no data.
    variance : `torch.Tensor`, shape (H, W)
        Variance of ``image``; infinite where there is no data.
    psf : `torch.Tensor`, shape (k, k)
        PSF of ``image``; k is odd and the sum is one.
    weight : `torch.Tensor`, shape (H, W)
        Inverse of ``variance``; 0 where there is no data.
    n_image : `torch.Tensor` of int32, shape (H, W)
        Number of exposures with a good pixel.
    mask : `dict` [ `str`, `torch.Tensor` ]
        Boolean planes (H, W): ``NO_DATA`` no exposure is good here;
        ``REJECTED`` some, not all, exposures were left out; ``CLIPPED``
        the robust loss (or the clipping) took more than half of the weight
        of some exposure.
    chi2 : `torch.Tensor`, shape (T,)
        Mean squared residual, in units of the variance, over the good and
        unclipped pixels of each exposure; NaN where there are none.
    n_good : `torch.Tensor` of int64, shape (T,)
        Number of good pixels of each exposure.
    flux_closure : `dict` [ `str`, `float` ]
        Sums over the good, unclipped pixels of all exposures: ``model``,
        ``data``, and ``sigma`` = (model - data) over its standard error.
    history : `list` [ `dict` ]
        One entry per recorded update.
    n_iterations : `int`
        Number of updates made.
    converged : `bool`
        Whether the fit stopped by itself, and not at a limit.
    noise_realizations : `torch.Tensor`, shape (N, H, W)
        Samples of what ``image`` differs from the truth by, correlations
        included; their mean is the bias that is to be expected.
    weights : `dict` [ `str`, `torch.Tensor` ] or `None`
        Weights of the network, where there is one.
    method, settings, device, timings
        How, on what and how long (seconds by name of the stage).
    """

    image: torch.Tensor
    variance: torch.Tensor
    psf: torch.Tensor
    weight: torch.Tensor
    n_image: torch.Tensor
    mask: dict[str, torch.Tensor]
    chi2: torch.Tensor
    n_good: torch.Tensor
    flux_closure: dict[str, float]
    history: list[dict[str, Any]]
    n_iterations: int
    converged: bool
    noise_realizations: torch.Tensor
    method: str
    settings: Any
    device: str
    timings: dict[str, float]
    _model: Callable[[int], torch.Tensor] = dataclasses.field(repr=False)
    weights: dict[str, torch.Tensor] | None = dataclasses.field(default=None, repr=False)

    def model(self, t: int) -> torch.Tensor:
        """Return the prediction of exposure ``t``, shape (H, W).

        Raises
        ------
        IndexError
            There is no such exposure.
        """
        n = len(self.chi2)
        if not 0 <= t < n:
            raise IndexError(f"There is no exposure {t}; the stack has {n}.")
        return self._model(t)
