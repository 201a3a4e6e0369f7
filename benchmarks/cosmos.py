# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""A field of COSMOS restored from HSC, and held against HST.

    python benchmarks/cosmos.py ../shared/data/hsc_hst_cosmos --figure doc/images/cosmos.png

The i and z images of HSC are restored, each by itself. HST (ACS, F814W) sees
the light of both; their weights, and the offset of the two astrometries, are
fitted once, at a resolution that all images have. HST is then brought to the
PSF of the restored image by a division of transforms, and judges it. The plain
image and its linear (damped) deconvolution are controls.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.stats import sigma_clipped_stats
from astropy.wcs import WCS, FITSFixedWarning
from photutils.detection import find_peaks
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import least_squares

from lsst.latent_coadds.qa import aperture_flux, format_table
from lsst.latent_coadds.restoration import ExposureStack, gaussian_kernel, restore

BANDS = (2, 3)
"""The planes of i and z in the file of HSC."""

SIGMA_PER_FWHM = 1 / 2.35482
FILES = ("Cut_HSC.fits", "PSF_HSC.fits", "Cut_HST.fits", "PSF_HST.fits")


@dataclasses.dataclass
class Band:
    """An image in one band: ``image`` (H, W), its noise, and its PSF (k, k)."""

    image: np.ndarray
    sigma: float
    psf: np.ndarray


