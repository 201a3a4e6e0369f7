# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""PSFs between and beyond their pixels: splines that can be stretched and moved."""

from __future__ import annotations

__all__ = ("PsfSpline", "stretch_matrix")

import torch

from ._kernels import good_fft_size

_WING_SLOPE = 4.0
"""Beyond its stamp a PSF falls with this power of radius, which is near that
of a Kolmogorov profile.
"""

_REFINEMENT = 2
"""Knots of the spline per pixel of the stamp."""


def stretch_matrix(shape: torch.Tensor) -> torch.Tensor:
    """Return what maps a position on a stretched PSF to one on the original.

    Parameters
    ----------
    shape : `torch.Tensor`, shape (..., 3)
        Logarithm of the size, and two components of shear.

    Returns
    -------
    matrix : `torch.Tensor`, shape (..., 2, 2)
        ``exp(-M)`` with ``M = [[size + e1, e2], [e2, size - e1]]``. The PSF
        ``det(B) f(B r)`` is wider than f by ``exp(size)``, and that of a
        round f has axes a and b with ``(a - b) / (a + b) = tanh |e|``.
    """
    size, e1, e2 = shape.unbind(dim=-1)
    rows = torch.stack([torch.stack([size + e1, e2], -1), torch.stack([e2, size - e1], -1)], -2)
    return torch.linalg.matrix_exp(-rows)


class PsfSpline:
    """A PSF, or the basis images of one that varies, as cubic splines.

    Parameters
    ----------
    psf : `torch.Tensor`, shape (k, k) or (J, k, k)
        Stamps with their centre in the middle pixel; k is odd.

    Notes
    -----
    Stamps are refined by their transforms before the spline is made, so that
    values between pixels are those of a band-limited function: right to 1e-3
    of the peak, if the FWHM is 3 pixels or more.
    """

    def __init__(self, psf: torch.Tensor) -> None:
        stamps = psf.to(torch.float64)
        stamps = stamps[None] if stamps.ndim == 2 else stamps
        self.size = stamps.shape[-1]
        half = self.size // 2
        n = good_fft_size(self.size + 2 * (half // 3 + 4))
        before = (n - self.size) // 2
        wide = _extend(stamps, before, n)
        matrix = _refinement(n).to(psf.device)
        fine = matrix @ wide @ matrix.T
        self._centre = float(_REFINEMENT * (before + half))
        self._n = _REFINEMENT * n
        angle = torch.arange(self._n, dtype=torch.float64, device=psf.device) * (2.0 * torch.pi / self._n)
        response = (2.0 + torch.cos(angle)) / 3.0
        filtered = torch.fft.rfft2(fine, dim=(-2, -1)) / (response[:, None] * response[: self._n // 2 + 1])
        self._knots = torch.fft.irfft2(filtered, s=(self._n, self._n), dim=(-2, -1))

    def knots(self, terms: torch.Tensor | None = None) -> torch.Tensor:
        """Return splines (S, n, n) of the PSF where its terms (S, J) are; of the basis without."""
        return self._knots if terms is None else torch.tensordot(terms, self._knots, dims=1)

    def evaluate(
        self, knots: torch.Tensor, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return values and derivatives along x and y.

        Parameters
        ----------
        knots : `torch.Tensor`, shape (S, n, n)
            What `knots` returned.
        x, y : `torch.Tensor`, shape (S, m)
            Positions in pixels from the centre.

        Returns
        -------
        value, slope_x, slope_y : `torch.Tensor`, shape (S, m)
            Zero far outside of the stamp.
        """
        (column, weights_x, slopes_x), (row, weights_y, slopes_y) = (self._taps(p) for p in (x, y))
        inside = (column >= 0) & (row >= 0) & (column <= self._n - 4) & (row <= self._n - 4)
        offset = torch.arange(len(knots), device=x.device)[:, None] * self._n**2
        base = offset + row.clamp(0, self._n - 4) * self._n + column.clamp(0, self._n - 4)
        flat = knots.reshape(-1)
        value, slope_x, slope_y = (torch.zeros_like(x) for _ in range(3))
        for j in range(4):
            line, slope = torch.zeros_like(x), torch.zeros_like(x)
            for i in range(4):
                knot = flat[base + (j * self._n + i)]
                line.addcmul_(knot, weights_x[i])
                slope.addcmul_(knot, slopes_x[i])
            value.addcmul_(line, weights_y[j])
            slope_x.addcmul_(slope, weights_y[j])
            slope_y.addcmul_(line, slopes_y[j])
        return value * inside, _REFINEMENT * slope_x * inside, _REFINEMENT * slope_y * inside

    def _taps(self, position: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Return the first of four knots, their weights and the derivatives of these."""
        place = _REFINEMENT * position + self._centre
        first = torch.floor(place)
        u = place - first
        v = 1.0 - u
        weights = [
            v**3 / 6.0,
            (3.0 * u**3 - 6.0 * u**2 + 4.0) / 6.0,
            (3.0 * v**3 - 6.0 * v**2 + 4.0) / 6.0,
            u**3 / 6.0,
        ]
        slopes = [
            -0.5 * v**2,
            0.5 * (3.0 * u**2 - 4.0 * u),
            -0.5 * (3.0 * v**2 - 4.0 * v),
            0.5 * u**2,
        ]
        return first.long() - 1, weights, slopes

    def stamps(self, shape: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Return the stamps of the stretched and moved PSF.

        Parameters
        ----------
        shape : `torch.Tensor`, shape (3,)
            See `stretch_matrix`.
        shift : `torch.Tensor`, shape (2,)
            Displacement in x and y.

        Returns
        -------
        stamps : `torch.Tensor`, shape (J, k, k)
            Their sums are not adjusted.
        """
        line = torch.arange(self.size, dtype=torch.float64, device=self._knots.device) - self.size // 2
        y, x = torch.meshgrid(line - shift[1], line - shift[0], indexing="ij")
        matrix = stretch_matrix(shape)
        places = torch.stack([x.reshape(-1), y.reshape(-1)])
        u, v = (matrix @ places)[:, None, :].expand(2, len(self._knots), -1)
        value = self.evaluate(self._knots, u, v)[0] * torch.linalg.det(matrix)
        return value.reshape(-1, self.size, self.size)


def _refinement(n: int) -> torch.Tensor:
    """Return the matrix (2 n, n) of trigonometric interpolation of n samples, an even number."""
    offset = torch.arange(_REFINEMENT * n, dtype=torch.float64)[:, None] / _REFINEMENT - torch.arange(n)
    # Transforms would lose the highest frequency, and with it the samples.
    kernel = torch.sin(torch.pi * offset) / (n * torch.tan(torch.pi * offset / n))
    return torch.where(offset % n == 0.0, torch.ones_like(offset), kernel)


def _extend(stamps: torch.Tensor, before: int, n: int) -> torch.Tensor:
    """Return stamps (J, n, n) that go on beyond their edges as a power of radius."""
    size = stamps.shape[-1]
    half = size // 2
    line = torch.arange(n, dtype=torch.float64, device=stamps.device) - (before + half)
    largest = torch.maximum(line[:, None].abs(), line[None, :].abs())
    scale = (half / largest.clamp_min(1.0)).clamp_max(1.0)
    rows, columns = (torch.round(p * scale).long() + half for p in (line[:, None], line[None, :]))
    return stamps[:, rows, columns] * scale**_WING_SLOPE
