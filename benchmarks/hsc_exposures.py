# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated calexps of HSC, made by afw itself.

Needs a full stack with obs_subaru. Stars are drawn by GalSim, in PSFs that
vary over each detector, on detectors with distorted WCSs. A calexp's own WCS
and photometric calibration are wrong, and some sky is left in it: the visit
summary has the true calibrations, and skyCorr the sky.
"""

from __future__ import annotations

__all__ = (
    "CENTER",
    "DETECTORS",
    "FILTERS",
    "SCALE",
    "HscScene",
    "SimulatedDetector",
    "draw_catalog",
    "make_background",
    "make_sky_map",
    "make_summary",
    "make_visits",
)

import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import astropy.time
import galsim
import numpy as np

SCALE = 0.168
"""Pixels of HSC and of the sky map, in arcsec."""
CENTER = (150.0, 2.0)
DETECTORS = (49, 50)
FILTERS = {"g": "HSC-G", "r": "HSC-R", "i": "HSC-I", "z": "HSC-Z", "y": "HSC-Y"}
EXPOSURE_TIME = 150.0
STAMP = 41
"""Side of the PSF models, in pixels; the stars end there, too."""


@dataclasses.dataclass(frozen=True)
class HscScene:
    """What to simulate.

    Attributes
    ----------
    bands : `tuple` [`str`]
        Bands.
    n_visits : `int`
        Number of visits of each band; each second one is in nJy, the others
        in counts.
    detector_size : `tuple` [`int`, `int`]
        Width and height of the two detectors, in pixels.
    patch_size, patch_border : `int`
        Inner side of the patches and how far they reach beyond it, in pixels.
    n_side : `int`
        Stars along one side of patch 4; each has a cell of its own.
    faintest, brightest : `float`
        Range of the stars' fluxes in the first band, log-uniform, in nJy; in
        the others they are multiplied by factors from 0.5 to 2.
    seeing : `tuple` [`float`, `float`]
        Range of the visits' FWHM, in arcsec.
    sky : `float`
        Noise of a pixel, in nJy.
    wrong_pixels, wrong_scale, sky_left : `float`
        Errors of the calexps: of the WCS in pixels, of the photometric
        calibration as a fraction, and the sky that skyCorr subtracts, in units
        of the noise.
    seed : `int`
        Seed of all random numbers.
    """

    bands: tuple[str, ...] = ("i",)
    n_visits: int = 6
    detector_size: tuple[int, int] = (900, 700)
    patch_size: int = 400
    patch_border: int = 50
    n_side: int = 12
    faintest: float = 80.0
    brightest: float = 40000.0
    seeing: tuple[float, float] = (0.55, 0.95)
    sky: float = 8.0
    wrong_pixels: float = 0.7
    wrong_scale: float = 0.05
    sky_left: float = 0.3
    seed: int = 5

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """Return a scene of nine bright stars that is processed in seconds, for tests."""
        settings: dict[str, Any] = {
            "n_visits": 3,
            "detector_size": (260, 240),
            "patch_size": 100,
            "patch_border": 10,
            "n_side": 3,
            "faintest": 3e4,
            "brightest": 1e5,
            "sky_left": 1.0,
        }
        return cls(**{**settings, **changes})


class Psf:
    """A narrow and a wide Gaussian, whose shares vary linearly with position."""

    def __init__(self, fwhm: float, slope: tuple[float, float], size: tuple[int, int]) -> None:
        self.narrow = galsim.Gaussian(fwhm=fwhm).shear(g1=0.02, g2=-0.01)
        self.wide = galsim.Gaussian(fwhm=1.8 * fwhm)
        self.slope, self.size = slope, size

    def coefficients(self) -> list[float]:
        """Return the share of the wide profile as a + b x + c y."""
        b, c = (s / n for s, n in zip(self.slope, self.size, strict=True))
        return [0.2 - 0.5 * (b * self.size[0] + c * self.size[1]), b, c]

    def profile(self, x: float, y: float) -> galsim.GSObject:
        a, b, c = self.coefficients()
        share = a + b * x + c * y
        return self.narrow * (1 - share) + self.wide * share

    def to_afw(self) -> Any:
        """Return the same as a PSF of afw: two kernels with polynomials."""
        from lsst.afw.image import ImageD
        from lsst.afw.math import FixedKernel, LinearCombinationKernel, PolynomialFunction2D
        from lsst.meas.algorithms import KernelPsf

        stamps = [
            profile.drawImage(nx=STAMP, ny=STAMP, scale=SCALE).array for profile in (self.narrow, self.wide)
        ]
        stamps = [stamp.astype(float) / stamp.sum() for stamp in stamps]
        kernels = []
        for stamp in (stamps[0], stamps[1] - stamps[0]):
            image = ImageD(STAMP, STAMP)
            image.array[:] = stamp
            kernels.append(FixedKernel(image))
        kernel = LinearCombinationKernel(kernels, PolynomialFunction2D(1))
        kernel.setSpatialParameters([[1.0, 0.0, 0.0], self.coefficients()])
        return KernelPsf(kernel)


def make_sky_map(scene: HscScene) -> Any:
    """Return one tract of 3 x 3 patches."""
    from lsst.skymap.discreteSkyMap import DiscreteSkyMap

    config = DiscreteSkyMap.ConfigClass()
    config.raList, config.decList = [CENTER[0]], [CENTER[1]]
    config.radiusList = [2.45 * scene.patch_size / 2 * SCALE / 3600]
    config.pixelScale, config.projection, config.tractOverlap = SCALE, "TAN", 0.0
    config.tractBuilder["legacy"].patchInnerDimensions = [scene.patch_size] * 2
    config.tractBuilder["legacy"].patchBorder = scene.patch_border
    return DiscreteSkyMap(config)


def draw_catalog(scene: HscScene, sky_map: Any) -> np.ndarray:
    """Return RA, Dec [deg] and flux [nJy] by band of stars on the outer patch 4."""
    from lsst.geom import Point2D

    rng = np.random.default_rng(scene.seed)
    box = sky_map[0][4].getOuterBBox()
    step = box.getWidth() / scene.n_side
    wcs, rows = sky_map[0].getWcs(), []
    for j in range(scene.n_side):
        for i in range(scene.n_side):
            dx, dy = rng.uniform(-0.2, 0.2, 2)
            point = wcs.pixelToSky(
                Point2D(box.getMinX() + (i + 0.5 + dx) * step, box.getMinY() + (j + 0.5 + dy) * step)
            )
            flux = np.exp(rng.uniform(np.log(scene.faintest), np.log(scene.brightest)))
            rows.append((point.getRa().asDegrees(), point.getDec().asDegrees(), flux))
    colors = 2.0 ** np.random.default_rng([scene.seed, 1]).uniform(-1, 1, (len(rows), len(scene.bands)))
    colors[:, 0] = 1.0
    catalog = np.array(rows)
    return np.hstack([catalog[:, :2], catalog[:, 2:] * colors])


@dataclasses.dataclass
class SimulatedDetector:
    """One simulated detector and what calibrates it."""

    number: int
    band: str
    exposure: Any
    sky: Any
    wcs: Any
    psf: Any
    photo_calib: Any
    corners: list[Any]
    seeing: float
    noise: float


def _make_wcs(point: tuple[float, float], angle: float, wrong: float) -> Any:
    from lsst.afw.geom import makeCdMatrix, makeTanSipWcs
    from lsst.geom import Point2D, SpherePoint, arcseconds, degrees

    sip = np.zeros((2, 3, 3))
    sip[0, 2, 0], sip[0, 1, 1], sip[1, 0, 2] = 4e-6, -2e-6, 3e-6
    return makeTanSipWcs(
        Point2D(point[0] + 0.83 * wrong, point[1] - 0.55 * wrong),
        SpherePoint(*CENTER, degrees),
        makeCdMatrix(scale=SCALE * arcseconds, orientation=angle * degrees),
        sip[0],
        sip[1],
    )


def make_background(value: float, bbox: Any) -> Any:
    """Return a constant as a background of afw."""
    from lsst.afw.image import ImageF, makeMaskedImage
    from lsst.afw.math import (
        ApproximateControl,
        BackgroundControl,
        BackgroundList,
        Interpolate,
        UndersampleStyle,
        makeBackground,
    )

    image = ImageF(bbox)
    image.set(value)
    background = makeBackground(makeMaskedImage(image), BackgroundControl(4, 4))
    return BackgroundList(
        (
            background,
            Interpolate.CONSTANT,
            UndersampleStyle.REDUCE_INTERP_ORDER,
            ApproximateControl.UNKNOWN,
            0,
            0,
            False,
        )
    )


def _draw_stars(catalog: np.ndarray, wcs: Any, psf: Psf, size: tuple[int, int]) -> np.ndarray:
    """Draw the stars with the pixels integrated over, in nJy."""
    from lsst.geom import SpherePoint, degrees

    image = galsim.ImageD(*size, xmin=0, ymin=0, scale=SCALE)
    for ra, dec, flux in catalog:
        p = wcs.skyToPixel(SpherePoint(ra, dec, degrees))
        center = galsim.PositionI(round(p.x), round(p.y))
        half = STAMP // 2 + 1
        bounds = galsim.BoundsI(center.x - half, center.x + half, center.y - half, center.y + half)
        overlap = bounds & image.bounds
        if not overlap.isDefined():
            continue
        profile = psf.profile(p.x, p.y).withFlux(flux)
        stamp = profile.drawImage(
            galsim.ImageD(bounds, scale=SCALE), offset=galsim.PositionD(p.x - center.x, p.y - center.y)
        )
        image[overlap] += stamp[overlap]
    return image.array


def _make_detector(
    scene: HscScene, catalog: np.ndarray, visit: int, number: int, conditions: dict, rng: np.random.Generator
) -> SimulatedDetector:
    from lsst.afw.image import ExposureF, FilterLabel, PhotoCalib
    from lsst.geom import Box2D, Box2I, Extent2I, Point2I

    width, height = scene.detector_size
    bbox = Box2I(Point2I(0, 0), Extent2I(width, height))
    side = -0.5 if number == DETECTORS[0] else 0.5
    origin = (
        0.5 * width - side * (width + 20) + conditions["dither"][0],
        0.5 * height + conditions["dither"][1],
    )
    wcs = _make_wcs(origin, conditions["angle"], 0.0)
    model = Psf(conditions["seeing"], (0.25 * side, 0.1), scene.detector_size)
    psf = model.to_afw()
    # Every second visit is in counts.
    scale = 1.0 if visit % 4 else conditions["scale"]
    sky_left = scene.sky_left * scene.sky / scale
    exposure = ExposureF(bbox)
    image = _draw_stars(catalog, wcs, model, scene.detector_size)
    image = image + rng.normal(0.0, scene.sky, image.shape)
    exposure.image.array[:] = image / scale + sky_left
    exposure.variance.array[:] = (scene.sky / scale) ** 2
    _spoil(exposure, rng)
    exposure.setWcs(_make_wcs(origin, conditions["angle"], scene.wrong_pixels))
    exposure.setPsf(psf)
    exposure.setPhotoCalib(PhotoCalib(scale * (1 + scene.wrong_scale), bbox=bbox))
    band = conditions["band"]
    exposure.setFilter(FilterLabel(band, FILTERS[band]))
    exposure.info.setVisitInfo(conditions["visit_info"])
    exposure.info.setApCorrMap(_make_ap_corr(bbox))
    exposure.setDetector(conditions["camera"][number])
    exposure.info.setId(visit * 200 + number)
    return SimulatedDetector(
        number,
        band,
        exposure,
        make_background(sky_left, bbox),
        wcs,
        psf,
        PhotoCalib(scale, 0.0, bbox),
        [wcs.pixelToSky(corner) for corner in Box2D(bbox).getCorners()],
        conditions["seeing"],
        scene.sky / scale,
    )


def _spoil(exposure: Any, rng: np.random.Generator) -> None:
    """Add a bad column, an edge and cosmic rays, and flag them."""
    mask = exposure.mask
    for name in ("SAT", "CR", "BAD", "EDGE", "NO_DATA", "DETECTED", "INTRP"):
        mask.addMaskPlane(name)
    height, width = exposure.image.array.shape
    mask.array[:, width // 3] |= mask.getPlaneBitMask("BAD")
    mask.array[:5] |= mask.getPlaneBitMask("EDGE")
    for _ in range(4):
        y, x = int(rng.integers(height)), int(rng.integers(width - 20))
        exposure.image.array[y, x : x + 20] += 500
        mask.array[y, x : x + 20] |= mask.getPlaneBitMask("CR")


def _make_ap_corr(bbox: Any) -> Any:
    from lsst.afw.image import ApCorrMap
    from lsst.afw.math import ChebyshevBoundedField

    corrections = ApCorrMap()
    corrections["base_PsfFlux_instFlux"] = ChebyshevBoundedField(bbox, np.array([[1.0]]))
    corrections["base_PsfFlux_instFluxErr"] = ChebyshevBoundedField(bbox, np.array([[0.0]]))
    return corrections


def make_summary(visit: int, detectors: list[SimulatedDetector]) -> Any:
    """Return the visit summary, with the true calibrations."""
    from lsst.afw.geom import Polygon
    from lsst.afw.image import ExposureSummaryStats
    from lsst.afw.table import ExposureCatalog, ExposureTable
    from lsst.geom import Box2D

    schema = ExposureTable.makeMinimalSchema()
    schema.addField("visit", type="L", doc="Visit")
    ExposureSummaryStats.update_schema(schema)
    for name in ("physical_filter", "band"):
        schema.addField(name, type=str, size=32, doc=name)
    summary = ExposureCatalog(schema)
    for detector in detectors:
        exposure, row = detector.exposure, summary.addNew()
        row.setId(detector.number)
        row["visit"], row["physical_filter"], row["band"] = visit, FILTERS[detector.band], detector.band
        row.setBBox(exposure.getBBox())
        row.setWcs(detector.wcs)
        row.setPsf(detector.psf)
        row.setPhotoCalib(detector.photo_calib)
        row.setApCorrMap(exposure.info.getApCorrMap())
        row.setVisitInfo(exposure.info.getVisitInfo())
        row.setDetector(exposure.getDetector())
        row.setValidPolygon(Polygon(Box2D(exposure.getBBox())))
        _make_statistics(detector).update_record(row)
    return summary


def _make_statistics(detector: SimulatedDetector) -> Any:
    """Return the statistics that the stack's selection of visits reads."""
    from lsst.afw.image import ExposureSummaryStats

    sigma = detector.seeing / SCALE / 2.35482
    zero = dict.fromkeys(
        (
            *("psfStarDeltaSizeMedian", "psfStarDeltaSizeScatter", "psfStarDeltaE1Scatter"),
            *("psfStarDeltaE2Scatter", "psfStarDeltaE1Median", "psfStarDeltaE2Median"),
            *("psfStarScaledDeltaSizeScatter", "psfTraceRadiusDelta", "psfApFluxDelta"),
            *("psfApCorrSigmaScaledDelta", "psfIxy"),
        ),
        0.0,
    )
    return ExposureSummaryStats(
        psfSigma=sigma,
        psfArea=4 * np.pi * sigma**2,
        psfIxx=sigma**2,
        psfIyy=sigma**2,
        skyNoise=detector.noise,
        meanVar=detector.noise**2,
        zeroPoint=31.4 - 2.5 * np.log10(detector.photo_calib.getCalibrationMean()),
        nPsfStar=100,
        starEMedian=0.02,
        starUnNormalizedEMedian=0.05,
        effTime=EXPOSURE_TIME * (0.7 / detector.seeing) ** 2,
        pixelScale=SCALE,
        raCorners=[corner.getRa().asDegrees() for corner in detector.corners],
        decCorners=[corner.getDec().asDegrees() for corner in detector.corners],
        **zero,
    )


