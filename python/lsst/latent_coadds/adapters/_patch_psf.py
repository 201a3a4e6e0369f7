# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("PatchPsf", "pad_kernels")

from collections.abc import Sequence

import numpy as np
import torch

from lsst.images import Box, Interval

from ..restoration import fit_psf_basis, resample_psf
from ._errors import BadInputError, InputProblem
from ._exposure_reader import ExposureReader
from ._pixel_mapping import PixelMapping

_SHORT = 32
"""Side in detector pixels below which a PSF is taken to be constant."""


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
        self, bbox: Box, covered: Box, *, degree: int, tolerance: float = 5e-4
    ) -> tuple[np.ndarray, float]:
        """Represent the PSF over a part of the tract by basis images.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Tract pixels of the latent image.
        covered : `lsst.images.Box`
            Detector pixels on it, where the PSF is sampled.
        degree : `int`
            Largest degree of the polynomials.
        tolerance : `float`, optional
            A lower degree is taken where its error is smaller than this, in
            units of the peak.

        Returns
        -------
        basis : `numpy.ndarray`, (J, k, k), float64
            As for `~lsst.latent_coadds.restoration.fit_psf_basis`.
        error : `float`
            Largest error at the samples, in units of the peak.
        """
        positions = [(x, y) for y in _positions(covered.y, degree) for x in _positions(covered.x, degree)]
        samples = [self._carry(*positions[0], None)]
        samples += [self._carry(x, y, len(samples[0][0])) for x, y in positions[1:]]
        u, v = (
            2.0 * (np.array(values) - interval.start) / max(1, interval.size - 1) - 1.0
            for values, interval in zip(
                ([s[1] for s in samples], [s[2] for s in samples]), (bbox.x, bbox.y), strict=True
            )
        )
        return fit_psf_basis(np.stack([s[0] for s in samples]), u, v, degree=degree, tolerance=tolerance)


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
