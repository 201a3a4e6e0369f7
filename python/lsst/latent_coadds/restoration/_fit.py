# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Descent loops of ImageMM."""

from __future__ import annotations

__all__ = ("Fit", "HeldOut", "Pace", "evaluate", "fit_accelerated", "fit_published")

import collections
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from ._errors import RestorationError
from ._fidelity import HuberFidelity
from ._operators import ConvolutionOperator
from ._proximal import InnerPace, NonNegativeQuadratic, momentum
from ._settings import ImageMMSettings
from ._settling import SETTLING_UPDATES, Settling
from ._windows import LocalWindow

ProgressCallback = Callable[[int, int, float], None]
_Solution = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Coefficients, and padded transforms of latent image and gradient."""


@dataclasses.dataclass
class Pace:
    """What a fit that goes on needs: the step before, Nesterov's t, and the same of the inner steps."""

    previous: torch.Tensor
    t: float = 1.0
    inner: InnerPace = dataclasses.field(default_factory=InnerPace)

    def begin_again(
        self, quadratic: NonNegativeQuadratic, coefficients: torch.Tensor, where: torch.Tensor
    ) -> Pace:
        """Return the pace of a fit whose coefficients are others ``where`` (latent shape) is 1."""
        elsewhere = 1.0 - where
        previous = quadratic.select(self.previous, elsewhere) + quadratic.select(coefficients, where)
        move = None if self.inner.move is None else quadratic.select(self.inner.move, elsewhere)
        return Pace(previous, self.t, InnerPace(move, self.inner.t))


@dataclasses.dataclass
class Fit:
    """A fitted latent image and how it came about.

    ``coefficients`` is what was fitted, ``transform`` the padded transform
    of the latent image and ``gradient`` that of the gradient of the data term.
    ``pace`` is the momentum with which a fit may go on, and ``unsettled``
    (latent shape) is positive where it should, in ``windows``.
    """

    coefficients: torch.Tensor
    transform: torch.Tensor
    gradient: torch.Tensor
    history: list[dict[str, Any]]
    n_iterations: int
    converged: bool
    pace: Pace | None = None
    unsettled: torch.Tensor | None = None
    windows: list[LocalWindow] | None = None

    def then(self, following: Fit) -> Fit:
        """Return a fit that went on from this one, with both histories."""
        first = self.n_iterations
        later = [{**entry, "iteration": entry["iteration"] + first} for entry in following.history[1:]]
        return dataclasses.replace(
            following, history=self.history + later, n_iterations=first + following.n_iterations
        )


