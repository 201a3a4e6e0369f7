# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PatchPsf", "pad_kernels")

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from lsst.images import Box, Interval

from ..restoration import evaluate_psf_basis, fit_psf_basis, move_psf_basis, resample_psf
from ._errors import BadInputError, InputProblem
from ._exposure_reader import ExposureReader
from ._pixel_mapping import PixelMapping

_SHORT = 32
"""Side in detector pixels below which a PSF is taken to be constant."""

_LARGEST_ERROR = 1e-3
"""Error over the peak up to which one polynomial stands for many tiles."""

_FARTHEST = 3.0
"""How far a polynomial is carried from the middle of what it was fitted to, in half sizes of that."""


@dataclasses.dataclass(frozen=True)
class _SharedPsf:
    """The PSF of a large part of a detector as a polynomial of tract position.

    Positions are ``(x - centre) / half`` along x and y. ``basis`` and
    ``error`` are as `fit_psf_basis` returns them.
    """

    basis: np.ndarray
    error: float
    centre: tuple[float, float]
    half: tuple[float, float]

    def over(self, bbox: Box) -> tuple[np.ndarray, tuple[float, float]] | None:
        """Return the basis for a part of the tract, and (u, v) of its own middle there.

        `None` if that part lies too far off.
        """
        if len(self.basis) == 1:
            return self.basis, (0.0, 0.0)
        middle, half = zip(*((i.center, 0.5 * max(1, i.size - 1)) for i in (bbox.x, bbox.y)), strict=True)
        scale = half[0] / self.half[0], half[1] / self.half[1]
        offset = tuple((m - c) / h for m, c, h in zip(middle, self.centre, self.half, strict=True))
        if max(s + abs(o) for s, o in zip(scale, offset, strict=True)) > _FARTHEST:
            return None
        middle = -offset[0] / scale[0], -offset[1] / scale[1]
        return move_psf_basis(self.basis, scale, (offset[0], offset[1])), middle


