# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Isolated compact sources in a stack, and the pixels around them."""

from __future__ import annotations

__all__ = ("FoundSources", "cut_stamps", "find_sources_to_fit", "slope_of_locus", "stellar_locus")

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from ._direct import direct_coadd
from ._frames import pixel_area
from ._kernels import FWHM_PER_SIGMA, value_at_origin
from ._operators import ConvolutionOperator
from ._peaks import detect_peaks
from ._psf_basis import psf_basis_degree, psf_basis_terms
from ._psf_spline import PsfSpline
from ._settings import DirectSettings
from ._stack import ExposureStack
from ._star_stamps import StarStamps

_DETECTED = 5.0
"""Peaks of the matched filter above this many sigma are sources."""

_NEIGHBOUR = 0.03
"""Flux of a neighbour within the core, over that of a source, that spoils it."""

_LEAST_MEMBERS = 12
"""Sources that have to agree on a slope of sizes over the field."""

_BETTER = 1.5
"""By how much the crowd on a slope has to be denser than without."""

_LARGEST_SLOPE = 0.2
"""Largest slope of the logarithm of sizes, from the middle of the field to its edge."""

_N_TRIPLES = 500
"""Number of triples of sources that slopes are tried from."""

_LEAST_CORE = 0.9
"""Part of a star's core that an exposure has to have."""


@dataclasses.dataclass(frozen=True)
class FoundSources:
    """Compact sources of a stack.

    Attributes
    ----------
    places : `torch.Tensor`, shape (S, 3)
        x, y (latent pixels) and flux of the sources to fit, brightest first.
    signal_to_noise : `torch.Tensor`, shape (S,)
        Their signal-to-noise ratios in all exposures together.
    others : `torch.Tensor`, shape (N, 2)
        x and y of all other peaks.
    core, radius : `float`
        Within which the light of a source is when it is restored, and to
        which its PSF is looked at, in latent pixels.
    """

    places: torch.Tensor
    signal_to_noise: torch.Tensor
    others: torch.Tensor
    core: float
    radius: float

    def other_light(self, shape: tuple[int, int]) -> torch.Tensor:
        """Return where (H, W) restored light belongs to other sources."""
        y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")

        def near(places: torch.Tensor, distance: float) -> torch.Tensor:
            mask = torch.zeros(shape, dtype=torch.bool)
            for px, py in places[:, :2].tolist():
                mask |= (x - px) ** 2 + (y - py) ** 2 <= distance**2
            return mask

        # What lies around a star and is no source of its own is an error of its PSF.
        return (~near(self.places, self.radius) | near(self.others, self.core)) & ~near(
            self.places, self.core
        )


def find_sources_to_fit(stack: ExposureStack, min_signal_to_noise: float, largest: int) -> FoundSources:
    """Find bright sources without bright neighbours.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures, on the CPU or not.
    min_signal_to_noise : `float`
        Least signal-to-noise ratio.
    largest : `int`
        Largest number of sources.
    """
    operator = ConvolutionOperator(stack.psf, stack.shape, sampler=stack.make_sampler())
    kept = direct_coadd(stack, DirectSettings(clip=True)).kept
    weights = stack.exposure_weights()
    power = value_at_origin(operator.power(weights), operator.fft_shape)
    matched = operator.adjoint(stack.image * kept * weights[:, None, None])
    covered = (stack.n_image > 0) & (matched > 0)
    significance = torch.where(covered, matched / power.sqrt(), torch.zeros_like(matched)).double().cpu()
    fwhm = _widths(stack.mean_psf)
    core, radius = max(4.0, 1.4 * float(fwhm.median())), 2.2 * float(fwhm.max()) + 2.0
    rows, columns = detect_peaks(significance, _DETECTED, radius=2).unbind(1)
    values = significance[rows, columns]
    order = values.argsort(descending=True)
    x, y, values = columns[order].double(), rows[order].double(), values[order]
    height, width = stack.shape
    edge = torch.minimum(torch.minimum(x, y), torch.minimum(width - 1 - x, height - 1 - y))
    fits = (values >= min_signal_to_noise) & (edge >= 0.5 * radius)
    for i in torch.nonzero(fits).flatten().tolist():
        distance = torch.hypot(x - x[i], y - y[i])
        ratio = values / values[i]
        near = (distance < core + 2.0) & (ratio > _NEIGHBOUR)
        far = (distance < radius) & (ratio > 0.5)
        fits[i] = int((near | far).sum()) == 1
    chosen = torch.nonzero(fits).flatten()[:largest]
    rest = torch.ones_like(fits)
    rest[chosen] = False
    flux = values[chosen] / float(power.sqrt())
    return FoundSources(
        places=torch.stack([x[chosen], y[chosen], flux], dim=1),
        signal_to_noise=values[chosen],
        others=torch.stack([x[rest], y[rest]], dim=1),
        core=core,
        radius=radius,
    )


