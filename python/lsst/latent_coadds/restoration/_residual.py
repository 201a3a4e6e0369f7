# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a non-negative solution leaves behind, estimated linearly."""

from __future__ import annotations

__all__ = ("AdaptiveCorrection", "ResidualCorrection", "SourceDiscs", "covered_weight")

import math

import torch

from ._fidelity import HuberFidelity
from ._kernels import centred_rfft2, gaussian_kernel, value_at_origin
from ._peaks import local_maximum, share_at_least
from ._proximal import NonNegativeQuadratic

_SIGNIFICANCE = (2.0, 3.0)
"""Peaks of the matched filter begin to count as sources at the first of these
(in sigma), and do so fully from the second on.
"""

_LEAST_SHARE = 0.1
"""Where data have a smaller share of the weight, what they miss is not made up in full."""

_EDGE = 4.0
"""Width in pixels over which the surroundings of a source end."""

_NEARLY = (0.15, 0.02)
"""By how much pixels beside the highest may be lower and have a share in the peak, in sigma and as a part."""


class ResidualCorrection:
    """A signed, linear estimate of the light that a solution has missed.

    A non-negative solution turns positive noise of the sky into sources and
    cannot do the same with negative noise: the sky gets a pedestal, for which
    faint sources pay. Their residuals still know. They are deconvolved
    linearly, at the spatial frequencies where that is well determined, and
    added; the result then has no pedestal and may be negative in places.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The curvature of the data term.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    damping : `float`
        Response, relative to that at zero frequency, at which the estimate
        falls to one half.
    coverage : `torch.Tensor`, shape ``latent_shape``, optional
        As returned by `covered_weight`; 1 by default.

    Notes
    -----
    Where detectors cover a part, data have a share c of the weight that B
    counts on, and the residual is projected back with c: `correct` divides
    by it.

    With B the summed power of the PSFs (times weights), the estimate is the
    back-projected residual times ``B / (B^2 + damping^2 B(0)^2)``.
    """

    def __init__(
        self,
        quadratic: NonNegativeQuadratic,
        spread: float,
        damping: float,
        coverage: torch.Tensor | None = None,
    ) -> None:
        self._operator = quadratic.operator
        self._share = None if coverage is None else share_at_least(coverage, _LEAST_SHARE)
        shape = quadratic.operator.fft_shape
        size = min(21, (min(shape) - 1) // 2 * 2 + 1)
        kernel = gaussian_kernel(spread, size).to(quadratic.curvature.device)
        power = centred_rfft2(kernel, shape).real.to(quadratic.curvature) ** 2

        def make_filter(shape: torch.Tensor) -> torch.Tensor:
            total = shape * power
            return power * total / (total**2 + (damping * float(total[0, 0])) ** 2)

        self._local = quadratic.local
        self._filters = [make_filter(shape) for shape in quadratic.local.shapes]

    def apply(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the correction of a latent image.

        Parameters
        ----------
        gradient : `torch.Tensor`
            Padded transform of the gradient at the solution.

        Returns
        -------
        correction : `torch.Tensor`
            Padded transform of the correction.
        """
        if len(self._filters) == 1:
            return self._filters[0] * -gradient
        return self._operator.transform(self.estimate(gradient))

    def estimate(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the correction, ``latent_shape``, for the padded transform of the gradient."""
        return self._local.mix(self._operator.untransform(f * -gradient) for f in self._filters)

    def correct(self, transform: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of the corrected latent image.

        Parameters
        ----------
        transform, gradient : `torch.Tensor`
            Padded transforms of the latent image and of the gradient there.
        """
        if self._share is None:
            return transform + self.apply(gradient)
        missed = self.estimate(gradient) / self._share
        return transform + self._operator.transform(missed)


class SourceDiscs:
    """Discs around the sources of a solution.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The curvature of the data term.
    coverage : `torch.Tensor`, shape ``latent_shape``
        As returned by `covered_weight`.

    Notes
    -----
    A source is a peak of the matched filter, in data whose gaps and outliers
    the solution fills. Its surroundings are a disc with the area of some five
    PSFs, with a smooth edge.
    """

    def __init__(self, quadratic: NonNegativeQuadratic, coverage: torch.Tensor) -> None:
        self._operator, self._local = quadratic.operator, quadratic.local
        self._share = coverage.clamp_min(0.0).sqrt()
        self._divisor = share_at_least(coverage, _LEAST_SHARE).sqrt()
        squares = [float(value_at_origin(s, self._operator.fft_shape)) for s in self._local.shapes]
        self._noise = self._local.value(squares).sqrt()
        typical = self._local.typical
        self._disc = self._make_disc(
            float(typical[0, 0] / value_at_origin(typical, self._operator.fft_shape))
        )

    def _make_disc(self, psf_area: float) -> torch.Tensor:
        """Return the transform of a disc with a smooth edge, 1 inside."""
        largest = (min(self._operator.fft_shape) - 2) // 2
        radius = min(0.75 * math.sqrt(psf_area), largest - 0.5 * _EDGE)
        half = max(1, min(math.ceil(radius + 0.5 * _EDGE), largest))
        offset = torch.arange(-half, half + 1, dtype=torch.float64)
        distance = torch.hypot(offset[:, None], offset[None, :])
        disc = _smooth_step(distance, radius + 0.5 * _EDGE, radius - 0.5 * _EDGE)
        return centred_rfft2(disc.to(self._local.typical), self._operator.fft_shape)

    def weight(
        self,
        transform: torch.Tensor,
        gradient: torch.Tensor,
        significance: tuple[float, float] = _SIGNIFICANCE,
    ) -> torch.Tensor:
        """Return how much (0 to 1) each pixel is beside a source.

        Parameters
        ----------
        transform, gradient : `torch.Tensor`
            Padded transforms of the latent image and of the gradient there.
        significance : `tuple` [ `float`, `float` ], optional
            Where peaks begin to count, and where they do so fully, in sigma.

        Returns
        -------
        weight : `torch.Tensor`, shape ``latent_shape``
            1 around sources, 0 far from them.
        """
        model = self._local.mix(self._operator.untransform(s * transform) for s in self._local.shapes)
        left = self._operator.untransform(gradient)
        data = model * self._share - left / self._divisor
        return self.around(data / self._noise, significance)

    def around(self, data: torch.Tensor, significance: tuple[float, float]) -> torch.Tensor:
        """Return how much (0 to 1, ``latent_shape``) each pixel is beside a peak of data in sigma."""
        peaks = _smooth_step(data, *significance) * _divide_peaks(data)
        return self._operator.untransform(self._operator.transform(peaks) * self._disc).clamp_(0.0, 1.0)


class AdaptiveCorrection:
    """Two linear corrections: one around sources, another between them.

    What a non-negative solution takes from a source is next to that source.
    To put back all frequencies in the empty sky too only brings back noise
    that the solution was right to leave out.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The curvature of the data term.
    spread : `float`
        FWHM of the Gaussian that the kernels of the model were divided by.
    damping, sky_damping : `float`
        As for `ResidualCorrection`: around sources, and elsewhere.
    coverage : `torch.Tensor`, shape ``latent_shape``
        As returned by `covered_weight`.

    Notes
    -----
    Around sources is where a neighbouring speck of noise may have taken light
    from them. Broad light between the discs is not lost, for both corrections
    pass it.
    """

    def __init__(
        self,
        quadratic: NonNegativeQuadratic,
        spread: float,
        damping: float,
        sky_damping: float,
        coverage: torch.Tensor,
    ) -> None:
        self._operator = quadratic.operator
        self._near = ResidualCorrection(quadratic, spread, damping)
        self._far = ResidualCorrection(quadratic, spread, sky_damping)
        self._share = share_at_least(coverage, _LEAST_SHARE)
        self._discs = SourceDiscs(quadratic, coverage)

    def correct(self, transform: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the padded transform of the corrected latent image.

        Parameters
        ----------
        transform, gradient : `torch.Tensor`
            Padded transforms of the latent image and of the gradient there.
        """
        far, near = self._far.estimate(gradient), self._near.estimate(gradient)
        missed = (far + self._discs.weight(transform, gradient) * (near - far)) / self._share
        return transform + self._operator.transform(missed)


def covered_weight(quadratic: NonNegativeQuadratic, fidelity: HuberFidelity) -> torch.Tensor:
    """Return the share of the curvature that the data near each latent pixel have.

    Parameters
    ----------
    quadratic : `NonNegativeQuadratic`
        The curvature with the weights of all exposures everywhere.
    fidelity : `HuberFidelity`
        The data.

    Returns
    -------
    share : `torch.Tensor`, shape ``latent_shape``
        1 where every exposure has good pixels of its typical variance (and if
        the curvature is that of a larger image, some constant instead).
    """
    operator = quadratic.operator
    total: torch.Tensor | float = 0.0
    for which in operator.chunks():
        total = total + operator.back_project(
            operator.areas(which) * fidelity.inverse_sigma[which] ** 2, which
        )
    assert isinstance(total, torch.Tensor)
    return operator.untransform(operator.lower(total)) / float(quadratic.curvature[0, 0])


def _divide_peaks(data: torch.Tensor) -> torch.Tensor:
    """Return the shares (H, W) of pixels in the peaks that they are in, 0 elsewhere.

    Were the highest pixel the peak, rounding would decide between two of
    them, or whether a shoulder is one, and the image beside it would depend
    on that.
    """
    highest = local_maximum(data, 1)
    nearly = _NEARLY[0] + _NEARLY[1] * highest.clamp_min(0.0)
    close = _smooth_step((data - highest) / nearly, -1.0, 0.0)
    total = 9.0 * torch.nn.functional.avg_pool2d(close[None, None], 3, stride=1, padding=1)[0, 0]
    return close / total.clamp_min_(1.0)


def _smooth_step(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return 0 at ``low``, 1 at ``high`` and a cubic between them."""
    t = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
