# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""What exposures can detect: significance, and completeness against depth."""

from __future__ import annotations

__all__ = ("Depth", "Significance", "make_significance", "measure_depth", "measure_point_error")

import dataclasses
from collections.abc import Sequence

import torch

from ._direct import direct_coadd
from ._model import make_operator
from ._operators import ConvolutionOperator
from ._peaks import detect_peaks, local_maximum
from ._settings import DirectSettings
from ._stack import ExposureStack


@dataclasses.dataclass(frozen=True)
class Significance:
    """Matched filter of all exposures.

    Attributes
    ----------
    image : `torch.Tensor`, shape (H, W)
        Flux of a point source at each pixel over its error; 0 without data.
        In a sky without sources it is Gaussian, with a variance of one.
    flux_error : `torch.Tensor`, shape (H, W)
        That error; infinite without data.
    """

    image: torch.Tensor
    flux_error: torch.Tensor

    def limiting_flux(self, n_sigma: float = 5.0) -> float:
        """Return the flux of a point source of ``n_sigma``: the median over pixels with data."""
        errors = self.flux_error[torch.isfinite(self.flux_error)]
        return n_sigma * float(errors.median()) if errors.numel() else float("inf")


@dataclasses.dataclass(frozen=True)
class Depth:
    """Completeness and purity of detections.

    Attributes
    ----------
    signal_to_noise : `tuple` [ `float`, ... ]
        Fluxes of sources that were added, over the error of their flux.
    completeness : `tuple` [ `float`, ... ]
        Which part of them was found.
    n_false : `int`
        Peaks of the negative image above the threshold: as many are expected
        to be false among those of the image itself.
    n_found : `int`
        Peaks of the image itself, without added sources.
    limiting_signal_to_noise : `float`
        Where half of the sources are found; NaN if that is not reached.
    """

    signal_to_noise: tuple[float, ...]
    completeness: tuple[float, ...]
    n_false: int
    n_found: int
    limiting_signal_to_noise: float

    @property
    def purity(self) -> float:
        """Expected part of the peaks of the image itself that is true."""
        return max(0.0, 1.0 - self.n_false / self.n_found) if self.n_found else float("nan")


def make_significance(stack: ExposureStack, *, clip: bool = True) -> Significance:
    """Filter all exposures with their PSFs.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.
    clip : `bool`, optional
        Leave out what only one exposure has?

    Notes
    -----
    With PSFs F and weights W, zero where masked, it is ``F' W y`` over the
    square root of ``F^2' W``: the likelihood ratio of a point source, which no
    restored image can exceed. The statistic of a restored image, whose noise
    is neither Gaussian nor the same on sources and beside them, would need a
    threshold from simulations.
    """
    kept = direct_coadd(stack, DirectSettings(clip=True)).kept if clip else stack.good
    return _filter(stack, stack.image, stack.inverse_variance * kept)


def measure_point_error(stack: ExposureStack) -> torch.Tensor:
    """Return the error of the flux of an isolated point source at each pixel.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures.

    Returns
    -------
    error : `torch.Tensor`, shape (H, W)
        The Cramér-Rao error, ``flux_error`` of `Significance`; infinite
        without data.
    """
    return _point_error(make_operator(stack, 0.0, 0.0), stack.inverse_variance)


def _point_error(operator: ConvolutionOperator, weight: torch.Tensor) -> torch.Tensor:
    precision = operator.crop(operator.square_weight(weight))
    seen = precision > 1e-4 * precision.max()
    return torch.where(seen, precision.clamp_min(1e-30).rsqrt(), torch.inf)


def _filter(stack: ExposureStack, image: torch.Tensor, weight: torch.Tensor) -> Significance:
    operator = make_operator(stack, 0.0, 0.0)
    signal = operator.crop(operator.adjoint(weight * image))
    error = _point_error(operator, weight)
    return Significance(torch.where(torch.isfinite(error), signal * error, 0.0), error)


def measure_depth(
    stack: ExposureStack,
    *,
    generator: torch.Generator,
    threshold: float = 5.0,
    signal_to_noise: Sequence[float] = (3.0, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 9.0),
    n_sources: int = 64,
    tolerance: float = 2.5,
) -> Depth:
    """Find how complete and how pure detections are, with sources that are added.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures; sources in them stay.
    generator : `torch.Generator`
        Source of the places, on the CPU.
    threshold : `float`, optional
        Significance above which a peak is a detection.
    signal_to_noise : `~collections.abc.Sequence` [ `float` ], optional
        Fluxes to try, ascending, over the error at each place.
    n_sources : `int`, optional
        Sources per flux; less where the field has no room for them.
    tolerance : `float`, optional
        Largest distance in pixels between a source and its peak.

    Notes
    -----
    Sources are added to the exposures as their PSFs have them, on a grid
    that is placed at random, away from what is there already. A source with
    the significance of the threshold is found in half of all cases, up to
    what the choice of the highest pixel nearby adds.
    """
    kept = direct_coadd(stack, DirectSettings(clip=True)).kept
    weight = stack.inverse_variance * kept
    before = _filter(stack, stack.image, weight)
    places = _free_places(before, threshold, n_sources, generator)
    operator = make_operator(stack, 0.0, 0.0)
    completeness = []
    for level in signal_to_noise:
        latent = stack.image.new_zeros(operator.latent_shape)
        rows, columns = places[:, 0], places[:, 1]
        latent[rows + operator.margin, columns + operator.margin] = level * before.flux_error[rows, columns]
        peaks = detect_peaks(_filter(stack, stack.image + operator.forward(latent), weight).image, threshold)
        distance = torch.cdist(places.double(), peaks.double())
        found = (distance <= tolerance).any(dim=1) if len(peaks) else torch.zeros(len(places))
        completeness.append(float(found.double().mean()) if len(places) else float("nan"))
    return Depth(
        tuple(float(s) for s in signal_to_noise),
        tuple(completeness),
        len(detect_peaks(-before.image, threshold)),
        len(detect_peaks(before.image, threshold)),
        _crossing(signal_to_noise, completeness),
    )


def _free_places(
    significance: Significance, threshold: float, n_sources: int, generator: torch.Generator, pitch: int = 16
) -> torch.Tensor:
    """Return rows and columns (n, 2) on a grid, away from detections and edges."""
    start = (pitch // 2 + torch.randint(pitch // 2, (2,), generator=generator)).tolist()
    rows, columns = (
        torch.arange(first, n - pitch // 2, pitch)
        for first, n in zip(start, significance.image.shape, strict=True)
    )
    places = torch.cartesian_prod(rows, columns).to(significance.image.device)
    near = local_maximum(significance.image, pitch // 2)
    free = (near < threshold) & torch.isfinite(significance.flux_error)
    places = places[free[places[:, 0], places[:, 1]]]
    order = torch.randperm(len(places), generator=generator).to(places.device)
    return places[order[:n_sources]]


def _crossing(levels: Sequence[float], values: Sequence[float], half: float = 0.5) -> float:
    """Return where values first rise through one half, linearly between levels."""
    for k in range(1, len(values)):
        if values[k - 1] < half <= values[k]:
            share = (half - values[k - 1]) / (values[k] - values[k - 1])
            return levels[k - 1] + share * (levels[k] - levels[k - 1])
    return float("nan")
