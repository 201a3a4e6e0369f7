# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("Exposure", "Pointing", "plan_pointings", "simulate_exposure")

import dataclasses

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import QTable
from astropy.time import Time
from astropy.wcs import WCS, Sip

from lsst.images import Box, VisitImage
from lsst.images.cameras import Detector
from lsst.latent_coadds.repository import MoffatField, make_detector, make_visit_image

from ._defects import add_bad_columns, add_cosmic_rays, saturate
from ._render import draw_sources
from ._settings import SceneSettings

_EXPOSURE_TIME = 200.0
_EDGE = 5


@dataclasses.dataclass(frozen=True)
class Pointing:
    """One visit: where the telescope looked, and through which air.

    Parameters
    ----------
    visit : `int`
        ID of the visit.
    begin : `astropy.time.Time`
        Start of the exposure.
    boresight : `astropy.coordinates.SkyCoord`
        Where the middle of the camera points.
    rotation : `float`
        Angle of the camera in degrees.
    fwhm : `float`
        Seeing in pixels.
    beta : `float`
        Moffat slope.
    sky_noise : `float`
        Standard deviation of the sky in nJy per pixel.
    band : `str`
        Band of the filter.
    """

    visit: int
    begin: Time
    boresight: SkyCoord
    rotation: float
    fwhm: float
    beta: float
    sky_noise: float
    band: str

    @property
    def exposure_time(self) -> float:
        """Seconds for which the shutter was open (`float`)."""
        return _EXPOSURE_TIME

    def wcs(self, settings: SceneSettings, detector: int) -> WCS:
        """Return the projection of a detector.

        Parameters
        ----------
        settings : `SceneSettings`
            The scene.
        detector : `int`
            ID of the detector.

        Returns
        -------
        wcs : `astropy.wcs.WCS`
            Distorted tangent-plane projection of the detector's pixels.
        """
        scale = settings.pixel_scale / 3600
        c, s = np.cos(np.deg2rad(self.rotation)), np.sin(np.deg2rad(self.rotation))
        x0, y0 = _detector_corner(settings, detector)
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        wcs.wcs.cunit = ["deg", "deg"]
        wcs.wcs.radesys = "ICRS"
        wcs.wcs.crval = [self.boresight.ra.deg, self.boresight.dec.deg]
        wcs.wcs.crpix = [1 - x0, 1 - y0]
        wcs.wcs.cd = scale * np.array([[-c, s], [s, c]])
        wcs.wcs.set()
        along_x, along_y = np.zeros((2, 4, 4))
        along_x[3, 0] = along_x[1, 2] = along_y[0, 3] = along_y[2, 1] = settings.distortion
        wcs.sip = Sip(along_x, along_y, None, None, wcs.wcs.crpix)
        return wcs

    def psf(self, settings: SceneSettings, detector: int) -> MoffatField:
        """Return the PSF over a detector.

        Parameters
        ----------
        settings : `SceneSettings`
            The scene.
        detector : `int`
            ID of the detector.

        Returns
        -------
        psf : `MoffatField`
            The same at every call.
        """
        rng = np.random.default_rng([settings.seed, 3, self.visit, detector])
        width, height = settings.detector_size
        return MoffatField.random(
            rng,
            Box.from_shape((height, width)),
            fwhm=self.fwhm,
            beta=self.beta,
            variation=settings.psf_variation,
        )


@dataclasses.dataclass(frozen=True)
class Exposure:
    """A simulated exposure of one detector, with what is known of it.

    Parameters
    ----------
    visit_image : `lsst.images.VisitImage`
        What goes into the repository.
    expected : `numpy.ndarray`, ``(h, w)``
        Its pixels before noise and defects.
    unmasked_cosmic_rays : `numpy.ndarray`, ``(h, w)``, `bool`
        Pixels of cosmic rays that the mask lacks.
    """

    visit_image: VisitImage
    expected: np.ndarray
    unmasked_cosmic_rays: np.ndarray


