# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Known sources, to be added to exposures while a network is trained."""

from __future__ import annotations

__all__ = ("SourceMaker",)

import dataclasses
import math

import torch

from ._kernels import FWHM_PER_SIGMA, value_at_origin
from ._proximal import NonNegativeQuadratic

SIGNAL_TO_NOISE = (4.0, 500.0)
"""Range of fluxes, in errors of the flux of an isolated star."""

AREA = 900.0
"""Latent pixels per source."""

_PAIRS, _GALAXIES = 0.3, 0.3
"""Fractions of sources that are a pair of stars, and a galaxy."""

_Columns = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class SourceMaker:
    """Draw random stars, pairs of stars and galaxies.

    Attributes
    ----------
    shape : `tuple` [ `int`, `int` ]
        Shape of the latent image.
    spread : `float`
        Standard deviation of the PSF of the latent image, in pixels.
    flux_error : `float`
        Error of the flux of an isolated star.

    Notes
    -----
    Fluxes are log-uniform, positions and shapes are uniform. A galaxy is the
    sum of two ellipses, of which the outer one is twice as large.
    """

    shape: tuple[int, int]
    spread: float
    flux_error: float

    @classmethod
    def from_quadratic(cls, quadratic: NonNegativeQuadratic, fwhm: float) -> SourceMaker:
        """Make it for a problem whose kernels contain a Gaussian target PSF.

        Parameters
        ----------
        quadratic : `NonNegativeQuadratic`
            Its curvature has the precision of the flux of a star.
        fwhm : `float`
            FWHM of the target PSF in pixels; below 1, points are as wide as
            that.
        """
        spread = max(fwhm, 1.0) / FWHM_PER_SIGMA
        height, width = quadratic.operator.fft_shape
        y, x = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
        power = torch.exp(-((2.0 * math.pi * spread) ** 2) * (x**2 + y**2)).to(quadratic.curvature)
        precision = value_at_origin(quadratic.curvature * power, (height, width))
        return cls(quadratic.operator.latent_shape, spread, float(precision) ** -0.5)

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Return a latent image, shape (h, w), float32 on the CPU.

        Parameters
        ----------
        generator : `torch.Generator`
            Source of randomness, on the CPU.
        """
        n = max(4, round(self.shape[0] * self.shape[1] / AREA))
        draw = torch.rand(n, 11, generator=generator).T
        low, high = (math.log(s) for s in SIGNAL_TO_NOISE)
        stars = {
            "x": draw[0] * (self.shape[1] - 1),
            "y": draw[1] * (self.shape[0] - 1),
            "flux": self.flux_error * torch.exp(low + (high - low) * draw[2]),
            **dict.fromkeys(("xx", "xy", "yy"), torch.zeros(n)),
        }
        is_pair, is_galaxy = draw[3] < _PAIRS, draw[3] > 1.0 - _GALAXIES
        angle, separation = 2.0 * math.pi * draw[4], self.spread * (1.8 + 5.2 * draw[5])
        second = {
            **stars,
            "x": stars["x"] + separation * torch.cos(angle),
            "y": stars["y"] + separation * torch.sin(angle),
            "flux": stars["flux"] * torch.exp(-1.1 * draw[6]),
        }
        size = self.spread**2 * torch.exp(math.log(0.7) + math.log(24.0) * draw[7])
        e1, e2 = 0.8 * draw[8] - 0.4, 0.8 * draw[9] - 0.4
        core = {**stars, "xx": size * (1.0 + e1), "xy": size * e2, "yy": size * (1.0 - e1)}
        core["flux"] = 0.75 * stars["flux"]
        halo = {**core, **{name: 4.0 * core[name] for name in ("xx", "xy", "yy")}}
        image = torch.zeros(self.shape)
        for sources, chosen in ((stars, ~is_galaxy), (second, is_pair), (core, is_galaxy), (halo, is_galaxy)):
            self._add(image, {name: column[chosen] for name, column in sources.items()})
        return image

    def _add(self, image: torch.Tensor, sources: _Columns) -> None:
        """Add Gaussians with given moments, convolved with the PSF."""
        if not len(sources["x"]):
            return
        cell = {name: column[:, None, None] for name, column in sources.items()}
        xx, xy, yy = (cell["xx"] + self.spread**2, cell["xy"], cell["yy"] + self.spread**2)
        half = math.ceil(4.5 * math.sqrt(float(torch.maximum(xx, yy).max())))
        offset = torch.arange(-half, half + 1)
        column, row = (cell["x"].round().long() + offset, cell["y"].round().long() + offset[:, None])
        dx, dy = column - cell["x"], row - cell["y"]
        determinant = xx * yy - xy**2
        distance = (yy * dx**2 - 2.0 * xy * dx * dy + xx * dy**2) / determinant
        value = cell["flux"] / (2.0 * math.pi * determinant.sqrt()) * torch.exp(-0.5 * distance)
        inside = (column >= 0) & (column < image.shape[1]) & (row >= 0) & (row < image.shape[0])
        index = row * image.shape[1] + column
        image.view(-1).index_add_(0, index[inside], value[inside])
