# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("MASK_PLANES", "make_visit_image")

from collections.abc import Mapping

import astropy.units as u
import numpy as np
from astro_metadata_translator import ObservationInfo
from astropy.time import Time
from astropy.wcs import WCS

from lsst.images import (
    Box,
    DetectorFrame,
    Image,
    Mask,
    MaskSchema,
    SkyProjection,
    VisitImage,
    get_legacy_visit_image_mask_planes,
)
from lsst.images.cameras import Detector
from lsst.images.psfs import PointSpreadFunction

from ._detector import make_detector

MASK_PLANES = tuple(get_legacy_visit_image_mask_planes().values())
"""Mask planes of every exposure made here: those of LSST visit images."""


def make_visit_image(
    image: np.ndarray,
    variance: np.ndarray,
    mask: Mapping[str, np.ndarray],
    wcs: WCS | SkyProjection[DetectorFrame],
    psf: PointSpreadFunction,
    *,
    instrument: str,
    visit: int,
    detector: int,
    physical_filter: str,
    band: str,
    exposure_time: float,
    begin: Time | None = None,
    unit: u.UnitBase = u.nJy,
    detector_info: Detector | None = None,
    metadata: dict[str, int | float | str | bool | None] | None = None,
) -> VisitImage:
    """Make a calibrated exposure from arrays.

    Parameters
    ----------
    image : `numpy.ndarray`, ``(h, w)``
        Pixel values in ``unit``; kept as `float32`.
    variance : `numpy.ndarray`, ``(h, w)``
        Their variance in the square of ``unit``; kept as `float32`.
    mask : mapping [`str`, `numpy.ndarray`]
        Boolean arrays ``(h, w)`` by the name of a mask plane, such as
        ``SATURATED``; planes that are left out are all `False`.
    wcs : `astropy.wcs.WCS` or `lsst.images.SkyProjection`
        Maps pixels, with ``(0, 0)`` the centre of the first one, to the sky.
    psf : `lsst.images.psfs.PointSpreadFunction`
        PSF model.
    instrument, physical_filter, band : `str`
        Names of the instrument, its filter and the band.
    visit, detector : `int`
        IDs of the visit and the detector.
    exposure_time : `float`
        Seconds.
    begin : `astropy.time.Time`, optional
        When the exposure began.
    unit : `astropy.units.UnitBase`, optional
        Unit of the pixels.
    detector_info : `lsst.images.cameras.Detector`, optional
        Description of the detector; a plain one is made by default.
    metadata : `dict`, optional
        Anything else to keep with the exposure.

    Returns
    -------
    visit_image : `lsst.images.VisitImage`
        The exposure.

    Raises
    ------
    ValueError
        Raised if an array has another shape than ``image``, or a mask plane
        is unknown.
    """
    shape = np.shape(image)
    known = {plane.name for plane in MASK_PLANES}
    for name, array in {"variance": variance, **mask}.items():
        if np.shape(array) != shape:
            raise ValueError(
                f"{name} of visit {visit}, detector {detector} has shape {np.shape(array)}, "
                f"the image has {shape}."
            )
    if unknown := set(mask) - known:
        raise ValueError(f"Unknown mask planes {sorted(unknown)}; the known ones are {sorted(known)}.")
    bbox = Box.from_shape(shape)
    if isinstance(wcs, WCS):
        frame = DetectorFrame(instrument=instrument, visit=visit, detector=detector, bbox=bbox)
        wcs = SkyProjection.from_fits_wcs(wcs, frame, pixel_bounds=bbox)
    planes = Mask(0, schema=MaskSchema(MASK_PLANES), bbox=bbox)
    for name, array in mask.items():
        planes.set(name, np.asarray(array, dtype=bool))
    return VisitImage(
        Image(np.asarray(image, dtype=np.float32), bbox=bbox, unit=unit),
        mask=planes,
        variance=Image(np.asarray(variance, dtype=np.float32), bbox=bbox, unit=unit**2),
        sky_projection=wcs,
        obs_info=_observation_info(instrument, visit, detector, physical_filter, exposure_time, begin),
        psf=psf,
        detector=detector_info
        or make_detector(instrument=instrument, visit=visit, detector=detector, bbox=bbox),
        band=band,
        metadata=metadata,
    )


def _observation_info(
    instrument: str, visit: int, detector: int, physical_filter: str, exposure_time: float, begin: Time | None
) -> ObservationInfo:
    times = {} if begin is None else {"datetime_begin": begin, "datetime_end": begin + exposure_time * u.s}
    return ObservationInfo(
        instrument=instrument,
        visit_id=visit,
        exposure_id=visit,
        detector_num=detector,
        physical_filter=physical_filter,
        exposure_time=exposure_time * u.s,
        observation_type="science",
        observation_id=str(visit),
        **times,
    )
