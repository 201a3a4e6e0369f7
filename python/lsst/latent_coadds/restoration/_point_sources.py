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
from collections.abc import Callable

import torch

from ._kernels import FWHM_PER_SIGMA, centred_rfft2, gaussian_kernel, value_at_origin
from ._peaks import share_at_least
from ._point_window import TAPS, sampled_gaussian, undo_window, window
from ._proximal import NonNegativeQuadratic

_LEAST_FILLED = 0.1
"""Share of the weight up to which masked pixels are made up for."""

_LEAST_RESOLUTION = 2.5
"""Square root (px) of the area of a PSF that is sampled well enough for places between pixels."""

_LEAST_COVERAGE = 1e-3
"""Share of the weight below which there are no data."""


@dataclasses.dataclass(frozen=True)
class PointSources:
    """Positions on the latent grid and fluxes, float64 tensors (n,)."""

    x: torch.Tensor
    y: torch.Tensor
    flux: torch.Tensor

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def none(cls, device: torch.device | str = "cpu") -> PointSources:
        """Return no points."""
        return cls(*(torch.zeros(0, dtype=torch.float64, device=device) for _ in range(3)))

    def join(self, other: PointSources) -> PointSources:
        """Return these points and others after them."""
        return PointSources(*(torch.cat([getattr(self, n), getattr(other, n)]) for n in ("x", "y", "flux")))

    def select(self, which: torch.Tensor) -> PointSources:
        """Return those for which a tensor (n,) of bool is `True`."""
        return PointSources(self.x[which], self.y[which], self.flux[which])

    def without(self, which: torch.Tensor) -> PointSources:
        """Return as many points, of which those with the given indices have no flux."""
        return dataclasses.replace(self, flux=self.flux.index_fill(0, which, 0.0))


@dataclasses.dataclass(frozen=True)
class _Profile:
    """What K is like at its centre; see `MatchedFilter`."""

    square: float
    """Sum of squares of the kernels, without the Gaussian that they were divided by."""
    precision: float
    bend: tuple[float, float]
    resolution: float
    bow: float
    """Variance of the score of the variance of a round profile."""


