# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""PSFs that vary: stamps at some positions, as a polynomial of position."""

from __future__ import annotations

__all__ = (
    "MAX_HALO",
    "choose_halo_width",
    "evaluate_psf_basis",
    "fit_psf_basis",
    "move_psf_basis",
    "psf_basis_degree",
    "psf_basis_terms",
    "psf_reach",
)

import math

import numpy as np
import torch

MAX_HALO = 128
"""Largest width of a halo, in latent pixels."""


def psf_basis_terms(u: np.ndarray, v: np.ndarray, degree: int) -> np.ndarray:
    """Return the monomials that multiply the basis images.

    Parameters
    ----------
    u, v : `numpy.ndarray`, shape (n,)
        Positions; the latent image runs from -1 to 1 along x and y.
    degree : `int`
        Largest degree.

    Returns
    -------
    terms : `numpy.ndarray`, shape (n, J)
        1, u, v, u^2, u v, v^2, ... with J = (degree + 1) (degree + 2) / 2.
    """
    u, v = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
    return np.stack([u ** (d - i) * v**i for d in range(degree + 1) for i in range(d + 1)], axis=-1)


def psf_basis_degree(n_basis: int) -> int:
    """Return the degree that a number of basis images stands for.

    Raises
    ------
    ValueError
        The number is not 1, 3, 6, 10, ...
    """
    degree = 0
    while (degree + 1) * (degree + 2) // 2 < n_basis:
        degree += 1
    if (degree + 1) * (degree + 2) // 2 != n_basis:
        raise ValueError(f"{n_basis} basis images do not make a polynomial; 1, 3, 6, 10, ... do.")
    return degree


def evaluate_psf_basis(basis: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return stamps (n, k, k) of a basis (J, k, k) at positions."""
    return np.tensordot(psf_basis_terms(u, v, psf_basis_degree(len(basis))), basis, axes=1)


def fit_psf_basis(
    stamps: np.ndarray, u: np.ndarray, v: np.ndarray, *, degree: int, tolerance: float = 5e-4
) -> tuple[np.ndarray, float]:
    """Represent a PSF by basis images with polynomial coefficients.

    Parameters
    ----------
    stamps : `numpy.ndarray`, shape (n, k, k)
        The PSF at some positions; the sum of each is one.
    u, v : `numpy.ndarray`, shape (n,)
        The positions; see `psf_basis_terms`.
    degree : `int`
        Largest degree to take.
    tolerance : `float`, optional
        A lower degree is taken where it reproduces all stamps to this part of
        their peak.

    Returns
    -------
    basis : `numpy.ndarray`, shape (J, k, k)
        Basis images. The first sums to one, the others to zero.
    error : `float`
        Largest error of a stamp, in units of its peak.

    Notes
    -----
    Directions along which the positions hardly extend get no slope, so that
    an exposure that only touches a tile is not extrapolated across it.
    """
    stamps = np.asarray(stamps, dtype=np.float64)
    peak = stamps.max(axis=(1, 2))
    for order in range(degree + 1):
        terms = psf_basis_terms(u, v, order)
        if order and len(terms) < terms.shape[1]:
            break
        solution = np.linalg.lstsq(terms, stamps.reshape(len(stamps), -1), rcond=1e-3)[0]
        basis = solution.reshape(terms.shape[1], *stamps.shape[1:])
        if order:
            # Least squares of small norm may leave a sum that is not quite one.
            basis[1:] -= basis[1:].sum(axis=(1, 2), keepdims=True) * basis[0] / basis[0].sum()
        basis[0] /= basis[0].sum()
        fitted = np.tensordot(terms, basis, axes=1)
        error = float((np.abs(fitted - stamps).max(axis=(1, 2)) / peak).max())
        if error <= tolerance:
            break
    return basis, error


def move_psf_basis(basis: np.ndarray, scale: tuple[float, float], offset: tuple[float, float]) -> np.ndarray:
    """Return the basis images of the same PSF for other coordinates.

    Parameters
    ----------
    basis : `numpy.ndarray`, shape (J, k, k)
        Basis images for positions u and v.
    scale, offset : `tuple` [ `float`, `float` ]
        ``u = scale[0] * u' + offset[0]`` and ``v = scale[1] * v' + offset[1]``.

    Returns
    -------
    moved : `numpy.ndarray`, shape (J, k, k)
        Basis images for positions u' and v', float64. The PSF at a place is
        the same to rounding, so that parts of one area agree.
    """
    degree = psf_basis_degree(len(basis))
    matrix = np.zeros((len(basis), len(basis)))
    for p, q in ((d - i, i) for d in range(degree + 1) for i in range(d + 1)):
        for a in range(p + 1):
            for b in range(q + 1):
                factor = math.comb(p, a) * scale[0] ** a * offset[0] ** (p - a)
                factor *= math.comb(q, b) * scale[1] ** b * offset[1] ** (q - b)
                matrix[_term(a, b), _term(p, q)] += factor
    return np.tensordot(matrix, np.asarray(basis, dtype=np.float64), axes=1)


def _term(p: int, q: int) -> int:
    """Return the place of u^p v^q among the terms."""
    return (p + q) * (p + q + 1) // 2 + q


def psf_reach(psf: torch.Tensor, fraction: float = 0.01) -> int:
    """Return how far PSFs carry light that matters.

    Parameters
    ----------
    psf : `torch.Tensor`, shape (..., k, k)
        PSFs that sum to one.
    fraction : `float`, optional
        Part of the light that may lie outside.

    Returns
    -------
    reach : `int`
        Half the side of the square that holds all but ``fraction`` of the
        light of every PSF.
    """
    half = psf.shape[-1] // 2
    stamps = psf.reshape(-1, *psf.shape[-2:]).double()
    for reach in range(half):
        inner = stamps[:, half - reach : half + reach + 1, half - reach : half + reach + 1]
        if bool((inner.sum(dim=(1, 2)) >= (1.0 - fraction) * stamps.sum(dim=(1, 2))).all()):
            return reach
    return half


def choose_halo_width(psf: torch.Tensor) -> int:
    """Return how many pixels around a tile should take part.

    Parameters
    ----------
    psf : `torch.Tensor`, shape (..., k, k)
        PSFs of the exposures.

    Returns
    -------
    halo : `int`
        Three times the reach of 98 % of the light, 16 to 128 pixels: what
        lies further off sheds no light that matters, and what it does to the
        solution dies out on the way.
    """
    return min(MAX_HALO, max(16, 3 * psf_reach(psf, 0.02)))
