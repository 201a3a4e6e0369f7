# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copies of exposures with sources in them that the originals lack."""

from __future__ import annotations

__all__ = ("Injection", "draw_profile", "estimate_gain", "inject")

import copy
import dataclasses
import zlib
from collections.abc import Sequence

import galsim
import numpy as np
from astropy.table import Row, Table

from lsst.images import Box

from ..adapters import BadInputError, DetectorPixels, ExposureReader, PatchGrid, PixelMapping


@dataclasses.dataclass(frozen=True)
class _Stamp:
    """A source on the pixels of a detector."""

    box: Box
    image: np.ndarray
    variance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Injection:
    """An exposure with injected sources.

    Parameters
    ----------
    reader : `~lsst.latent_coadds.adapters.ExposureReader`
        The copy.
    information : `numpy.ndarray`, ``(n,)``
        Fisher information on the flux of each source, if all else is known:
        the sum over good pixels of the square of its unit profile over the
        variance, in nJy⁻².
    """

    reader: ExposureReader
    information: np.ndarray


def draw_profile(row: Row, pixel_scale: float) -> galsim.GSObject:
    """Return a source without its PSF, on the pixels of the patch.

    Parameters
    ----------
    row : `astropy.table.Row`
        Row of `make_sources`.
    pixel_scale : `float`
        Side of a pixel of the patch in arcsec.

    Returns
    -------
    profile : `galsim.GSObject`
        In units of pixels, with a flux of one.
    """
    if row["is_star"]:
        return galsim.DeltaFunction()
    radius = float(row["half_light_radius"]) / pixel_scale
    galaxy = galsim.Sersic(n=float(row["index"]), half_light_radius=radius, trunc=6 * radius)
    return galaxy.shear(g1=float(row["g1"]), g2=float(row["g2"])).withFlux(1.0)


def inject(
    reader: ExposureReader,
    sources: Table,
    patch: PatchGrid,
    *,
    pixel_scale: float,
    seed: int,
    bad: Sequence[str] = (),
    saturated: Sequence[str] = (),
    noise_only: bool = False,
) -> Injection:
    """Add sources to an exposure, in memory.

    Parameters
    ----------
    reader : `~lsst.latent_coadds.adapters.ExposureReader`
        The exposure, which stays as it is.
    sources : `astropy.table.Table`
        See `make_sources`.
    patch : `~lsst.latent_coadds.adapters.PatchGrid`
        Grid that the sources' positions are on.
    pixel_scale : `float`
        Side of its pixels in arcsec.
    seed : `int`
        Seed of the noise that comes with the sources.
    bad, saturated : sequence of `str`, optional
        Mask planes; see `~lsst.latent_coadds.adapters.ExposureReader.read`.
    noise_only : `bool`, optional
        Whether the sky is replaced by noise of the exposure's own variance.

    Returns
    -------
    injection : `Injection`
        A reader that returns pixels with the sources in them.

    Raises
    ------
    lsst.latent_coadds.adapters.BadInputError
        If the exposure cannot be used.

    Notes
    -----
    A source is drawn with the exposure's own PSF at its place, as it is on
    the detector's pixels (so the pixel's response is in it), through the WCS
    of both, and in nJy, as the exposure is after its calibration. If the
    variance plane rises with the image, as it does with photons, sources
    bring noise and variance of the same gain.
    """
    rng_seed = [seed, reader.visit, reader.detector, zlib.crc32(reader.instrument.encode())]
    information = np.zeros(len(sources))
    stamps: list[_Stamp] = []
    if len(sources):
        stamps = _draw_stamps(
            reader, sources, PixelMapping(patch, reader), pixel_scale, rng_seed, bad, saturated, information
        )
    injected = copy.copy(reader)
    # Shadows the method, so that whatever else a reader can do stays its own.
    vars(injected)["read"] = _Read(reader, stamps, rng_seed if noise_only else None)
    return Injection(injected, information)


def _draw_stamps(
    reader: ExposureReader,
    sources: Table,
    mapping: PixelMapping,
    pixel_scale: float,
    seed: list[int],
    bad: Sequence[str],
    saturated: Sequence[str],
    information: np.ndarray,
) -> list[_Stamp]:
    """Draw the sources that reach a detector, and fill in their information."""
    x, y = mapping(np.asarray(sources["x"]), np.asarray(sources["y"]))
    box, margin = reader.bbox, 60
    near = (x > box.x.start - margin) & (x < box.x.stop + margin)
    near &= (y > box.y.start - margin) & (y < box.y.stop + margin)
    if not near.any():
        return []
    pixels = reader.read(_surround(x[near], y[near], box, margin), bad, saturated)
    gain = estimate_gain(pixels.image, pixels.variance, pixels.good)
    stamps = []
    for i in np.flatnonzero(near):
        jacobian = _jacobian(mapping, float(sources["x"][i]), float(sources["y"][i]))
        profile = draw_profile(sources[i], pixel_scale).transform(*jacobian.ravel())
        unit = _draw(reader, profile, float(x[i]), float(y[i]), bool(sources["is_star"][i]), box)
        if unit is None:
            continue
        flux = float(sources["flux"][i])
        extra = np.maximum(flux * unit.image, 0.0) / gain
        noise = np.random.default_rng([*seed, int(i)]).normal(size=extra.shape) * np.sqrt(extra)
        stamps.append(_Stamp(unit.box, flux * unit.image + noise, extra))
        information[i] = _information(pixels, unit, extra)
    return stamps


