# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one entry point of the numeric core."""

from __future__ import annotations

__all__ = ("restore",)

from collections.abc import Callable
from typing import Any

import torch

from ._astroclearnet import restore_astroclearnet
from ._combined import restore_combined
from ._direct import restore_direct
from ._imagemm import restore_imagemm
from ._restoration import Restoration
from ._settings import make_settings
from ._stack import ExposureStack

ProgressCallback = Callable[[int, int, float], None]

_RESTORERS: dict[str, Callable[..., Restoration]] = {
    "direct": restore_direct,
    "imagemm": restore_imagemm,
    "astroclearnet": restore_astroclearnet,
    "combined": restore_combined,
}


def restore(
    stack: ExposureStack,
    method: str = "imagemm",
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    progress: ProgressCallback | None = None,
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
    **settings
        Fields of the settings dataclass of the method.

    Returns
    -------
    restoration : `Restoration`
        The restored image, its variance, its PSF and diagnostics.

    Raises
    ------
    ValueError
        The method is unknown or a setting is out of its limits.
    TypeError
        A setting is unknown.
    RestorationError
        The fit diverged.
    """
    chosen = make_settings(method, **settings)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return _RESTORERS[method](
            stack.to(device=device, dtype=dtype), chosen, generator=generator, progress=progress
        )
