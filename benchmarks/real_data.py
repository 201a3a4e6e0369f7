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
from dataclasses import dataclass
from operator import itemgetter
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


def measure_stars(
    exposures: dict[str, Any], coadds: dict[str, Any], tract: WCS, positions: list[tuple[float, float]]
) -> list[dict[str, Any]]:
    """All figures of each star."""
    result = []
    for star, (x, y) in zip(STARS, positions, strict=True):
        row: dict[str, Any] = {"star": star}
        before = []
        for exposure in exposures.values():
            pixel = exposure.sky_projection.sky_to_pixel(tract.pixel_to_world(x, y))
            shape = measure_star(exposure.image.array, float(pixel.x), float(pixel.y))
            before.append(shape.fwhm if shape else np.nan)
        row |= {"sharpest": np.nanmin(before), "median": np.nanmedian(before), "widest": np.nanmax(before)}
        for name, coadd in coadds.items():
            radius = 8.0 if name.startswith("plain") else 5.0
            found = measure(coadd.image.array, x, y, kernel(coadd, x, y), radius)
            row |= {f"{name} {key}": value for key, value in found.items()}
        row["target"] = measure_kernel(kernel(coadds["latent"], x, y))
        result.append(row)
    return result


def star_tables(stars: list[dict[str, Any]]) -> str:
    """Lay the figures of the stars out."""

    def table(columns: dict[str, Any], decimals: int) -> str:
        return format_table(
            tuple(columns), [[c(s) for c in columns.values()] for s in stars], decimals=decimals
        )

    def per_cent(a: str, b: str) -> Any:
        return lambda s: 100 * (s[a] / s[b] - 1)

    name = {"star": itemgetter("star")}
    widths = name | {k: itemgetter(k) for k in ("sharpest", "median", "widest")}
    widths |= {
        "plain": itemgetter("plain fwhm"),
        "latent": itemgetter("latent fwhm"),
        "target": itemgetter("target"),
        "latent/target": lambda s: s["latent fwhm"] / s["target"],
    }
    rings = name | {
        "plain: depth": lambda s: 100 * s["plain negative"],
        "latent: depth": lambda s: 100 * s["latent negative"],
        "latent: rise": lambda s: 100 * s["latent rise"],
    }
    fluxes = name | {
        "plain": itemgetter("plain flux"),
        "latent": itemgetter("latent flux"),
        "latent/plain - 1, %": per_cent("latent flux", "plain flux"),
    }
    halves = name | {
        "FWHM/target 2016": lambda s: s["latent 2016 fwhm"] / s["target"],
        "FWHM/target 2018": lambda s: s["latent 2018 fwhm"] / s["target"],
        "dx px": lambda s: s["latent 2018 x"] - s["latent 2016 x"],
        "dy px": lambda s: s["latent 2018 y"] - s["latent 2016 y"],
        "plain flux, %": per_cent("plain 2018 flux", "plain 2016 flux"),
        "latent flux, %": per_cent("latent 2018 flux", "latent 2016 flux"),
    }
    return "\n".join(
        [
            "FWHM in pixels: the exposures, the plain coadd, the latent coadd and its target",
            table(widths, 3),
            f"Rings within {RING_RADIUS:g} px, per cent of the peak (azimuthal means outside one FWHM)",
            table(rings, 2),
            f"Flux in an aperture of {APERTURE:g} px, divided by the part of the PSF in it, nominal nJy",
            table(fluxes, 2),
            "Coadds of the 2016 and of the 2018 half: widths, and 2018 against 2016",
            table(halves, 3),
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
    return "Empty sky\n" + format_table(
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


@dataclass
class Figures:
    """Coadds and exposures of a repository, and what was measured on them."""

    exposures: dict[str, Any]
    coadds: dict[str, Any]
    tract: WCS
    places: list[tuple[float, float]]
    stars: list[dict[str, Any]]

    def text(self) -> str:
        """All tables."""
        empty = empty_sky(self.coadds["plain"].image.array)
        return star_tables(self.stars) + "\n" + sky_table(self.coadds, empty)

    def draw(self, path: Path, shown: str) -> None:
        """Draw an exposure, the coadds and the halves, with the stars enlarged."""
        shape = self.coadds["plain"].image.array.shape
        images = {
            f"exposure {shown}": on_tract(self.exposures[shown], self.tract, shape),
            "plain coadd": self.coadds["plain"].image.array,
            "latent coadd": self.coadds["latent"].image.array,
            "latent, 2016 half": self.coadds["latent 2016"].image.array,
            "latent, 2018 half": self.coadds["latent 2018"].image.array,
        }
        noise = 2.0 * robust_rms(images["plain coadd"])
        figure = comparison_figure(
            images, noise=noise, brightest=1000.0 * noise, zooms=self.places, unit="nominal nJy per pixel"
        )
        figure.savefig(path, dpi=60)


def measure_repository(
    repo: Path, *, prefix: str = "u/decam", restorer: str = "imagemm", reference: str = "04a"
) -> Figures:
    """Read all coadds of a repository and measure the stars."""
    butler = Butler.from_config(repo)
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
    projection = exposures[reference].sky_projection
    points = [projection.pixel_to_sky(XY(x=float(x), y=float(y))) for x, y in (*STARS, GALAXY)]
    places = [(float(x), float(y)) for x, y in (tract.world_to_pixel(point) for point in points)]
    return Figures(exposures, coadds, tract, places, measure_stars(exposures, coadds, tract, places[:4]))


def main() -> None:
    """Measure, print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("repo", type=Path, help="the repository")
    parser.add_argument("--prefix", default="u/decam", help="coadds are in PREFIX/RESTORER/{all,2016,2018}")
    parser.add_argument("--restorer", default="imagemm", help="restorer of the latent coadds")
    parser.add_argument("--shown", default="18c", help="exposure to show")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    figures = measure_repository(arguments.repo, prefix=arguments.prefix, restorer=arguments.restorer)
    print(figures.text())
    if arguments.figure:
        figures.draw(arguments.figure, arguments.shown)


if __name__ == "__main__":
    main()
