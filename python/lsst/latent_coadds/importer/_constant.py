# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("constant_areas",)

import numpy as np
import scipy.ndimage

_BLOCK = 5
_MOST_VALUES = 20


def constant_areas(image: np.ndarray, *, min_area: int = 100) -> np.ndarray:
    """Find areas of exactly equal pixels, such as the padding of resampled exposures.

    Parameters
    ----------
    image : `numpy.ndarray`
        Finite pixels, ``(H, W)``.
    min_area : `int`, optional
        An area must have more pixels than this.

    Returns
    -------
    constant : `numpy.ndarray`
        Boolean ``(H, W)``.

    Notes
    -----
    An area is made of constant blocks of 5 by 5 pixels, so that the chance
    ties of an exposure in whole counts are left alone; strips narrower than
    that, away from the edge, are as well.
    """
    low = scipy.ndimage.minimum_filter(image, size=_BLOCK, mode="nearest")
    centre = low == scipy.ndimage.maximum_filter(image, size=_BLOCK, mode="nearest")
    if not centre.any():
        return centre
    blocks = scipy.ndimage.binary_dilation(centre, structure=np.ones((_BLOCK, _BLOCK)))
    labels, _ = scipy.ndimage.label(blocks)
    large = np.bincount(labels.ravel()) > min_area
    large[0] = False
    constant = large[labels]
    values = np.unique(image[constant])
    # Blocks leave out the steps of a slanting border.
    if values.size <= _MOST_VALUES:
        for value in values:
            same = image == value
            constant |= scipy.ndimage.binary_propagation(constant & same, mask=same)
    return constant
