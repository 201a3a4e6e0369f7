# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Networks that lost all sources."""

from __future__ import annotations

__all__ = ("check_not_empty",)

import torch

from ._errors import RestorationError
from ._fit import evaluate
from ._kernels import value_at_origin
from ._problem import TrainingProblem
from ._proximal import NonNegativeQuadratic


def check_not_empty(problem: TrainingProblem, quadratic: NonNegativeQuadratic, latent: torch.Tensor) -> None:
    """Raise if a network lost all sources; an empty sky may stay empty.

    Raises
    ------
    RestorationError
        A matched filter finds sources, half of none of which the network
        explains, and it explains the exposures no better than an empty sky.
    """
    loss, loss_empty = (problem.loss(problem.training, x) for x in (latent, torch.zeros_like(latent)))
    if loss < loss_empty:
        return
    operator = problem.operator
    transform = operator.transform(latent)
    noise = value_at_origin(quadratic.curvature, operator.fft_shape).sqrt()
    data = -evaluate(operator, problem.training, torch.zeros_like(transform))[1]
    images = [data, quadratic.curvature * transform]
    if problem.light is not None:
        # Beside points may be what their PSFs are wrong by.
        images.append(quadratic.curvature * problem.light)
    seen, explained, *points = (operator.untransform(image) / noise for image in images)
    lost = (seen > 6.0) & (explained < 0.5 * seen)
    for light in points:
        seen, lost = torch.where(light > 6.0, 0.0, seen), lost & (light <= 6.0)
    if bool((seen > 6.0).any()) and bool(lost[seen > 6.0].all()):
        raise RestorationError(
            "The network collapsed to an empty image; try another seed or a lower learning_rate."
        )