def _widths(psf: torch.Tensor) -> torch.Tensor:
    """Return the FWHM of Gaussians with the same sum of squares, (T,)."""
    return FWHM_PER_SIGMA / (4.0 * math.pi * (psf.double() ** 2).sum(dim=(-2, -1))).sqrt()


def cut_stamps(
    stack: ExposureStack,
    psf: torch.Tensor,
    found: FoundSources,
    others: torch.Tensor,
    background: torch.Tensor,
    exposures: Sequence[int],
    first_star: int,
    field: torch.Tensor,
) -> list[StarStamps]:
    """Return the pixels around sources in each exposure.

    Parameters
    ----------
    stack : `ExposureStack`
        The exposures as they came.
    psf : `torch.Tensor`, shape (T, k, k) or (T, J, k, k)
        PSFs to stretch.
    found : `FoundSources`
        The sources.
    others : `torch.Tensor`, shape (T, h, w)
        Light that is not theirs.
    background : `torch.Tensor`, shape (T,)
        Level to subtract.
    exposures : `~collections.abc.Sequence` [ `int` ]
        Numbers of the exposures in the fit.
    first_star : `int`
        Number of the first source in the fit.
    field : `torch.Tensor`, shape (S, 2)
        Places of the sources in the field.
    """
    x, y = found.places[:, 0], found.places[:, 1]
    height, width = stack.shape
    n_basis = 1 if psf.ndim == 3 else psf.shape[1]
    u, v = ((2.0 * p / max(1, n - 1) - 1.0).clamp(-1.0, 1.0).numpy() for p, n in ((x, width), (y, height)))
    terms = torch.from_numpy(np.ascontiguousarray(psf_basis_terms(u, v, psf_basis_degree(n_basis))))
    blocks = []
    for t, exposure in enumerate(exposures):
        pixels, here_x, here_y, area = _pixels_around(stack, t, x, y, found.radius)
        image, variance, other = (
            plane[t].double().cpu().reshape(-1)[pixels] for plane in (stack.image, stack.variance, others)
        )
        distance = torch.hypot(here_x - x[:, None], here_y - y[:, None])
        inside = (distance <= found.radius) & (pixels >= 0)
        weight = torch.where(inside & torch.isfinite(variance), 1.0 / variance, torch.zeros_like(variance))
        core = distance <= 0.5 * found.core
        # A disc of a few pixels has not quite the area of a circle, and part of it may lie outside.
        whole = (area * core).sum(dim=1).clamp_min(0.7 * math.pi * (0.5 * found.core) ** 2)
        share = (area * core * (weight > 0)).sum(dim=1) / whole
        seen = torch.nonzero(share > _LEAST_CORE).flatten()
        if not len(seen):
            continue
        blocks.append(
            StarStamps(
                exposure=exposure,
                stars=seen + first_star,
                spline=PsfSpline(psf[t].cpu()),
                terms=terms[seen],
                field=field[seen],
                x=here_x[seen],
                y=here_y[seen],
                area=area[seen],
                image=(image - other - background[t])[seen],
                weight=weight[seen],
            )
        )
    return blocks


