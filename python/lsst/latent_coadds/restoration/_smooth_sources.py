# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Elliptical sources with smooth profiles, fitted to exposures."""

from __future__ import annotations

__all__ = ("SmoothSourceFit", "SmoothSources")

import dataclasses
import math

import torch

from ._fidelity import HuberFidelity
from ._fit import evaluate
from ._kernels import centred_rfft2, gaussian_kernel
from ._peaks import detect_peaks
from ._point_sources import MatchedFilter, PointSources

_STAMP = 64
"""Width (px) of the stamps that sources are drawn and measured on."""

_APART = 3
"""Sources are at least this many pixels apart, plus one."""

_FIRST = 1.5
"""Standard deviation (px) of a source to begin with."""

_LARGEST = 8.0
"""Largest standard deviation (px) that a stamp can hold."""

_LONGEST = (0.7, 0.7)
"""Longest step: of a place, in pixels, and of flux and size, as a part of them."""

_LEAST_SHARE = 0.05
"""Share of the weight that data have on a source at least, as far as steps and errors are concerned."""

_CHUNK = 128
"""Sources whose stamps are in memory at a time."""

_RIDGE = 1e-3
"""Part of the information that is added to make steps and errors finite."""


@dataclasses.dataclass(frozen=True)
class SmoothSources:
    """Elliptical sources on the latent grid.

    Attributes
    ----------
    values : `torch.Tensor`, shape (n, 7)
        Place x and y (px), flux, covariance xx, xy, yy (px^2), and what the
        profile is, float64: t of the transform ``(1 + t q)^(-1 / t)``, where
        q is half of ``k C k`` with the covariance C. At t = 0 that is a
        Gaussian, at 2/3 an exponential profile [1]_.

    References
    ----------
    .. [1] D. N. Spergel, The Astrophysical Journal Supplement Series 191, 58
       (2010).
    """

    values: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def x(self) -> torch.Tensor:
        """Places (n,) along x."""
        return self.values[:, 0]

    @property
    def y(self) -> torch.Tensor:
        """Places (n,) along y."""
        return self.values[:, 1]

    @property
    def flux(self) -> torch.Tensor:
        """Fluxes (n,)."""
        return self.values[:, 2]

    @property
    def points(self) -> PointSources:
        """Points with their places and fluxes."""
        return PointSources(self.x, self.y, self.flux)

    @classmethod
    def choose(cls, profiles: list[SmoothSources], which: torch.Tensor) -> SmoothSources:
        """Return for each source (n,) one of several."""
        values = torch.stack([p.values for p in profiles], dim=1)
        return cls(values[torch.arange(len(which), device=which.device), which])

    def select(self, which: torch.Tensor) -> SmoothSources:
        """Return those for which a tensor (n,) of bool is `True`."""
        return SmoothSources(self.values[which])

    def join(self, other: SmoothSources) -> SmoothSources:
        """Return these sources and others after them."""
        return SmoothSources(torch.cat([self.values, other.values]))

    def split(self) -> list[SmoothSources]:
        """Return these sources in parts whose stamps fit into memory."""
        return [SmoothSources(part) for part in self.values.split(_CHUNK) if len(part)]

    def with_profile(self, profile: float) -> SmoothSources:
        """Return the same sources with another profile."""
        values = self.values.clone()
        values[:, 6] = profile
        return SmoothSources(values)


