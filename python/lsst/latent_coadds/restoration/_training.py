# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Training of a network on the exposures that it is to restore."""

from __future__ import annotations

__all__ = ("Training", "TrainingProblem", "train")

import dataclasses
import math
import time
from collections.abc import Callable
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
        transform = self.operator.transform(latent)
        for which in self.operator.chunks():
            residual = fidelity.residual(self.operator.predict(transform, which), which)
            value += float(fidelity.value(residual))
        return value / max(1, int((fidelity.inverse_sigma > 0).sum()))

    def without(self, rejected: torch.Tensor) -> TrainingProblem:
        """Return the problem without the pixels (T, H, W) that are `True`."""
        training, held_out = (
            HuberFidelity(f.image, f.inverse_sigma.masked_fill(rejected, 0.0), f.delta)
            for f in (self.training, self.held_out)
        )
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
    """The best latent image of a training, and how it came about."""

    latent: torch.Tensor
    rejected: torch.Tensor
    history: list[dict[str, Any]]
    n_iterations: int
    converged: bool


def train(
    network: nn.Module,
    predict: Predictor,
    problem: TrainingProblem,
    *,
    n_iter: int,
    learning_rate: float,
    warm_up: int,
    weight_decay: float,
    clip_norm: float,
    crop: int,
    check_every: int,
    patience: int,
    time_limit: float,
    reject_sigma: float,
    generator: torch.Generator,
    progress: ProgressCallback | None = None,
) -> Training:
    """Train a network and keep the weights that held-out pixels like best.

    Parameters
    ----------
    network : `torch.nn.Module`
        Left with its best weights.
    predict : `~collections.abc.Callable`
        Returns the latent image of a region, with the network as it is.
    problem : `TrainingProblem`
        Data and forward model.
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
    generator : `torch.Generator`
        Places the crops.
    progress : `~collections.abc.Callable`, optional
        Called with (iteration, largest number of iterations, loss).

    Raises
    ------
    RestorationError
        The loss became non-finite three times, each time from the last good
        weights and at a lower rate.
    """
    operator, shape = problem.crop(crop)
    whole = (slice(0, problem.operator.latent_shape[0]), slice(0, problem.operator.latent_shape[1]))
    rate, failures = learning_rate, 0
    optimizer = _make_optimizer(network, rate, weight_decay)
    start = time.perf_counter()
    history: list[dict[str, Any]] = []
    best_loss, best_latent, best_state, since = math.inf, None, _state(network), 0
    iteration, converged = 0, False
    rejected = torch.zeros_like(problem.training.image, dtype=torch.bool)
    half = n_iter // 2 // check_every * check_every
    while True:
        if iteration % check_every == 0 or iteration == n_iter:
            with torch.no_grad():
                latent = predict(whole)
            if reject_sigma > 0.0 and iteration == half > 0:
                rejected = problem.find_outliers(latent, reject_sigma)
                problem, best_loss, since = problem.without(rejected), math.inf, 0
            held_out = problem.loss(problem.held_out, latent)
            entry = {"iteration": iteration, "objective": problem.loss(problem.training, latent)}
            seconds = time.perf_counter() - start
            history.append({**entry, "held_out": held_out, "seconds": seconds})
            if progress is not None:
                progress(iteration, n_iter, entry["objective"])
            since = 0 if held_out < best_loss else since + 1
            if held_out < best_loss:
                best_loss, best_latent, best_state = held_out, latent, _state(network)
            converged = since >= patience
            late = 0 < time_limit < seconds
            if iteration == n_iter or converged or late:
                break
        iteration += 1
        _set_rate(optimizer, rate * _schedule(iteration, n_iter, warm_up))
        region = _place(problem.operator.latent_shape, shape, generator)
        if _step(network, predict, operator, problem.cut(region), region, optimizer, clip_norm):
            continue
        failures += 1
        if failures == 3:
            raise RestorationError("Training diverged three times; check the scale of image and variance.")
        network.load_state_dict(best_state)
        rate *= 0.3
        optimizer = _make_optimizer(network, rate, weight_decay)
    if best_latent is None:
        raise RestorationError("Training gave no finite result; check the scale of image and variance.")
    network.load_state_dict(best_state)
    return Training(best_latent, rejected, history, iteration, converged)


def _make_optimizer(network: nn.Module, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=weight_decay)


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
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
