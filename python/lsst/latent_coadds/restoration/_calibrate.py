# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calibration of exposures together with the sky that they show."""

from __future__ import annotations

__all__ = ("calibrate_exposures",)

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ._background_fit import fit_backgrounds
from ._calibration_settings import CalibrationSettings
from ._correction_kernel import fit_kernels
from ._device_share import choose_device
from ._exposure_calibration import (
    CALIBRATION_PARAMETERS,
    ExposureCalibration,
    convolve_psf,
)
from ._exposure_prior import ExposurePrior
from ._imagemm import restore_imagemm
from ._kernels import matching_kernels
from ._operators import ConvolutionOperator
from ._restoration import Restoration
from ._settings import ImageMMSettings
from ._stack import ExposureStack
from ._star_finder import FoundSources, cut_stamps, find_sources_to_fit, slope_of_locus, stellar_locus
from ._star_fit import StarFit
from ._star_stamps import StarStamps, initial_stars, select_stars

_SKY_FWHM = 2.0
"""Target of the restorations in between, in latent pixels."""

_LARGEST_SIZE = 0.5
"""Logarithm of the size, over that of a point, beyond which a source is no help."""

_LARGEST_ERROR = 0.2
"""The same of its error."""

_LOCUS_WIDTH = 0.015
"""Scatter of the logarithm of sizes of stars besides their errors, at first; later half of it."""

_LEVEL_SIGMA = 0.02
"""Least error of the level of the sky that stars stand on, in sigma of a pixel."""

_STARS_FOR_GRADIENTS = 12
"""Stars that tell what varies over the field in the same way in all exposures."""

_SELECTIONS = 2
"""How often stars are told from galaxies in the first round, and in others once."""

_FIRST_STEPS = 4
_LATER_STEPS = 2
"""Gauss-Newton steps after each selection."""


def calibrate_exposures(
    stacks: ExposureStack | Sequence[ExposureStack],
    settings: CalibrationSettings | None = None,
    *,
    device: str | torch.device = "auto",
    progress: Callable[[int, int, float], None] | None = None,
    **changes: Any,
) -> ExposureCalibration:
    """Learn PSFs, flux scales, shifts and backgrounds together with the sky.

    Parameters
    ----------
    stacks : `ExposureStack` or `~collections.abc.Sequence` [ `ExposureStack` ]
        One piece of sky or several. Exposures of one name are one exposure.
    settings : `CalibrationSettings`, optional
        What to learn, and how far to trust what is there.
    device : `str` or `torch.device`, optional
        Where to restore the sky; ``"auto"`` takes CUDA if there is one.
    progress : `~collections.abc.Callable`, optional
        Called with (round, number of rounds, chi2 of the stars).
    **changes
        Fields of `CalibrationSettings` that differ from ``settings``.

    Returns
    -------
    calibration : `ExposureCalibration`
        To be applied to these stacks, or to others with the same exposures;
        then any restorer will do.

    Raises
    ------
    ValueError
        A setting is out of its limits.
    TypeError
        A setting is unknown.
    InvalidStackError
        Two exposures of a stack have the same name.
    RestorationError
        A restoration in between diverged.

    Notes
    -----
    Each round restores the sky with the exposures as they are known by then,
    subtracts from bright sources the light of all others, and fits the
    sources together with the exposures; see `StarFit` for what is held fixed.

    An error that the PSFs of all exposures share cannot be told from a sky
    that is smoother or sharper: any restoration fits as well with the one as
    with the other. Only that stars are points says so. Where there are too
    few of them, the weighted means of sizes and shears stay those of the
    pipeline, and only differences between exposures are learned. For the
    same reason the weighted means of shifts, scales and backgrounds are zero.
    """
    settings = dataclasses.replace(settings or CalibrationSettings(), **changes)
    stacks = [stacks] if isinstance(stacks, ExposureStack) else list(stacks)
    if not stacks:
        raise ValueError("There is no stack to calibrate; give at least one.")
    with torch.no_grad():
        return _Calibrator(
            [stack.to(device=choose_device(device), dtype=torch.float32) for stack in stacks], settings
        ).run(progress)


