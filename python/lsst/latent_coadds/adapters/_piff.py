# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("draw_piff",)

import numpy as np

from lsst.images.psfs import PiffWrapper


def draw_piff(psf: PiffWrapper, x: float, y: float, jacobian: np.ndarray, size: int) -> np.ndarray | None:
    """Draw a Piff model on another pixel grid than the detector's.

    Parameters
    ----------
    psf : `lsst.images.psfs.PiffWrapper`
        The model.
    x, y : `float`
        Position on the detector.
    jacobian : `numpy.ndarray`, (2, 2)
        ``d(detector x, y) / d(x, y)`` of the grid to draw on.
    size : `int`
        Side of the image, odd.

    Returns
    -------
    kernel : `numpy.ndarray`, (size, size), or `None`
        The PSF sampled at the centres of the grid's pixels, as seen through
        one pixel of the detector, without any interpolation between pixels;
        not normalised. `None` where the model cannot be drawn this way.
    """
    import galsim

    model = psf.piff_psf
    if len(model.wcs) != 1 or set(model.interp_property_names) - {"x", "y", "u", "v"}:
        return None
    profile, method = model.get_profile(x, y)
    wcs = next(iter(model.wcs.values())).local(image_pos=galsim.PositionD(x, y)).jacobian()
    if method != "no_pixel":
        profile = galsim.Convolve(profile, wcs.toWorld(galsim.Pixel(1.0)))
    matrix = wcs.getMatrix() @ jacobian
    image = galsim.ImageD(size, size, wcs=galsim.JacobianWCS(*matrix.ravel()))
    profile.drawImage(image, method="no_pixel", center=image.true_center)
    return image.array
