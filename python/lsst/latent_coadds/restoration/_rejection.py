# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rejection of what one exposure has and the fitted sky does not."""

from __future__ import annotations

__all__ = ("reject_outliers",)

import torch

from ._fidelity import HuberFidelity
from ._frames import FrameGeometry, flags_to_frame, flags_to_latent
from ._operators import ConvolutionOperator

_GROWTH = 3
"""Steps by which an outlier spreads over neighbours that deviate less."""

_LARGEST_SHARE = 0.35
"""Where a larger part of the exposures deviates, it is the model that lacks a
source, and nothing is rejected.
"""


def reject_outliers(
    operator: ConvolutionOperator,
    fidelity: HuberFidelity,
    transform: torch.Tensor,
    n_sigma: float,
    tolerance: float = 0.2,
) -> torch.Tensor:
    """Find pixels of single exposures that the model does not explain.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        Forward model.
    fidelity : `HuberFidelity`
        The data.
    transform : `torch.Tensor`, complex
        Transform of the latent image that was fitted.
    n_sigma : `float`
        Residual at which a pixel is an outlier. Pixels beside an outlier
        with more than half of it, such as the wings of a satellite trail,
        belong to it.
    tolerance : `float`, optional
        Deviation that is tolerated in addition, in units of the brightest
        model pixel among the neighbours: what a PSF model or a calibration
        may be wrong by.

    Returns
    -------
    outliers : `torch.Tensor` of bool, shape (T, H, W)
        Pixels not to use.

    Notes
    -----
    The Huber loss lets an outlier pull with a force of delta, whatever its
    size. That is harmless for a single pixel, but a trail pulls coherently
    along its length; so what cannot be sky is taken out altogether.
    """
    found = torch.zeros_like(fidelity.image, dtype=torch.bool)
    near = torch.zeros_like(found)
    lifted = operator.lift(transform)
    for which in operator.chunks():
        model = operator.predict(lifted, which)
        allowed = tolerance * _dilate(model.clamp_min(0.0)) * fidelity.inverse_sigma[which]
        excess = fidelity.residual(model, which).abs() - allowed
        found[which], near[which] = excess > n_sigma, excess > 0.5 * n_sigma
    frames = None if operator.sampler is None else operator.sampler.frames
    shared = _shared(found, fidelity.inverse_sigma > 0, frames)
    for t, plane in enumerate(found):
        plane &= ~flags_to_frame(frames, t, shared, operator.data_shape)
    for which in operator.chunks():
        grown = found[which]
        for _ in range(_GROWTH):
            grown = grown | (near[which] & _grow(grown))
        found[which] = _grow(grown) & (fidelity.inverse_sigma[which] > 0)
    return found


def _shared(found: torch.Tensor, good: torch.Tensor, frames: FrameGeometry | None) -> torch.Tensor:
    """Return where (H, W) too many exposures agree against the model."""
    n_found, n_good = (
        sum(flags_to_latent(frames, t, plane).to(torch.int32) for t, plane in enumerate(planes))
        for planes in ((_grow(plane[None])[0] for plane in found), good)
    )
    assert isinstance(n_found, torch.Tensor)
    assert isinstance(n_good, torch.Tensor)
    return n_found > (_LARGEST_SHARE * n_good).clamp_min(1.0)


def _grow(planes: torch.Tensor) -> torch.Tensor:
    """Return pixels (n, H, W) that are `True` or have such a neighbour."""
    return _dilate(planes.to(torch.float32)) > 0


def _dilate(planes: torch.Tensor) -> torch.Tensor:
    """Return the largest value among the pixel and its neighbours."""
    return torch.nn.functional.max_pool2d(planes[:, None], 3, stride=1, padding=1)[:, 0]
