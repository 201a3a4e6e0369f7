# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("make_whole_field",)

from collections.abc import Sequence

from ..restoration import WholeField
from ._patch_exposure import PatchExposure
from ._patch_psf import pad_kernels


def make_whole_field(exposures: Sequence[PatchExposure], psf_degree: int) -> WholeField | None:
    """Return what the tiles of a patch have in common.

    Parameters
    ----------
    exposures : `~collections.abc.Sequence` [`PatchExposure`]
        Exposures of the patch.
    psf_degree : `int`
        Largest degree of the polynomials that stand for a PSF that varies.

    Returns
    -------
    field : `lsst.latent_coadds.restoration.WholeField` or `None`
        `None` if no exposure has a good pixel.
    """
    psfs, weights, names = [], [], []
    for exposure in exposures:
        if exposure.bbox is None or exposure.n_good == 0:
            continue
        psfs.append(exposure.psf.typical(exposure.bbox, degree=psf_degree))
        # Good pixels on the patch, in its own pixels, and the weight of one of these.
        covered = exposure.n_good / exposure.area
        weights.append(covered * exposure.weight / exposure.area)
        names.append(exposure.reader.name)
    return WholeField(pad_kernels(psfs), weights, names) if psfs else None
