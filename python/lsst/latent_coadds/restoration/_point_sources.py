# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Point sources, found and measured with a matched filter."""

from __future__ import annotations

__all__ = ("MatchedFilter", "PointSources")

import dataclasses
import math

import torch

from ._kernels import centred_rfft2, gaussian_kernel, value_at_origin
from ._peaks import detect_peaks
from ._proximal import NonNegativeQuadratic

_TAPS = 5
"""Half-width in pixels of the kernel that puts a point between pixels."""

_CLOSEST = 3
"""Points of one round are at least this many pixels apart, plus one."""

_STEPS = 5
"""Times that positions and fluxes are improved together in a round."""

_RELAXATION = 0.8
"""Part of a step that is made: overlapping points would overshoot."""

_SUSPICION = 0.02
"""Part of its flux by which the residual of a point may deviate: what PSFs may be wrong by."""


@dataclasses.dataclass(frozen=True)
class PointSources:
    """Positions on the latent grid and fluxes, float64 tensors (n,)."""

    x: torch.Tensor
    y: torch.Tensor
    flux: torch.Tensor

    def __len__(self) -> int:
        return len(self.x)

    def select(self, which: torch.Tensor) -> PointSources:
        """Return those for which a tensor (n,) of bool is `True`."""
        return PointSources(self.x[which], self.y[which], self.flux[which])


