# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a coadd looks wrong."""

from __future__ import annotations

__all__ = ("Artifact", "find_clusters", "find_disagreements", "find_holes")

import dataclasses

import numpy as np
from scipy.ndimage import binary_dilation, center_of_mass, find_objects, label, maximum_filter

from ._coadd import CoaddLike, match_psf
from ._detection import detect_sources, filter_with_psf
from ._statistics import robust_rms


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A place that deserves a look.

    Parameters
    ----------
    kind : `str`
        What it seems to be: ``hole``, ``ring``, ``streak`` (pixels clipped
        in a line), ``clump`` (pixels clipped in a heap), ``excess`` or
        ``deficit`` (of the latent coadd, against the reference), or
        ``outlier`` (the same where the latent coadd was made without pixels
        that the reference may have).
    x, y : `float`
        Where it is, in pixels of the image.
    value : `float`
        How bad: significance of holes, excesses and deficits; depth of rings
        in units of the star's peak; number of pixels of streaks and clumps.
    """

    kind: str
    x: float
    y: float
    value: float


def find_holes(
    coadd: CoaddLike, psf: np.ndarray, noise: np.ndarray, *, threshold: float = 5.0, limit: int = 200
) -> list[Artifact]:
    """Find places that are darker than noise makes them.

    Parameters
    ----------
    coadd : `CoaddLike`
        The coadd.
    psf : `numpy.ndarray`, ``(k, k)``
        Its PSF.
    noise : `numpy.ndarray`, ``(h, w)``
        See `flux_noise_map`.
    threshold : `float`, optional
        In units of the noise.
    limit : `int`, optional
        Greatest number to return.

    Returns
    -------
    holes : `list` [`Artifact`]
        The deepest first.
    """
    found = detect_sources(coadd.image, psf, noise, threshold=threshold, good=coadd.good, negative=True)
    return [
        Artifact("hole", float(x), float(y), float(snr))
        for x, y, snr in zip(found.x[:limit], found.y[:limit], found.snr[:limit], strict=True)
    ]


def find_clusters(
    plane: np.ndarray, *, fewest: int = 6, elongation: float = 3.0, limit: int = 200
) -> list[Artifact]:
    """Find where masked pixels hang together.

    Parameters
    ----------
    plane : `numpy.ndarray`, ``(h, w)``, `bool`
        Mask plane, such as ``CLIPPED``.
    fewest : `int`, optional
        Smallest number of pixels of a cluster.
    elongation : `float`, optional
        Ratio of axes from which it is a streak, and below a clump.
    limit : `int`, optional
        Greatest number to return.

    Returns
    -------
    clusters : `list` [`Artifact`]
        The largest first. Gaps of one pixel are bridged.
    """
    names, n = label(binary_dilation(plane, structure=np.ones((3, 3))), structure=np.ones((3, 3)))
    sizes = np.bincount(names[plane], minlength=n + 1)
    sizes[0] = 0
    boxes = find_objects(names)
    result = []
    for which in np.argsort(-sizes)[:limit]:
        if sizes[which] < fewest:
            break
        box = boxes[which - 1]
        inside = plane[box] & (names[box] == which)
        y, x = center_of_mass(inside)
        rows, columns = np.nonzero(inside)
        spread = np.cov(np.vstack([rows, columns])) + np.eye(2) / 12
        small, large = np.sqrt(np.linalg.eigvalsh(spread))
        kind = "streak" if large > elongation * small else "clump"
        result.append(Artifact(kind, x + box[1].start, y + box[0].start, float(sizes[which])))
    return result


def find_disagreements(
    latent: CoaddLike,
    reference: CoaddLike,
    psf: np.ndarray,
    noise: np.ndarray,
    *,
    threshold: float = 5.0,
    tolerance: float = 0.03,
    limit: int = 200,
) -> tuple[np.ndarray, list[Artifact]]:
    """Find where a coadd does not agree with a reference.

    Parameters
    ----------
    latent, reference : `CoaddLike`
        The coadd, and another of the same exposures on the same pixels.
    psf : `numpy.ndarray`, ``(k, k)``
        PSF of the reference.
    noise : `numpy.ndarray`, ``(h, w)``
        Its `flux_noise_map`.
    threshold : `float`, optional
        In units of the noise.
    tolerance : `float`, optional
        Relative difference that is no concern, for PSFs are never exact.
    limit : `int`, optional
        Greatest number to return.

    Returns
    -------
    significance : `numpy.ndarray`, ``(h, w)``
        Latent, blurred to the reference's PSF, minus reference, filtered with
        the PSF, over the noise and the tolerance added in quadrature; 0 where
        one of them has no data.
    places : `list` [`Artifact`]
        Peaks of it, the worst first.
    """
    blurred = match_psf(latent, reference)
    margin = psf.shape[0] // 2
    lacking = ~(latent.good & reference.good & np.isfinite(blurred))
    # Light from beyond the edge, and of pixels without data, is missing near them.
    beyond = np.pad(lacking, 1, constant_values=True)
    usable = ~binary_dilation(beyond, iterations=margin // 2)[1:-1, 1:-1]
    difference = np.where(usable, np.nan_to_num(blurred) - np.nan_to_num(reference.image), 0.0)
    clipped = latent.mask.get("CLIPPED", np.zeros_like(usable))
    explained = binary_dilation(clipped, iterations=max(margin // 4, 3))
    brightness = maximum_filter(np.abs(filter_with_psf(reference.image, psf)), size=7)
    filtered = filter_with_psf(difference, psf)
    # Mostly the noise is the same in both, but the latent coadd has its own.
    noise = noise * max(robust_rms((filtered / noise)[usable]), 1.0) if usable.any() else noise
    significance = np.where(usable, filtered / np.hypot(noise, tolerance * brightness), 0.0)
    strength = np.abs(significance)
    peaks = (strength >= threshold) & (strength == maximum_filter(strength, size=9))
    rows, columns = np.nonzero(peaks)
    order = np.argsort(-strength[rows, columns])[:limit]
    places = [
        Artifact(
            "outlier" if explained[y, x] else "excess" if significance[y, x] > 0 else "deficit",
            *(float(x), float(y), float(strength[y, x])),
        )
        for y, x in zip(rows[order], columns[order], strict=True)
    ]
    return significance, places
