# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Memory: what a restoration takes, what there is, and when it has run out."""

from __future__ import annotations

__all__ = (
    "MemoryModel",
    "choose_tile_size",
    "estimate_memory",
    "is_out_of_memory",
    "peak_memory",
    "resident_memory",
)

import dataclasses
import math
import resource
import sys
from pathlib import Path

import torch


@dataclasses.dataclass(frozen=True)
class MemoryModel:
    """What restoring a stack takes at its peak, stack included.

    Attributes
    ----------
    per_exposure_pixel : `float`
        Bytes for each pixel of each exposure.
    per_pixel : `float`
        Bytes for each pixel of the latent image.
    fixed : `float`
        Bytes besides.
    """

    per_exposure_pixel: float
    per_pixel: float
    fixed: float = 3e8

    def bytes(self, shape: tuple[int, int], n_exposures: int) -> float:
        """Return the peak for a latent image of a shape."""
        pixels = shape[0] * shape[1]
        return self.fixed + pixels * (self.per_pixel + self.per_exposure_pixel * n_exposures)


_MEMORY = {
    "direct": MemoryModel(55.0, 100.0),
    "imagemm": MemoryModel(112.0, 300.0),
    "astroclearnet": MemoryModel(290.0, 2500.0),
    "combined": MemoryModel(260.0, 2500.0),
}


def estimate_memory(method: str) -> MemoryModel:
    """Return what a restorer takes; an unknown one counts as the greediest.

    Parameters
    ----------
    method : `str`
        Name of the restorer.

    Returns
    -------
    model : `MemoryModel`
        Measured on the CPU in float32, with a tenth to spare.
    """
    return _MEMORY.get(method, _MEMORY["combined"])


def choose_tile_size(
    budget: float, n_exposures: int, halo: int, model: MemoryModel, *, smallest: int = 64, largest: int = 1024
) -> int:
    """Return the largest side of a tile that fits in memory.

    Parameters
    ----------
    budget : `float`
        Bytes that a tile may take.
    n_exposures : `int`
        Number of exposures that reach a tile.
    halo : `int`
        Pixels around a tile that take part in its restoration.
    model : `MemoryModel`
        What the restorer takes.
    smallest, largest : `int`, optional
        Limits of the result. The smallest is returned where nothing fits.

    Returns
    -------
    tile_size : `int`
        Side of the tile, without the halo.
    """
    pixels = (budget - model.fixed) / (model.per_pixel + model.per_exposure_pixel * max(1, n_exposures))
    side = math.isqrt(max(0, int(pixels))) - 2 * halo
    return max(smallest, min(largest, side))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has run out.

    Parameters
    ----------
    error : `BaseException`
        What was raised. On the CPU torch raises a plain `RuntimeError`.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text
    )


def peak_memory() -> float:
    """Return the largest resident memory of this process so far, in bytes."""
    return _read_status("VmHWM")


def resident_memory() -> float:
    """Return the resident memory of this process in bytes.

    Where the system does not tell, it is the largest so far.
    """
    return _read_status("VmRSS")


def _read_status(name: str) -> float:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    # Kibibytes everywhere but on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
