# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("MockVisits", "make_mock_patch", "make_mock_visit_image")

import dataclasses
from collections.abc import Mapping, Sequence

import astropy.units as u
import galsim
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS

from lsst.images import Box, VisitImage
from lsst.images.psfs import GaussianPointSpreadFunction

from ..adapters import PatchGrid, VisitImageReader
from ..repository import SkyMapGeometry, make_visit_image

_SCALE = 0.2
_CENTER = SkyCoord(150.0 * u.deg, 2.0 * u.deg)


def make_mock_geometry(size: int = 96, n_x: int = 1, n_y: int = 1, border: int = 8) -> SkyMapGeometry:
    """Make a small sky map with pixels of 0.2 arcsec."""
    return SkyMapGeometry.from_grid(
        "mock", _CENTER, n_x=n_x, n_y=n_y, inner_size=size, border=border, pixel_scale=_SCALE
    )


def make_mock_patch(size: int = 96) -> PatchGrid:
    """Make a sky map of one patch, and return that."""
    geometry = make_mock_geometry(size)
    return PatchGrid.from_sky_map(geometry.to_dict(), skymap="mock", tract=0, patch=0)


def make_mock_visit_image(
    visit: int,
    stars: Sequence[tuple[float, float, float]],
    *,
    size: int = 128,
    fwhm: float = 4.0,
    rotation: float = 0.0,
    offset: tuple[float, float] = (0.0, 0.0),
    sigma: float = 1.0,
    mask: Mapping[str, np.ndarray] | None = None,
    unit: u.UnitBase = u.nJy,
    detector: int = 0,
    stamp_size: int = 31,
) -> VisitImage:
    """Draw stars on a detector with GalSim.

    Parameters
    ----------
    visit : `int`
        ID of the visit, which also seeds the noise.
    stars : `~collections.abc.Sequence` [`tuple`]
        East and north offsets from the centre of the sky map, in arcsec, and
        fluxes in nJy.
    size : `int`, optional
        Side of the detector in pixels.
    fwhm : `float`, optional
        FWHM of the Gaussian PSF, in pixels.
    rotation : `float`, optional
        Angle of the detector on the sky, in degrees.
    offset : `tuple` [`float`, `float`], optional
        East and north offsets of the detector's centre, in arcsec.
    sigma : `float`, optional
        Standard deviation of the noise, in nJy; the stars add none.
    mask : `~collections.abc.Mapping`, optional
        Boolean arrays by mask plane.
    unit : `astropy.units.Unit`, optional
        Unit of the image.
    detector : `int`, optional
        ID of the detector.
    stamp_size : `int`, optional
        Side of the PSF's kernel images.

    Returns
    -------
    visit_image : `lsst.images.VisitImage`
        The exposure.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix = [(size + 1) / 2, (size + 1) / 2]
    center = _CENTER.spherical_offsets_by(offset[0] * u.arcsec, offset[1] * u.arcsec)
    wcs.wcs.crval = [center.ra.deg, center.dec.deg]
    angle = np.deg2rad(rotation)
    wcs.wcs.cd = (_SCALE / 3600) * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    image = galsim.ImageD(size, size, scale=1.0, xmin=0, ymin=0)
    for east, north, flux in stars:
        sky = _CENTER.spherical_offsets_by(east * u.arcsec, north * u.arcsec)
        x, y = wcs.world_to_pixel(sky)
        profile = galsim.Gaussian(fwhm=fwhm, flux=flux)
        profile.drawImage(
            image, center=galsim.PositionD(float(x), float(y)), method="no_pixel", add_to_image=True
        )
    noise = np.random.default_rng([17, visit, detector]).normal(0.0, sigma, (size, size))
    return make_visit_image(
        (image.array + noise).astype(np.float32),
        np.full((size, size), sigma**2, dtype=np.float32),
        dict(mask or {}),
        wcs,
        GaussianPointSpreadFunction(fwhm / 2.35482, Box.from_shape((size, size)), stamp_size),
        instrument="Mock",
        visit=visit,
        detector=detector,
        physical_filter="i-mock",
        band="i",
        exposure_time=30.0,
        unit=unit,
    )


@dataclasses.dataclass
class MockVisits:
    """Visits of a field of stars, with dithers and rotations.

    Parameters
    ----------
    n_visits : `int`, optional
        Number of visits.
    stars : `tuple`, optional
        See `make_mock_visit_image`.
    sigma : `float`, optional
        Standard deviation of the noise, in nJy.
    """

    n_visits: int = 5
    stars: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 5000.0), (5.1, -4.3, 1000.0))
    sigma: float = 1.0

    def make(self, visit: int, **changes: object) -> VisitImage:
        """Make one of the visits, with some parameters changed."""
        settings: dict[str, object] = {
            "fwhm": 3.5 + 0.3 * visit,
            "rotation": 25.0 * visit,
            "offset": (0.37 * visit, -0.53 * visit),
            "sigma": self.sigma,
        }
        return make_mock_visit_image(visit, self.stars, **(settings | changes))  # type: ignore[arg-type]

    def readers(self) -> list[VisitImageReader]:
        """Return readers of all visits."""
        return [read_mock(self.make(visit), visit) for visit in range(self.n_visits)]


def read_mock(image: VisitImage, visit: int, detector: int = 0) -> VisitImageReader:
    """Return a reader of a visit."""
    data_id = {
        "instrument": "Mock",
        "visit": visit,
        "detector": detector,
        "physical_filter": "i-mock",
        "day_obs": 20260101,
    }
    return VisitImageReader(image, data_id)
