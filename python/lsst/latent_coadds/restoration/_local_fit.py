# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("fit_places",)

import dataclasses

import torch

from ._fidelity import HuberFidelity
from ._fit import Fit, evaluate, fit_accelerated
from ._operators import ConvolutionOperator
from ._proximal import NonNegativeQuadratic
from ._sampling import FrameSampler
from ._settings import ImageMMSettings
from ._settling import Settling
from ._windows import LocalWindow, group_windows

_View = tuple[slice, slice]

_INNER_STEPS = 30
"""Inner steps cost little in windows: a third of the updates do that ten of them need."""

_BLOCK = 10
"""Updates after which to look whether a window has settled."""


def fit_places(
    fidelity: HuberFidelity,
    quadratic: NonNegativeQuadratic,
    coefficients: torch.Tensor,
    places: torch.Tensor,
    windows: list[LocalWindow],
    settings: ImageMMSettings,
    settling: Settling,
) -> Fit:
    """Fit some places, in windows of their own.

    Parameters
    ----------
    fidelity : `HuberFidelity`
        The data term.
    quadratic : `NonNegativeQuadratic`
        The problem.
    coefficients : `torch.Tensor`, shape (N,)
        Where to begin.
    places : `torch.Tensor`, shape ``latent_shape``
        Positive where coefficients may change.
    windows : `list` [ `LocalWindow` ]
        What `plan_windows` has made of them.
    settings : `ImageMMSettings`
        How to fit.
    settling : `Settling`
        Tells when a place has settled.

    Returns
    -------
    fit : `Fit`
        The fit of the whole image; its number of updates is that of the slowest window.

    Notes
    -----
    The problem is that of the whole image with all other coefficients as they
    are: a window holds the data that see its place, without the light of the
    rest of the image.
    """
    operator = quadratic.operator
    settings = dataclasses.replace(settings, n_steps=_INNER_STEPS, n_block=_BLOCK)
    light = operator.lift(quadratic.combine(coefficients))
    free = quadratic.spread(places) > 0.0
    result, n_updates, converged = coefficients.clone(), 0, True
    for group in group_windows(operator, windows):
        parts = [_Part(operator, fidelity, window) for window in group]
        for which in operator.chunks():
            for t, model in zip(range(which.start, which.stop), operator.predict(light, which), strict=True):
                for part in parts:
                    part.subtract(t, model)
        for part in parts:
            index, fit = part.fit(quadratic, coefficients, free, settings, settling)
            result[index] = fit.coefficients.to(result)
            n_updates, converged = max(n_updates, fit.n_iterations), converged and fit.converged
    transform = quadratic.combine(result)
    objective, gradient = evaluate(operator, fidelity, transform)
    objective += quadratic.penalty(result)
    history = [{"iteration": n, "objective": objective} for n in (0, n_updates)]
    return Fit(result, transform, gradient, history, n_updates, converged)


class _Part:
    """The data of one window, in double precision.

    In single precision two stars that are not quite told apart settle a tenth
    of a sigma too early.
    """

    def __init__(self, whole: ConvolutionOperator, fidelity: HuberFidelity, window: LocalWindow) -> None:
        self._window = window
        views = _cut(whole, list(range(whole.n_exposures)), window)[1]
        seeing = [t for t, view in enumerate(views) if bool((fidelity.inverse_sigma[t][view] > 0.0).any())]
        self._which = seeing or [0]
        self._sampler, self._views, inside = _cut(whole, self._which, window)
        image, weight = (
            torch.stack([plane[t][view].double() for t, view in zip(self._which, self._views, strict=True)])
            for plane in (fidelity.image, fidelity.inverse_sigma)
        )
        self._fidelity = HuberFidelity(image, weight * inside, fidelity.delta)

    def subtract(self, t: int, model: torch.Tensor) -> None:
        """Take the light of the whole image off an exposure."""
        if t in self._which:
            i = self._which.index(t)
            self._fidelity.image[i] -= model[self._views[i]]

    def fit(
        self,
        quadratic: NonNegativeQuadratic,
        coefficients: torch.Tensor,
        free: torch.Tensor,
        settings: ImageMMSettings,
        settling: Settling,
    ) -> tuple[torch.Tensor, Fit]:
        """Return which coefficients of the whole belong to this window, and the fit of these."""
        operator = self._make_operator(quadratic.operator)
        corner = self._window.corner
        local, index = quadratic.part(operator, self._which, corner)
        box = self._fidelity.image.new_zeros(operator.latent_shape)
        box[self._window.box] = 1.0
        mine = (local.spread(box) > 0.0) & free[index]
        start = torch.where(mine, coefficients[index].double(), 0.0)
        own = operator.lift(local.combine(start))
        for which in operator.chunks():
            self._fidelity.image[which] += operator.predict(own, which)
        fit = fit_accelerated(
            self._fidelity, local.only(mine), start, settings, settling=settling.part(operator, corner)
        )
        return index[mine], dataclasses.replace(fit, coefficients=fit.coefficients[mine])

    def _make_operator(self, whole: ConvolutionOperator) -> ConvolutionOperator:
        first = zip(whole.origin, self._window.corner, strict=True)
        y, x = (a + b for a, b in first)
        return ConvolutionOperator(
            whole.kernels[self._which].double(),
            self._window.shape,
            margin=whole.margin,
            padding=whole.padding,
            extent=whole.extent,
            origin=(y, x),
            sampler=self._sampler,
            reference=None if whole.reference is None else whole.reference[self._which].double(),
        )


def _cut(
    operator: ConvolutionOperator, which: list[int], window: LocalWindow
) -> tuple[FrameSampler | None, list[_View], torch.Tensor]:
    """Return a sampler, where the data of exposures are, and which of them are good for the window."""
    if operator.sampler is None:
        rows, columns = (slice(c, c + n) for c, n in zip(window.corner, window.shape, strict=True))
        return None, [(rows, columns)] * len(which), operator.kernels.new_ones(1, dtype=torch.float64)
    sampler, corners, inside = operator.sampler.part(which, window.corner, window.shape)
    height, width = sampler.frame_shape
    return sampler, [(slice(y, y + height), slice(x, x + width)) for y, x in corners], inside
