# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("evaluate_bounded_field",)

import numpy as np

from ._archive import Archive, ArchivedObject
from ._errors import LegacyFileError


def evaluate_bounded_field(
    field: ArchivedObject, archive: Archive, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Evaluate a function of position on a grid.

    Parameters
    ----------
    field : `ArchivedObject`
        A ``ChebyshevBoundedField``, or a ``ProductBoundedField`` of such.
    archive : `Archive`
        Where the factors of a product are.
    x, y : `numpy.ndarray`, (w,) and (h,)
        Columns and rows, in pixels of the detector.

    Returns
    -------
    values : `numpy.ndarray`, (h, w)
        The values.

    Raises
    ------
    LegacyFileError
        If the field is of another class.

    Notes
    -----
    Chebyshev polynomials of the first kind whose argument runs from -1 to 1
    over the bounding box, edges of pixels included.
    """
    if field.kind == "ProductBoundedField":
        values = np.ones((len(y), len(x)))
        for row in field.tables[0]:
            values *= evaluate_bounded_field(archive.get(int(row["id"])), archive, x, y)
        return values
    if field.kind != "ChebyshevBoundedField":
        raise LegacyFileError(
            f"its photometric calibration varies as a {field.kind}, which cannot be read without afw. Write "
            "exposure.photoCalib.calibrateImage(exposure.maskedImage) in a stack, with PhotoCalib(1.0), and "
            "import that."
        )
    row = field.row
    scaled = []
    for positions, axis in ((x, "x"), (y, "y")):
        low, high = int(row[f"bbox_min_{axis}"]), int(row[f"bbox_max_{axis}"])
        scaled.append((2.0 * np.asarray(positions, dtype=float) - (low + high)) / (high - low + 1))
    coefficients = np.atleast_1d(np.asarray(row["coefficients"], dtype=float))
    table = coefficients.reshape(-1, int(row["order_x"]) + 1)
    return np.polynomial.chebyshev.chebgrid2d(scaled[1], scaled[0], table)