class MatchedFilter:
    """All exposures together, filtered with their PSFs.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The curvature of the data term.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.

    Notes
    -----
    For a source of flux F at p in data y with weights W the filtered data
    ``sum F' W y`` have the mean ``F K(. - p)``, where K is the sum of the
    weighted autocorrelations of the PSFs, and their noise has the covariance
    K. So ``1 / sqrt(K(0))`` is the Cramer-Rao error of an isolated star.
    """

    def __init__(self, quadratic: NonNegativeQuadratic, spread: float) -> None:
        self.operator = quadratic.operator
        shape = self.operator.fft_shape
        size = min(21, (min(shape) - 1) // 2 * 2 + 1)
        kernel = gaussian_kernel(spread, size).to(quadratic.curvature.device)
        self._curvature = quadratic.curvature
        self._point = centred_rfft2(kernel, shape).real.to(quadratic.curvature)
        self._response = self._point**2 * quadratic.curvature
        height, width = shape
        like = quadratic.curvature
        self._waves = (
            2j * math.pi * torch.fft.rfftfreq(width)[None].to(like),
            2j * math.pi * torch.fft.fftfreq(height)[:, None].to(like),
        )
        self._precision = float(value_at_origin(self._response, shape))
        bend = [float(-value_at_origin((self._response * w**2).real, shape)) for w in self._waves]
        self._bend = (bend[0], bend[1])

    @property
    def flux_error(self) -> float:
        """Error of the flux of an isolated star where no pixel is masked."""
        return self._precision**-0.5

    def signal(self, transform: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of the filtered data.

        Parameters
        ----------
        transform, gradient : `torch.Tensor`
            Padded transforms of a latent image and of the gradient there.
            The image stands for what is masked and what is an outlier.
        """
        return self._point * (self._curvature * transform - gradient)

    def light(self, points: PointSources) -> torch.Tensor:
        """Return the padded transform of points at the PSF of the latent image."""
        return self._point * self._place(points)

    def place_error(self, points: PointSources) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the Cramér-Rao errors of x and y of isolated points, in pixels."""
        flux = points.flux.clamp_min(self.flux_error)
        return tuple(1.0 / (flux * math.sqrt(bend)) for bend in self._bend)  # type: ignore[return-value]

    def render(self, points: PointSources, fwhm: float, widening: torch.Tensor | None = None) -> torch.Tensor:
        """Return the image (H, W) of points at a Gaussian PSF.

        Parameters
        ----------
        points : `PointSources`
            The points.
        fwhm : `float`
            FWHM of the PSF in latent pixels.
        widening : `torch.Tensor`, shape (n,), optional
            By how much the variance (px^2 per axis) of each image exceeds that
            of the PSF, to first order.
        """
        shape = self.operator.fft_shape
        size = min(2 * math.ceil(3.0 * fwhm) + 1, (min(shape) - 1) // 2 * 2 + 1)
        psf = centred_rfft2(gaussian_kernel(fwhm, size).to(points.x.device), shape).real.to(self._point)
        light = self._place(points)
        if widening is not None:
            laplacian = sum((wave**2).real for wave in self._waves)
            wide = PointSources(points.x, points.y, 0.5 * widening * points.flux)
            light = light + laplacian * self._place(wide)
        image = self.operator.untransform(psf * light)
        return self.operator.crop(image)

    def significance(self, signal: torch.Tensor) -> torch.Tensor:
        """Return filtered data over their noise, ``latent_shape``."""
        return self.operator.untransform(signal) * self.flux_error

    def residual(self, signal: torch.Tensor, points: PointSources) -> torch.Tensor:
        """Return the padded transform of filtered data without points."""
        return signal - self._response * self._place(points)

    def find(
        self,
        signal: torch.Tensor,
        *,
        threshold: float = 4.0,
        largest_residual: float = 4.0,
        n_rounds: int = 2,
    ) -> PointSources:
        """Find what point sources explain.

        Parameters
        ----------
        signal : `torch.Tensor`
            What `signal` returns.
        threshold : `float`, optional
            Peaks that are lower, in sigma, are no sources.
        largest_residual : `float`, optional
            What differs more than that, in sigma, from points nearby is not
            taken for a point.
        n_rounds : `int`, optional
            Peaks in what the points of earlier rounds leave join them.

        Returns
        -------
        points : `PointSources`
            Sources, with positions and fluxes that fit best together.
        """
        none = torch.zeros(0, dtype=torch.float64, device=self._point.device)
        points = PointSources(none, none, none)
        for _ in range(n_rounds):
            peaks = self._peaks(self.residual(signal, points), threshold)
            points = PointSources(
                *(torch.cat([getattr(points, n), getattr(peaks, n)]) for n in ("x", "y", "flux"))
            )
            if not len(points):
                return points
            points = self.improve(signal, points, n_steps=_STEPS)
        left = self.significance(self.residual(signal, points)).abs()
        left = torch.nn.functional.max_pool2d(left[None, None], 9, stride=1, padding=4)[0, 0]
        strength = points.flux / self.flux_error
        allowed = largest_residual + _SUSPICION * strength.clamp_min(0.0)
        good = (self.at(left, points) < allowed) & (strength > threshold - 0.5)
        return points.select(good)

    def _peaks(self, signal: torch.Tensor, threshold: float) -> PointSources:
        height = self.significance(signal)
        y, x = detect_peaks(height, threshold, radius=_CLOSEST).unbind(1)
        return PointSources(x.double(), y.double(), height[y, x].double() * self.flux_error)

    def improve(self, signal: torch.Tensor, points: PointSources, *, n_steps: int) -> PointSources:
        """Return points moved towards the maximum of the likelihood.

        Parameters
        ----------
        signal : `torch.Tensor`
            What `signal` returns.
        points : `PointSources`
            Where to begin.
        n_steps : `int`
            Steps of positions and fluxes together.
        """
        for _ in range(n_steps if len(points) else 0):
            points = self._improve(signal, points)
        return points

    def _improve(self, signal: torch.Tensor, points: PointSources) -> PointSources:
        left = self.residual(signal, points)
        slopes = [self.at(self.operator.untransform(w * left), points) for w in self._waves]
        dx, dy = points.x - points.x.round(), points.y - points.y.round()
        value = self.at(self.operator.untransform(left), points) + slopes[0] * dx + slopes[1] * dy
        bright = points.flux.clamp_min(2.0 * self.flux_error)
        x, y = (
            p + (_RELAXATION * s / (bright * b)).clamp(-0.5, 0.5)
            for p, s, b in zip((points.x, points.y), slopes, self._bend, strict=True)
        )
        return PointSources(x, y, points.flux + _RELAXATION * value / self._precision)

    def at(self, image: torch.Tensor, points: PointSources) -> torch.Tensor:
        """Return an image (latent shape) at the pixels nearest to points."""
        height, width = image.shape
        row, column = points.y.round().long(), points.x.round().long()
        return image[row.clamp(0, height - 1), column.clamp(0, width - 1)].double()

    def _place(self, points: PointSources) -> torch.Tensor:
        """Return the padded transform of points."""
        height, width = self.operator.fft_shape
        plane = self._curvature.new_zeros(height * width)
        offset = torch.arange(1 - _TAPS, _TAPS + 1, device=points.x.device)
        (row, by_row), (column, by_column) = (
            (p.floor().long()[:, None] + offset, _interpolate(p[:, None] - p.floor()[:, None] - offset))
            for p in (points.y, points.x)
        )
        value = points.flux[:, None, None] * by_row[:, :, None] * by_column[:, None, :]
        index = (row % height)[:, :, None] * width + (column % width)[:, None, :]
        plane.index_add_(0, index.reshape(-1), value.reshape(-1).to(plane))
        return torch.fft.rfft2(plane.view(height, width))


def _interpolate(distance: torch.Tensor) -> torch.Tensor:
    """Return Lanczos weights, (n, taps), that sum to one."""
    weight = torch.sinc(distance) * torch.sinc(distance / _TAPS)
    return weight / weight.sum(dim=1, keepdim=True)