class Hubble:
    """The image of HST, blurred and sampled as another image is.

    Parameters
    ----------
    image : `numpy.ndarray`, (h, w)
        HST's image, sky-subtracted.
    psf : `numpy.ndarray`, (k, k)
        HST's PSF.
    wcs, other : `astropy.wcs.WCS`
        Of HST and of the image to compare with.
    shape : `tuple` [ `int`, `int` ]
        Shape of that image.
    """

    def __init__(
        self, image: np.ndarray, psf: np.ndarray, wcs: WCS, other: WCS, shape: tuple[int, int]
    ) -> None:
        self.image = image
        y, x = np.mgrid[: shape[0], : shape[1]]
        self.x, self.y = wcs.world_to_pixel(other.pixel_to_world(x, y))
        self.ratio = abs(np.linalg.det(other.pixel_scale_matrix) / np.linalg.det(wcs.pixel_scale_matrix))
        self._padded = tuple(2 * n for n in image.shape)
        row, column = np.mgrid[: psf.shape[0], : psf.shape[1]]
        core = np.where(psf > 0.1 * psf.max(), psf, 0.0)
        center = [(core * axis).sum() / core.sum() for axis in (row, column)]
        padded = np.zeros(self._padded)
        padded[: psf.shape[0], : psf.shape[1]] = psf / psf.sum()
        self.frequency = np.fft.fftfreq(self._padded[0])[:, None], np.fft.rfftfreq(self._padded[1])[None, :]
        phase = np.exp(
            2j * np.pi * (self.frequency[0] * round(center[0]) + self.frequency[1] * round(center[1]))
        )
        # The rest of the offset of its star is part of the astrometry's.
        self._transfer = np.fft.rfft2(padded) * phase

    def blur(self, fwhm: float, image: np.ndarray | None = None) -> np.ndarray:
        """Return the image with a Gaussian PSF, ``fwhm`` in its own pixels."""
        size = self.frequency[0] ** 2 + self.frequency[1] ** 2
        target = np.exp(-2 * (np.pi * fwhm * SIGMA_PER_FWHM) ** 2 * size)
        kernel = target * self._transfer.conj() / (np.abs(self._transfer) ** 2 + 1e-6)
        transform = np.fft.rfft2(self.image if image is None else image, s=self._padded)
        return np.fft.irfft2(transform * kernel, s=self._padded)[: self.image.shape[0], : self.image.shape[1]]

    def sample(self, fwhm: float, shift: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        """Return flux per pixel of the other image, ``fwhm`` and ``shift`` in its pixels."""
        scale = np.sqrt(self.ratio)
        blurred = self.blur(fwhm * scale, image)
        position = (self.y + shift[1] * scale, self.x + shift[0] * scale)
        return self.ratio * map_coordinates(blurred, position, order=3)

    def inside(self, margin: float) -> np.ndarray:
        """Return where HST has data, with a margin in HST's pixels."""
        height, width = self.image.shape
        return (
            (self.x > margin)
            & (self.x < width - 1 - margin)
            & (self.y > margin)
            & (self.y < height - 1 - margin)
        )


def read(directory: Path) -> tuple[list[Band], Hubble]:
    """Read the images, or say what is missing."""
    missing = [name for name in FILES if not (directory / name).exists()]
    if missing:
        raise SystemExit(
            f"{directory} lacks {', '.join(missing)}. They are in data/ of the public repository "
            "pmelchior/scarlet (commit 998ca34c); give the directory that holds them."
        )
    warnings.simplefilter("ignore", FITSFixedWarning)
    header = fits.getheader(directory / FILES[0])
    cube, psfs, hubble, hubble_psf = (
        np.ascontiguousarray(fits.getdata(directory / name), dtype=float) for name in FILES
    )
    bands = []
    for plane in BANDS:
        sky, sigma = measure_sky(cube[plane], 3.0)
        bands.append(Band(cube[plane] - sky, sigma, psfs[plane] / psfs[plane].sum()))
    wcs = WCS(header).celestial
    hubble -= measure_sky(hubble, 10.0)[0]
    reference = WCS(fits.getheader(directory / FILES[2]))
    return bands, Hubble(hubble, hubble_psf, reference, wcs, cube.shape[1:])


def measure_sky(image: np.ndarray, scale: float) -> tuple[float, float]:
    """Return level and scatter of the sky, without what is bright when smoothed."""
    smooth = gaussian_filter(image, scale)
    _, middle, spread = sigma_clipped_stats(smooth, sigma=2.0, maxiters=20)
    empty = np.abs(smooth - middle) < 2 * spread
    return float(np.median(image[empty])), float(image[empty].std())


def convolve_to(band: Band, fwhm: float, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn an image's PSF into a Gaussian, linearly.

    ``damping`` is the response of the PSF below which frequencies fade out.
    Returns the image and the PSF that it then has.
    """
    shape = tuple(2 * n for n in band.image.shape)
    k = len(band.psf)
    padded = np.zeros(shape)
    padded[:k, :k] = band.psf
    psf = np.fft.rfft2(np.roll(padded, (-(k // 2), -(k // 2)), axis=(0, 1)))
    size = np.fft.fftfreq(shape[0])[:, None] ** 2 + np.fft.rfftfreq(shape[1])[None, :] ** 2
    target = np.exp(-2 * (np.pi * fwhm * SIGMA_PER_FWHM) ** 2 * size)
    kernel = target * psf.conj() / (np.abs(psf) ** 2 + damping**2)
    result = np.fft.irfft2(np.fft.rfft2(band.image, s=shape) * kernel, s=shape)
    result_psf = np.roll(np.fft.irfft2(kernel * psf, s=shape), (k // 2, k // 2), axis=(0, 1))[:k, :k]
    return result[: band.image.shape[0], : band.image.shape[1]], result_psf / result_psf.sum()


def calibrate(bands: list[Band], hubble: Hubble, fwhm: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Fit weights of the bands that make HST's light, and the shift (x, y)."""
    planes = np.stack([convolve_to(band, fwhm, 0.003)[0] for band in bands])
    use = hubble.inside(12.0)
    use[:5] = use[-5:] = use[:, :5] = use[:, -5:] = False

    def solve(shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        target = hubble.sample(fwhm, shift)[use]
        columns = np.stack([*planes[:, use], np.ones(use.sum())], axis=1)
        solution = np.linalg.lstsq(columns, target, rcond=None)[0]
        return solution[:-1], columns @ solution - target

    fit = least_squares(lambda shift: solve(shift)[1], np.zeros(2), diff_step=0.01)
    return solve(fit.x)[0], fit.x


def restore_bands(bands: list[Band], method: str, **settings: float) -> tuple[list, float]:
    """Restore each band by itself; return results and CPU seconds."""
    results, start = [], time.process_time()
    for band in bands:
        image = band.image[None].astype(np.float32)
        variance = np.full_like(image, band.sigma**2)
        stack = ExposureStack(image, variance, np.ones(image.shape, dtype=bool), band.psf[None])
        results.append(restore(stack, method, device="cpu", **settings))
    return results, time.process_time() - start


def measure(image: np.ndarray, truth: np.ndarray, use: np.ndarray, light: np.ndarray) -> list[float]:
    """Return correlation, residual over the structure, and flux ratio in ``light``."""
    a, b = image[use & light], truth[use & light]
    residual = np.sqrt(np.mean((a - b) ** 2) / np.mean((b - b.mean()) ** 2))
    return [float(np.corrcoef(a, b)[0, 1]), float(residual), float(a.sum() / b.sum())]


def count(image: np.ndarray, threshold: float, use: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Return how many of HST's peaks an image has, and how many others."""
    found = peaks(image, threshold, use)
    distance = np.hypot(*(truth[:, None] - found[None]).transpose(2, 0, 1))
    if not distance.size:
        return 0, len(found)
    return int((distance.min(axis=1) < 1.5).sum()), int((distance.min(axis=0) >= 1.5).sum())


def peaks(image: np.ndarray, threshold: float, use: np.ndarray) -> np.ndarray:
    """Return positions (N, 2) of peaks, x and y."""
    table = find_peaks(image, threshold, box_size=3, mask=~use)
    if table is None:
        return np.zeros((0, 2))
    return np.stack([table["x_peak"], table["y_peak"]], axis=1).astype(float)


@dataclasses.dataclass
class Comparison:
    """Images at one target PSF, by name, and HST at that PSF.

    ``kernels`` are their PSFs, ``errors`` the median error of a pixel. ``noise``
    is that of HST, ``use`` where HST has data, ``light`` where it sees light.
    """

    target: float
    truth: np.ndarray
    noise: float
    use: np.ndarray
    light: np.ndarray
    images: dict[str, np.ndarray]
    kernels: dict[str, np.ndarray]
    errors: dict[str, float]
    seconds: dict[str, float]


def compare(bands: list[Band], hubble: Hubble, target: float, methods: list[str]) -> Comparison:
    """Restore the bands, and bring HST to the same PSF."""
    weights, shift = calibrate(bands, hubble)
    truth, use = hubble.sample(target, shift), hubble.inside(12.0)
    _, _, noise = sigma_clipped_stats(truth[use], sigma=2.5, maxiters=20)
    light = gaussian_filter(truth, 2.0) > noise

    def mix(planes: list) -> np.ndarray:
        return sum(w * np.asarray(plane, dtype=float) for w, plane in zip(weights, planes, strict=True))

    plain_error = float(np.hypot(*(weights * [band.sigma for band in bands])))
    images, kernels = {"plain": mix([b.image for b in bands])}, {"plain": mix([b.psf for b in bands])}
    errors, seconds = {"plain": plain_error}, {"plain": 0.0}
    kernels["plain"] /= kernels["plain"].sum()
    linear = [convolve_to(band, target, 0.05) for band in bands]
    images["linear"], kernels["linear"] = mix([plane for plane, _ in linear]), linear[0][1]
    errors["linear"], seconds["linear"] = measure_sky(images["linear"], 3.0)[1], 0.0
    for method in methods:
        results, seconds[method] = restore_bands(bands, method, target_fwhm=target)
        images[method] = mix([result.image for result in results])
        kernels[method] = results[0].psf.numpy().astype(float)
        variance = [w * result.variance for w, result in zip(weights, results, strict=True)]
        errors[method] = float(np.sqrt(np.median(mix(variance))))
        for name, result in zip("iz", results, strict=True):
            chi2 = float(result.chi2[0])
            print(f"{method} of {name}: chi2 {chi2:.2f}, {result.n_iterations} updates, {result.converged=}")
    inside = truth[use & light]
    print(
        f"target {target} px: weights of i and z {weights.round(2)}, shift {(shift * 168).round(0)} mas, "
        f"noise of HST {noise:.1f}, {noise / inside.std():.3f} of the structure in {inside.size} pixels"
    )
    return Comparison(target, truth, noise, use, light, images, kernels, errors, seconds)


def report(c: Comparison) -> None:
    """Print the tables."""
    sources = peaks(c.truth, 5 * c.noise, c.use)
    sources = sources[np.argsort([-c.truth[int(y), int(x)] for x, y in sources])]
    rows = []
    for name, image in c.images.items():
        found, others = count(image, 5 * c.noise, c.use, sources)
        figures = measure(image, c.truth, c.use, c.light)
        rows.append(
            [name, *figures, f"{found} of {len(sources)}", others, c.errors[name], round(c.seconds[name], 1)]
        )
    header = ("image", "correlation", "residual/structure", "flux/HST", "peaks", "others", "sigma", "CPU s")
    print(format_table(header, rows, decimals=3))
    kernel = gaussian_kernel(c.target, 25).numpy()
    rows = []
    for x, y in sources:
        flux = aperture_flux(c.truth, x, y, 2.0, psf=kernel)
        ratios = [aperture_flux(i, x, y, 2.0, psf=c.kernels[n]) / flux for n, i in c.images.items()]
        rows.append([f"{x:.0f}, {y:.0f}", flux, 100 * flux_error(kernel, c.noise) / flux, *ratios])
    header = ("x, y", "HST flux", "error %", *(f"{name}/HST" for name in c.images))
    print(format_table(header, rows), end="\n\n")


def draw(c: Comparison, hubble: Hubble, path: Path) -> None:
    """Show all images, and what they differ from HST by."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import AsinhNorm
    from matplotlib.figure import Figure

    rows, columns = np.nonzero(c.use)
    window = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    n = len(c.images)
    figure = Figure(figsize=(4 * (n + 1), 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, n + 1)
    norm = AsinhNorm(2 * c.noise, vmin=-3 * c.noise, vmax=float(c.truth[c.use].max()))
    for column, (name, image) in enumerate(c.images.items()):
        title = "HSC i + z" if name == "plain" else name
        axes[0, column].imshow(image[window], origin="lower", cmap="gray", norm=norm)
        axes[0, column].set_title(title)
        shown = axes[1, column].imshow(
            ((image - c.truth) / c.noise)[window], origin="lower", cmap="RdBu_r", vmin=-10, vmax=10
        )
        axes[1, column].set_title(f"{title} - HST, in HST's sigma")
    axes[0, n].imshow(c.truth[window], origin="lower", cmap="gray", norm=norm)
    axes[0, n].set_title(f"HST at {c.target} px")
    fine = gaussian_filter(hubble.image, 1.0)
    spread = measure_sky(fine, 10.0)[1]
    limits = (hubble.y[c.use].min(), hubble.y[c.use].max(), hubble.x[c.use].min(), hubble.x[c.use].max())
    bottom, top, left, right = (round(float(limit)) for limit in limits)
    axes[1, n].imshow(
        fine[bottom : top + 1, left : right + 1],
        origin="lower",
        cmap="gray",
        norm=AsinhNorm(2 * spread, vmin=-3 * spread, vmax=float(fine.max())),
    )
    axes[1, n].set_title("HST, 0.03 arcsec per pixel")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes[1, :n], shrink=0.7, pad=0.01)
    figure.savefig(path, dpi=75)


def main() -> None:
    """Restore, compare, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="directory with the images of HSC and HST")
    parser.add_argument(
        "--targets", type=float, nargs="*", default=[2.0, 2.5, 3.0], help="FWHM in HSC pixels"
    )
    parser.add_argument("--methods", nargs="*", default=["imagemm", "astroclearnet"])
    parser.add_argument("--figure", type=Path, help="of the first target")
    arguments = parser.parse_args()
    bands, hubble = read(arguments.directory)
    for number, target in enumerate(arguments.targets):
        comparison = compare(bands, hubble, target, arguments.methods)
        report(comparison)
        if arguments.figure and number == 0:
            draw(comparison, hubble, arguments.figure)


def flux_error(kernel: np.ndarray, noise: float, radius: float = 2.0) -> float:
    """Return the error of an aperture flux in noise that was white before the kernel."""
    y, x = np.mgrid[: len(kernel), : len(kernel)] - len(kernel) // 2
    inside = (np.hypot(x, y) <= radius).astype(float)
    seen = np.fft.irfft2(np.fft.rfft2(inside) * np.fft.rfft2(np.fft.ifftshift(kernel)), s=inside.shape)
    white = noise / np.sqrt((kernel**2).sum())
    return float(white * np.sqrt((seen**2).sum()) / kernel[inside > 0].sum())


if __name__ == "__main__":
    main()
