# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
"""Measure coadds of the imported DECam exposures, as in doc/real-data.md.

Stars are measured in the exposures, the plain and the latent coadd, and in
the latent coadds of either half of the exposures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates

from lsst.daf.butler import Butler
from lsst.images import XY
from lsst.latent_coadds.importer import kernel_fwhm
from lsst.latent_coadds.qa import (
    aperture_flux,
    comparison_figure,
    format_table,
    measure_star,
    ring_depth,
    robust_rms,
)

INSTRUMENT, DETECTOR, SKYMAP, BAND = "DECam", 37, "decam_i_10epoch", "i"
STARS = ((58, 180), (101, 73), (105, 233), (179, 202))
GALAXY = (130, 129)
APERTURE = 10.0
RING_RADIUS = 15.0


def read_coadds(butler: Butler, collections: dict[str, str]) -> dict[str, Any]:
    """Read the coadd of the one patch from each collection."""
    data_id = {"skymap": SKYMAP, "tract": 0, "patch": 0, "band": BAND}
    return {
        name: butler.get("latent_coadd", data_id, collections=where) for name, where in collections.items()
    }


def read_exposures(butler: Butler) -> dict[str, Any]:
    """Read all exposures by their name in the import."""
    refs = butler.query_datasets("calexp", f"{INSTRUMENT}/calexps")
    exposures = [butler.get(ref) for ref in sorted(refs, key=lambda ref: ref.dataId["visit"])]
    return {str(e.metadata["import_name"]): e for e in exposures}


def on_tract(exposure: Any, tract: WCS, shape: tuple[int, int]) -> np.ndarray:
    """Lay an exposure on the tract's pixels, to look at and to compare."""
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    pixel = exposure.sky_projection.sky_to_pixel(tract.pixel_to_world(xx, yy))
    return map_coordinates(
        exposure.image.array.astype(float), [pixel.y, pixel.x], order=3, cval=np.nan, prefilter=True
    )


def kernel(coadd: Any, x: float, y: float) -> np.ndarray:
    """PSF that a coadd carries, at a pixel of its array."""
    box = coadd.bbox
    return coadd.psf.compute_kernel_image(x=x + box.x.start, y=y + box.y.start).array


def measure(image: np.ndarray, x: float, y: float, psf: np.ndarray | None, radius: float) -> dict[str, float]:
    """Width, rings and flux of one star."""
    nothing = dict.fromkeys(("x", "y", "fwhm", "peak", "negative", "rise", "flux"), float("nan"))
    shape = measure_star(image, x, y, radius=radius)
    if shape is None:
        return nothing
    ring = ring_depth(image, shape.x, shape.y, peak=shape.peak, fwhm=shape.fwhm, radius=RING_RADIUS)
    return {
        "x": shape.x,
        "y": shape.y,
        "fwhm": shape.fwhm,
        "peak": shape.peak,
        "negative": ring.negative,
        "rise": ring.rise,
        "flux": aperture_flux(image, shape.x, shape.y, APERTURE, psf=psf),
    }


def star_tables(
    exposures: dict[str, Any], coadds: dict[str, Any], tract: WCS, positions: list[tuple[float, float]]
) -> str:
    """Tables of all figures that concern the stars."""
    widths, rings, fluxes, halves = [], [], [], []
    for star, (x, y) in zip(STARS, positions, strict=True):
        before = []
        for exposure in exposures.values():
            pixel = exposure.sky_projection.sky_to_pixel(tract.pixel_to_world(x, y))
            shape = measure_star(exposure.image.array, float(pixel.x), float(pixel.y))
            before.append(shape.fwhm if shape else np.nan)
        found = {
            name: measure(c.image.array, x, y, kernel(c, x, y), 8.0 if name == "plain" else 5.0)
            for name, c in coadds.items()
        }
        plain, latent = found["plain"], found["latent"]
        target = measure_kernel(kernel(coadds["latent"], x, y))
        ratio = latent["fwhm"] / target
        widths.append(
            (star, np.nanmin(before), np.nanmedian(before), np.nanmax(before))
            + (plain["fwhm"], latent["fwhm"], target, ratio)
        )
        rings.append((star, 100 * plain["negative"], 100 * latent["negative"], 100 * latent["rise"]))
        fluxes.append((star, plain["flux"], latent["flux"], 100 * (latent["flux"] / plain["flux"] - 1)))
        a, b = found["latent 2016"], found["latent 2018"]
        p, q = found["plain 2016"], found["plain 2018"]
        halves.append(
            (star, a["fwhm"] / target, b["fwhm"] / target, b["x"] - a["x"], b["y"] - a["y"])
            + (100 * (q["flux"] / p["flux"] - 1), 100 * (b["flux"] / a["flux"] - 1))
        )
    return "\n".join(
        [
            "FWHM in pixels: the exposures, the plain coadd, the latent coadd and its target",
            format_table(
                ("star", "sharpest", "median", "widest", "plain", "latent", "target", "latent/target"),
                widths,
                decimals=3,
            ),
            f"\nRings within {RING_RADIUS:g} px, in per cent of the peak (azimuthal means outside one FWHM)",
            format_table(("star", "plain: depth", "latent: depth", "latent: rise"), rings, decimals=2),
            f"\nFlux in an aperture of {APERTURE:g} px with each image's PSF beyond it, nominal nJy",
            format_table(("star", "plain", "latent", "latent/plain - 1, %"), fluxes, decimals=2),
            "\nLatent coadds of the 2016 and of the 2018 half",
            format_table(
                ("star", "FWHM/target 2016", "FWHM/target 2018", "dx px", "dy px")
                + ("plain flux: 2018/2016 - 1, %", "latent flux: 2018/2016 - 1, %"),
                halves,
                decimals=3,
            ),
        ]
    )


