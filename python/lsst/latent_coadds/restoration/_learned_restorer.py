# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restorers that train a network: what they have in common."""

from __future__ import annotations

__all__ = ("Preparation", "Respond", "Weights", "restore_learned", "train_network")

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ._collapse import check_not_empty
from ._fidelity import HuberFidelity
from ._learned import Output, Response, describe
from ._member import Member, Twin
from ._points_apart import PointsApart
from ._problem import Region, TrainingProblem
from ._proximal import NonNegativeQuadratic
from ._restoration import Restoration
from ._stack import ExposureStack
from ._training import Training, TrainingOptions, apply, train

Weights = dict[str, torch.Tensor]
ProgressCallback = Callable[[int, int, float], None]
Respond = Callable[[nn.Module, HuberFidelity, torch.Tensor], Response]


@dataclasses.dataclass
class Preparation:
    """A stack made ready for a network.

    Attributes
    ----------
    problem : `TrainingProblem`
        Data, the held-out ones apart, and forward model.
    rejected : `torch.Tensor` of bool, shape (T, H, W)
        Pixels that are left out from the start.
    make_network : `~collections.abc.Callable`
        Returns a network with its first weights.
    predict : `~collections.abc.Callable`
        Returns the latent image of a region, from the network, for inputs
        turned in one of eight ways, or the mean of all.
    respond : `~collections.abc.Callable`
        Returns what the network makes of the data of another data term, of
        whose sky the padded transform without points is given.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    quadratic : `NonNegativeQuadratic`
        The problem, to find sources with.
    output : `Output`
        From a latent image to the result.
    psf : `torch.Tensor`, shape (k, k)
        PSF of the result.
    timings : `dict` [ `str`, `float` ]
        Seconds by name of the stage.
    implant : `~collections.abc.Callable`, optional
        Returns a `Twin` for a network, a problem and a random generator.
    apart : `PointsApart`, optional
        Points that were taken out of the data.
    start : `dict`, optional
        Weights that training begins with, if they are those of such a
        network.
    """

    problem: TrainingProblem
    rejected: torch.Tensor
    make_network: Callable[[], nn.Module]
    predict: Callable[[nn.Module, Region, int | None], torch.Tensor]
    respond: Respond
    spread: float
    quadratic: NonNegativeQuadratic
    output: Output
    psf: torch.Tensor
    timings: dict[str, float]
    implant: Callable[[nn.Module, TrainingProblem, torch.Generator], Twin] | None = None
    apart: PointsApart | None = None
    start: Weights | None = None

    def member(self, network: nn.Module) -> Member:
        """Return the stack as one that a network can be trained on."""
        implant = None if self.implant is None else functools.partial(self.implant, network)
        return Member(functools.partial(self.predict, network), self.problem, self.rejected, implant)


Prepare = Callable[[ExposureStack, Any, torch.Generator | None], Preparation]
"""Makes a stack ready; without a generator no pixels are held out."""


def _make_network(preparation: Preparation, weights: Weights | None, generator: torch.Generator) -> nn.Module:
    """Return a network with its first weights, or with those given.

    Raises
    ------
    ValueError
        The weights are those of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        network = preparation.make_network()
    if weights is None and preparation.start is not None and _fits(network, preparation.start):
        weights = preparation.start
    if weights is not None:
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                "The weights do not fit the network of these settings and exposures; use those that were "
                f"trained with the same form, width and depth ({error})."
            ) from error
    return network


def _fits(network: nn.Module, weights: Weights) -> bool:
    return {n: v.shape for n, v in network.state_dict().items()} == {n: v.shape for n, v in weights.items()}


def train_network(
    stacks: Sequence[ExposureStack],
    settings: Any,
    prepare: Prepare,
    options: TrainingOptions,
    *,
    generator: torch.Generator,
    weights: Weights | None = None,
    progress: ProgressCallback | None = None,
) -> Weights:
    """Train one network on several stacks, such as parts of a patch.

    Parameters
    ----------
    stacks : `~collections.abc.Sequence` [ `ExposureStack` ]
        The stacks.
    settings : dataclass
        Settings of the restorer.
    prepare : `~collections.abc.Callable`
        Makes the `Preparation` of a stack.
    options : `TrainingOptions`
        How to train.
    generator : `torch.Generator`
        Source of everything random, on the CPU.
    weights : `dict`, optional
        Weights to start from.
    progress : `~collections.abc.Callable`, optional
        See `restore`.

    Returns
    -------
    weights : `dict` [ `str`, `torch.Tensor` ]
        Weights that the held-out pixels of all stacks like best, on the CPU.
    """
    preparations = [prepare(stack, settings, generator) for stack in stacks]
    network = _make_network(preparations[0], weights, generator)
    members = [preparation.member(network) for preparation in preparations]
    result = train(network, members, options, generator=generator, progress=progress)
    for preparation, member, latent in zip(preparations, members, result.latents, strict=True):
        check_not_empty(member.problem, preparation.quadratic, latent)
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def restore_learned(
    stack: ExposureStack,
    settings: Any,
    prepare: Prepare,
    options: TrainingOptions,
    method: str,
    *,
    generator: torch.Generator,
    weights: Weights | None = None,
    progress: ProgressCallback | None = None,
) -> Restoration:
    """Restore a stack with a network.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    settings, prepare, options, generator, progress
        As in `train_network`.
    method : `str`
        Name of the restorer.
    weights : `dict`, optional
        Weights of a trained network, which is applied as it is. Without them
        a network is trained on this stack.
    """
    timings: dict[str, float] = {}
    trained: Training | None = None
    if weights is None:
        start = time.perf_counter()
        preparation = prepare(stack, settings, generator)
        network = _make_network(preparation, None, generator)
        trained = train(
            network, [preparation.member(network)], options, generator=generator, progress=progress
        )
        weights = {name: value.detach() for name, value in network.state_dict().items()}
        timings["network"] = time.perf_counter() - start
    # The result is made of all pixels, those that were held out included.
    preparation = prepare(stack, settings, None)
    network = _make_network(preparation, weights, generator)
    member = preparation.member(network)
    result = apply(member, options.reject_sigma)
    check_not_empty(member.problem, preparation.quadratic, result.latents[0])
    if trained is not None:
        result = dataclasses.replace(trained, latents=result.latents, rejected=result.rejected)
    restoration = describe(
        stack,
        preparation.quadratic,
        preparation.output,
        result,
        lambda fidelity, rest: preparation.respond(network, fidelity, rest),
        apart=preparation.apart,
        spread=preparation.spread,
        settings=settings,
        method=method,
        psf=preparation.psf,
        timings=timings | preparation.timings,
        generator=generator,
    )
    restoration.weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    return restoration