class MatchedFilter:
    """All exposures together, filtered with their PSFs.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The curvature of the data term.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    coverage : `torch.Tensor`, shape ``latent_shape``, optional
        Weight of the data near each pixel over that of all exposures without
        masks and photon noise; 1 by default.

    Notes
    -----
    For a source of flux F at p in data y with weights W the filtered data
    ``sum F' W y`` have the mean ``F K(. - p)``, where K is the sum of the
    weighted autocorrelations of the PSFs, and their noise has the covariance
    K. So ``1 / sqrt(K(0))`` is the Cramer-Rao error of an isolated star.
    ``precision`` is K(0), ``bend`` what the second derivatives of K along x
    and y are there, with the opposite sign, and ``resolution`` the width
    (px) of a square with the area of the PSF.
    """

    def __init__(
        self, quadratic: NonNegativeQuadratic, spread: float, coverage: torch.Tensor | None = None
    ) -> None:
        self.operator = quadratic.operator
        shape = self.operator.fft_shape
        size = min(21, (min(shape) - 1) // 2 * 2 + 1)
        kernel = gaussian_kernel(spread, size).to(quadratic.curvature.device)
        self.curvature = quadratic.curvature
        self._point = centred_rfft2(kernel, shape).real.to(quadratic.curvature)
        self._response = self._point**2 * quadratic.curvature
        height, width = shape
        like = quadratic.curvature
        self._waves = (
            2j * math.pi * torch.fft.rfftfreq(width)[None].to(like),
            2j * math.pi * torch.fft.fftfreq(height)[:, None].to(like),
        )
        self._undo = (undo_window(height, full=True).to(like), undo_window(width, full=False).to(like))
        self._bow = sum(((w**2).real for w in self._waves), start=torch.zeros_like(like))
        profile = self._measure(quadratic.curvature)
        self.precision, self.resolution, self.bend = profile.precision, profile.resolution, profile.bend
        self._local = quadratic.local
        self._profiles = [
            profile if shape is quadratic.curvature else self._measure(shape) for shape in self._local.shapes
        ]
        self._ratios = [k.precision / k.square * profile.square / profile.precision for k in self._profiles]
        self.coverage = None if coverage is None else self.of_points(coverage)
        self._filled = coverage if self.coverage is None else share_at_least(self.coverage, _LEAST_FILLED)

    def _measure(self, curvature: torch.Tensor) -> _Profile:
        """Return what K is like for a curvature."""
        shape, response = self.operator.fft_shape, self._point**2 * curvature
        precision = float(value_at_origin(response, shape))
        right, down = (float(-value_at_origin((response * w**2).real, shape)) for w in self._waves)
        return _Profile(
            float(value_at_origin(curvature, shape)),
            precision,
            (right, down),
            math.sqrt(float(response[0, 0]) / precision),
            float(value_at_origin(response * self._bow**2, shape)) - (right + down) ** 2 / precision,
        )

    def _here(self, points: PointSources, measure: Callable[[_Profile], float]) -> torch.Tensor:
        """Return what K has at points, (n,)."""
        total = torch.zeros_like(points.flux)
        for part, profile in zip(self._local.parts, self._profiles, strict=True):
            total += measure(profile) * self.at(part, points)
        return total

    def of_points(self, share: torch.Tensor) -> torch.Tensor:
        """Return shares (latent shape) of the sum of squared kernels as shares of the precision of points."""
        return share * self._local.value(self._ratios)

    def bends_expected(self, points: PointSources) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``bend`` (n,) as the exposures at points have it, along x and y."""
        right = self._here(points, lambda k: k.bend[0] / k.precision)
        down = self._here(points, lambda k: k.bend[1] / k.precision)
        return self.precision * right, self.precision * down

    def resolutions(self, points: PointSources) -> torch.Tensor:
        """Return the ``resolution`` (n,) of the exposures at points."""
        return self._here(points, lambda k: k.resolution)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._point.device

    def finds(self, threshold: float) -> bool:
        """Return whether there can be points: a threshold, and PSFs that tell places between pixels."""
        return threshold > 0.0 and self.resolution >= _LEAST_RESOLUTION

    @property
    def psf_variance(self) -> float:
        """Variance (px^2 per axis) of a Gaussian with the area of the PSF."""
        return self.resolution**2 / (4.0 * math.pi)

    @property
    def weight(self) -> float:
        """Weight per pixel of all exposures together, for light that is broader than PSFs."""
        return float(self.curvature[0, 0])

    @property
    def flux_error(self) -> float:
        """Error of the flux of an isolated star where no pixel is masked."""
        return self.precision**-0.5

    def flux_errors(self, points: PointSources) -> torch.Tensor:
        """Return the Cramér-Rao errors (n,) of the fluxes of isolated points."""
        return self.flux_error / self.share(points).sqrt()

    def share(self, points: PointSources) -> torch.Tensor:
        """Return the coverage (n,) of points."""
        if self.coverage is None:
            return torch.ones_like(points.flux)
        return self.at(self.coverage, points).clamp_min(1e-12)

    def signal(self, transform: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of the filtered data.

        Parameters
        ----------
        transform, gradient : `torch.Tensor`
            Padded transforms of a latent image and of the gradient there.
            The image stands for what is masked and what is an outlier.
        """
        return self._point * (self.curvature * transform - gradient)

    def left(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of what a model leaves of the filtered data.

        Parameters
        ----------
        gradient : `torch.Tensor`
            Padded transform of the gradient at the model.
        """
        return -self._point * gradient

    def deviation(self, left: torch.Tensor) -> torch.Tensor:
        """Return what `left` says, ``latent_shape``, in sigma."""
        height = self.operator.untransform(left) * self.flux_error
        if self.coverage is None:
            return height
        share = self.coverage.clamp_min(0.0)
        return torch.where(share > _LEAST_COVERAGE, height / share.clamp_min(_LEAST_COVERAGE).sqrt(), 0.0)

    def light(self, points: PointSources) -> torch.Tensor:
        """Return the padded transform of points at the PSF of the latent image."""
        return self._point * self._place(points)

    def place_error(self, points: PointSources) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the Cramér-Rao errors of x and y of isolated points, in pixels."""
        flux = points.flux.clamp_min(self.flux_error) * self.share(points).sqrt()
        right, down = (1.0 / (flux * bend.sqrt()) for bend in self.bends_expected(points))
        return right, down

    def distance(self, before: PointSources, after: PointSources) -> float:
        """Return by how much points have moved at most, in units of the errors of places and fluxes."""
        if not len(after):
            return 0.0
        errors = (*self.place_error(after), self.flux_errors(after))
        moves = (after.x - before.x, after.y - before.y, after.flux - before.flux)
        return max(float((m.abs() / e).max()) for m, e in zip(moves, errors, strict=True))

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
            of the PSF.

        Notes
        -----
        Drawn at the centres of pixels, not by interpolation, which would ring.
        """
        operator = self.operator
        variance = torch.full_like(points.flux, (fwhm / FWHM_PER_SIGMA) ** 2)
        if widening is not None:
            variance = (variance + widening).clamp_min(0.1 * (fwhm / FWHM_PER_SIGMA) ** 2)
        half = max(1, math.ceil(2.5 * fwhm))
        offset = torch.arange(-half, half + 1, device=points.x.device, dtype=points.x.dtype)
        plane = points.x.new_zeros(operator.latent_shape)
        row, column = (p.round()[:, None] + offset for p in (points.y, points.x))
        by_row, by_column = (
            sampled_gaussian(pixels - p[:, None], variance[:, None])
            for pixels, p in ((row, points.y), (column, points.x))
        )
        value = points.flux[:, None, None] * by_row[:, :, None] * by_column[:, None, :]
        height, width = plane.shape
        inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
        index = row[:, :, None] * width + column[:, None, :]
        plane.view(-1).index_add_(0, index[inside].long(), value[inside])
        return operator.crop(plane).to(self._point)

    def significance(self, signal: torch.Tensor) -> torch.Tensor:
        """Return filtered data over their noise, ``latent_shape``.

        Where a part of the data is missing and the model stands for it, the
        noise is larger than where nothing is.
        """
        height = self.operator.untransform(signal) * self.flux_error
        if self.coverage is None:
            return height
        share = self.coverage.clamp_min(0.0)
        return torch.where(share > _LEAST_COVERAGE, height * share.sqrt(), 0.0)

    def fill(self, left: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of what is left as it would be without masked pixels."""
        if self._filled is None:
            return left
        return self.operator.transform(self.operator.untransform(left) / self._filled)

    def thin(self, filled: torch.Tensor) -> torch.Tensor:
        """Return what `fill` made of what is left as it was before."""
        if self._filled is None:
            return filled
        return self.operator.transform(self.operator.untransform(filled) * self._filled)

    def add(self, signal: torch.Tensor, points: PointSources) -> torch.Tensor:
        """Return the padded transform of filtered data with points more."""
        return signal + self._response * self._place(points)

    def residual(self, signal: torch.Tensor, points: PointSources) -> torch.Tensor:
        """Return the padded transform of filtered data without points."""
        return signal - self._response * self._place(points)

    def values(
        self, filtered: torch.Tensor, points: PointSources
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Return the values (n,) of a padded transform at points, and its slopes along x and y."""
        taps = self._taps(points)
        along_x, along_y = (self._read(w * filtered, *taps) for w in self._waves)
        return self._read(filtered, *taps), (along_x, along_y)

    def bends(self, filtered: torch.Tensor, points: PointSources) -> tuple[torch.Tensor, ...]:
        """Return the second derivatives (n,) of a padded transform at points: along x, mixed, along y."""
        taps, (along_x, along_y) = self._taps(points), self._waves
        pairs = ((along_x, along_x), (along_x, along_y), (along_y, along_y))
        return tuple(self._read(a * b * filtered, *taps) for a, b in pairs)

    def value(self, filtered: torch.Tensor, points: PointSources) -> torch.Tensor:
        """Return the values (n,) of a padded transform at points."""
        return self._read(filtered, *self._taps(points))

    def overlap(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return K (n,) at distances from a point along x and y."""
        return self.value(self._response, PointSources(x, y, torch.ones_like(x)))

    def width(self, left: torch.Tensor, points: PointSources) -> torch.Tensor:
        """Return by how many sigma (n,) sources are wider than points.

        The score of the variance of a round Gaussian profile, where flux and
        place fit best already.
        """
        score = self.at(self.operator.untransform(self._bow * left), points)
        variance = self.precision * self._here(points, lambda k: k.bow / k.precision)
        return score / (variance * self.share(points)).sqrt()

    def log_likelihood(self, left: torch.Tensor, points: PointSources, variance: float) -> torch.Tensor:
        """Return the logarithms (n,) of the likelihoods of sources with a width over those of none.

        Parameters
        ----------
        left : `torch.Tensor`
            What `left` returns where the model has the points.
        points : `PointSources`
            The points.
        variance : `float`
            Variance (px^2 per axis) of round Gaussian profiles, the fluxes of which fit best.
        """
        profile = torch.exp(0.5 * variance * self._bow)
        shape = self.operator.fft_shape
        own, square = (float(value_at_origin(self._response * profile**k, shape)) for k in (1, 2))
        share = self.share(points)
        value = (self.value(profile * left, points) / share + points.flux * own).clamp_min(0.0)
        return 0.5 * share * value**2 / square

    def at(self, image: torch.Tensor, points: PointSources) -> torch.Tensor:
        """Return an image (latent shape) at the pixels nearest to points."""
        height, width = image.shape
        row, column = points.y.round().long(), points.x.round().long()
        return image[row.clamp(0, height - 1), column.clamp(0, width - 1)].double()

    def _place(self, points: PointSources) -> torch.Tensor:
        """Return the padded transform of points.

        Each is drawn as a window, by whose transform that of the image is
        divided [1]_. (A Lanczos kernel with five taps a side errs by 0.2 % of
        the peak in the flanks of a star, this by 0.03 % at most where the
        FWHM of PSFs is 3 px, which is as much as they are undersampled.)

        References
        ----------
        .. [1] J. A. Fessler and B. P. Sutton, IEEE Transactions on Signal
           Processing 51, 560 (2003).
        """
        height, width = self.operator.fft_shape
        index, weight = self._taps(points)
        plane = self.curvature.new_zeros(height * width)
        light = points.flux[:, None] * weight
        plane.index_add_(0, index.reshape(-1), light.reshape(-1).to(plane))
        return self._unwindow(torch.fft.rfft2(plane.view(height, width)))

    def _read(self, transform: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return what a padded transform stands for between pixels, (n,): the adjoint of `_place`."""
        plane = torch.fft.irfft2(self._unwindow(transform), s=self.operator.fft_shape)
        return (plane.reshape(-1)[index].double() * weight).sum(dim=1)

    def _unwindow(self, transform: torch.Tensor) -> torch.Tensor:
        rows, columns = self._undo
        return transform * rows[:, None] * columns

    def _taps(self, points: PointSources) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the padded pixels around points as flat indices, and the window there, (n, taps)."""
        height, width = self.operator.fft_shape
        offset = torch.arange(1 - TAPS, TAPS + 1, device=points.x.device)
        (row, by_row), (column, by_column) = (
            (p.floor().long()[:, None] + offset, window(p[:, None] - p.floor()[:, None] - offset))
            for p in (points.y, points.x)
        )
        index = (row % height)[:, :, None] * width + (column % width)[:, None, :]
        weight = by_row[:, :, None] * by_column[:, None, :]
        return index.flatten(1), weight.flatten(1)