class PatchPsf:
    """The PSF of a detector image on the pixel grid of a patch.

    Parameters
    ----------
    reader : `ExposureReader`
        The detector image.
    mapping : `PixelMapping`
        Mapping from the patch's pixels to the detector's.
    order : `int`, optional
        Order of the Lanczos kernel that interpolates kernel images. Piff
        models are not interpolated but drawn on the patch's grid.
    """

    def __init__(self, reader: ExposureReader, mapping: PixelMapping, order: int = 5) -> None:
        self.reader = reader
        self.mapping = mapping
        self._order = order
        self._kernel_size: int | None = None
        self._shared: dict[tuple[object, ...], _SharedPsf] = {}

    def kernel(self, x: float, y: float, size: int | None = None) -> np.ndarray:
        """Evaluate the PSF on the tract's pixel grid.

        Parameters
        ----------
        x, y : `float`
            Position in tract pixels; outside of the detector, the nearest
            position on it is taken.
        size : `int`, optional
            Side of the kernel, odd. By default it holds the detector's
            kernel.

        Returns
        -------
        kernel : `numpy.ndarray`, (size, size), float64
            PSF with a sum of one.
        """
        box = self.reader.bbox
        detector_x, detector_y = self.mapping(np.array([x]), np.array([y]))
        detector_x = np.clip(detector_x, box.x.min, box.x.max)
        detector_y = np.clip(detector_y, box.y.min, box.y.max)
        return self._carry(float(detector_x[0]), float(detector_y[0]), size)[0]

    def _carry(self, x: float, y: float, size: int | None) -> tuple[np.ndarray, float, float]:
        """Return the PSF at a detector position, and where that lies."""
        x, y = self.reader.locate_psf(x, y)
        on_tract = self.mapping.inverse(np.array([x]), np.array([y]))
        tract_x, tract_y = float(on_tract[0][0]), float(on_tract[1][0])
        jacobian = self.mapping.jacobian(tract_x, tract_y)
        if size is None:
            size = self._find_size(x, y, jacobian)
        drawn = self.reader.draw_psf_kernel(x=x, y=y, jacobian=jacobian, size=size)
        if drawn is not None:
            return drawn, tract_x, tract_y
        kernel = self.reader.compute_psf_kernel(x=x, y=y)
        try:
            resampled = resample_psf(
                torch.from_numpy(kernel), torch.from_numpy(jacobian), size, order=self._order
            )
        except ValueError as error:
            raise BadInputError(
                self.reader.name,
                InputProblem.NO_PSF,
                f"Its PSF cannot be carried to the patch at x={tract_x:.1f}, y={tract_y:.1f} ({error}); "
                "fit it again.",
            ) from error
        return resampled.numpy(), tract_x, tract_y

    def _find_size(self, x: float, y: float, jacobian: np.ndarray) -> int:
        """Return a size that holds the detector's kernel."""
        if self._kernel_size is None:
            self._kernel_size = max(self.reader.compute_psf_kernel(x=x, y=y).shape)
        scale = np.sqrt(abs(np.linalg.det(jacobian)))
        # A scale that is one but for rounding keeps the size.
        return 2 * int(np.ceil((self._kernel_size // 2) / scale - 0.01)) + 1

    def basis(
        self, bbox: Box, covered: Box, *, degree: int, on_patch: Box | None = None, tolerance: float = 5e-4
    ) -> tuple[np.ndarray, float, tuple[float, float]]:
        """Represent the PSF over a part of the tract by basis images.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Tract pixels of the latent image.
        covered : `lsst.images.Box`
            Detector pixels on it, where the PSF is sampled.
        degree : `int`
            Largest degree of the polynomials.
        on_patch : `lsst.images.Box`, optional
            Detector pixels that any part of the patch will need.
        tolerance : `float`, optional
            A lower degree is taken where its error is smaller than this, in
            units of the peak.

        Returns
        -------
        basis : `numpy.ndarray`, (J, k, k), float64
            As for `~lsst.latent_coadds.restoration.fit_psf_basis`.
        error : `float`
            Largest error at the samples, in units of the peak.
        reference : `tuple` [`float`, `float`]
            Where (u, v) the PSF is a typical one: in the middle of the area that
            was fitted.

        Notes
        -----
        One polynomial is fitted to the whole detector, so that parts of the
        tract that overlap have the same PSFs; differences of some 1e-5 would
        show in the deconvolved cores of bright stars. Where it errs by more
        than 1e-3 of the peak, one is fitted to what lies on the patch, and
        where that does so too, or is far smaller than ``bbox``, one to
        ``covered``.
        """
        for box in (self.reader.bbox, on_patch):
            shared = None if box is None else self._fit_shared(box, degree, tolerance)
            if shared is None or shared.error > _LARGEST_ERROR:
                continue
            if (found := shared.over(bbox)) is not None:
                return found[0], shared.error, found[1]
        stamps, x, y = self._sample(covered, degree)
        u, v = (
            2.0 * (positions - interval.start) / max(1, interval.size - 1) - 1.0
            for positions, interval in ((x, bbox.x), (y, bbox.y))
        )
        basis, error = fit_psf_basis(stamps, u, v, degree=degree, tolerance=tolerance)
        return basis, error, (float(u.mean()), float(v.mean()))

    def typical(self, on_patch: Box, *, degree: int, tolerance: float = 5e-4) -> np.ndarray:
        """Return the PSF (k, k) at the reference that `basis` returns, wherever there is one for many tiles.

        Parameters
        ----------
        on_patch, degree, tolerance
            As in `basis`.
        """
        for box in (self.reader.bbox, on_patch):
            shared = self._fit_shared(box, degree, tolerance)
            if shared.error <= _LARGEST_ERROR:
                return evaluate_psf_basis(shared.basis, np.zeros(1), np.zeros(1))[0]
        return self._carry(float(on_patch.x.center), float(on_patch.y.center), None)[0]

    def _fit_shared(self, box: Box, degree: int, tolerance: float) -> _SharedPsf:
        """Represent the PSF on some detector pixels, once."""
        key = box.x.start, box.x.stop, box.y.start, box.y.stop, degree, tolerance
        if key not in self._shared:
            stamps, *places = self._sample(box, degree)
            centre = tuple(float(0.5 * (p.min() + p.max())) for p in places)
            half = tuple(float(max(0.5, 0.5 * np.ptp(p))) for p in places)
            u, v = ((p - c) / h for p, c, h in zip(places, centre, half, strict=True))
            basis, error = fit_psf_basis(stamps, u, v, degree=degree, tolerance=tolerance)
            self._shared[key] = _SharedPsf(basis, error, (centre[0], centre[1]), (half[0], half[1]))
        return self._shared[key]

    def _sample(self, covered: Box, degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the PSF (n, k, k) at some detector positions, and tract x and y (n,) of these."""
        positions = [(x, y) for y in _positions(covered.y, degree) for x in _positions(covered.x, degree)]
        samples = [self._carry(*positions[0], None)]
        samples += [self._carry(x, y, len(samples[0][0])) for x, y in positions[1:]]
        stamps, x, y = zip(*samples, strict=True)
        return np.stack(stamps), np.array(x), np.array(y)


def _positions(interval: Interval, degree: int) -> list[float]:
    """Return where to sample a PSF along an axis of a detector."""
    if degree == 0 or interval.size < _SHORT:
        return [float(interval.center)]
    return np.linspace(interval.min, interval.max, degree + 2).tolist()


def pad_kernels(kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Pad kernels (..., k, k) with odd sides to a common side, (n, ..., k, k)."""
    size = max(max(kernel.shape[-2:]) for kernel in kernels)
    padded = np.zeros((len(kernels), *kernels[0].shape[:-2], size, size))
    for index, kernel in enumerate(kernels):
        y0, x0 = (size - kernel.shape[-2]) // 2, (size - kernel.shape[-1]) // 2
        padded[index, ..., y0 : y0 + kernel.shape[-2], x0 : x0 + kernel.shape[-1]] = kernel
    return padded
