# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is learned about exposures besides the sky: PSFs, scales, shifts, backgrounds."""

from __future__ import annotations

__all__ = ("CALIBRATION_PARAMETERS", "CalibrationSettings", "ExposureCalibration")

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ._errors import InvalidStackError
from ._frames import FrameGeometry
from ._psf_spline import PsfSpline
from ._settings import _Checked, _setting
from ._stack import ExposureStack

CALIBRATION_PARAMETERS = ("log_size", "shear_1", "shear_2", "shift_x", "shift_y", "log_flux_scale")
"""Columns of `ExposureCalibration.parameters`."""


@dataclasses.dataclass(frozen=True)
class CalibrationSettings(_Checked):
    """Settings of the calibration of exposures.

    Each ``..._sigma`` is the standard deviation of a Gaussian prior around
    what the pipeline says; 0 leaves that quantity as it is.
    """

    size_sigma: float = _setting(
        0.1, "Prior of the logarithm of the size of a PSF; 0 leaves sizes as they are.", min=0.0
    )
    shear_sigma: float = _setting(
        0.05,
        "Prior of each component of the shear of a PSF, (a - b) / (a + b) of what would make a round PSF "
        "elliptical; 0 leaves ellipticities as they are.",
        min=0.0,
    )
    shift_sigma: float = _setting(
        0.2, "Prior of shifts along x and y, in latent pixels; 0 leaves registrations as they are.", min=0.0
    )
    scale_sigma: float = _setting(
        0.05, "Prior of the logarithm of flux scales; 0 leaves scales as they are.", min=0.0
    )
    background_sigma: float = _setting(
        0.1,
        "Prior of background offsets, in units of the noise of a pixel; 0 leaves backgrounds as they are.",
        min=0.0,
    )
    adapt_priors: bool = _setting(
        True,
        "Make priors as narrow as the corrections turn out to be, so that noise of the stars does not become "
        "errors where nothing is wrong?",
    )
    kernel_sigma: float = _setting(
        0.0,
        "Prior of each element of a free kernel that PSFs are convolved with, after their size and shear are "
        "corrected: part of the flux that is moved by one pixel; 0 does without such kernels.",
        min=0.0,
        max=1.0,
    )
    kernel_radius: int = _setting(2, "Half the width of that kernel, in latent pixels.", min=1, max=4)
    reference: str = _setting(
        "auto",
        "What tells an error that all PSFs have in common from structure of the sky: 'stars' (they are "
        "points), 'pipeline' (the mean of PSFs is right) or 'auto' (stars, where there are min_stars).",
        choices=("auto", "stars", "pipeline"),
    )
    min_stars: int = _setting(5, "Least number of stars that can be the reference.", min=1)
    max_stars: int = _setting(200, "Largest number of sources to use, the brightest.", min=1)
    min_signal_to_noise: float = _setting(
        30.0, "Least signal-to-noise ratio of a source, all exposures together.", min=5.0
    )
    model_error: float = _setting(
        0.005, "Error of the PSF model that is added to the noise, as a part of the light.", min=0.0
    )
    n_rounds: int = _setting(3, "How often the sky is restored and the exposures are corrected.", min=1)
    sky_updates: int = _setting(10, "Updates of ImageMM for the sky of a round.", min=1)

    @property
    def prior_sigma(self) -> tuple[float, ...]:
        """Prior of each of `CALIBRATION_PARAMETERS`."""
        return (
            self.size_sigma,
            *((self.shear_sigma,) * 2),
            *((self.shift_sigma,) * 2),
            self.scale_sigma,
        )