def _surround(x: np.ndarray, y: np.ndarray, box: Box, margin: int) -> Box:
    """Return the part of a detector that holds some positions."""
    x0, x1 = (int(np.clip(v, box.x.start, box.x.stop - 1)) for v in (x.min() - margin, x.max() + margin))
    y0, y1 = (int(np.clip(v, box.y.start, box.y.stop - 1)) for v in (y.min() - margin, y.max() + margin))
    return Box.factory[y0 : y1 + 1, x0 : x1 + 1]


def _jacobian(mapping: PixelMapping, x: float, y: float, step: float = 0.5) -> np.ndarray:
    """Return d(detector x, y) / d(patch x, y)."""
    dx = np.array([step, -step, 0.0, 0.0])
    u, v = mapping(x + dx, y + np.roll(dx, 2))
    return np.array([[u[0] - u[1], u[2] - u[3]], [v[0] - v[1], v[2] - v[3]]]) / (2 * step)


def _draw(
    reader: ExposureReader, profile: galsim.GSObject, x: float, y: float, is_star: bool, box: Box
) -> _Stamp | None:
    """Draw a source of unit flux on the detector; `None` if it is beyond it."""
    inside = box.x.start <= x < box.x.stop and box.y.start <= y < box.y.stop
    if not inside:
        # A PSF beyond the detector may not be defined; the nearest one is.
        nearest = np.clip([x, y], [box.x.start, box.y.start], [box.x.stop - 1, box.y.stop - 1])
        kernel_x, kernel_y = (float(v) for v in nearest)
    else:
        kernel_x, kernel_y = x, y
    try:
        kernel = reader.compute_psf_kernel(x=kernel_x, y=kernel_y)
    except BadInputError:
        return None
    psf = galsim.InterpolatedImage(galsim.Image(kernel.copy(), scale=1.0), flux=1.0)
    drawn = psf if is_star else galsim.Convolve(profile.withFlux(1.0), psf)
    half = kernel.shape[0] // 2 + 2
    if not is_star:
        half = max(half, drawn.getGoodImageSize(1.0) // 2)
    bounds = galsim.BoundsI(round(x) - half, round(x) + half, round(y) - half, round(y) + half)
    limits = galsim.BoundsI(box.x.start, box.x.stop - 1, box.y.start, box.y.stop - 1)
    if not (bounds & limits).isDefined():
        return None
    image = galsim.ImageD(bounds & limits, scale=1.0)
    drawn.drawImage(image, center=galsim.PositionD(x, y), method="no_pixel")
    covered = bounds & limits
    where = Box.factory[covered.ymin : covered.ymax + 1, covered.xmin : covered.xmax + 1]
    return _Stamp(where, image.array, np.zeros_like(image.array))


def _information(pixels: DetectorPixels, unit: _Stamp, extra: np.ndarray) -> float:
    common = unit.box.intersection(pixels.bbox) if unit.box != pixels.bbox else unit.box
    cut, there = common.slice_within(unit.box), common.slice_within(pixels.bbox)
    profile, variance = unit.image[cut.y, cut.x], pixels.variance[there.y, there.x] + extra[cut.y, cut.x]
    return float(np.sum(np.where(pixels.good[there.y, there.x], profile**2 / variance, 0.0)))


class _Read:
    """Reads pixels of an exposure, and adds sources to them."""

    def __init__(self, reader: ExposureReader, stamps: list[_Stamp], noise_seed: list[int] | None) -> None:
        self._reader = reader
        self._stamps = stamps
        self._noise_seed = noise_seed

    def __call__(self, bbox: Box, bad: Sequence[str], saturated: Sequence[str]) -> DetectorPixels:
        pixels = self._reader.read(bbox, bad, saturated)
        image, variance = pixels.image.copy(), pixels.variance.copy()
        if self._noise_seed is not None:
            cut = bbox.slice_within(self._reader.bbox)
            noise = np.random.default_rng([*self._noise_seed, 2**31]).standard_normal(
                tuple(self._reader.bbox.shape), dtype=np.float32
            )
            image = noise[cut.y, cut.x] * np.sqrt(variance)
        for stamp in self._stamps:
            if not _overlap(stamp.box, bbox):
                continue
            common = stamp.box.intersection(bbox)
            cut, there = common.slice_within(stamp.box), common.slice_within(bbox)
            image[there.y, there.x] += stamp.image[cut.y, cut.x]
            variance[there.y, there.x] += stamp.variance[cut.y, cut.x]
        return dataclasses.replace(pixels, image=image, variance=variance)


def _overlap(one: Box, other: Box) -> bool:
    return max(one.x.start, other.x.start) < min(one.x.stop, other.x.stop) and max(
        one.y.start, other.y.start
    ) < min(one.y.stop, other.y.stop)


def estimate_gain(image: np.ndarray, variance: np.ndarray, good: np.ndarray) -> float:
    """Find how the variance of an exposure rises with its flux.

    Parameters
    ----------
    image, variance : `numpy.ndarray`, ``(h, w)``
        Pixels in nJy and their variance in nJy².
    good : `numpy.ndarray`, ``(h, w)``, `bool`
        Pixels that count.

    Returns
    -------
    gain : `float`
        Flux over variance above the sky's, in nJy⁻¹: electrons per nJy where
        the noise is that of photons. Infinite where the variance does not
        rise with the flux, or no pixel is bright enough to tell.
    """
    if not good.any():
        return np.inf
    sky = float(np.median(variance[good]))
    bright = good & (image > 20 * np.sqrt(sky))
    if np.count_nonzero(bright) < 30:
        return np.inf
    slope = float(np.median((variance[bright] - sky) / image[bright]))
    # A slope that would add less than a thousandth of the sky is none.
    return 1 / slope if slope * 20 * np.sqrt(sky) > 1e-3 * sky else np.inf