class _Calibrator:
    """State of a calibration between rounds."""

    def __init__(self, stacks: Sequence[ExposureStack], settings: CalibrationSettings) -> None:
        self.settings = settings
        for stack in stacks:
            # Complains about names that are not unique.
            ExposureCalibration.identity(stack.names)
        self.stacks = stacks
        names = tuple(dict.fromkeys(name for stack in stacks for name in stack.names))
        self.members = [[names.index(name) for name in stack.names] for stack in stacks]
        self.calibration = dataclasses.replace(ExposureCalibration.identity(names), field=_find_field(stacks))
        self.weights = self._exposure_weights(len(names))
        self.found = [
            find_sources_to_fit(stack, settings.min_signal_to_noise, settings.max_stars) for stack in stacks
        ]
        self.stars = initial_stars(torch.cat([found.places for found in self.found]))

    def _exposure_weights(self, n: int) -> torch.Tensor:
        """Return inverse variances times the number of good pixels; their sum is 1."""
        weights = torch.zeros(n, dtype=torch.float64)
        for stack, members in zip(self.stacks, self.members, strict=True):
            seen = stack.exposure_weights().double() * stack.good.sum(dim=(1, 2))
            weights.index_add_(0, torch.tensor(members), seen.cpu())
        return weights / weights.sum()

    def run(self, progress: Callable[[int, int, float], None] | None) -> ExposureCalibration:
        history: list[dict[str, Any]] = []
        for i in range(self.settings.n_rounds):
            skies = [self._restore(stack) for stack in self.stacks]
            if self.settings.background_sigma > 0.0:
                self.calibration = fit_backgrounds(
                    self.calibration, self.stacks, skies, self.members, self.weights, self.settings
                )
            figures = self._learn_from_sources(skies)
            history.append({"round": i + 1, **figures})
            if progress is not None:
                progress(i + 1, self.settings.n_rounds, figures["chi2"])
        scale = self.calibration.flux_scale
        mean = (self.weights * self.calibration.background / scale).sum()
        background = self.calibration.background - scale * mean
        return dataclasses.replace(self.calibration, background=background, history=history)

    def _restore(self, stack: ExposureStack) -> tuple[ExposureStack, Restoration]:
        """Return a stack as it is known by now, and its sky."""
        settings = ImageMMSettings(
            target_fwhm=_SKY_FWHM, n_iter=self.settings.sky_updates, n_realizations=0, tolerance=0.0
        )
        corrected = self.calibration.apply(stack)
        return corrected, restore_imagemm(corrected, settings, generator=torch.Generator().manual_seed(0))

    def _learn_from_sources(self, skies: Sequence[tuple[ExposureStack, Restoration]]) -> dict[str, Any]:
        """Fit sources and exposures, and keep what it says about the exposures."""
        stamps = self._cut(skies)
        result = None
        points = self.settings.reference != "pipeline"
        if len(self.stars) and points:
            result = self._fit_points(stamps)
        if len(self.stars) and result is None and self.settings.reference != "stars":
            points, result = False, self._fit_extended(stamps)
        if result is None:
            return {"reference": "none", "n_sources": 0, "chi2": float("nan")}
        fit, n_sources, n_galaxies = result
        kernels = self.calibration.kernels
        if self.settings.kernel_sigma > 0.0 and points:
            kernels = fit_kernels(fit, kernels, self.settings.kernel_radius, self.settings.kernel_sigma)
        reference = "stars" if points else "pipeline"
        self.calibration = dataclasses.replace(
            self.calibration,
            **fit.corrections,
            kernels=kernels,
            reference=reference,
            n_sources=n_sources,
        )
        return {
            "reference": reference,
            "n_sources": n_sources,
            "n_galaxies": n_galaxies,
            "chi2": fit.chi2,
            **{name: fit.parameters[:, i].tolist() for i, name in enumerate(CALIBRATION_PARAMETERS)},
        }

    def _fit_points(self, stamps: Sequence[StarStamps]) -> tuple[StarFit, int, int] | None:
        """Tell stars from other sources and fit both; `None` if there are too few stars."""
        first = self.calibration.reference == "none"
        everything = torch.ones(len(self.stars), dtype=torch.bool)
        fit = self._start(stamps, self.stars, points=everything)
        fit.fit(_FIRST_STEPS if first else 1, hold_exposures=True)
        for i in range(_SELECTIONS if first else 1):
            size, error = fit.star_shapes()
            used = _usable(size, error)
            if not bool(used.any()):
                return None
            if self.settings.gradient_sigma > 0.0 and self.settings.size_sigma > 0.0:
                # What all PSFs lack would hide stars from those who look for one size.
                slope = slope_of_locus(size[used], error[used], fit.field[used])
                fit.parameters[:, 7:9] += slope
                size = size - fit.field @ slope
            width = _LOCUS_WIDTH if first and i == 0 else 0.5 * _LOCUS_WIDTH
            stars = _scatter(used, stellar_locus(size[used], error[used], width=width))
            if not bool(stars.any()):
                return None
            if int(stars.sum()) < self.settings.min_stars and self.settings.reference != "stars":
                return None
            fit.stars[:, 0], fit.stars[stars, :3] = size.clamp(-_LARGEST_SIZE, _LARGEST_SIZE), 0.0
            stamps_used = select_stars(stamps, used)
            chosen = self._start(stamps_used, fit.stars[used], fit.parameters, points=stars[used])
            chosen.prior.hold_details()
            chosen.fit(_FIRST_STEPS if first else _LATER_STEPS)
            fit.parameters, fit.stars[used] = chosen.parameters, chosen.stars
        chosen = self._start(stamps_used, fit.stars[used], fit.parameters, points=stars[used])
        if int(stars.sum()) < _STARS_FOR_GRADIENTS:
            chosen.prior.pin_gradients()
        chosen.fit(_FIRST_STEPS if first else _LATER_STEPS)
        self._finish(chosen)
        fit.stars[used] = chosen.stars
        self.stars = fit.stars
        return chosen, int(stars.sum()), int(used.sum() - stars.sum())

    def _fit_extended(self, stamps: Sequence[StarStamps]) -> tuple[StarFit, int, int] | None:
        """Fit sources that have sizes of their own; `None` if there are none."""
        fit = self._start(stamps, self.stars, points=torch.ones(len(self.stars), dtype=torch.bool))
        fit.fit(_FIRST_STEPS, hold_exposures=True)
        used = _usable(*fit.star_shapes())
        if not bool(used.any()):
            return None
        chosen = self._start(select_stars(stamps, used), fit.stars[used], fit.parameters, points=None)
        chosen.fit(_FIRST_STEPS)
        self._finish(chosen)
        self.stars[used] = chosen.stars
        return chosen, int(used.sum()), 0

    def _finish(self, fit: StarFit) -> None:
        """Fit again with priors from the corrections themselves, if so wanted."""
        if self.settings.adapt_priors:
            fit.narrow_prior()
            fit.fit(2)

    def _start(
        self,
        stamps: Sequence[StarStamps],
        stars: torch.Tensor,
        parameters: torch.Tensor | None = None,
        *,
        points: torch.Tensor | None,
    ) -> StarFit:
        if parameters is None:
            parameters = self.calibration.parameters
        level = max(_LEVEL_SIGMA, self.settings.background_sigma)
        prior = ExposurePrior((*self.settings.prior_sigma, level))
        return StarFit(stamps, stars, parameters, self.weights, prior, self.settings.model_error, points)

    def _cut(self, skies: Sequence[tuple[ExposureStack, Restoration]]) -> list[StarStamps]:
        """Return pixels around the sources of all stacks."""
        stamps: list[StarStamps] = []
        n_before = 0
        for stack, found, (corrected, sky), members in zip(
            self.stacks, self.found, skies, self.members, strict=True
        ):
            others = self._predict_others(corrected, sky, found).cpu().double()
            kernels = self.calibration.kernels[members]
            x, y = found.places[:, 0] + stack.origin[1], found.places[:, 1] + stack.origin[0]
            stamps += cut_stamps(
                stack,
                torch.stack([convolve_psf(f, d) for f, d in zip(stack.psf.cpu(), kernels, strict=True)]),
                found,
                others * self.calibration.flux_scale[members, None, None],
                self.calibration.background[members],
                members,
                n_before,
                self.calibration.field_coordinates(x, y),
            )
            n_before += len(found.places)
        return stamps

    @staticmethod
    def _predict_others(corrected: ExposureStack, sky: Restoration, found: FoundSources) -> torch.Tensor:
        """Return the light (T, h, w) of all that is not to be fitted."""
        image = torch.where(found.other_light(corrected.shape), sky.image, 0.0).to(corrected.image)
        kernels = matching_kernels(corrected.psf, _SKY_FWHM).to(corrected.image.dtype)
        return ConvolutionOperator(kernels, corrected.shape, sampler=corrected.make_sampler()).forward(image)


def _find_field(stacks: Sequence[ExposureStack]) -> tuple[float, float, float]:
    """Return the middle (x, y) and half the width of the square that holds all stacks."""
    edges = [
        (stack.origin[1 - i], stack.origin[1 - i] + stack.shape[1 - i] - 1)
        for stack in stacks
        for i in (0, 1)
    ]
    middles, halves = [], []
    for axis in (edges[::2], edges[1::2]):
        low, high = min(first for first, _ in axis), max(last for _, last in axis)
        middles.append(0.5 * (low + high))
        halves.append(0.5 * (high - low))
    return middles[0], middles[1], max(1.0, *halves)


def _usable(size: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Return which sources (S,) are compact and known well enough."""
    return torch.isfinite(size) & (size.abs() < _LARGEST_SIZE) & (error < _LARGEST_ERROR)


def _scatter(where: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return values of some sources as a mask of all."""
    result = torch.zeros_like(where)
    result[where] = values
    return result