def measure_kernel(psf: np.ndarray) -> float:
    """FWHM of a kernel, by the measurement that stars undergo."""
    shape = measure_star(psf, psf.shape[1] // 2, psf.shape[0] // 2, radius=5.0)
    return shape.fwhm if shape else kernel_fwhm(psf)


def sky_table(coadds: dict[str, Any], empty: np.ndarray) -> str:
    """Noise of the empty sky against what the variance says."""
    rows = []
    for name, coadd in coadds.items():
        image, variance = coadd.image.array, coadd.variance.array
        use = empty & np.isfinite(image) & (variance > 0)
        scaled = image[use] / np.sqrt(variance[use])
        rows.append(
            (name, float(np.median(image[use])), robust_rms(image[use]), robust_rms(scaled))
            + (
                100 * float(np.mean(coadd.mask.get("REJECTED"))),
                100 * float(np.mean(coadd.mask.get("CLIPPED"))),
            )
        )
    for kind in ("plain", "latent"):
        a, b = coadds[f"{kind} 2016"], coadds[f"{kind} 2018"]
        use = empty & np.isfinite(a.image.array) & np.isfinite(b.image.array)
        difference = (b.image.array - a.image.array)[use]
        scale = np.sqrt(a.variance.array + b.variance.array)[use]
        rows.append(
            (f"{kind} 2018 - 2016", float(np.median(difference)), robust_rms(difference))
            + (robust_rms(difference / scale), np.nan, np.nan)
        )
    return "\nEmpty sky\n" + format_table(
        ("image", "median", "rms", "rms/predicted", "REJECTED %", "CLIPPED %"), rows, decimals=3
    )


def empty_sky(image: np.ndarray) -> np.ndarray:
    """Pixels of a plain coadd away from its edges and from what stands out of its noise."""
    from scipy.ndimage import binary_dilation, gaussian_filter

    filled = np.nan_to_num(image)
    smooth = gaussian_filter(filled, 2.0)
    empty = ~binary_dilation(np.abs(smooth) > 3.0 * robust_rms(smooth), iterations=6)
    empty[:16], empty[-16:], empty[:, :16], empty[:, -16:] = (False,) * 4
    return empty


def main() -> None:
    """Measure, print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("repo", type=Path, help="the repository")
    parser.add_argument(
        "--prefix", default="u/decam", help="output collections are PREFIX/{direct,imagemm}/…"
    )
    parser.add_argument("--restorer", default="imagemm", help="restorer of the latent coadds")
    parser.add_argument("--reference", default="04a", help="exposure in whose pixels the stars are given")
    parser.add_argument("--shown", default="18c", help="exposure to show")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    butler = Butler.from_config(arguments.repo)
    prefix, restorer = arguments.prefix, arguments.restorer
    coadds = read_coadds(
        butler,
        {"plain": f"{prefix}/direct/all", "latent": f"{prefix}/{restorer}/all"}
        | {f"plain {year}": f"{prefix}/direct/{year}" for year in (2016, 2018)}
        | {f"latent {year}": f"{prefix}/{restorer}/{year}" for year in (2016, 2018)},
    )
    exposures = read_exposures(butler)
    box = coadds["plain"].bbox
    geometry = butler.get("sky_map_geometry", skymap=SKYMAP, collections="skymaps")
    tract = WCS(geometry["tracts"]["0"]["wcs"]).slice((slice(box.y.start, None), slice(box.x.start, None)))
    reference = exposures[arguments.reference].sky_projection
    points = [reference.pixel_to_sky(XY(x=float(x), y=float(y))) for x, y in (*STARS, GALAXY)]
    places = [tuple(float(v) for v in tract.world_to_pixel(point)) for point in points]
    print(star_tables(exposures, coadds, tract, places[: len(STARS)]))
    print(sky_table(coadds, empty_sky(coadds["plain"].image.array)))
    if arguments.figure:
        shown = exposures[arguments.shown]
        images = {
            f"exposure {arguments.shown}": on_tract(shown, tract, coadds["plain"].image.array.shape),
            "plain coadd": coadds["plain"].image.array,
            "latent coadd": coadds["latent"].image.array,
            "latent, 2016 half": coadds["latent 2016"].image.array,
            "latent, 2018 half": coadds["latent 2018"].image.array,
        }
        noise = 2.0 * robust_rms(images["plain coadd"])
        figure = comparison_figure(
            images, noise=noise, brightest=1000.0 * noise, zooms=places, unit="nominal nJy per pixel"
        )
        figure.savefig(arguments.figure, dpi=70)


if __name__ == "__main__":
    main()
