# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Free kernels that stars ask for once size and shear of PSFs are right."""

from __future__ import annotations

__all__ = ("fit_kernels",)

import torch

from ._star_fit import StarFit


def fit_kernels(fit: StarFit, kernels: torch.Tensor, radius: int, sigma: float) -> torch.Tensor:
    """Return kernels with which the PSFs explain the stars better.

    Parameters
    ----------
    fit : `StarFit`
        A fit that has converged.
    kernels : `torch.Tensor`, shape (T, m, m)
        Kernels that its PSFs contain.
    radius : `int`
        Half the width of the kernels to fit.
    sigma : `float`
        Prior of each element: 0 is the kernel that changes nothing.

    Returns
    -------
    kernels : `torch.Tensor`, shape (T, 2 radius + 1, 2 radius + 1)
        They sum to one.
    """
    width = 2 * radius + 1
    result = torch.zeros((len(kernels), width, width), dtype=torch.float64)
    if kernels.shape[-1] == width:
        result[:] = kernels
    else:
        result[:, radius, radius] = 1.0
    offsets = [(i, j) for i in range(width) for j in range(width) if (i, j) != (radius, radius)]
    normal = torch.zeros((len(kernels), len(offsets), len(offsets)), dtype=torch.float64)
    slope = torch.zeros((len(kernels), len(offsets)), dtype=torch.float64)
    for block in fit.stamps:
        t = block.exposure
        model, residual, weight = fit.residual(block)
        changes = torch.stack([fit.shifted(block, j - radius, i - radius) for i, j in offsets], dim=-1)
        changes -= model[..., None]
        normal[t] += torch.einsum("npa,np,npb->ab", changes, weight, changes)
        slope[t] += torch.einsum("npa,np->a", changes, weight * residual)
    elements = torch.stack([result[:, i, j] for i, j in offsets], dim=1)
    normal.diagonal(dim1=1, dim2=2).add_(sigma**-2)
    change = torch.linalg.solve(normal, slope - elements * sigma**-2)
    for a, (i, j) in enumerate(offsets):
        result[:, i, j] += change[:, a]
        result[:, radius, radius] -= change[:, a]
    return result
