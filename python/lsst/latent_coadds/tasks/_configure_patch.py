# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("configure_patch",)

from collections.abc import Sequence

import torch

from ..adapters import ExposureReader, PatchGrid
from ..restoration import choose_device
from ._config import BuildLatentCoaddConfig
from ._patch_settings import RestorePatchSettings
from ._resources import choose_max_memory
from ._restorers import Restorer
from ._tile_plan import choose_halo


def configure_patch(
    config: BuildLatentCoaddConfig,
    restorer: Restorer,
    exposures: Sequence[ExposureReader],
    patch: PatchGrid,
    max_memory: float | None = None,
) -> RestorePatchSettings:
    """Take what is configured, and choose what is not.

    Parameters
    ----------
    config : `BuildLatentCoaddConfig`
        Configuration of the task.
    restorer : `Restorer`
        What restores a stack.
    exposures : `~collections.abc.Sequence` [`~lsst.latent_coadds.adapters.ExposureReader`]
        The exposures.
    patch : `~lsst.latent_coadds.adapters.PatchGrid`
        The patch.
    max_memory : `float`, optional
        Memory that the process should stay below, in GiB; by default as
        configured.

    Returns
    -------
    settings : `RestorePatchSettings`
        How to work on the patch.

    Raises
    ------
    RuntimeError
        If a GPU is asked for, and there is none.
    """
    if max_memory is None:
        max_memory = choose_max_memory(config.max_memory)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "config.device is 'cuda', and torch finds no CUDA device; set it to 'auto' or 'cpu'."
        )
    return RestorePatchSettings(
        bad_mask_planes=tuple(config.bad_mask_planes),
        saturated_mask_planes=tuple(config.saturated_mask_planes),
        saturated_fraction=config.saturated_fraction,
        method=config.restorer.name,
        native=_is_native(config, restorer, patch),
        psf_degree=config.psf_degree,
        tile_size=config.tile_size,
        halo=choose_halo(exposures, patch) if config.halo is None else config.halo,
        cell_size=int(config.cell_size * patch.oversampling),
        warping_order=config.warping_order,
        max_invalid_fraction=config.max_invalid_fraction,
        cache_memory=min(config.cache_memory, 0.25 * max_memory),
        max_memory=max_memory,
        max_device_memory=config.max_device_memory,
        n_training_crops=config.n_training_crops,
        training_crop_size=config.training_crop_size,
        initial_weights=config.initial_weights,
        seed=config.seed,
        device=str(choose_device(config.device)),
    )


def _is_native(config: BuildLatentCoaddConfig, restorer: Restorer, patch: PatchGrid) -> bool:
    """Return whether exposures stay on pixels of their own."""
    if config.input_kind == "warps":
        # Pixels of a warp are those of the sky map, not of a finer grid.
        return patch.oversampling != 1
    if config.geometry == "auto":
        return getattr(restorer, "prefers_native", False)
    return config.geometry == "native"
