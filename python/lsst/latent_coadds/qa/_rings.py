# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("RingDepth", "radial_profile", "ring_depth")

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class RingDepth:
    """How far the profile of a star goes below or rises again.

    Parameters
    ----------
    negative : `float`
        Deepest azimuthal mean below the background, divided by the peak;
        zero if there is none.
    rise : `float`
        Greatest rise of the azimuthal mean from a smaller to a larger radius,
        divided by the peak; zero for a profile that only falls.
    """

    negative: float
    rise: float

    @property
    def depth(self) -> float:
        """The worse of both (`float`)."""
        return max(self.negative, self.rise)


def radial_profile(
    image: np.ndarray, x: float, y: float, radius: float, *, step: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Average an image in rings.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        The image; NaNs do not count.
    x, y : `float`
        Centre of the rings.
    radius : `float`
        Where they end.
    step : `float`, optional
        Width of a ring.

    Returns
    -------
    radii, means : `numpy.ndarray`, ``(n,)``
        Mean radius of the pixels in each ring, and their mean value.
    """
    top, left = (max(int(np.floor(place - radius)), 0) for place in (y, x))
    stamp = image[top : int(np.ceil(y + radius)) + 1, left : int(np.ceil(x + radius)) + 1]
    yy, xx = np.mgrid[: stamp.shape[0], : stamp.shape[1]]
    distance = np.hypot(xx - (x - left), yy - (y - top))
    use = (distance < radius) & np.isfinite(stamp)
    index = (distance[use] / step).astype(int)
    count = np.bincount(index)
    with np.errstate(invalid="ignore"):
        radii = np.bincount(index, distance[use]) / count
        means = np.bincount(index, stamp[use]) / count
    return radii[count > 0], means[count > 0]


def ring_depth(
    image: np.ndarray, x: float, y: float, *, peak: float, fwhm: float, radius: float = 20.0
) -> RingDepth:
    """Measure rings around a star.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        Image with the star.
    x, y : `float`
        Its position.
    peak : `float`
        Its height above the background.
    fwhm : `float`
        Its full width at half maximum in pixels; rings are looked for outside
        that radius.
    radius : `float`, optional
        Where rings are looked for no more.

    Returns
    -------
    depth : `RingDepth`
        The rings, against the median level of the last quarter of
        ``radius``.
    """
    radii, means = radial_profile(image, x, y, radius)
    means = means - np.median(means[radii > 0.75 * radius])
    outside = means[radii > fwhm]
    if outside.size < 3:
        raise ValueError(f"No room for rings between a FWHM of {fwhm} and a radius of {radius} pixels.")
    rise = np.max(outside - np.minimum.accumulate(outside))
    return RingDepth(negative=max(-float(outside.min()), 0.0) / peak, rise=float(rise) / peak)
