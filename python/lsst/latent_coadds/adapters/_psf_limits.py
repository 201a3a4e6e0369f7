# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Choice of exposures by their PSFs."""

from __future__ import annotations

__all__ = ("PsfLimits", "PsfShape")

import dataclasses
import math

import numpy as np

from ._errors import BadInputError, InputProblem
from ._exposure_reader import ExposureReader


@dataclasses.dataclass(frozen=True)
class PsfShape:
    """Width and ellipticity of a PSF.

    Attributes
    ----------
    fwhm : `float`
        FWHM of the round Gaussian with the determinant of the adaptive second
        moments; in pixels, or in arcsec where a method says so.
    ellipticity : `float`
        ``sqrt((xx - yy)**2 + (2 xy)**2) / (xx + yy)`` of those moments.
    """

    fwhm: float
    ellipticity: float

    @classmethod
    def from_kernel(cls, kernel: np.ndarray, n_iterations: int = 50) -> PsfShape:
        """Measure adaptive (Gaussian-weighted) moments.

        Parameters
        ----------
        kernel : `numpy.ndarray`, (k, k)
            PSF, centred on the central pixel of an odd side.
        n_iterations : `int`, optional
            Largest number of times that the weight is matched to the PSF.

        Returns
        -------
        shape : `PsfShape`
            Shape, in pixels; NaN where the moments do not converge.
        """
        half = kernel.shape[0] // 2
        offsets = np.arange(-half, half + 1, dtype=np.float64)
        points = np.stack([g.ravel() for g in np.meshgrid(offsets, offsets)])
        covariance = np.eye(2) * 4.0
        for _ in range(n_iterations):
            weight = np.exp(-0.5 * np.einsum("in,ij,jn->n", points, np.linalg.inv(covariance), points))
            weight *= kernel.ravel()
            if not weight.sum() > 0:
                return cls(math.nan, math.nan)
            # A Gaussian seen through its own weight has half its covariance.
            found = 2 * (weight * points) @ points.T / weight.sum()
            if not np.isfinite(found).all() or np.linalg.det(found) <= 0:
                return cls(math.nan, math.nan)
            change = np.abs(found - covariance).max()
            covariance = found
            if change < 1e-6:
                break
        difference = math.hypot(covariance[0, 0] - covariance[1, 1], 2 * covariance[0, 1])
        return cls(
            2.35482 * float(np.linalg.det(covariance)) ** 0.25, difference / float(np.trace(covariance))
        )

    @classmethod
    def from_reader(cls, reader: ExposureReader) -> PsfShape:
        """Measure the PSF model at the centre of a detector.

        Parameters
        ----------
        reader : `ExposureReader`
            The exposure.

        Returns
        -------
        shape : `PsfShape`
            Shape, with the FWHM in arcsec.

        Raises
        ------
        BadInputError
            If there is no usable PSF.
        """
        x, y = reader.bbox.x.center, reader.bbox.y.center
        shape = cls.from_kernel(reader.compute_psf_kernel(x=x, y=y))
        sky = reader.sky_projection.pixel_to_sky(x=np.array([x, x + 1, x]), y=np.array([y, y, y + 1]))
        sides = [float(sky[0].separation(sky[i]).arcsec) for i in (1, 2)]
        return cls(shape.fwhm * math.sqrt(sides[0] * sides[1]), shape.ellipticity)


@dataclasses.dataclass(frozen=True)
class PsfLimits:
    """Which exposures are good enough.

    Attributes
    ----------
    max_fwhm : `float`, optional
        Largest FWHM, in arcsec.
    max_ellipticity : `float`, optional
        Largest ellipticity.
    """

    max_fwhm: float | None = None
    max_ellipticity: float | None = None

    def check(self, reader: ExposureReader) -> None:
        """Raise if an exposure is not good enough.

        Parameters
        ----------
        reader : `ExposureReader`
            The exposure.

        Raises
        ------
        BadInputError
            If its PSF is too wide or too elliptical, or not usable.
        """
        if self.max_fwhm is None and self.max_ellipticity is None:
            return
        shape = PsfShape.from_reader(reader)
        for name, value, limit, unit in (
            ("max_psf_fwhm", shape.fwhm, self.max_fwhm, " arcsec"),
            ("max_psf_ellipticity", shape.ellipticity, self.max_ellipticity, ""),
        ):
            if limit is not None and not value <= limit:
                raise BadInputError(
                    reader.name,
                    InputProblem.POOR_PSF,
                    f"The PSF at its centre has {value:.3f}{unit}, and {name} is {limit:g}.",
                )