def _pixels_around(
    stack: ExposureStack, t: int, x: torch.Tensor, y: torch.Tensor, radius: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return flat numbers (-1 outside), latent places and areas of pixels, each (S, p)."""
    height, width = stack.frame_shape
    if stack.frames is None:
        half, centre_x, centre_y = math.ceil(radius), torch.round(x), torch.round(y)
    else:
        frames = stack.frames
        scale = float(torch.linalg.det(frames.affine(t)).abs()) ** -0.5
        half = math.ceil(1.1 * radius * scale)
        nearest = torch.round(y).long(), torch.round(x).long()
        centre_x, centre_y = (torch.round(plane[nearest]) for plane in frames.inverse(t))
    line = torch.arange(-half, half + 1)
    dy, dx = torch.meshgrid(line, line, indexing="ij")
    disc = dx**2 + dy**2 <= (half + 1) ** 2
    dy, dx = dy[disc][None], dx[disc][None]
    columns, rows = centre_x.long()[:, None] + dx, centre_y.long()[:, None] + dy
    inside = (columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)
    pixels = torch.where(inside, rows * width + columns, -1)
    if stack.frames is None:
        return pixels, columns.double(), rows.double(), torch.ones(pixels.shape, dtype=torch.float64)
    all_x, all_y = stack.frames.positions(t, stack.frame_shape)
    area = pixel_area(all_x, all_y).reshape(-1)
    return pixels, all_x.reshape(-1)[pixels], all_y.reshape(-1)[pixels], area[pixels]


def stellar_locus(size: torch.Tensor, error: torch.Tensor, *, width: float = 0.015) -> torch.Tensor:
    """Return which sources (S,) are as narrow as stars.

    Parameters
    ----------
    size, error : `torch.Tensor`, shape (S,)
        Logarithm of the size that each source has of its own, and its error.
    width : `float`, optional
        Scatter of stars besides their errors, such as that of PSF models.

    Notes
    -----
    All stars have one size, and galaxies larger ones: of the places where
    sources gather, stars are at the lowest.
    """
    crowd = _crowd(size, error, width)
    candidates = crowd >= 0.5 * crowd.max()
    locus = size[candidates].min()
    members = (size - locus).abs() < 3.0 * (error**2 + width**2).sqrt()
    centre = (size[members] / error[members].clamp_min(width) ** 2).sum() / (
        1.0 / error[members].clamp_min(width) ** 2
    ).sum()
    return (size - centre).abs() < 3.0 * (error**2 + width**2).sqrt()


def _crowd(size: torch.Tensor, error: torch.Tensor, width: float) -> torch.Tensor:
    """Return how densely sizes (..., S) gather around each; those known well count most."""
    spread = (error[:, None] ** 2 + error[None, :] ** 2 + width**2).sqrt()
    near = torch.exp(-0.5 * ((size[..., :, None] - size[..., None, :]) / spread) ** 2)
    return (near / spread).sum(dim=-1)


def slope_of_locus(
    size: torch.Tensor, error: torch.Tensor, field: torch.Tensor, *, width: float = 0.015
) -> torch.Tensor:
    """Return how the size of stars changes over the field, if that is clear.

    Parameters
    ----------
    size, error : `torch.Tensor`, shape (S,)
        As of `stellar_locus`.
    field : `torch.Tensor`, shape (S, 2)
        Places in the field.
    width : `float`, optional
        As of `stellar_locus`.

    Returns
    -------
    slope : `torch.Tensor`, shape (2,)
        Change of the logarithm of the size from the middle of the field to
        its edge along x and y. Zero, unless the sizes of a dozen sources or
        more gather far better on such a slope than without one.
    """
    none = torch.zeros(2, dtype=torch.float64)
    n = len(size)
    if n < _LEAST_MEMBERS:
        return none
    generator = torch.Generator().manual_seed(n)
    triples = torch.rand((_N_TRIPLES, n), generator=generator).argsort(dim=1)[:, :3]
    design = torch.cat([torch.ones((_N_TRIPLES, 3, 1), dtype=torch.float64), field[triples]], dim=2)
    apart = torch.linalg.det(design).abs() > 0.2
    slopes = torch.linalg.solve(design[apart], size[triples[apart], None])[:, 1:, 0]
    slopes = slopes[slopes.norm(dim=1) < _LARGEST_SLOPE]
    if not len(slopes):
        return none
    crowds = torch.stack([_crowd(size - field @ slope, error, width).max() for slope in slopes])
    best = slopes[crowds.argmax()]
    if float(crowds.max()) < _BETTER * float(_crowd(size, error, width).max()):
        return none
    members = stellar_locus(size - field @ best, error, width=width)
    if int(members.sum()) < _LEAST_MEMBERS:
        return none
    design = torch.cat([torch.ones((n, 1), dtype=torch.float64), field], dim=1)[members]
    weight = 1.0 / (error[members] ** 2 + width**2)
    normal = design.T @ (weight[:, None] * design)
    return torch.linalg.solve(normal, design.T @ (weight * size[members]))[1:]
