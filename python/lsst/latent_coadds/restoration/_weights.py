# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Weights of networks in files."""

from __future__ import annotations

__all__ = ("load_weights", "save_weights")

import os
import pickle

import torch

from ._learned_restorer import Weights


def save_weights(weights: Weights, path: str | os.PathLike[str]) -> None:
    """Write the weights of a network to a file.

    Parameters
    ----------
    weights : `dict` [ `str`, `torch.Tensor` ]
        The weights.
    path : `str` or `os.PathLike`
        The file.
    """
    torch.save(dict(weights), path)


def load_weights(path: str | os.PathLike[str]) -> Weights:
    """Read the weights of a network; nothing in the file is executed.

    Parameters
    ----------
    path : `str` or `os.PathLike`
        A file that `save_weights` wrote.

    Returns
    -------
    weights : `dict` [ `str`, `torch.Tensor` ]
        The weights, on the CPU.

    Raises
    ------
    ValueError
        The file holds something else.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{os.fspath(path)} holds no weights; write it with save_weights.") from error
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise ValueError(f"{os.fspath(path)} holds no weights; write it with save_weights.")
    return weights
