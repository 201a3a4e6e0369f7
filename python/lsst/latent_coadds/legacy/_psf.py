# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("LegacyPsf", "read_psf")

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..repository import make_grid_psf
from ._archive import Archive, ArchivedObject
from ._errors import LegacyFileError
from ._piff import read_piff_psf

if TYPE_CHECKING:
    import piff


@dataclasses.dataclass(frozen=True)
class LegacyPsf:
    """A PSF of afw as a model of Piff.

    Parameters
    ----------
    psf : `piff.PSF`
        The model, in pixels of the image.
    stamp_size : `int`
        Odd side of its kernel images.
    kind : `str`
        Name of the class in afw.
    """

    psf: piff.PSF
    stamp_size: int
    kind: str


@dataclasses.dataclass
class _Grid:
    """Images that polynomials of position multiply: ``sum(x**i * y**j * image[i, j])``."""

    images: dict[tuple[int, int], np.ndarray]
    step: float
    stamp_size: int

    def to_piff(self, origin: tuple[int, int]) -> piff.PSF:
        """Return a model in pixels that count from another origin."""
        images = {powers: _square(image) for powers, image in self.images.items()}
        order = max(sum(powers) for powers in images)
        size = next(iter(images.values())).shape[0]
        # Piff orders its basis as the true elements of this triangle.
        i, j = np.nonzero(np.add.outer(np.arange(order + 1), np.arange(order + 1)) <= order)
        place = {powers: n for n, powers in enumerate(zip(i.tolist(), j.tolist(), strict=True))}
        coefficients = np.zeros((size * size, len(place)))
        for (a, b), image in images.items():
            along_x = np.polynomial.polynomial.polypow([float(origin[0]), 1.0], a)
            along_y = np.polynomial.polynomial.polypow([float(origin[1]), 1.0], b)
            for p, factor_x in enumerate(along_x):
                for q, factor_y in enumerate(along_y):
                    coefficients[:, place[p, q]] += factor_x * factor_y * image.ravel()
        return make_grid_psf(coefficients, scale=self.step, size=size, order=order)


def read_psf(psf: ArchivedObject, archive: Archive, origin: tuple[int, int] = (0, 0)) -> LegacyPsf:
    """Read the PSF of an exposure.

    Parameters
    ----------
    psf : `ArchivedObject`
        A ``PiffPsf``, ``PsfexPsf``, ``KernelPsf`` or ``PcaPsf`` of fixed
        kernels, ``GaussianPsf``, ``SingleGaussianPsf`` or
        ``DoubleGaussianPsf``.
    archive : `Archive`
        Where its parts are.
    origin : `tuple` [`int`, `int`], optional
        x and y of the image's first pixel on the detector.

    Returns
    -------
    result : `LegacyPsf`
        The same PSF for Piff.

    Raises
    ------
    LegacyFileError
        If the PSF is of another class, or in a form that is not read.

    Notes
    -----
    Kernels and the components of PSFEx become a pixel grid of Piff whose
    coefficients are polynomials of position, interpolated with a Lanczos
    kernel of order five, as the PSFEx of the LSST stack does.
    """
    if psf.kind == "PiffPsf":
        if origin != (0, 0):
            raise LegacyFileError(
                f"it is cut out of a detector (its first pixel is {origin}), and Piff PSFs are read for "
                "whole detectors only; import the file that it was cut from."
            )
        model, stamp_size = read_piff_psf(psf)
        return LegacyPsf(model, stamp_size, psf.kind)
    readers = {
        "PsfexPsf": _read_psfex,
        "KernelPsf": _read_kernel_psf,
        "PcaPsf": _read_kernel_psf,
        "GaussianPsf": _read_gaussian,
        "SingleGaussianPsf": _read_gaussian,
        "DoubleGaussianPsf": _read_gaussian,
    }
    if psf.kind not in readers:
        raise LegacyFileError(
            f"its PSF is a {psf.kind}, and only {', '.join(sorted({'PiffPsf', *readers}))} are read without "
            "afw. Give psf=stars to have one fitted, or import it in a full stack."
        )
    grid = readers[psf.kind](psf, archive)
    return LegacyPsf(grid.to_piff(origin), grid.stamp_size, psf.kind)


