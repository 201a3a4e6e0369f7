# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compare coadds of the simulated HSC repository with the truth and each other.

Needs a full stack, the repository of ``hsc_repository.py``, and collections with
coadds of patch 4: deepCoadd of the stack, and latentCoadd, written as
ExposureF.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from hsc_exposures import SCALE
from hsc_repository import DEFAULTS, SKY_MAP

from lsst.daf.butler import Butler
from lsst.latent_coadds.qa import aperture_flux

PATCH = {"skymap": SKY_MAP, "tract": 0, "patch": 4}
EDGE = 30
"""Stars so close to the edge of the patch are not used, in pixels."""
FAINT = (3.0, 12.0)
"""Range of S/N of the faint stars."""


@dataclasses.dataclass
class Column:
    """One coadd, measured at the true positions.

    Attributes
    ----------
    psf_flux, aperture : `numpy.ndarray`
        Fitted with the attached PSF; within 3 pixels, divided by the share of
        the attached PSF there. In nJy.
    fwhm : `float`
        Of the attached PSF, in arcsec.
    star_fwhm : `float`
        Median of bright stars, in arcsec.
    found : `numpy.ndarray` of `bool`
        Whether it was detected; see `detect`.
    threshold : `float`
        Threshold of the detection, in units of the scatter of the sky.
    """

    psf_flux: np.ndarray
    aperture: np.ndarray
    fwhm: float
    star_fwhm: float
    found: np.ndarray
    threshold: float
    image: np.ndarray


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repo", type=Path)
    parser.add_argument("--standard", default="u/ref", help="collection with deepCoadd")
    parser.add_argument("--latent", nargs="+", default=["u/direct", "u/imagemm"])
    parser.add_argument("--band", default="i")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    butler = Butler.from_config(arguments.repo, collections=[DEFAULTS])
    truth = np.load(arguments.repo / "truth.npz")
    data_id = PATCH | {"band": arguments.band}
    exposures = {"drp_tasks": butler.get("deepCoadd", data_id, collections=arguments.standard)}
    for collection in arguments.latent:
        exposures[collection.rsplit("/", 1)[-1]] = butler.get("latentCoadd", data_id, collections=collection)
    x, y, use = locate(exposures["drp_tasks"], truth)
    for exposure in exposures.values():
        use &= find_clean(exposure, x, y)
    flux = truth[f"flux_{arguments.band}" if f"flux_{arguments.band}" in truth else "flux"][use]
    columns = {name: measure(exposure, x, y, use, flux) for name, exposure in exposures.items()}
    noise = flux_noise(exposures["drp_tasks"], x[use], y[use])
    print_table(columns, flux, flux / noise)
    if arguments.figure:
        draw(columns, flux, flux / noise, arguments.figure)


def locate(exposure: object, truth: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixel positions of the stars, and which lie well inside."""
    box = exposure.getBBox()
    x, y = exposure.getWcs().skyToPixelArray(truth["ra"], truth["dec"], degrees=True)
    inside = (np.minimum(x - box.getMinX(), box.getMaxX() - x) > EDGE) & (
        np.minimum(y - box.getMinY(), box.getMaxY() - y) > EDGE
    )
    return x, y, inside


def find_clean(exposure: object, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the stars with finite pixels and data all over a box of 25 pixels."""
    image, box = exposure.image.array, exposure.getBBox()
    missing = ~np.isfinite(image) | ((exposure.mask.array & exposure.mask.getPlaneBitMask("NO_DATA")) != 0)
    clean = []
    for column, row in zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True):
        r, c = row - box.getMinY(), column - box.getMinX()
        cut = missing[max(0, r - 12) : r + 13, max(0, c - 12) : c + 13]
        clean.append(cut.size > 0 and not cut.any())
    return np.array(clean)