def plan_pointings(settings: SceneSettings) -> list[Pointing]:
    """Choose pointings, seeing and sky of all visits.

    Parameters
    ----------
    settings : `SceneSettings`
        The scene.

    Returns
    -------
    pointings : `list` [`Pointing`]
        One for each visit.
    """
    center = SkyCoord(*settings.center, unit="deg")
    start = Time("2026-03-01T03:00:00", scale="tai")
    pointings = []
    for i in range(settings.n_visits):
        rng = np.random.default_rng([settings.seed, 2, i])
        offset = rng.normal(0, settings.dither, 2) * u.arcsec
        # Spread evenly, so that few visits already have good and bad air.
        fraction = (i * 0.618 + rng.uniform(0, 0.2)) % 1.0
        seeing = settings.seeing[0] + fraction * (settings.seeing[1] - settings.seeing[0])
        pointings.append(
            Pointing(
                visit=1001 + i,
                begin=start + i * 5 * u.min,
                boresight=center.spherical_offsets_by(*offset),
                rotation=float(rng.normal(0, settings.rotation) + 180 * (i % 2)),
                fwhm=seeing / settings.pixel_scale,
                beta=float(rng.uniform(*settings.beta)),
                sky_noise=float(rng.uniform(*settings.sky_noise)) * settings.counts_to_njy,
                band=settings.bands[i % len(settings.bands)],
            )
        )
    return pointings


def simulate_exposure(
    settings: SceneSettings, catalog: QTable, pointing: Pointing, detector: int
) -> Exposure:
    """Simulate what one detector sees in one visit.

    Parameters
    ----------
    settings : `SceneSettings`
        The scene.
    catalog : `astropy.table.QTable`
        Its sources.
    pointing : `Pointing`
        The visit.
    detector : `int`
        ID of the detector.

    Returns
    -------
    exposure : `Exposure`
        The exposure; the same at every call.
    """
    rng = np.random.default_rng([settings.seed, 4, pointing.visit, detector])
    width, height = settings.detector_size
    bbox = Box.from_shape((height, width))
    wcs = pointing.wcs(settings, detector)
    field = pointing.psf(settings, detector)
    noise = pointing.sky_noise
    expected = draw_sources(catalog, wcs, (height, width), field.profile, integrate_pixels=True, noise=noise)
    variance = noise**2 + np.maximum(expected, 0) / settings.gain
    image = expected + rng.normal(size=expected.shape) * np.sqrt(variance)
    mask, missed = _add_defects(rng, settings, image, noise, detector)
    visit_image = make_visit_image(
        image,
        variance,
        mask,
        wcs,
        field.to_psf(bbox, stamp_size=settings.stamp_size),
        instrument=settings.instrument,
        visit=pointing.visit,
        detector=detector,
        physical_filter=settings.physical_filters[pointing.band],
        band=pointing.band,
        exposure_time=pointing.exposure_time,
        begin=pointing.begin,
        detector_info=_describe_detector(settings, pointing.visit, detector, bbox),
        metadata={"SEEING": pointing.fwhm * settings.pixel_scale, "SKYNOISE": noise},
    )
    return Exposure(visit_image, expected, missed)


def _add_defects(
    rng: np.random.Generator, settings: SceneSettings, image: np.ndarray, noise: float, detector: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Spoil an image in place; return its mask planes and what they lack."""
    found, missed = add_cosmic_rays(
        rng,
        image,
        expected=settings.n_cosmic_rays,
        noise=noise,
        unmasked_fraction=settings.unmasked_fraction,
    )
    edge = np.ones(image.shape, dtype=bool)
    edge[_EDGE:-_EDGE, _EDGE:-_EDGE] = False
    # Defects of the silicon stay where they are from visit to visit.
    silicon = np.random.default_rng([settings.seed, 5, detector])
    mask = {
        "BAD": add_bad_columns(silicon, image, number=settings.n_bad_columns, noise=noise),
        "SATURATED": saturate(image, settings.saturation),
        "COSMIC_RAY": found,
        "DETECTION_EDGE": edge,
    }
    return mask, missed


def _detector_corner(settings: SceneSettings, detector: int) -> tuple[float, float]:
    """Pixel (0, 0) of a detector with respect to the middle of the camera."""
    width, height = settings.detector_size
    pitch = width + settings.chip_gap
    left = -(settings.n_detectors * pitch - settings.chip_gap) / 2
    return left + detector * pitch, -height / 2


def _describe_detector(settings: SceneSettings, visit: int, detector: int, bbox: Box) -> Detector:
    x0, y0 = _detector_corner(settings, detector)
    pixel_size = 0.015
    return make_detector(
        instrument=settings.instrument,
        visit=visit,
        detector=detector,
        bbox=bbox,
        pixel_size=pixel_size,
        pixel_scale=settings.pixel_scale,
        focal_plane=((x0 + bbox.x.size / 2) * pixel_size, (y0 + bbox.y.size / 2) * pixel_size),
    )
