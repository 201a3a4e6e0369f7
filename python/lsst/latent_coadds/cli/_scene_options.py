# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("scene_options",)

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from ..simulation import SceneSettings

_HELP = {
    "seed": "Everything random follows from it.",
    "n_visits": "Number of visits.",
    "n_detectors": "Number of detectors side by side.",
    "n_x": "Patches along x.",
    "n_y": "Patches along y.",
    "inner_size": "Side of a patch without its overlap, in pixels.",
}


def scene_options[F: Callable[..., Any]](function: F) -> F:
    """Give a command the options that describe a scene.

    Parameters
    ----------
    function : callable
        Function that takes the values by keyword: ``seed``, ``n_visits``,
        ``n_detectors``, ``n_x``, ``n_y`` and ``inner_size``.

    Returns
    -------
    function : callable
        The same function with click options.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(SceneSettings)}
    for name in reversed(_HELP):
        option = click.option(
            f"--{name.replace('_', '-')}",
            name,
            default=defaults[name],
            show_default=True,
            type=click.IntRange(min=0 if name == "seed" else 1),
            help=_HELP[name],
        )
        function = option(function)
    return function
