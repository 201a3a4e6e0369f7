# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = (
    "BAD_MASK_PLANES",
    "COADD_MASK_SCHEMA",
    "LEGACY_NAMES",
    "STANDARD_MASK_PLANES",
    "select_mask_planes",
)

from collections.abc import Iterable

import numpy as np

from lsst.images import Mask, MaskPlane, MaskSchema, get_legacy_visit_image_mask_planes

from ._errors import UnknownMaskPlaneError

BAD_MASK_PLANES = ("BAD", "SATURATED", "NO_DATA", "SUSPECT", "UNMASKED_NAN", "COSMIC_RAY")
"""Planes whose pixels are not used, unless configured otherwise."""

STANDARD_MASK_PLANES = frozenset(
    {
        "BAD",
        "SATURATED",
        "INTERPOLATED",
        "COSMIC_RAY",
        "DETECTION_EDGE",
        "DETECTED",
        "DETECTED_NEGATIVE",
        "SUSPECT",
        "NO_DATA",
        "VIGNETTED",
        "PARTLY_VIGNETTED",
        "CROSSTALK",
        "ITL_DIP",
        "NOT_DEBLENDED",
        "SPIKE",
        "STREAK",
        "HIGH_VARIANCE",
        "UNMASKED_NAN",
    }
)
"""Planes of LSST visit images, which a given exposure may or may not carry."""

LEGACY_NAMES = {plane.name: name for name, plane in get_legacy_visit_image_mask_planes().items()}
"""Names of the mask planes of lsst.afw, by those of lsst.images."""

COADD_MASK_SCHEMA = MaskSchema(
    [
        MaskPlane("NO_DATA", "No exposure has a good pixel here."),
        MaskPlane("SATURATED", "More than the configured fraction of the exposures here was saturated."),
        MaskPlane("COSMIC_RAY", "A masked cosmic ray removed this pixel from an exposure."),
        MaskPlane("DETECTED", "Pixel was part of a detected source; left for detection to fill."),
        MaskPlane("DETECTION_EDGE", "Pixel was too close to the edge for detection; left for detection."),
        MaskPlane("REJECTED", "An exposure that covers this pixel was left out because of its mask."),
        MaskPlane("CLIPPED", "An exposure that covers this pixel disagrees and lost most of its weight."),
        MaskPlane("SENSOR_EDGE", "The edge of a detector crosses this pixel's neighbourhood."),
        MaskPlane("INEXACT_PSF", "The exposures here differ from those that define the PSF of the cell."),
    ]
)
"""Mask planes of the output."""


def select_mask_planes(mask: Mask, names: Iterable[str], dataset: str) -> np.ndarray:
    """Return where any of some mask planes is set.

    Parameters
    ----------
    mask : `lsst.images.Mask`
        Mask of an exposure.
    names : `~collections.abc.Iterable` [`str`]
        Planes to combine. A standard plane that the mask does not carry
        counts as empty.
    dataset : `str`
        Name of the exposure, for the message.

    Returns
    -------
    selected : `numpy.ndarray` [`bool`], (H, W)
        Pixels with at least one of the planes.

    Raises
    ------
    UnknownMaskPlaneError
        If a name is neither in the mask nor a standard plane.
    """
    present = set(mask.schema.names)
    selected = np.zeros(tuple(mask.bbox.shape), dtype=bool)
    for name in names:
        if name in present:
            selected |= mask.get(name)
        elif name not in STANDARD_MASK_PLANES:
            raise UnknownMaskPlaneError(dataset, name, present)
    return selected
