# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("draw_truth", "expected_snr", "read_truth", "write_truth")

import os
from pathlib import Path

import astropy.units as u
import galsim
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import QTable

from lsst.images import Box

from ._exposure import Pointing
from ._render import draw_sources
from ._settings import SceneSettings


def draw_truth(settings: SceneSettings, catalog: QTable, bbox: Box) -> np.ndarray:
    """Draw a part of the tract without noise, with the target PSF.

    Parameters
    ----------
    settings : `SceneSettings`
        The scene.
    catalog : `astropy.table.QTable`
        Its sources.
    bbox : `lsst.images.Box`
        Tract pixels to draw.

    Returns
    -------
    image : `numpy.ndarray`, ``(h, w)``, `float64`
        Flux per pixel in nJy, as samples of the sky convolved with a
        Gaussian of ``settings.target_fwhm`` tract pixels.
    """
    wcs = settings.sky_map.tracts[0].wcs
    wcs.wcs.crpix -= [bbox.x.start, bbox.y.start]
    wcs.wcs.set()
    target = galsim.Gaussian(fwhm=settings.target_fwhm)
    return draw_sources(
        catalog,
        wcs,
        bbox.shape,
        lambda x, y: target,
        integrate_pixels=False,
        noise=1e-2 * _least_noise(settings),
    )


def expected_snr(settings: SceneSettings, catalog: QTable, pointings: list[Pointing]) -> np.ndarray:
    """Return the greatest signal-to-noise ratio that a point source can have.

    Parameters
    ----------
    settings : `SceneSettings`
        The scene.
    catalog : `astropy.table.QTable`
        Its sources.
    pointings : `list` [`Pointing`]
        Its visits.

    Returns
    -------
    snr : `numpy.ndarray`, ``(n,)``
        The Cramér-Rao bound of the flux in all exposures that hold the
        source's centre, with the shot noise of a point source of that flux,
        masks left aside.
    """
    sky = SkyCoord(catalog["ra"], catalog["dec"])
    flux = catalog["flux"].to_value(u.nJy)
    information = np.zeros(len(catalog))
    width, height = settings.detector_size
    for pointing in pointings:
        for detector in range(settings.n_detectors):
            x, y = pointing.wcs(settings, detector).world_to_pixel(sky)
            inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
            kernel = pointing.psf(settings, detector).profile(width / 2, height / 2)
            stamp = kernel.drawImage(nx=51, ny=51, scale=1.0, dtype=float).array
            for i in np.nonzero(inside)[0]:
                variance = pointing.sky_noise**2 + np.maximum(flux[i] * stamp, 0) / settings.gain
                information[i] += np.sum(stamp**2 / variance)
    return flux * np.sqrt(information)


def write_truth(root: Path, settings: SceneSettings, catalog: QTable) -> None:
    """Write the catalogue and the truth image of each patch.

    Parameters
    ----------
    root : `pathlib.Path`
        Directory for ``catalog.ecsv`` and ``patch_<id>.fits``; what is there
        already stays.
    settings : `SceneSettings`
        The scene.
    catalog : `astropy.table.QTable`
        Its sources.
    """
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "catalog.ecsv").exists():
        partial = root / "partial.ecsv"
        catalog.write(partial, format="ascii.ecsv", overwrite=True)
        os.replace(partial, root / "catalog.ecsv")
    tract = settings.sky_map.tracts[0]
    for patch_id, patch in tract.patches.items():
        path = root / f"patch_{patch_id}.fits"
        if path.exists():
            continue
        box = patch.outer_bbox
        hdu = fits.PrimaryHDU(draw_truth(settings, catalog, box).astype(np.float32))
        hdu.header.update(tract.wcs_header)
        hdu.header["CRPIX1"] -= box.x.start
        hdu.header["CRPIX2"] -= box.y.start
        hdu.header["BUNIT"] = "nJy"
        hdu.header["PSFFWHM"] = (settings.target_fwhm, "Gaussian target PSF, pixels")
        partial = root / "partial.fits"
        hdu.writeto(partial, overwrite=True)
        os.replace(partial, path)


def read_truth(root: Path, patch: int) -> tuple[np.ndarray, QTable]:
    """Read what `write_truth` wrote.

    Parameters
    ----------
    root : `pathlib.Path`
        Directory of the truth.
    patch : `int`
        ID of a patch.

    Returns
    -------
    image : `numpy.ndarray`, ``(h, w)``
        Truth image of the patch's outer box, in nJy.
    catalog : `astropy.table.QTable`
        All sources of the scene.
    """
    with fits.open(root / f"patch_{patch}.fits") as hdus:
        image = hdus[0].data.astype(np.float64)
    return image, QTable.read(root / "catalog.ecsv", format="ascii.ecsv")


def _least_noise(settings: SceneSettings) -> float:
    return settings.sky_noise[0] * settings.counts_to_njy / np.sqrt(settings.n_visits)
