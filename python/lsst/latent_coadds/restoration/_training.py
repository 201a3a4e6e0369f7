# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training of a network on the exposures that it is to restore."""

from __future__ import annotations

__all__ = ("Training", "TrainingOptions", "apply", "train")

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ._errors import RestorationError
from ._fit import evaluate
from ._member import Member, Twin
from ._operators import ConvolutionOperator
from ._problem import Region, TrainingProblem

ProgressCallback = Callable[[int, int, float], None]

_RENEWAL = 4
"""Steps that see the same known sources."""


@dataclasses.dataclass
class Training:
    """The best latent images of a training, and how they came about.

    ``latents`` and ``rejected`` have an entry for each member.
    """

    latents: list[torch.Tensor]
    rejected: list[torch.Tensor]
    history: list[dict[str, Any]]
    n_iterations: int
    converged: bool


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """Numbers that `train` goes by.

    Attributes
    ----------
    n_iter, learning_rate, warm_up, weight_decay, clip_norm
        Steps, and the usual settings of AdamW with a linear rise and a cosine
        fall of the rate, and clipping of the gradient's norm.
    crop : `int`
        Largest width of the latent image that is used in a step.
    check_every, patience : `int`
        Held-out pixels are looked at so often; after so many looks without
        improvement the training ends.
    time_limit : `float`
        Seconds; 0 means no limit.
    reject_sigma : `float`
        Residual at which a pixel of one exposure is left out after half of
        the steps; 0 leaves out none.
    implants : `float`
        Weight of the error on sources of known light; 0 uses none.
    turns : `int`
        Number of ways, 1 to 8, in which inputs are turned and mirrored.
    average : `float`
        Decay per step of the running mean of the weights, which is what
        held-out pixels judge and what is kept; 0 keeps the weights as they
        are.
    """

    n_iter: int
    learning_rate: float
    warm_up: int
    weight_decay: float
    clip_norm: float
    crop: int
    check_every: int
    patience: int
    time_limit: float
    reject_sigma: float
    implants: float = 0.0
    turns: int = 1
    average: float = 0.0


def train(
    network: nn.Module,
    members: Sequence[Member],
    options: TrainingOptions,
    *,
    generator: torch.Generator,
    progress: ProgressCallback | None = None,
) -> Training:
    """Train a network and keep the weights that held-out pixels like best.

    Parameters
    ----------
    network : `torch.nn.Module`
        Left with its best weights.
    members : `~collections.abc.Sequence` [ `Member` ]
        What to train on; each step takes one of them at random.
    options : `TrainingOptions`
        How to train.
    generator : `torch.Generator`
        Chooses members and places the crops.
    progress : `~collections.abc.Callable`, optional
        Called with (iteration, largest number of iterations, loss).

    Raises
    ------
    RestorationError
        The loss became non-finite three times, each time from the last good
        weights and at a lower rate.
    """
    state = _State(network, members, options, progress)
    crops = _Crops(options.crop)
    twins: dict[int, Twin] = {}
    rate, failures, iteration = options.learning_rate, 0, 0
    optimizer = _make_optimizer(network, rate, options.weight_decay)
    while True:
        if (iteration % options.check_every == 0 or iteration == options.n_iter) and state.check(iteration):
            break
        if iteration % _RENEWAL == 0:
            twins.clear()
        iteration += 1
        _set_rate(optimizer, rate * _schedule(iteration, options.n_iter, options.warm_up))
        chosen = _draw(len(members), generator)
        member = members[chosen]
        if options.implants > 0.0 and member.implant is not None and chosen not in twins:
            twins = {chosen: member.implant(member.problem, generator)}
        operator, region = crops.place(member.problem, generator)
        turn = _draw(options.turns, generator)
        gradient = _Gradient(member, twins.get(chosen), operator, region, turn, options.implants)
        if _step(network, gradient, optimizer, options.clip_norm):
            state.average(iteration)
            continue
        failures += 1
        if failures == 3:
            raise RestorationError("Training diverged three times; check the scale of image and variance.")
        state.restore()
        rate *= 0.3
        optimizer = _make_optimizer(network, rate, options.weight_decay)
    return state.result(iteration)


class _State:
    """The best weights so far, and the record of the way there."""

    def __init__(
        self,
        network: nn.Module,
        members: Sequence[Member],
        options: TrainingOptions,
        progress: ProgressCallback | None,
    ) -> None:
        self.network = network
        self.members = members
        self.options = options
        self.progress = progress
        self.start = time.perf_counter()
        self.history: list[dict[str, Any]] = []
        self.best = _weights(network)
        self.mean = _weights(network)
        self.best_loss = math.inf
        self.since = 0
        self.converged = False
        self.latents: list[torch.Tensor] = []

    def average(self, iteration: int) -> None:
        """Move the mean of the weights towards the present ones."""
        # Early on over fewer steps, so that the first weights are soon forgotten.
        decay = min(self.options.average, iteration / (iteration + 9.0))
        for name, value in self.network.state_dict().items():
            self.mean[name].lerp_(value, 1.0 - decay)

    def restore(self) -> None:
        """Go back to the best weights."""
        self.network.load_state_dict(self.best)
        self.mean = _weights(self.network)

    def check(self, iteration: int) -> bool:
        """Look at the held-out pixels; return whether to end."""
        present = _weights(self.network)
        self.network.load_state_dict(self.mean)
        end = self._judge(iteration)
        self.network.load_state_dict(present)
        return end

    def _judge(self, iteration: int) -> bool:
        options = self.options
        latents = [member.whole(0) for member in self.members]
        half = options.n_iter // 2 // options.check_every * options.check_every
        if options.reject_sigma > 0.0 and iteration == half > 0:
            for member, latent in zip(self.members, latents, strict=True):
                member.reject(latent, options.reject_sigma)
            self.best_loss, self.since = math.inf, 0
        entry = {"iteration": iteration, **_losses(self.members, latents)}
        entry["seconds"] = time.perf_counter() - self.start
        self.history.append(entry)
        if self.progress is not None:
            self.progress(iteration, options.n_iter, entry["objective"])
        better = entry["held_out"] < self.best_loss
        self.since = 0 if better else self.since + 1
        if better:
            self.best_loss, self.latents, self.best = (entry["held_out"], latents, _weights(self.network))
        self.converged = self.since >= options.patience
        late = 0 < options.time_limit < entry["seconds"]
        return iteration == options.n_iter or self.converged or late

    def result(self, iteration: int) -> Training:
        """Load the best weights and return what they give."""
        if not self.latents:
            raise RestorationError("Training gave no finite result; check the scale of image and variance.")
        self.network.load_state_dict(self.best)
        rejected = [member.rejected for member in self.members]
        return Training(self.latents, rejected, self.history, iteration, self.converged)


