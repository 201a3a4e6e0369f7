# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""PSFs between and beyond their pixels: splines that can be stretched, moved, and given other wings."""

from __future__ import annotations

__all__ = ("PsfSpline", "stretch_matrix", "wing_scale")

import math

import torch

from ._kernels import FWHM_PER_SIGMA, good_fft_size

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


def wing_scale(
    square: torch.Tensor, log_wing: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return by how much a radius is scaled so that a PSF gets other wings.

    Parameters
    ----------
    square : `torch.Tensor`
        Square of the radius in units of the FWHM, u.
    log_wing : `torch.Tensor`, scalar
        Logarithm of the exponent, w.

    Returns
    -------
    scale : `torch.Tensor`, shape of ``square``
        q with ``q^2 = ((1 + u)^w - 1) / (w u)``: one in the middle, so that
        the core stays. A Moffat profile ``(1 + u)^-b`` at ``q r`` has nearly
        the exponent ``w b``, and so has a Gaussian, of infinite b. The
        radius grows with r for any w, so that the PSF stays monotonic and
        positive.
    along, change : `torch.Tensor`, shape of ``square``
        Derivatives of q with respect to u and to ``log_wing``.
    """
    w = log_wing.exp()
    u = square.clamp_min(1e-3)
    power = torch.exp(w * torch.log1p(u))
    value = (power - 1.0) / (w * u)
    slope = (power / (1.0 + u) - value) / u
    change = power * torch.log1p(u) / u - value
    # Near the centre the first terms of the series.
    near = square < 1e-3
    second = (w - 1.0) * (w - 2.0) / 6.0
    value = torch.where(near, 1.0 + square * (0.5 * (w - 1.0) + second * square), value)
    slope = torch.where(near, 0.5 * (w - 1.0) + 2.0 * second * square, slope)
    change = torch.where(near, 0.5 * w * square, change)
    root = value.sqrt()
    return root, 0.5 * slope / root, 0.5 * change / root


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
        power = float((stamps[0] ** 2).sum() / stamps[0].sum() ** 2)
        self.fwhm = FWHM_PER_SIGMA / math.sqrt(4.0 * math.pi * power)
        """FWHM of a Gaussian with the same sum of squares, in pixels."""
        self._rounding = _rounding(stamps[0], self.fwhm)

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

    def change(
        self,
        knots: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        shape: torch.Tensor,
        log_wing: torch.Tensor,
        moved: tuple[float, float] = (0.0, 0.0),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values of the changed PSF, and their derivatives.

        Parameters
        ----------
        knots : `torch.Tensor`, shape (S, n, n)
            What `knots` returned.
        x, y : `torch.Tensor`, shape (S, m)
            Positions in pixels from the centre.
        shape : `torch.Tensor`, shape (S, 3)
            See `stretch_matrix`.
        log_wing : `torch.Tensor`, scalar
            See `wing_scale`.
        moved : `tuple` [ `float`, `float` ], optional
            By how much f is moved along x and y.

        Returns
        -------
        value : `torch.Tensor`, shape (S, m)
            ``det(B) f(q B r)``; its sum is not adjusted.
        changes : `torch.Tensor`, shape (S, 7, m)
            Derivatives with respect to the shape, the place of the PSF along
            x and y, the logarithm of its flux, and ``log_wing``.
        """
        matrix = stretch_matrix(shape)
        u = matrix[:, 0, :1] * x + matrix[:, 0, 1:] * y
        v = matrix[:, 1, :1] * x + matrix[:, 1, 1:] * y
        square, round_u, round_v = self._round(u, v)
        scale, along, change = wing_scale(square, log_wing)
        if float(log_wing) == 0.0:
            scale, along = torch.ones_like(u), torch.zeros_like(u)
        value, slope_u, slope_v = self.evaluate(knots, scale * u - moved[0], scale * v - moved[1])
        outward = slope_u * u + slope_v * v
        along = (2.0 / self.fwhm**2) * along * outward
        slope_u, slope_v = scale * slope_u + along * round_u, scale * slope_v + along * round_v
        slope_x = matrix[:, 0, :1] * slope_u + matrix[:, 1, :1] * slope_v
        slope_y = matrix[:, 0, 1:] * slope_u + matrix[:, 1, 1:] * slope_v
        along_x, along_y = slope_x * x, slope_y * y
        changes = [
            -2.0 * value - along_x - along_y,
            along_y - along_x,
            -(slope_x * y + slope_y * x),
            -slope_x,
            -slope_y,
            value,
            outward * change,
        ]
        determinant = torch.linalg.det(matrix)[:, None]
        return determinant * value, determinant[..., None] * torch.stack(changes, dim=1)

    def stamps(
        self, shape: torch.Tensor, shift: torch.Tensor, log_wing: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the stamps of the changed and moved PSF.

        Parameters
        ----------
        shape : `torch.Tensor`, shape (3,)
            See `stretch_matrix`.
        shift : `torch.Tensor`, shape (2,)
            Displacement in x and y.
        log_wing : `torch.Tensor`, scalar, optional
            See `wing_scale`.

        Returns
        -------
        stamps : `torch.Tensor`, shape (J, k, k)
            Their sums are not adjusted.
        """
        x, y = (p - d for p, d in zip(self._grid(), shift, strict=True))
        matrix = stretch_matrix(shape)
        u, v = (matrix @ torch.stack([x, y]))[:, None, :]
        if log_wing is not None and float(log_wing) != 0.0:
            scale = wing_scale(self._round(u, v)[0], log_wing)[0]
            u, v = scale * u, scale * v
        value = self.evaluate(self._knots, *(p.expand(len(self._knots), -1) for p in (u, v)))[0]
        return (value * torch.linalg.det(matrix)).reshape(-1, self.size, self.size)

    def sums(
        self, terms: torch.Tensor, shape: torch.Tensor, log_wing: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sums (S,) of stamps of the changed PSF, and their derivatives (S, 7) over the sums.

        Parameters
        ----------
        terms : `torch.Tensor`, shape (S, J)
            Terms of a PSF that varies.
        shape : `torch.Tensor`, shape (S, 3)
            See `stretch_matrix`.
        log_wing : `torch.Tensor`, scalar
            See `wing_scale`.
        """
        if bool((shape == shape[:1]).all()):
            # Terms that vary carry no flux.
            knots, shape = self._knots[:1], shape[:1]
        else:
            knots = self.knots(terms)
        x, y = (p.expand(len(shape), -1) for p in self._grid())
        value, changes = self.change(knots, x, y, shape, log_wing)
        total = value.sum(dim=1)
        slopes = changes.sum(dim=2) / total[:, None]
        # What moves or multiplies the whole PSF is no matter of its stamp.
        slopes[:, 3:6] = 0.0
        return total.expand(len(terms)), slopes.expand(len(terms), -1)

    def unit_stamp(self, shape: torch.Tensor, log_wing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the changed PSF (k^2,) in the middle of the field, and its derivatives (7, k^2).

        Its sum is one, whatever a change moves across the edges.
        """
        x, y = (p[None] for p in self._grid())
        value, changes = self.change(self._knots[:1], x, y, shape[None], log_wing)
        total = value.sum()
        slopes = changes.sum(dim=2, keepdim=True) / total
        changes = (changes - slopes * value[:, None]) / total
        return value[0] / total, changes[0]

    def _round(self, u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return squares of radii along the axes of the PSF, in units of the FWHM, and half their slopes.

        So that wings that change leave the ellipticity.
        """
        matrix = self._rounding
        round_u, round_v = matrix[0, 0] * u + matrix[0, 1] * v, matrix[1, 0] * u + matrix[1, 1] * v
        return (u * round_u + v * round_v) / self.fwhm**2, round_u, round_v

    def _grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x and y (k^2,) of the pixels of a stamp."""
        line = torch.arange(self.size, dtype=torch.float64, device=self._knots.device) - self.size // 2
        y, x = torch.meshgrid(line, line, indexing="ij")
        return x.reshape(-1), y.reshape(-1)


def _rounding(stamp: torch.Tensor, fwhm: float) -> torch.Tensor:
    """Return the matrix (2, 2) of determinant one whose ellipses are those of a PSF (k, k).

    From moments with a Gaussian weight of their own shape.
    """
    line = torch.arange(stamp.shape[-1], dtype=torch.float64, device=stamp.device) - stamp.shape[-1] // 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([x.reshape(-1), y.reshape(-1)])
    inverse = torch.eye(2, dtype=torch.float64, device=stamp.device)
    for _ in range(8):
        distance = (places * (inverse @ places)).sum(dim=0) * (FWHM_PER_SIGMA / fwhm) ** 2
        light = stamp.reshape(-1) * torch.exp(-0.5 * distance)
        moments = (light * places) @ places.T / light.sum()
        determinant = torch.linalg.det(moments)
        if not float(determinant) > 0.0:
            return torch.eye(2, dtype=torch.float64, device=stamp.device)
        # A Gaussian times its own weight has half of its moments, and so the same axes.
        inverse = torch.linalg.inv(moments) * determinant.sqrt()
    return inverse


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