def draw_psf(exposure: object, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the attached PSF at a position, and the pixels under it."""
    from lsst.geom import Point2D

    psf = exposure.getPsf().computeImage(Point2D(x, y))
    box = psf.getBBox()
    box.clip(exposure.getBBox())
    return psf[box].array, exposure.image[box].array * exposure.getPhotoCalib().getCalibrationMean()


def flux_noise(exposure: object, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the noise of fitted fluxes, from the variance plane."""
    noise = []
    for point in zip(x, y, strict=True):
        psf, _ = draw_psf(exposure, *point)
        variance = exposure.variance[int(round(point[0])), int(round(point[1]))]
        noise.append(np.sqrt(variance / (psf**2).sum()) * exposure.getPhotoCalib().getCalibrationMean())
    return np.array(noise)


def measure(
    exposure: object, all_x: np.ndarray, all_y: np.ndarray, use: np.ndarray, flux: np.ndarray
) -> Column:
    """Measure one coadd at the true positions of the stars to ``use``."""
    x, y = all_x[use], all_y[use]
    scale = exposure.getPhotoCalib().getCalibrationMean()
    image = np.nan_to_num(exposure.image.array) * scale
    x0, y0 = exposure.getBBox().getMinX(), exposure.getBBox().getMinY()
    fitted, aperture, fwhm = [], [], []
    for point in zip(x, y, strict=True):
        psf, cut = draw_psf(exposure, *point)
        fitted.append((psf * cut).sum() / (psf**2).sum())
        model = np.zeros_like(image)
        box = exposure.getPsf().computeImage(_point(*point)).getBBox()
        box.clip(exposure.getBBox())
        model[box.getMinY() - y0 : box.getMaxY() + 1 - y0, box.getMinX() - x0 : box.getMaxX() + 1 - x0] = psf
        at = (point[0] - x0, point[1] - y0)
        aperture.append(aperture_flux(image, *at, 3.0) / aperture_flux(model, *at, 3.0))
        fwhm.append(_fwhm(cut))
    bright = flux > np.quantile(flux, 0.7)
    found, threshold = detect(exposure, image, all_x - x0, all_y - y0)
    attached = np.median([_fwhm(draw_psf(exposure, *point)[0]) for point in zip(x, y, strict=True)])
    return Column(
        np.array(fitted),
        np.array(aperture),
        float(attached) * SCALE,
        float(np.median(np.array(fwhm)[bright])) * SCALE,
        found[use],
        threshold,
        image,
    )


def _point(x: float, y: float) -> object:
    from lsst.geom import Point2D

    return Point2D(x, y)


def _fwhm(stamp: np.ndarray) -> float:
    """Return the width of a Gaussian fitted to the core, in pixels."""
    from scipy.optimize import curve_fit

    peak_y, peak_x = np.unravel_index(np.argmax(stamp), stamp.shape)
    ys, xs = np.mgrid[: stamp.shape[0], : stamp.shape[1]]
    core = np.hypot(xs - peak_x, ys - peak_y) <= 4

    def model(_: np.ndarray, a: float, x: float, y: float, s: float, b: float) -> np.ndarray:
        return a * np.exp(-0.5 * ((xs - x) ** 2 + (ys - y) ** 2)[core] / s**2) + b

    start = (float(stamp.max()), peak_x, peak_y, 1.8, 0.0)
    try:
        fitted, _ = curve_fit(model, stamp[core], stamp[core], p0=start)
    except RuntimeError:
        return float("nan")
    return 2.35482 * abs(float(fitted[3]))


def detect(exposure: object, image: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Look for peaks that stand out from all but one of the peaks of noise.

    The image is filtered with its PSF and then with Gaussians of several
    widths, of which the best is taken: noise that is correlated, or not
    Gaussian, has no threshold in units of its scatter.

    Returns
    -------
    found : `numpy.ndarray` of `bool`
        Whether there is such a peak within 2 pixels of each star.
    threshold : `float`
        In units of the scatter of the filtered image.
    """
    from scipy.ndimage import gaussian_filter, maximum_filter
    from scipy.signal import fftconvolve

    box = exposure.getBBox()
    psf = exposure.getPsf().computeKernelImage(_point(box.getCenterX(), box.getCenterY())).array
    matched = fftconvolve(image, psf[::-1, ::-1], mode="same")
    best = np.zeros(len(x), bool), float("nan")
    for width in (0.0, 0.8, 1.2, 1.7, 2.2):
        filtered = gaussian_filter(matched, width)
        inner = filtered[EDGE:-EDGE, EDGE:-EDGE]
        sigma = 1.4826 * np.median(np.abs(inner - np.median(inner)))
        peaks = filtered == maximum_filter(filtered, 5)
        peaks[:EDGE], peaks[-EDGE:], peaks[:, :EDGE], peaks[:, -EDGE:] = False, False, False, False
        rows, columns = np.nonzero(peaks)
        height = filtered[rows, columns]
        distance = np.hypot(x[:, None] - columns[None], y[:, None] - rows[None])
        # Peaks on the rims of bright stars are no noise of the sky.
        threshold = np.sort(height[distance.min(axis=0) > 15.0])[-2]
        found = distance[:, height > threshold].min(axis=1) < 2.0
        if found.sum() > best[0].sum():
            best = found, float(threshold / sigma)
    return best


def print_table(columns: dict[str, Column], flux: np.ndarray, snr: np.ndarray) -> None:
    """Print a table with a column for each coadd."""
    faint = (snr > FAINT[0]) & (snr < FAINT[1])
    middle = (snr > 12) & (snr <= 50)
    groups = {
        "S/N > 50": snr > 50,
        "S/N > 200": snr > 200,
        "S/N 50-200": (snr > 50) & (snr <= 200),
        "S/N 12-50": middle,
    }
    counts = [f"{which.sum()} with {label}" for label, which in groups.items()]
    print(f"{len(snr)} stars: {', '.join(counts)}; {faint.sum()} with S/N {FAINT[0]:g}-{FAINT[1]:g}")
    rows: list[tuple[str, list[str]]] = [
        ("FWHM of the PSF attached [arcsec]", [f"{c.fwhm:.3f}" for c in columns.values()]),
        ("FWHM of bright stars [arcsec]", [f"{c.star_fwhm:.3f}" for c in columns.values()]),
    ]
    for label, which in groups.items():
        for what in ("psf_flux", "aperture"):
            values = []
            for column in columns.values():
                error = getattr(column, what)[which] / flux[which] - 1
                scatter = 1.4826 * np.median(np.abs(error - np.median(error)))
                mean = 1.253 * scatter / np.sqrt(len(error))
                values.append(f"{100 * np.median(error):+.2f} ± {100 * mean:.2f}, {100 * scatter:.2f}")
            rows.append((f"{what}, {label}: median error, scatter [%]", values))
    for label, which in ((f"S/N {FAINT[0]:g}-{FAINT[1]:g}", faint), ("S/N 12-50", middle)):
        values = [f"{column.found[which].mean():.2f}" for column in columns.values()]
        rows.append((f"stars found with one false peak, {label}", values))
    rows.append(("threshold for that [scatter of the sky]", [f"{c.threshold:.1f}" for c in columns.values()]))
    print("| | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
    for label, cells in rows:
        print(f"| {label} | " + " | ".join(cells) + " |")


def draw(columns: dict[str, Column], flux: np.ndarray, snr: np.ndarray, path: Path) -> None:
    """Draw a part of each coadd, and the errors of the fluxes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(columns), figsize=(4 * len(columns), 6.6), height_ratios=(3, 2))
    sky = 1.4826 * np.median(np.abs(columns["drp_tasks"].image))
    for (name, column), (above, below) in zip(columns.items(), axes.T, strict=True):
        above.imshow(
            np.arcsinh(column.image[150:350, 150:350] / sky), origin="lower", cmap="gray", vmin=-2, vmax=5
        )
        above.set(title=f"{name}, FWHM {column.star_fwhm:.2f} arcsec", xticks=[], yticks=[])
        for what, mark in (("psf_flux", "o"), ("aperture", "x")):
            error = 100 * (getattr(column, what) / flux - 1)
            below.plot(snr, error, mark, ms=3, label=what.replace("_", " "))
        below.axhline(0, color="gray", lw=0.5)
        below.set(xscale="log", xlim=(10, None), ylim=(-10, 10), xlabel="S/N in the standard coadd")
    axes[1, 0].set_ylabel("error of flux [%]")
    axes[1, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
