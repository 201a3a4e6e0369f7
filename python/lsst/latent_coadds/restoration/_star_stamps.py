# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pixels of exposures around stars."""

from __future__ import annotations

__all__ = ("N_STAR", "StarStamps", "initial_stars", "select_stars")

import dataclasses
from collections.abc import Sequence

import torch

from ._psf_spline import PsfSpline

N_STAR = 6
"""Numbers of a star: size, two of shear, two of place, logarithm of the flux."""


@dataclasses.dataclass(frozen=True)
class StarStamps:
    """One exposure's pixels around stars.

    Attributes
    ----------
    exposure : `int`
        Number of the exposure.
    stars : `torch.Tensor`, shape (n,)
        Numbers of the stars.
    spline : `PsfSpline`
        PSF of the exposure.
    terms : `torch.Tensor`, shape (n, J)
        Terms of the PSF at the stars.
    field : `torch.Tensor`, shape (n, 2)
        Places in the field, -1 to 1 along x and y.
    x, y : `torch.Tensor`, shape (n, p)
        Latent coordinates of the pixels.
    area : `torch.Tensor`, shape (n, p)
        Area of the pixels in latent pixels.
    image, weight : `torch.Tensor`, shape (n, p)
        Light of the stars alone, and its inverse variance, float64.
    """

    exposure: int
    stars: torch.Tensor
    spline: PsfSpline
    terms: torch.Tensor
    field: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    area: torch.Tensor
    image: torch.Tensor
    weight: torch.Tensor


def initial_stars(places: torch.Tensor) -> torch.Tensor:
    """Return points (S, 6) as `StarFit` takes them from x, y and flux (S, 3)."""
    stars = torch.zeros((len(places), N_STAR), dtype=torch.float64, device=places.device)
    stars[:, 3:5], stars[:, 5] = places[:, :2], places[:, 2].log()
    return stars


def select_stars(stamps: Sequence[StarStamps], used: torch.Tensor) -> list[StarStamps]:
    """Return the stamps of some sources, with new numbers.

    Parameters
    ----------
    stamps : `~collections.abc.Sequence` [ `StarStamps` ]
        The data.
    used : `torch.Tensor`, shape (S,), bool
        Which sources to keep.

    Returns
    -------
    selected : `list` [ `StarStamps` ]
        The data of these; exposures without any are left out.
    """
    number = torch.cumsum(used, dim=0) - 1
    selected = []
    for block in stamps:
        keep = used[block.stars]
        if bool(keep.any()):
            planes = ("terms", "field", "x", "y", "area", "image", "weight")
            selected.append(
                dataclasses.replace(
                    block,
                    stars=number[block.stars[keep]],
                    **{name: getattr(block, name)[keep] for name in planes},
                )
            )
    return selected
