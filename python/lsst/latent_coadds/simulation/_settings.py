# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("AB_ZERO_POINT", "SceneSettings")

import dataclasses

from astropy.coordinates import SkyCoord

from lsst.latent_coadds.repository import SkyMapGeometry

AB_ZERO_POINT = 31.4
"""Magnitude of one nanojansky, to the precision that AB fluxes are kept."""


@dataclasses.dataclass(frozen=True)
class SceneSettings:
    """What a simulated scene and its exposures look like.

    Parameters
    ----------
    seed : `int`
        Everything random follows from it.
    n_visits, n_detectors : `int`
        Numbers of visits, and of detectors side by side in the camera.
    detector_size : `tuple` [`int`, `int`]
        Width and height of a detector in pixels.
    chip_gap : `int`
        Columns between two detectors.
    n_x, n_y, inner_size, border : `int`
        Patches of the tract, as for `SkyMapGeometry.from_grid`.
    pixel_scale : `float`
        Arcseconds, of detectors and the tract alike.
    seeing : `tuple` [`float`, `float`]
        Range of the PSF's full width at half maximum in arcseconds.
    beta : `tuple` [`float`, `float`]
        Range of the Moffat slope.
    psf_variation : `float`
        Typical relative change of the PSF's size from the middle of a
        detector to its edges; 0.03 makes some ten per cent across a detector.
    sky_noise : `tuple` [`float`, `float`]
        Range of the sky's standard deviation in counts per pixel, for
        ``zero_point``.
    zero_point : `float`
        Magnitude of one count.
    gain : `float`
        Electrons per nanojansky, for the shot noise of sources.
    saturation : `float`
        Pixel value in nanojansky that no pixel exceeds.
    dither : `float`
        Standard deviation of the pointing in arcseconds.
    rotation : `float`
        Standard deviation of the camera's rotation in degrees; every other
        visit is turned by 180 degrees besides.
    distortion : `float`
        Radial distortion of the camera: a pixel at the distance r from the
        middle, in pixels, is seen ``distortion * r**3`` further out.
    n_cosmic_rays : `float`
        Expected number of cosmic rays on a detector.
    unmasked_fraction : `float`
        Part of the cosmic rays that the mask does not know.
    n_bad_columns : `int`
        Bad columns on each detector, the same in all visits.
    galaxy_density, star_density : `float`
        Numbers of sources per square arcminute.
    lone_fraction : `float`
        Part of the stars that stand clear of brighter neighbours, so that
        their fluxes show the restoration and not the blending.
    faintest : `float`
        Magnitude at which the counts end.
    bright_stars : `tuple` [`float`, ...]
        Magnitudes of stars that saturate, besides those of the counts.
    target_fwhm : `float`
        Full width at half maximum, in tract pixels, of the Gaussian that
        the truth images are drawn with.
    stamp_size : `int`
        Side of the PSF's kernel images in pixels.
    center : `tuple` [`float`, `float`]
        Right ascension and declination of the tract in degrees.
    bands : `tuple` [`str`, ...]
        Bands, which the visits take in turn. Every source has the same AB
        magnitude in all of them, so that one truth serves them all.
    """

    seed: int = 1
    n_visits: int = 8
    n_detectors: int = 2
    detector_size: tuple[int, int] = (390, 440)
    chip_gap: int = 24
    n_x: int = 2
    n_y: int = 1
    inner_size: int = 360
    border: int = 20
    pixel_scale: float = 0.168
    seeing: tuple[float, float] = (0.5, 1.0)
    beta: tuple[float, float] = (2.8, 4.0)
    psf_variation: float = 0.03
    sky_noise: tuple[float, float] = (0.20, 0.32)
    zero_point: float = 27.0
    gain: float = 4.4
    saturation: float = 9000.0
    dither: float = 4.0
    rotation: float = 3.0
    distortion: float = 4e-9
    n_cosmic_rays: float = 12.0
    unmasked_fraction: float = 0.25
    n_bad_columns: int = 2
    galaxy_density: float = 100.0
    star_density: float = 30.0
    lone_fraction: float = 0.7
    faintest: float = 26.0
    bright_stars: tuple[float, ...] = (15.5, 16.7, 17.4)
    target_fwhm: float = 2.0
    stamp_size: int = 51
    center: tuple[float, float] = (150.12, 2.21)
    bands: tuple[str, ...] = ("i",)

    instrument = "LatentSim"
    skymap = "latent_sim"

    def __post_init__(self) -> None:
        if self.n_visits < 1 or self.n_detectors < 1:
            raise ValueError(
                f"A scene needs visits and detectors; got n_visits={self.n_visits}, "
                f"n_detectors={self.n_detectors}."
            )
        if not self.bands or len(set(self.bands)) < len(self.bands) or not all(self.bands):
            raise ValueError(f"A scene needs bands, each of them once; got {self.bands}.")

    @property
    def band(self) -> str:
        """First of the bands (`str`)."""
        return self.bands[0]

    @property
    def physical_filters(self) -> dict[str, str]:
        """Physical filter by band (`dict` [`str`, `str`])."""
        return {band: f"Sim-{band.upper()}" for band in self.bands}

    @property
    def counts_to_njy(self) -> float:
        """Nanojansky per count (`float`)."""
        return 10 ** (0.4 * (AB_ZERO_POINT - self.zero_point))

    @property
    def sky_map(self) -> SkyMapGeometry:
        """Geometry of the tract and its patches (`SkyMapGeometry`)."""
        return SkyMapGeometry.from_grid(
            self.skymap,
            SkyCoord(*self.center, unit="deg"),
            n_x=self.n_x,
            n_y=self.n_y,
            inner_size=self.inner_size,
            border=self.border,
            pixel_scale=self.pixel_scale,
        )