def apply(member: Member, reject_sigma: float) -> Training:
    """Return what a network makes of a stack without being trained on it.

    Parameters
    ----------
    member : `Member`
        The stack, with the network as it is.
    reject_sigma : `float`
        As in `TrainingOptions`.
    """
    start = time.perf_counter()
    latent = member.whole(None)
    if not bool(torch.isfinite(latent).all()):
        raise RestorationError("The given weights make no finite image of these exposures; train them anew.")
    if reject_sigma > 0.0:
        member.reject(latent, reject_sigma)
    entry = {"iteration": 0, **_losses([member], [latent]), "seconds": time.perf_counter() - start}
    del entry["held_out"]
    return Training([latent], [member.rejected], [entry], 0, True)


def _losses(members: Sequence[Member], latents: Sequence[torch.Tensor]) -> dict[str, float]:
    """Return mean losses per pixel over all members."""
    losses = {}
    for name in ("training", "held_out"):
        terms = [getattr(member.problem, name) for member in members]
        counts = [max(1, int((term.inverse_sigma > 0).sum())) for term in terms]
        values = [
            member.problem.loss(term, latent)
            for member, term, latent in zip(members, terms, latents, strict=True)
        ]
        total = sum(value * count for value, count in zip(values, counts, strict=True))
        losses["objective" if name == "training" else name] = total / sum(counts)
    return losses


def _make_optimizer(network: nn.Module, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=weight_decay)


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _schedule(iteration: int, n_iter: int, warm_up: int) -> float:
    fall = 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * iteration / n_iter))
    return min(1.0, iteration / max(1, warm_up)) * fall


def _draw(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (1,), generator=generator)) if n > 1 else 0


class _Crops:
    """Places of crops, and operators for them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._operators: dict[tuple[int, tuple[int, ...]], ConvolutionOperator] = {}

    def place(
        self, problem: TrainingProblem, generator: torch.Generator
    ) -> tuple[ConvolutionOperator, Region]:
        """Return a random crop, and its operator."""
        full = problem.operator
        # A region of the latent image is no rectangle on exposures with pixels of their own.
        size = self.size if full.sampler is None else max(full.latent_shape)
        shape = tuple(min(n, size) for n in full.latent_shape)
        starts = [
            int(torch.randint(n - m + 1, (1,), generator=generator))
            for n, m in zip(full.latent_shape, shape, strict=True)
        ]
        rows, columns = (slice(s, s + m) for s, m in zip(starts, shape, strict=True))
        if full.n_terms > 1:
            # Its kernels are those of the place.
            return problem.crop((rows, columns)), (rows, columns)
        key = (id(problem.kernels), shape)
        if key not in self._operators:
            self._operators[key] = problem.crop((rows, columns))
        return self._operators[key], (rows, columns)


@dataclasses.dataclass(frozen=True)
class _Gradient:
    """Loss of a region, by its gradient with respect to the latent image."""

    member: Member
    twin: Twin | None
    operator: ConvolutionOperator
    region: Region
    turn: int
    weight: float

    def predict(self) -> torch.Tensor:
        """Return the latent image."""
        source = self.member if self.twin is None else self.twin
        return source.predict(self.region, self.turn)

    def __call__(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the gradient at the latent image."""
        source = self.member if self.twin is None else self.twin
        fidelity = source.problem.cut(self.region)
        _, slope = evaluate(self.operator, fidelity, self.operator.transform(latent))
        gradient = self.operator.untransform(slope)
        if self.twin is not None:
            plain = self.member.predict(self.region, self.turn)
            gradient += self.weight * self.twin.error(latent, plain, self.region)
        return gradient / max(1, int((fidelity.inverse_sigma > 0).sum()))


def _step(
    network: nn.Module, gradient: _Gradient, optimizer: torch.optim.Optimizer, clip_norm: float
) -> bool:
    """Make one step; return whether it was finite."""
    optimizer.zero_grad()
    with torch.enable_grad():
        latent = gradient.predict()
    if not bool(torch.isfinite(latent).all()):
        return False
    latent.backward(gradient(latent.detach()))
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    if not bool(torch.isfinite(norm)):
        return False
    optimizer.step()
    return True