def make_visits(scene: HscScene, catalog: np.ndarray, camera: Any) -> Iterator[tuple]:
    """Yield number, time span and detectors of each visit."""
    rng = np.random.default_rng(scene.seed + 1)
    for b, band in enumerate(scene.bands):
        for index in range(scene.n_visits):
            number = b * scene.n_visits + index
            visit = 1000 + 2 * number
            begin = astropy.time.Time(61100.2 + 0.004 * number, format="mjd", scale="tai")
            share = index / max(1, scene.n_visits - 1)
            conditions = {
                "band": band,
                "camera": camera,
                "seeing": scene.seeing[0] + share * (scene.seeing[1] - scene.seeing[0]),
                "dither": rng.uniform(-60, 60, 2) + (60 * (-1) ** index, 0),
                "angle": float(rng.uniform(-15, 15)),
                "scale": float(rng.uniform(0.35, 0.5)),
                "visit_info": _make_visit_info(visit, begin),
            }
            stars = catalog[:, [0, 1, 2 + b]]
            yield visit, begin, [_make_detector(scene, stars, visit, d, conditions, rng) for d in DETECTORS]


def _make_visit_info(visit: int, begin: astropy.time.Time) -> Any:
    from lsst.afw.image import VisitInfo
    from lsst.daf.base import DateTime
    from lsst.geom import SpherePoint, degrees

    return VisitInfo(
        exposureTime=EXPOSURE_TIME,
        darkTime=EXPOSURE_TIME,
        date=DateTime(begin.mjd, DateTime.MJD, DateTime.TAI),
        boresightRaDec=SpherePoint(*CENTER, degrees),
        boresightAirmass=1.1,
        instrumentLabel="HSC",
        id=visit,
    )