def evaluate(
    operator: ConvolutionOperator, fidelity: HuberFidelity, transform: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Return the data term and its gradient.

    Costs 2 T real transforms; both ``transform`` of the latent image and the
    gradient are padded transforms.

    Raises
    ------
    RestorationError
        The data term is not finite.
    """
    value = torch.zeros((), dtype=torch.float64, device=transform.device)
    lifted = operator.lift(transform)
    total = torch.zeros_like(lifted)
    for which in operator.chunks():
        part, gradient = fidelity.value_and_gradient(operator.predict(lifted, which), which)
        value += part
        operator.back_project(gradient, which, into=total)
    objective = float(value)
    if not math.isfinite(objective):
        raise RestorationError(
            "The objective of ImageMM is not finite; check the scale of image and variance."
        )
    return objective, operator.lower(total)


class HeldOut:
    """Keep the solution that held-out pixels like best.

    Parameters
    ----------
    operator : `ConvolutionOperator`
        Forward model.
    fidelity : `HuberFidelity`
        Data term of the held-out pixels.
    patience : `int`, optional
        Updates without improvement after which to stop.
    """

    def __init__(self, operator: ConvolutionOperator, fidelity: HuberFidelity, *, patience: int = 5) -> None:
        self.operator = operator
        self.fidelity = fidelity
        self.patience = patience
        self.n_pixels = max(1, int((fidelity.inverse_sigma > 0).sum()))
        self.best_loss = math.inf
        self.best: _Solution | None = None
        self.since = 0

    def look(self, solution: _Solution) -> float:
        """Return the loss per held-out pixel of a solution."""
        value = 0.0
        lifted = self.operator.lift(solution[1])
        for which in self.operator.chunks():
            residual = self.fidelity.residual(self.operator.predict(lifted, which), which)
            value += float(self.fidelity.value(residual))
        loss = value / self.n_pixels
        self.since += 1
        if loss < self.best_loss:
            self.best_loss, self.best, self.since = loss, solution, 0
        return loss


class _Monitor:
    """Record objectives and decide when to stop."""

    def __init__(
        self,
        settings: ImageMMSettings,
        fidelity: HuberFidelity,
        progress: ProgressCallback | None,
        held_out: HeldOut | None,
        settling: Settling | None = None,
    ) -> None:
        self.settings = settings
        self.threshold = settings.tolerance * int((fidelity.inverse_sigma > 0).sum())
        self.block = settings.n_block if settings.form == "accelerated" else 1
        self.progress = progress
        self.held_out = held_out
        self.settling = settling
        self.unsettled: torch.Tensor | None = None
        self.windows: list[LocalWindow] | None = None
        self.latest: collections.deque[torch.Tensor] = collections.deque(maxlen=SETTLING_UPDATES + 1)
        self.start = time.perf_counter()
        self.history: list[dict[str, Any]] = []
        self.converged = False

    def record(self, iteration: int, objective: float, solution: _Solution) -> None:
        """Note an update; ``solution`` is what `finish` takes."""
        entry = {"iteration": iteration, "objective": objective}
        if self.held_out is not None:
            entry["held_out"] = self.held_out.look(solution)
        if self.settling is not None:
            self.latest.append(solution[1])
        entry["seconds"] = time.perf_counter() - self.start
        self.history.append(entry)
        if self.progress is not None:
            self.progress(iteration, self.settings.n_iter, objective)

    def stop(self) -> bool:
        """Return whether to stop now."""
        last = self.history[-4:]
        fall = last[0]["objective"] - last[-1]["objective"]
        # Tiles that overlap are to make the same number of updates.
        look = (len(self.history) - 1) % self.block == 0
        if self.threshold > 0 and look and len(last) == 4:
            # What the loss of a whole tile does is none of the business of a place in it.
            self.converged = self._has_settled() if self.settling else fall <= 3 * self.threshold
            if self.windows is not None:
                return True
        if self.held_out is not None and self.held_out.since >= self.held_out.patience:
            self.converged = True
        limit = self.settings.time_limit
        return self.converged or (limit > 0 and time.perf_counter() - self.start > limit)

    def _has_settled(self) -> bool:
        """Return whether no place in the image asks for more; if some do, the others are fixed."""
        assert self.settling is not None
        last = len(self.history) > self.settling.longest
        if len(self.latest) <= SETTLING_UPDATES:
            return last
        self.unsettled = self.settling.unsettled(self.latest)
        if self.unsettled is None:
            return True
        if self.held_out is None:
            # Whether a place goes on to its end must not depend on how many others do.
            self.windows = self.settling.windows(self.unsettled, at_any_cost=last)
        return last

    def finish(self, solution: _Solution, iteration: int) -> Fit:
        """Return the last solution, or the best one for held-out pixels."""
        if self.held_out is not None and self.held_out.best is not None:
            solution = self.held_out.best
        left = self.unsettled if self.windows is not None else None
        return Fit(*solution, self.history, iteration, self.converged, unsettled=left, windows=self.windows)


def fit_accelerated(
    fidelity: HuberFidelity,
    quadratic: NonNegativeQuadratic,
    coefficients: torch.Tensor,
    settings: ImageMMSettings,
    progress: ProgressCallback | None = None,
    held_out: HeldOut | None = None,
    pace: Pace | None = None,
    settling: Settling | None = None,
    free: torch.Tensor | None = None,
) -> Fit:
    """Minimise by accelerated proximal steps in the metric of the PSFs.

    A fit that goes on from another takes its ``pace``. With ``settling`` it
    stops only where that agrees. Only coefficients that are ``free`` (N,)
    change.

    Notes
    -----
    The Huber loss lies below the parabola with the same slope, so a step that
    minimises the quadratic model cannot raise the objective. The
    extrapolated point can, and so can a weight far above the median one; both
    are checked, and taken back if so. The objective therefore never rises.
    """
    operator = quadratic.operator
    n_steps = settings.n_steps or min(max(10, operator.n_exposures), 20)
    transform = quadratic.combine(coefficients)
    objective, gradient = evaluate(operator, fidelity, transform)
    objective += quadratic.penalty(coefficients)
    monitor = _Monitor(settings, fidelity, progress, held_out, settling)
    monitor.record(0, objective, (coefficients, transform, gradient))
    pace = Pace(coefficients) if pace is None else pace
    problem = quadratic
    if free is not None:
        problem = quadratic.only(free)
        pace.inner.freeze(free)
    accepted, damping = coefficients, 1.0
    iteration = 0
    while iteration < settings.n_iter and not monitor.stop():
        iteration += 1
        if settling is not None and monitor.unsettled is not None:
            places = quadratic.spread(settling.with_border(monitor.unsettled)) > 0.0
            free, monitor.unsettled = (places if free is None else free & places), None
            problem = quadratic.only(free)
            pace.inner.freeze(free)
        plain = problem.solve(
            accepted, gradient, n_steps, damping=damping, transform=transform, pace=pace.inner
        )
        if free is not None:
            # What is fixed has gone through the balance and back, which rounds.
            plain, pace.previous = (torch.where(free, p, accepted) for p in (plain, pace.previous))
        beta, following = momentum(pace.t)
        candidate = torch.add(plain, plain - pace.previous, alpha=beta).clamp_min_(0.0)
        for attempt in range(3):
            trial = quadratic.combine(candidate)
            value, slope = evaluate(operator, fidelity, trial)
            value += quadratic.penalty(candidate)
            if value <= objective or beta == 0.0:
                break
            if attempt == 0:
                # Without momentum where that has gone uphill, and if that does not do, anywhere.
                uphill = quadratic.slope(slope) * (candidate - plain) > 0.0
                candidate = torch.where(uphill, plain, candidate)
            else:
                candidate = plain
        if value <= objective:
            accepted, transform, objective, gradient = candidate, trial, value, slope
            pace.previous, pace.t = plain, following
        else:
            # Back to the accepted point, with smaller steps.
            damping *= 2.0
            pace.previous, pace.t = accepted, 1.0
            pace.inner.stop()
        monitor.record(iteration, objective, (accepted, transform, gradient))
        if damping > 1e6:
            monitor.converged = True
            break
    fit = monitor.finish((accepted, transform, gradient), iteration)
    # The update that held-out pixels like best may be an earlier one.
    return dataclasses.replace(fit, pace=pace if held_out is None else None)


def fit_published(
    operator: ConvolutionOperator,
    fidelity: HuberFidelity,
    latent: torch.Tensor,
    settings: ImageMMSettings,
    progress: ProgressCallback | None = None,
    held_out: HeldOut | None = None,
) -> Fit:
    """Run the multiplicative update of the paper.

    ``x <- x clip(sum F' W y / sum F' W F x, 1 / kappa, kappa)``, where W is
    the inverse variance times the Huber weight of the current residual.
    """
    monitor = _Monitor(settings, fidelity, progress, held_out)
    objective, ratio, solution = _published_ratio(operator, fidelity, latent)
    monitor.record(0, objective, solution)
    iteration = 0
    while iteration < settings.n_iter and not monitor.stop():
        iteration += 1
        latent = latent * ratio.clamp_(1.0 / settings.kappa, settings.kappa)
        objective, ratio, solution = _published_ratio(operator, fidelity, latent)
        monitor.record(iteration, objective, solution)
    return monitor.finish(solution, iteration)


def _published_ratio(
    operator: ConvolutionOperator, fidelity: HuberFidelity, latent: torch.Tensor
) -> tuple[float, torch.Tensor, _Solution]:
    transform = operator.transform(latent)
    lifted = operator.lift(transform)
    objective = 0.0
    above: Any = 0.0
    below: Any = 0.0
    for which in operator.chunks():
        model = operator.predict(lifted, which)
        residual = fidelity.residual(model, which)
        objective += float(fidelity.value(residual))
        weight = fidelity.weight(residual) * fidelity.inverse_sigma[which] ** 2
        above = above + operator.back_project(weight * fidelity.image[which], which)
        below = below + operator.back_project(weight * model, which)
    if not math.isfinite(objective):
        raise RestorationError(
            "The objective of ImageMM is not finite; check the scale of image and variance."
        )
    numerator = operator.untransform(operator.lower(above)).clamp_min_(0.0)
    denominator = operator.untransform(operator.lower(below))
    # Rounding of the transforms must not move pixels that no exposure sees.
    seen = denominator > 1e-5 * denominator.max()
    ratio = torch.where(seen, numerator / denominator, torch.ones_like(numerator))
    return objective, ratio, (latent.reshape(-1), transform, torch.zeros_like(transform))
