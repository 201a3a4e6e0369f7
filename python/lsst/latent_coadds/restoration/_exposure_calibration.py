# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is learned about exposures besides the sky: PSFs, scales, shifts, backgrounds."""

from __future__ import annotations

__all__ = ("CALIBRATION_PARAMETERS", "ExposureCalibration")

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ._errors import InvalidStackError
from ._frames import FrameGeometry
from ._psf_basis import evaluate_psf_basis, fit_psf_basis, psf_basis_degree
from ._psf_spline import PsfSpline
from ._stack import ExposureStack
from ._whole_field import WholeField

CALIBRATION_PARAMETERS = (
    *("log_size", "shear_1", "shear_2", "shift_x", "shift_y", "log_flux_scale", "log_wing"),
    *("log_size_x", "log_size_y", "shear_1_x", "shear_1_y", "shear_2_x", "shear_2_y"),
)
"""Columns of `ExposureCalibration.parameters`."""

_NODES = 4
"""Places along x and y at which corrections that vary are looked at."""

_BASIS_TOLERANCE = 1e-3
"""Largest error of a PSF that varies, in units of its peak, that is good enough."""


@dataclasses.dataclass(frozen=True)
class ExposureCalibration:
    """Corrections of exposures, to be applied before a restoration.

    Attributes
    ----------
    names : `tuple` [ `str` ]
        The exposures, T of them.
    parameters, errors : `torch.Tensor`, shape (T, 13)
        Corrections in the order of `CALIBRATION_PARAMETERS`, and their standard
        errors, float64. ``log_size`` and the shears are those of
        `stretch_matrix` in the middle of the field; a shift is where sources
        appear, relative to where they should; an exposure's fluxes are
        ``exp(log_flux_scale)`` times the true ones; ``log_wing`` is that of
        `wing_scale`. Names that end in ``_x`` or ``_y`` after those of a size
        or a shear are what these gain from the middle of the field to its
        edge.
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
    field : `tuple` [ `float`, `float`, `float` ]
        Middle of the field along x and y, and half its width, in pixels of
        the grid that `ExposureStack.origin` refers to.
    mean_errors : `torch.Tensor`, shape (13,), optional
        Standard errors of the means of the corrections over all exposures,
        with their weights in a coadd, before priors were adapted: what the
        sources leave open of the coadd's PSF.
    flux_error : `float`
        What that means for the fluxes of points in a coadd: the relative
        error that they share.
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
    field: tuple[float, float, float] = (0.0, 0.0, 1.0)
    mean_errors: torch.Tensor = dataclasses.field(
        default_factory=lambda: torch.zeros(len(CALIBRATION_PARAMETERS), dtype=torch.float64)
    )
    flux_error: float = 0.0

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
            ("mean_errors", self.mean_errors, (len(CALIBRATION_PARAMETERS),)),
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

    @property
    def gradients(self) -> torch.Tensor:
        """What size and shears (T, 3) gain along x and y, (T, 3, 2)."""
        return self.parameters[:, 7:].reshape(-1, 3, 2)

    def field_coordinates(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return places in the field (..., 2), not beyond its edges at -1 and 1.

        Parameters
        ----------
        x, y : `torch.Tensor`
            Pixels of the grid of `ExposureStack.origin`.
        """
        places = torch.stack([x - self.field[0], y - self.field[1]], dim=-1) / self.field[2]
        return places.clamp(-1.0, 1.0)

    def correct_psf(
        self,
        name: str,
        psf: torch.Tensor,
        *,
        shifted: bool = False,
        place: tuple[float, float] | None = None,
    ) -> torch.Tensor:
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
        place : `tuple` [ `float`, `float` ], optional
            x and y on the grid of `ExposureStack.origin`; the middle of the
            field by default.

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
        shape, wing = parameters[:3], parameters[6]
        if place is not None:
            there = self.field_coordinates(*torch.tensor(place, dtype=torch.float64))
            shape = shape + self.gradients[t].to(basis.device) @ there.to(basis.device)
        changed = basis = convolve_psf(basis, self.kernels[t].to(basis.device))
        if any(bool((p != 0).any()) for p in (shape, shift, wing)):
            changed = PsfSpline(basis).stamps(shape, shift, wing)
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
            replaced; by PSFs that vary, if corrections do. No pixel is
            interpolated: a shift goes into the PSF of an exposure on the
            latent grid, and into the mapping of one that has a grid of its
            own.
        """
        result = stack.to(device=stack.image.device, dtype=stack.image.dtype)
        image, variance = stack.image.clone(), stack.variance.clone()
        psfs = list(stack.psf)
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
            if result.weights is not None:
                scales = torch.ones_like(result.weights)
                scales[position] = scale**2
                result.weights = result.weights * scales
            psfs[position] = self._correct_over_field(name, stack, position).to(stack.psf)
            shifts[position] = self.parameters[t, 3:5]
        psf = _stack_bases(psfs)
        if psf.ndim == 4:
            # Terms that vary carry no flux.
            excess = psf.sum(dim=(-2, -1), keepdim=True)
            excess[:, 0] = 0.0
            psf -= excess * psf[:, :1]
        result.image, result.variance, result.psf = image, variance, psf
        if stack.field is not None:
            result.field = self._correct_whole(stack.field)
        if stack.frames is not None:
            result.frames = _move(stack.frames, shifts)
            result.good = result.good & torch.stack(
                [result.frames.covered(t, stack.frame_shape) for t in range(stack.n_exposures)]
            ).to(result.good.device)
            result.image = result.image.masked_fill(~result.good, 0.0)
            result.variance = result.variance.masked_fill(~result.good, torch.inf)
        return result

    def _correct_whole(self, whole: WholeField) -> WholeField:
        """Return the exposures of a whole image with corrected PSFs and weights."""
        psf, weights = whole.psf.clone(), whole.weights.clone()
        for position, name in enumerate(whole.names):
            if name in self.names:
                psf[position] = self.correct_psf(name, psf[position])
                weights[position] *= float(self.flux_scale[self.names.index(name)]) ** 2
        return WholeField(psf, weights, whole.names)

    def _correct_over_field(self, name: str, stack: ExposureStack, position: int) -> torch.Tensor:
        """Return the PSF (k, k), or basis images (J, k, k), of an exposure of a stack."""
        told, shifted = stack.psf[position], stack.frames is None
        gradients = self.gradients[self.names.index(name)]
        if not bool((gradients != 0).any()):
            return self.correct_psf(name, told, shifted=shifted)
        basis = told.reshape(-1, *told.shape[-2:]).double().cpu()
        degree = psf_basis_degree(len(basis))
        line = np.linspace(-1.0, 1.0, _NODES)
        u, v = (plane.reshape(-1) for plane in np.meshgrid(line, line))
        height, width = stack.shape
        x = stack.origin[1] + 0.5 * (width - 1) * (1.0 + u)
        y = stack.origin[0] + 0.5 * (height - 1) * (1.0 + v)
        stamps = evaluate_psf_basis(basis.numpy(), u, v)
        corrected = [
            self.correct_psf(name, torch.from_numpy(stamp), shifted=shifted, place=(float(px), float(py)))
            for stamp, px, py in zip(stamps, x, y, strict=True)
        ]
        fitted, _ = fit_psf_basis(
            torch.stack(corrected).numpy(), u, v, degree=max(2, degree), tolerance=_BASIS_TOLERANCE
        )
        return torch.from_numpy(fitted)


def _stack_bases(psfs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return PSFs (k, k) or (J, k, k) with as many basis images each, (T, J, k, k) or (T, k, k)."""
    if all(psf.ndim == 2 for psf in psfs):
        return torch.stack(list(psfs))
    bases = [psf.reshape(-1, *psf.shape[-2:]) for psf in psfs]
    n_basis = max(len(basis) for basis in bases)
    pad = torch.nn.functional.pad
    return torch.stack([pad(basis, (0, 0, 0, 0, 0, n_basis - len(basis))) for basis in bases])


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