def _square(image: np.ndarray) -> np.ndarray:
    """Pad an image to an odd square around its pixel ``(h // 2, w // 2)``."""
    half = max(side // 2 for side in image.shape)
    result = np.zeros((2 * half + 1, 2 * half + 1))
    y, x = (half - side // 2 for side in image.shape)
    result[y : y + image.shape[0], x : x + image.shape[1]] = image
    return result


def _read_gaussian(psf: ArchivedObject, archive: Archive) -> _Grid:
    """Sample one or two round Gaussians at the centres of pixels."""
    row = psf.row
    width, height = int(row["dimensions_x"]), int(row["dimensions_y"])
    y, x = np.mgrid[:height, :width]
    r2 = (x - width // 2) ** 2 + (y - height // 2) ** 2
    if "sigma" in row:
        stamp = np.exp(-0.5 * r2 / row["sigma"] ** 2)
    else:
        stamp = np.exp(-0.5 * r2 / row["sigma1"] ** 2)
        if row["b"]:
            stamp = stamp + row["b"] * np.exp(-0.5 * r2 / row["sigma2"] ** 2)
    stamp = _square(stamp / stamp.sum())
    return _Grid({(0, 0): stamp}, 1.0, stamp.shape[0])


def _read_psfex(psf: ArchivedObject, archive: Archive) -> _Grid:
    """Turn the polynomials of PSFEx, of scaled positions, into those of pixels."""
    row = psf.tables[1][0]
    step = float(psf.row["_pixstep"])
    width, height, *rest = (int(n) for n in np.atleast_1d(row["_size"]))
    components = np.atleast_1d(row["_comp"]).astype(float).reshape(-1, height, width)
    offset, scale = (np.atleast_1d(row[f"_context_{which}"]) for which in ("first", "second"))
    groups, degrees = (np.atleast_1d(row[name]).astype(int) for name in ("group", "degree"))
    if len(groups) != 2:
        raise LegacyFileError(
            f"its PSFEx model depends on {len(groups)} quantities, and only those of x and y are read. Give "
            "psf=stars to have one fitted."
        )
    images: dict[tuple[int, int], np.ndarray] = {}
    for (a, b), component in zip(_psfex_powers(groups, degrees), components, strict=True):
        # ((x - offset) / scale)**a in powers of x, and the same for y.
        along_x = np.polynomial.polynomial.polypow([-offset[0] / scale[0], 1.0 / scale[0]], a)
        along_y = np.polynomial.polynomial.polypow([-offset[1] / scale[1], 1.0 / scale[1]], b)
        for i, factor_x in enumerate(along_x):
            for j, factor_y in enumerate(along_y):
                images[i, j] = images.get((i, j), 0.0) + factor_x * factor_y * component
    stamp_size = max(int(width * step), int(height * step)) | 1
    return _Grid(images, step, stamp_size)


def _psfex_powers(groups: np.ndarray, degrees: np.ndarray) -> list[tuple[int, int]]:
    """Return the powers of x and y of each component: x varies fastest."""
    first, second = (int(degrees[group]) for group in groups)
    shared = groups[0] == groups[1]
    return [(a, b) for b in range(second + 1) for a in range(first + 1) if not shared or a + b <= first]


def _read_kernel_psf(psf: ArchivedObject, archive: Archive) -> _Grid:
    kernel = archive.get(int(psf.row["kernel"]))
    if kernel.kind == "FixedKernel":
        images = {(0, 0): _read_fixed_kernel(kernel)}
    elif kernel.kind == "LinearCombinationKernel":
        images = _read_combination(kernel, archive)
    else:
        raise LegacyFileError(
            f"its {psf.kind} is made of a {kernel.kind}, and only FixedKernel and LinearCombinationKernel "
            "are read without afw. Give psf=stars to have one fitted."
        )
    images = {powers: _square(image) for powers, image in images.items()}
    return _Grid(images, 1.0, next(iter(images.values())).shape[0])


def _read_fixed_kernel(kernel: ArchivedObject) -> np.ndarray:
    row = kernel.row
    width, height = int(row["dimensions_x"]), int(row["dimensions_y"])
    image = np.asarray(row["image"], dtype=float).reshape(height, width)
    centre = int(row["center_x"]), int(row["center_y"])
    if centre != (width // 2, height // 2):
        raise LegacyFileError(
            f"the centre of its kernel is pixel {centre} of {width} x {height}; only kernels with their "
            "centre in the middle are read. Give psf=stars to have one fitted."
        )
    return image


def _read_combination(kernel: ArchivedObject, archive: Archive) -> dict[tuple[int, int], np.ndarray]:
    """Read a sum of kernels whose weights are numbers or polynomials."""
    row = kernel.row
    parts = [archive.get(int(number)) for number in np.atleast_1d(row["components"])]
    if "spatialfunctions" in row:
        functions = [archive.get(int(number)) for number in np.atleast_1d(row["spatialfunctions"])]
        weights = [_read_polynomial(function) for function in functions]
    else:
        weights = [{(0, 0): float(number)} for number in np.atleast_1d(row["amplitudes"])]
    images: dict[tuple[int, int], Any] = {}
    for part, terms in zip(parts, weights, strict=True):
        if part.kind != "FixedKernel":
            raise LegacyFileError(
                f"its PSF is a sum of kernels, one of them a {part.kind}; only FixedKernel is read without "
                "afw. Give psf=stars to have one fitted."
            )
        image = _read_fixed_kernel(part)
        for powers, weight in terms.items():
            images[powers] = images.get(powers, 0.0) + weight * image
    return images


def _read_polynomial(function: ArchivedObject) -> dict[tuple[int, int], float]:
    """Return the coefficients of a polynomial by the powers of x and y."""
    if function.kind != "PolynomialFunction2D":
        raise LegacyFileError(
            f"its PSF varies as a {function.kind}, and only PolynomialFunction2D is read without afw. Give "
            "psf=stars to have one fitted."
        )
    coefficients = np.atleast_1d(function.row["coefficients"]).tolist()
    return dict(zip(_polynomial_powers(len(coefficients)), coefficients, strict=True))


def _polynomial_powers(n: int) -> Sequence[tuple[int, int]]:
    """Return powers in the order 1, x, y, x2, xy, y2, ..."""
    powers = [(degree - j, j) for degree in range(n) for j in range(degree + 1)]
    return powers[:n]
