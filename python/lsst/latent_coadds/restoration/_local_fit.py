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
from ._windows import LocalWindow

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
    free = quadratic.spread(places) > 0.0
    parts = [_Part(fidelity, quadratic, window, free) for window in windows]
    light = operator.lift(quadratic.combine(coefficients))
    for which in operator.chunks():
        for t, model in zip(range(which.start, which.stop), operator.predict(light, which), strict=True):
            for part in parts:
                part.subtract(t, model)
    settings = dataclasses.replace(settings, n_steps=_INNER_STEPS, n_block=_BLOCK)
    result, n_updates, converged = coefficients.clone(), 0, True
    for part in parts:
        fit = part.fit(coefficients, settings, settling)
        result[part.index[part.free]] = fit.coefficients[part.free].to(result)
        n_updates, converged = max(n_updates, fit.n_iterations), converged and fit.converged
    transform = quadratic.combine(result)
    objective, gradient = evaluate(operator, fidelity, transform)
    objective += quadratic.penalty(result)
    history = [{"iteration": n, "objective": objective} for n in (0, n_updates)]
    return Fit(result, transform, gradient, history, n_updates, converged)


class _Part:
    """The problem in one window."""

    def __init__(
        self,
        fidelity: HuberFidelity,
        quadratic: NonNegativeQuadratic,
        window: LocalWindow,
        free: torch.Tensor,
    ) -> None:
        whole = quadratic.operator
        self._corner = window.corner
        views = _cut(whole, list(range(whole.n_exposures)), window)[1]
        seeing = [t for t, view in enumerate(views) if bool((fidelity.inverse_sigma[t][view] > 0.0).any())]
        which = seeing or [0]
        sampler, views, inside = _cut(whole, which, window)
        self._views = dict(zip(which, views, strict=True))
        self._number = {t: i for i, t in enumerate(which)}
        # In single precision two stars that are not quite told apart settle a tenth of a sigma too early.
        image, weight = (
            torch.stack([plane[t][view].double() for t, view in self._views.items()])
            for plane in (fidelity.image, fidelity.inverse_sigma)
        )
        self._fidelity = HuberFidelity(image, weight * inside, fidelity.delta)
        self._operator = ConvolutionOperator(
            whole.kernels[which].double(),
            window.shape,
            margin=whole.margin,
            padding=whole.padding,
            extent=whole.extent,
            origin=(whole.origin[0] + window.corner[0], whole.origin[1] + window.corner[1]),
            sampler=sampler,
            reference=None if whole.reference is None else whole.reference[which].double(),
        )
        part, self.index = quadratic.part(self._operator, which, window.corner)
        box = image.new_zeros(self._operator.latent_shape)
        box[window.box] = 1.0
        self.free = (part.spread(box) > 0.0) & free[self.index]
        self._quadratic = part.only(self.free)

    def subtract(self, t: int, model: torch.Tensor) -> None:
        """Take the light of the whole image off an exposure."""
        if t in self._number:
            self._fidelity.image[self._number[t]] -= model[self._views[t]]

    def fit(self, coefficients: torch.Tensor, settings: ImageMMSettings, settling: Settling) -> Fit:
        """Fit the coefficients of this window."""
        start = torch.where(self.free, coefficients[self.index].double(), 0.0)
        own = self._operator.lift(self._quadratic.combine(start))
        for which in self._operator.chunks():
            self._fidelity.image[which] += self._operator.predict(own, which)
        local = settling.part(self._operator, self._corner)
        return fit_accelerated(self._fidelity, self._quadratic, start, settings, settling=local)


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