@dataclasses.dataclass(frozen=True)
class ExposureCalibration:
    """Corrections of exposures, to be applied before a restoration.

    Attributes
    ----------
    names : `tuple` [ `str` ]
        The exposures, T of them.
    parameters, errors : `torch.Tensor`, shape (T, 6)
        Corrections in the order of `CALIBRATION_PARAMETERS`, and their standard
        errors, float64. ``log_size`` and the shears are those of
        `stretch_matrix`; a shift is where sources appear, relative to where
        they should; an exposure's fluxes are ``exp(log_flux_scale)`` times
        the true ones.
    background, background_error : `torch.Tensor`, shape (T,)
        Level of the empty sky, and its error, in the units of the exposures.
    kernels : `torch.Tensor`, shape (T, m, m)
        What the PSFs are convolved with before they are stretched; m = 1 if
        it is nothing.
    reference : `str`
        ``"stars"``, ``"pipeline"``, or ``"none"`` if there was nothing to
        learn from.
    n_sources : `int`
        Number of sources that were used.
    history : `list` [ `dict` ]
        Figures of each round.
    """

    names: tuple[str, ...]
    parameters: torch.Tensor
    errors: torch.Tensor
    background: torch.Tensor
    background_error: torch.Tensor
    kernels: torch.Tensor
    reference: str = "none"
    n_sources: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        n = len(self.names)
        if len(set(self.names)) != n:
            raise InvalidStackError(
                "Names of exposures must differ, so that a calibration can refer to them; set names= of "
                "ExposureStack."
            )
        shapes = (
            ("parameters", self.parameters, (n, len(CALIBRATION_PARAMETERS))),
            ("errors", self.errors, (n, len(CALIBRATION_PARAMETERS))),
            ("background", self.background, (n,)),
            ("background_error", self.background_error, (n,)),
            ("kernels", self.kernels, (n, *self.kernels.shape[-1:] * 2)),
        )
        for name, array, shape in shapes:
            if tuple(array.shape) != shape:
                raise InvalidStackError(
                    f"{name} of a calibration has shape {tuple(array.shape)}, not {shape}."
                )
        if self.kernels.shape[-1] % 2 == 0:
            raise InvalidStackError("kernels of a calibration must have an odd width.")

    @classmethod
    def identity(cls, names: Sequence[str]) -> ExposureCalibration:
        """Return the calibration that changes nothing.

        Parameters
        ----------
        names : `~collections.abc.Sequence` [ `str` ]
            The exposures.
        """
        n = len(names)
        zeros = torch.zeros((n, len(CALIBRATION_PARAMETERS)), dtype=torch.float64)
        kernels = torch.ones((n, 1, 1), dtype=torch.float64)
        return cls(tuple(names), zeros, zeros.clone(), zeros[:, 0].clone(), zeros[:, 0].clone(), kernels)

    @property
    def flux_scale(self) -> torch.Tensor:
        """Flux scale of each exposure, shape (T,)."""
        return self.parameters[:, 5].exp()

    def correct_psf(self, name: str, psf: torch.Tensor, *, shifted: bool = False) -> torch.Tensor:
        """Return the PSF of an exposure as it was learned.

        Parameters
        ----------
        name : `str`
            The exposure.
        psf : `torch.Tensor`, shape (k, k) or (J, k, k)
            PSF from the pipeline, or its basis images: all of them are
            corrected alike.
        shifted : `bool`, optional
            Whether to include the shift, as `apply` does for exposures on
            the latent grid.

        Returns
        -------
        corrected : `torch.Tensor`, shape of ``psf``
            Float64. A single image has no negative pixels, and a sum of one.
            A PSF without any correction is only normalised.

        Raises
        ------
        KeyError
            The calibration does not know the exposure.
        """
        if name not in self.names:
            raise KeyError(f"The calibration knows no exposure {name!r}, but {', '.join(self.names)}.")
        t = self.names.index(name)
        basis = psf.to(torch.float64).reshape(-1, *psf.shape[-2:])
        parameters = self.parameters[t].to(basis.device)
        shift = parameters[3:5] if shifted else torch.zeros_like(parameters[3:5])
        changed = basis = convolve_psf(basis, self.kernels[t].to(basis.device))
        if bool((parameters[:3] != 0).any()) or bool((shift != 0).any()):
            changed = PsfSpline(basis).stamps(parameters[:3], shift)
        if len(basis) == 1 and (changed is not basis or self.kernels.shape[-1] > 1):
            changed = changed.clamp_min(0.0)
        return (changed / changed[0].sum()).reshape(psf.shape)

    def apply(self, stack: ExposureStack) -> ExposureStack:
        """Return exposures with all corrections.

        Parameters
        ----------
        stack : `ExposureStack`
            Exposures with the same names. Those that the calibration does
            not know stay as they are.

        Returns
        -------
        corrected : `ExposureStack`
            Backgrounds are subtracted, fluxes brought to one scale, PSFs
            replaced. No pixel is interpolated: a shift goes into the PSF of
            an exposure on the latent grid, and into the mapping of one that
            has a grid of its own.
        """
        result = stack.to(device=stack.image.device, dtype=stack.image.dtype)
        image, variance, psf = stack.image.clone(), stack.variance.clone(), stack.psf.clone()
        shifts = torch.zeros((stack.n_exposures, 2), dtype=torch.float64)
        for position, name in enumerate(stack.names):
            if name not in self.names:
                continue
            t = self.names.index(name)
            scale = float(self.flux_scale[t])
            image[position] = torch.where(
                stack.good[position], (image[position] - float(self.background[t])) / scale, 0.0
            )
            variance[position] /= scale**2
            psf[position] = self.correct_psf(name, stack.psf[position], shifted=stack.frames is None).to(psf)
            shifts[position] = self.parameters[t, 3:5]
        if psf.ndim == 4:
            # Terms that vary carry no flux.
            excess = psf.sum(dim=(-2, -1), keepdim=True)
            excess[:, 0] = 0.0
            psf -= excess * psf[:, :1]
        result.image, result.variance, result.psf = image, variance, psf
        if stack.frames is not None:
            result.frames = _move(stack.frames, shifts)
            result.good = result.good & torch.stack(
                [result.frames.covered(t, stack.frame_shape) for t in range(stack.n_exposures)]
            ).to(result.good.device)
            result.image = result.image.masked_fill(~result.good, 0.0)
            result.variance = result.variance.masked_fill(~result.good, torch.inf)
        return result


def _move(frames: FrameGeometry, shifts: torch.Tensor) -> FrameGeometry:
    """Return a mapping such that what appears shifted (T, 2) is where it should be."""
    x, y = (nodes - shifts[:, i, None, None] for i, nodes in enumerate((frames.x, frames.y)))
    return FrameGeometry(frames.latent_shape, x.numpy(), y.numpy(), frames.step)


def convolve_psf(psf: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Return a PSF (k, k), or basis images (J, k, k), convolved with a kernel (m, m).

    Float64; light that leaves the stamps is lost.
    """
    stamps = psf.to(torch.float64).reshape(-1, 1, *psf.shape[-2:])
    half = kernel.shape[-1] // 2
    if half:
        stamps = torch.nn.functional.conv2d(stamps, kernel.flip((-2, -1))[None, None], padding=half)
    return stamps.reshape(psf.shape)
