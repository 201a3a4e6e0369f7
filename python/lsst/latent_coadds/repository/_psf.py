# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("LANCZOS", "MoffatField", "make_grid_psf")

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lsst.images import Box
from lsst.images.psfs import PiffWrapper

# GalSim and Piff are needed to make PSFs, not to read repositories, and so
# are imported where they are used.
if TYPE_CHECKING:
    import galsim
    import piff

LANCZOS = "galsim.Lanczos(5)"
"""Interpolant of pixel grids."""


@dataclasses.dataclass(frozen=True)
class MoffatField:
    """An elliptical Moffat PSF that varies smoothly over a detector.

    Parameters
    ----------
    beta : `float`
        Moffat slope.
    coefficients : `numpy.ndarray`, ``(3, n, n)``, `float64`
        For the half-light radius in pixels and the reduced shears g1 and g2:
        ``coefficients[p, i, j]`` multiplies ``x**i * y**j``, with x and y in
        pixels of the detector; zero where ``i + j >= n``.

    Notes
    -----
    The profile is that of the sky at the entrance of the detector: drawing
    it onto pixels includes the integration over a pixel.
    """

    beta: float
    coefficients: np.ndarray

    @classmethod
    def constant(cls, *, fwhm: float, beta: float = 3.0, g1: float = 0.0, g2: float = 0.0) -> Self:
        """Make a PSF that does not vary.

        Parameters
        ----------
        fwhm : `float`
            Full width at half maximum in pixels, before pixel integration.
        beta : `float`, optional
            Moffat slope.
        g1, g2 : `float`, optional
            Reduced shear.

        Returns
        -------
        field : `MoffatField`
            The PSF.
        """
        import galsim

        radius = galsim.Moffat(beta=beta, fwhm=fwhm).half_light_radius
        return cls(beta, np.array([radius, g1, g2], dtype=float).reshape(3, 1, 1))

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        bbox: Box,
        *,
        fwhm: float,
        beta: float,
        g: float = 0.03,
        variation: float = 0.03,
    ) -> Self:
        """Make a PSF that varies as a quadratic polynomial.

        Parameters
        ----------
        rng : `numpy.random.Generator`
            Source of the coefficients.
        bbox : `lsst.images.Box`
            Pixels over which it varies.
        fwhm : `float`
            Full width at half maximum at the centre, in pixels.
        beta : `float`
            Moffat slope.
        g : `float`, optional
            Typical reduced shear.
        variation : `float`, optional
            Typical relative change of the size from the centre to an edge.

        Returns
        -------
        field : `MoffatField`
            The PSF.
        """
        import galsim

        radius = galsim.Moffat(beta=beta, fwhm=fwhm).half_light_radius
        x0, hx = (bbox.x.start + bbox.x.stop - 1) / 2, bbox.x.size / 2
        y0, hy = (bbox.y.start + bbox.y.stop - 1) / 2, bbox.y.size / 2
        # Powers of (x - x0) / hx and (y - y0) / hy as polynomials of x and y.
        px, py = (
            [np.array([1.0, 0, 0]), np.array([-c, 1, 0]) / h, np.array([c * c, -2 * c, 1]) / h**2]
            for c, h in ((x0, hx), (y0, hy))
        )
        coefficients = np.zeros((3, 3, 3))
        for p, (mean, amplitude) in enumerate(((radius, radius * variation), (0.0, g), (0.0, g))):
            for i, j in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)):
                value = rng.normal() * amplitude * (0.5 if i + j else 1.0)
                if p == 0 and i + j == 0:
                    value = mean
                coefficients[p] += value * np.outer(px[i], py[j])
        return cls(beta, coefficients)

    def profile(self, x: float, y: float) -> galsim.GSObject:
        """Return the PSF at a position, as GalSim has it.

        Parameters
        ----------
        x, y : `float`
            Detector pixel coordinates.

        Returns
        -------
        profile : `galsim.GSObject`
            Moffat of unit flux; its unit of length is a pixel.
        """
        import galsim

        radius, g1, g2 = (np.polynomial.polynomial.polyval2d(x, y, c) for c in self.coefficients)
        return galsim.Moffat(beta=self.beta, half_light_radius=float(radius)).shear(
            g1=float(g1), g2=float(g2)
        )

    def to_psf(self, bbox: Box, *, stamp_size: int = 51) -> PiffWrapper:
        """Return the PSF in the form that a `lsst.images.VisitImage` keeps.

        Parameters
        ----------
        bbox : `lsst.images.Box`
            Where the model may be evaluated.
        stamp_size : `int`, optional
            Side of the kernel images in pixels.

        Returns
        -------
        psf : `lsst.images.psfs.PiffWrapper`
            A Piff Moffat model with a polynomial interpolant.

        Raises
        ------
        ValueError
            Raised if ``stamp_size`` is even.
        """
        import galsim
        import piff

        if stamp_size % 2 == 0:
            raise ValueError(
                f"stamp_size must be odd, so that a kernel has a central pixel; got {stamp_size}."
            )
        order = self.coefficients.shape[1] - 1
        interpolant: Any = piff.BasisPolynomial(order=order)
        # Piff orders its basis as the true elements of this triangle.
        i, j = np.nonzero(np.add.outer(np.arange(order + 1), np.arange(order + 1)) <= order)
        interpolant.q = self.coefficients[:, i, j]
        impl = piff.SimplePSF(piff.Moffat(self.beta), interpolant)
        impl.wcs = {0: galsim.PixelScale(1.0)}
        impl.pointing = None
        impl.stars = []
        return PiffWrapper(impl, bbox, stamp_size)


def make_grid_psf(coefficients: np.ndarray, *, scale: float, size: int, order: int) -> piff.PSF:
    """Make a Piff model of given pixels that are polynomials of position.

    Parameters
    ----------
    coefficients : `numpy.ndarray`, ``(size**2, n)``
        Pixels, row by row, for each of Piff's basis functions: the products
        ``x**i * y**j`` with ``i + j <= order``, j varying fastest.
    scale : `float`
        Side of a pixel of the grid in pixels of the detector.
    size : `int`
        Odd number of pixels along a side of the grid.
    order : `int`
        Degree of the polynomials.

    Returns
    -------
    psf : `piff.PSF`
        The model, in pixels of the detector.
    """
    import galsim
    import piff

    psf = piff.SimplePSF(piff.PixelGrid(scale, size, interp=LANCZOS), piff.BasisPolynomial(order=order))
    psf.interp.q = np.asarray(coefficients, dtype=float)
    psf.wcs = {0: galsim.PixelScale(1.0)}
    psf.pointing = None
    psf.stars = []
    return psf
