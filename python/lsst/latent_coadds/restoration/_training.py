# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training of a network on the exposures that it is to restore."""

from __future__ import annotations

__all__ = ("Member", "Training", "TrainingOptions", "TrainingProblem", "apply", "train")

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ._errors import RestorationError
from ._fidelity import HuberFidelity
from ._fit import evaluate
from ._operators import ConvolutionOperator
from ._rejection import reject_outliers

ProgressCallback = Callable[[int, int, float], None]
Region = tuple[slice, slice]
Predictor = Callable[[Region], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class TrainingProblem:
    """What is to be fitted, and what is held out.

    Attributes
    ----------
    kernels : `torch.Tensor`, shape (T, k, k)
        Kernels of the forward model.
    operator : `ConvolutionOperator`
        The forward model of whole exposures.
    training, held_out : `HuberFidelity`
        Data terms of two disjoint sets of pixels.
    """

    kernels: torch.Tensor
    operator: ConvolutionOperator
    training: HuberFidelity
    held_out: HuberFidelity

    def loss(self, fidelity: HuberFidelity, latent: torch.Tensor) -> float:
        """Return the mean loss per pixel of a latent image."""
        value = 0.0
        lifted = self.operator.lift(self.operator.transform(latent))
        for which in self.operator.chunks():
            residual = fidelity.residual(self.operator.predict(lifted, which), which)
            value += float(fidelity.value(residual))
        return value / max(1, int((fidelity.inverse_sigma > 0).sum()))

    def without(self, rejected: torch.Tensor) -> TrainingProblem:
        """Return the problem without the pixels (T, H, W) that are `True`."""
        training, held_out = self.training.without(rejected), self.held_out.without(rejected)
        return dataclasses.replace(self, training=training, held_out=held_out)

    def find_outliers(self, latent: torch.Tensor, n_sigma: float) -> torch.Tensor:
        """Return what of single exposures (T, H, W) a latent image lacks."""
        transform = self.operator.transform(latent)
        fidelity = HuberFidelity(
            self.training.image,
            self.training.inverse_sigma + self.held_out.inverse_sigma,
            self.training.delta,
        )
        return reject_outliers(self.operator, fidelity, transform, n_sigma)

    def crop(self, size: int) -> tuple[ConvolutionOperator, tuple[int, int]]:
        """Return the operator for crops, and the shape of a latent crop."""
        margin = self.operator.margin
        height, width = (min(n, size) for n in self.operator.latent_shape)
        if (height, width) == self.operator.latent_shape:
            return self.operator, (height, width)
        shape = (height - 2 * margin, width - 2 * margin)
        return ConvolutionOperator(self.kernels, shape, margin=margin), (height, width)

    def cut(self, region: Region) -> HuberFidelity:
        """Return the training data of a region of the latent image."""
        margin = self.operator.margin
        rows, columns = (slice(s.start, s.stop - 2 * margin) for s in region)
        full = self.training
        return HuberFidelity(full.image[:, rows, columns], full.inverse_sigma[:, rows, columns], full.delta)


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


@dataclasses.dataclass
class Member:
    """One of the stacks that a network is trained on.

    Attributes
    ----------
    predict : `~collections.abc.Callable`
        Returns the latent image of a region, with the network as it is.
    problem : `TrainingProblem`
        Data and forward model.
    rejected : `torch.Tensor` of bool, shape (T, H, W)
        Pixels that are left out.
    """

    predict: Predictor
    problem: TrainingProblem
    rejected: torch.Tensor

    def whole(self) -> torch.Tensor:
        """Return the whole latent image."""
        height, width = self.problem.operator.latent_shape
        with torch.no_grad():
            return self.predict((slice(0, height), slice(0, width)))

    def reject(self, latent: torch.Tensor, n_sigma: float) -> None:
        """Leave out what of single exposures a latent image lacks."""
        found = self.problem.find_outliers(latent, n_sigma)
        self.rejected = self.rejected | found
        self.problem = self.problem.without(found)


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
    crops = [member.problem.crop(options.crop) for member in members]
    rate, failures, iteration = options.learning_rate, 0, 0
    optimizer = _make_optimizer(network, rate, options.weight_decay)
    while True:
        if (iteration % options.check_every == 0 or iteration == options.n_iter) and state.check(iteration):
            break
        iteration += 1
        _set_rate(optimizer, rate * _schedule(iteration, options.n_iter, options.warm_up))
        chosen = int(torch.randint(len(members), (1,), generator=generator)) if len(members) > 1 else 0
        member, (operator, shape) = members[chosen], crops[chosen]
        region = _place(member.problem.operator.latent_shape, shape, generator)
        data = member.problem.cut(region)
        if _step(network, member.predict, operator, data, region, optimizer, options.clip_norm):
            continue
        failures += 1
        if failures == 3:
            raise RestorationError("Training diverged three times; check the scale of image and variance.")
        network.load_state_dict(state.best)
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
        self.best_loss = math.inf
        self.since = 0
        self.converged = False
        self.latents: list[torch.Tensor] = []

    def check(self, iteration: int) -> bool:
        """Look at the held-out pixels; return whether to end."""
        options = self.options
        latents = [member.whole() for member in self.members]
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
            self.best_loss, self.latents, self.best = entry["held_out"], latents, _weights(self.network)
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
    latent = member.whole()
    if not bool(torch.isfinite(latent).all()):
        raise RestorationError("The given weights make no finite image of these exposures; train them anew.")
    if reject_sigma > 0.0:
        member.reject(latent, reject_sigma)
    entry = {"iteration": 0, **_losses([member], [latent]), "seconds": time.perf_counter() - start}
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


def _place(full: tuple[int, int], shape: tuple[int, int], generator: torch.Generator) -> Region:
    starts = [
        int(torch.randint(n - m + 1, (1,), generator=generator)) for n, m in zip(full, shape, strict=True)
    ]
    rows, columns = (slice(s, s + m) for s, m in zip(starts, shape, strict=True))
    return rows, columns


def _step(
    network: nn.Module,
    predict: Predictor,
    operator: ConvolutionOperator,
    fidelity: HuberFidelity,
    region: Region,
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
) -> bool:
    """Make one step; return whether it was finite."""
    optimizer.zero_grad()
    with torch.enable_grad():
        latent = predict(region)
    if not bool(torch.isfinite(latent).all()):
        return False
    _, slope = evaluate(operator, fidelity, operator.transform(latent.detach()))
    n_pixels = max(1, int((fidelity.inverse_sigma > 0).sum()))
    latent.backward(operator.untransform(slope) / n_pixels)
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    if not bool(torch.isfinite(norm)):
        return False
    optimizer.step()
    return True