class SmoothSourceFit:
    """Fits smooth sources to exposures, by steps with the exact gradient.

    Parameters
    ----------
    matched : `MatchedFilter`
        The filter, with the forward model.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    fidelity : `HuberFidelity`
        The exposures.

    Notes
    -----
    All sources are fitted together, but each has its own Fisher information,
    that of the curvature where all exposures have data, times their share of
    the weight. Transforms of stamps are known in closed form.
    """

    def __init__(self, matched: MatchedFilter, spread: float, fidelity: HuberFidelity) -> None:
        self._matched, self._fidelity = matched, fidelity
        self._operator = operator = matched.operator
        shape = (_STAMP, _STAMP)
        kernel = torch.fft.fftshift(torch.fft.irfft2(matched.curvature, s=operator.fft_shape))
        half = (min(_STAMP, *kernel.shape) - 1) // 2
        rows, columns = (slice(n // 2 - half, n // 2 + half + 1) for n in kernel.shape)
        self._curvature = centred_rfft2(kernel[rows, columns], shape).real.double().clamp_min_(0.0)
        self._point = centred_rfft2(gaussian_kernel(spread, 21).to(kernel.device), shape).real.double()
        full, part = (
            2.0 * math.pi * waves(_STAMP, dtype=torch.float64, device=kernel.device)
            for waves in (torch.fft.fftfreq, torch.fft.rfftfreq)
        )
        self._fx, self._fy = part[None], full[:, None]
        # The transform of a real image is stored by half.
        self._weight = torch.full_like(part, 2.0 / _STAMP**2)
        self._weight[0] = self._weight[-1] = 1.0 / _STAMP**2

    def _shapes(self, s: SmoothSources, around: SmoothSources) -> tuple[torch.Tensor, torch.Tensor]:
        """Return transforms (n, k, k) of unit sources on stamps, and the slope of their logarithms with q."""
        fx, fy = self._fx, self._fy
        x, y, _, xx, xy, yy, profile = (v[:, None, None] for v in s.values.unbind(1))
        form = 0.5 * (xx * fx**2 + 2.0 * xy * fx * fy + yy * fy**2)
        base = 1.0 + profile * form
        peaked = profile > 0.0
        value = torch.where(peaked, base ** (-1.0 / profile.clamp_min(1e-3)), torch.exp(-form))
        right, down = (v.round()[:, None, None] for v in (around.x, around.y))
        phase = -((x - right) * fx + (y - down) * fy)
        return torch.polar(value * self._point, phase), -1.0 / base

    def _index(self, s: SmoothSources) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the flat indices (n, k, k) of the pixels of stamps, centre first, and which there are."""
        height, width = self._operator.latent_shape
        line = torch.fft.fftfreq(_STAMP, 1.0 / _STAMP, device=s.values.device).round().long()
        rows = (s.y.round().long()[:, None] + line)[:, :, None]
        columns = (s.x.round().long()[:, None] + line)[:, None, :]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        return rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1), inside

    def light(self, s: SmoothSources) -> torch.Tensor:
        """Return the padded transform of sources at the PSF of the latent image."""
        plane = self._matched.curvature.new_zeros(self._operator.latent_shape)
        for part in s.split():
            index, inside = self._index(part)
            plane.view(-1).index_add_(0, index[inside], self._draw(part)[inside].to(plane))
        return self._operator.transform(plane)

    def _draw(self, s: SmoothSources, around: SmoothSources | None = None) -> torch.Tensor:
        """Return stamps (n, k, k) of sources, or of what is there of them around others."""
        unit = self._shapes(s, s if around is None else around)[0]
        return torch.fft.irfft2(s.flux[:, None, None] * unit, s=(_STAMP, _STAMP))

    def begin(self, signal: torch.Tensor, structure: torch.Tensor, threshold: float) -> SmoothSources:
        """Return sources to begin with at the peaks of filtered data.

        Parameters
        ----------
        signal : `torch.Tensor`
            What `MatchedFilter.signal` returns.
        structure : `torch.Tensor`, shape ``latent_shape``
            1 where sources are looked for, 0 elsewhere.
        threshold : `float`
            Peaks that are lower, in sigma, are no sources.
        """
        matched = self._matched
        height = self._operator.untransform(signal) * matched.flux_error * structure
        y, x = detect_peaks(height, threshold, radius=_APART).unbind(1)
        peak = height[y, x].double() * matched.flux_error
        return self.widen(PointSources(x.double(), y.double(), peak))

    def widen(self, points: PointSources) -> SmoothSources:
        """Return sources to begin with where points are."""
        size = torch.full_like(points.flux, _FIRST**2)
        zero = torch.zeros_like(size)
        flux = points.flux * self._dimming()
        return SmoothSources(torch.stack([points.x, points.y, flux, size, zero, size, zero], dim=1))

    def _dimming(self) -> float:
        """Return the flux of a first source over that of a point with the same peak, for Gaussian PSFs."""
        return 1.0 + 0.5 * _FIRST**2 / self._matched.psf_variance

    def gradient(self, s: SmoothSources, besides: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of the gradient for sources and other light (padded transform)."""
        return evaluate(self._operator, self._fidelity, self.light(s) + besides)[1]

    def improve(self, s: SmoothSources, n_steps: int, besides: torch.Tensor) -> SmoothSources:
        """Return sources moved towards the maximum of the likelihood.

        Parameters
        ----------
        s : `SmoothSources`
            Where to begin.
        n_steps : `int`
            Steps of all parameters but the profile.
        besides : `torch.Tensor`
            Padded transform of other light.
        """
        for _ in range(n_steps if len(s) else 0):
            slope = self._operator.untransform(self.gradient(s, besides))
            s = SmoothSources(torch.cat([self._step(part, slope).values for part in s.split()]))
        return s

    def gain(self, s: SmoothSources, before: SmoothSources, gradient: torch.Tensor) -> torch.Tensor:
        """Return by how much the logarithm of the likelihood (n,) is higher than before.

        Parameters
        ----------
        s, before : `SmoothSources`
            The sources.
        gradient : `torch.Tensor`
            Mean of the gradients for both, which along a parabola is that half-way.
        """
        slope = self._operator.untransform(gradient)
        gain = [s.x.new_zeros(0)]
        for own, other in zip(s.split(), before.split(), strict=True):
            change = self._draw(own) - self._draw(other, own)
            gain.append(-(change * self._read(own, slope)).sum(dim=(1, 2)))
        return torch.cat(gain)

    def _read(self, s: SmoothSources, plane: torch.Tensor) -> torch.Tensor:
        """Return stamps (n, k, k) of a plane of latent shape around sources."""
        index, inside = self._index(s)
        return torch.where(inside, plane.reshape(-1)[index].double(), 0.0)

    def _derivatives(self, s: SmoothSources) -> torch.Tensor:
        """Return the derivatives (n, 6, k, k) of transforms."""
        fx, fy = self._fx, self._fy
        unit, steep = self._shapes(s, s)
        own = s.flux[:, None, None] * unit
        slope = own * steep
        parts = (
            -1j * fx * own,
            -1j * fy * own,
            unit,
            0.5 * fx**2 * slope,
            fx * fy * slope,
            0.5 * fy**2 * slope,
        )
        return torch.stack(parts, dim=1)

    def _information(self, s: SmoothSources, derivatives: torch.Tensor) -> torch.Tensor:
        """Return the Fisher information (n, 6, 6)."""
        scaled = derivatives * (self._weight * self._curvature).sqrt()
        flat = torch.view_as_real(scaled).flatten(2)
        share = self._matched.share(s.points).clamp_min(_LEAST_SHARE)
        return share[:, None, None] * (flat @ flat.mT)

    def _step(self, s: SmoothSources, slope: torch.Tensor) -> SmoothSources:
        """Return sources after a step of all parameters, from the gradient (latent shape)."""
        derivatives = self._derivatives(s)
        left = self._weight * torch.fft.rfft2(self._read(s, slope))
        score = -(derivatives.conj() * left[:, None]).real.sum((2, 3))
        information = self._information(s, derivatives)
        scale, normal = _normalise(information)
        move = scale * torch.linalg.solve(normal, (scale * score)[:, :, None])[:, :, 0]
        size = 1.0 + s.values[:, 3] + s.values[:, 5]
        place, part = _LONGEST
        longest = torch.stack([torch.full_like(size, place)] * 2 + [part * s.flux] + [part * size] * 3, dim=1)
        move = move / (move.abs() / longest).amax(dim=1, keepdim=True).clamp_min(1.0)
        return _follow(s, move, information)

    def root(self, s: SmoothSources) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the Fisher information of sources, and roots of its inverse, (n, 6, 6)."""
        parts = [self._information(part, self._derivatives(part)) for part in s.split()]
        information = torch.cat([s.values.new_zeros(0, 6, 6), *parts])
        scale, normal = _normalise(information)
        return information, scale[:, :, None] * torch.linalg.inv(torch.linalg.cholesky(normal)).mT

    def move(
        self, s: SmoothSources, information: torch.Tensor, root: torch.Tensor, noise: torch.Tensor
    ) -> SmoothSources:
        """Return sources that are off by as much as their errors are.

        Parameters
        ----------
        s : `SmoothSources`
            The sources.
        information, root : `torch.Tensor`, shape (n, 6, 6)
            What `root` returns.
        noise : `torch.Tensor`, shape (n, k, 6)
            Standard Gaussian noise. The first of the k with which a covariance
            is positive definite counts, for to take the nearest one that there
            can be would make lines and points of many.
        """
        moves = noise @ root.mT
        xx, xy, yy = (s.values[:, None, 3:6] + moves[:, :, 3:]).unbind(-1)
        first = ((xx > 0.0) & (xx * yy > xy**2)).int().argmax(dim=1)
        return _follow(s, moves[torch.arange(len(s), device=first.device), first], information)


def _normalise(information: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return units (n, 6) of parameters, and the information (n, 6, 6) in them."""
    scale = information.diagonal(dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    normal = information * scale[:, :, None] * scale[:, None, :]
    return scale, normal + _RIDGE * torch.eye(6).to(normal)


def _follow(s: SmoothSources, move: torch.Tensor, information: torch.Tensor) -> SmoothSources:
    """Return sources moved; where a shape cannot be, place and flux follow the one that can."""
    values = s.values.clone()
    values[:, :6] += move
    shapes = _bound(values[:, 3:6])
    off = (shapes - values[:, 3:6])[:, :, None]
    scale, normal = _normalise(information)
    off = off / scale[:, 3:, None]
    values[:, :3] -= scale[:, :3] * torch.linalg.solve(normal[:, :3, :3], normal[:, :3, 3:] @ off)[:, :, 0]
    values[:, 3:6] = shapes
    values[:, 2].clamp_min_(1e-3 * s.flux.clamp_min(0.0))
    return SmoothSources(values)


def _bound(shapes: torch.Tensor) -> torch.Tensor:
    """Return covariances xx, xy, yy (n, 3) with eigenvalues that there can be."""
    xx, xy, yy = shapes.unbind(1)
    mean, half = 0.5 * (xx + yy), 0.5 * (xx - yy)
    radius = torch.hypot(half, xy)
    large, small = ((mean + sign * radius).clamp(0.0, _LARGEST**2) for sign in (1.0, -1.0))
    mean, ratio = 0.5 * (large + small), 0.5 * (large - small) / radius.clamp_min(1e-12)
    return torch.stack([mean + ratio * half, ratio * xy, mean - ratio * half], dim=1)
