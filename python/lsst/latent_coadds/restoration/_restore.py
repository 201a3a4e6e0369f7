# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one entry point of the numeric core."""

from __future__ import annotations

__all__ = ("LEARNED_METHODS", "restore", "train_weights")

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _astroclearnet, _combined
from ._device_share import choose_device
from ._direct import restore_direct
from ._imagemm import restore_imagemm
from ._learned_restorer import Weights, train_network
from ._restoration import Restoration
from ._settings import make_settings
from ._stack import ExposureStack

ProgressCallback = Callable[[int, int, float], None]

_RESTORERS: dict[str, Callable[..., Restoration]] = {
    "direct": restore_direct,
    "imagemm": restore_imagemm,
    "astroclearnet": _astroclearnet.restore_astroclearnet,
    "combined": _combined.restore_combined,
}

_LEARNED = {"astroclearnet": _astroclearnet, "combined": _combined}

LEARNED_METHODS = tuple(_LEARNED)
"""Methods that train a network."""


def restore(
    stack: ExposureStack,
    method: str = "imagemm",
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    progress: ProgressCallback | None = None,
    weights: Weights | None = None,
    **settings: Any,
) -> Restoration:
    """Restore the sky that a stack of exposures has in common.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    method : `str`, optional
        A key of `SETTINGS_CLASSES`.
    device : `str` or `torch.device`, optional
        Where to compute; ``"auto"`` takes CUDA if there is one.
    dtype : `torch.dtype`, optional
        Precision of the computation, float32 or float64.
    generator : `torch.Generator`, optional
        Source of the noise realizations, on the CPU. A fixed seed by default,
        so that equal input gives equal output.
    progress : `~collections.abc.Callable`, optional
        Called with (iteration, largest number of iterations, objective).
    weights : `dict` [ `str`, `torch.Tensor` ], optional
        For methods with a network: weights from `train_weights`,
        `load_weights` or an earlier result, applied without training.
    **settings
        Fields of the settings dataclass of the method.

    Returns
    -------
    restoration : `Restoration`
        The restored image, its variance, its PSF and diagnostics.

    Raises
    ------
    ValueError
        The method is unknown, a setting is out of its limits, or the weights
        belong to another network.
    TypeError
        A setting is unknown, or weights are given to a method without a
        network.
    RestorationError
        The fit diverged.
    """
    chosen = make_settings(method, **settings)
    extra = {}
    if weights is not None:
        _check_learned(method)
        extra["weights"] = weights
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}.")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        moved = stack.to(device=choose_device(device), dtype=dtype)
        return _RESTORERS[method](moved, chosen, generator=generator, progress=progress, **extra)


def train_weights(
    stacks: Sequence[ExposureStack],
    method: str = "astroclearnet",
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    progress: ProgressCallback | None = None,
    weights: Weights | None = None,
    **settings: Any,
) -> Weights:
    """Train one network on several stacks, such as crops of a patch.

    Parameters
    ----------
    stacks : `~collections.abc.Sequence` [ `ExposureStack` ]
        The stacks; their numbers of exposures may differ, except for the
        published form of AstroClearNet.
    method : `str`, optional
        A restorer with a network.
    device, dtype, generator, progress, **settings
        As in `restore`.
    weights : `dict` [ `str`, `torch.Tensor` ], optional
        Weights to start from.

    Returns
    -------
    weights : `dict` [ `str`, `torch.Tensor` ]
        For `restore`.

    Raises
    ------
    ValueError
        There is no stack, a setting is out of its limits, or the weights
        belong to another network.
    TypeError
        The method has no network.
    RestorationError
        Training diverged.
    """
    _check_learned(method)
    if not stacks:
        raise ValueError("There is no stack to train on; give at least one.")
    chosen = make_settings(method, **settings)
    module = _LEARNED[method]
    device = choose_device(device)
    with torch.no_grad():
        return train_network(
            [stack.to(device=device, dtype=dtype) for stack in stacks],
            chosen,
            module.prepare,
            module.training_options(chosen),
            generator=generator or torch.Generator().manual_seed(0),
            weights=weights,
            progress=progress,
        )


def _check_learned(method: str) -> None:
    if method not in _LEARNED:
        raise TypeError(f"Restorer {method!r} has no network; those with one are {', '.join(_LEARNED)}.")
