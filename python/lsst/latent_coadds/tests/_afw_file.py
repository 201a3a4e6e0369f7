# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Files like those of afw, for tests where there is no afw."""

from __future__ import annotations

__all__ = ("AfwFile",)

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS


class AfwFile:
    """A detector image in the structure that ``Exposure.writeFits`` gives it.

    Parameters
    ----------
    image, variance : `numpy.ndarray`, (H, W)
        Pixels.
    mask : mapping [`str`, `numpy.ndarray`]
        Boolean (H, W) by the name that the plane has in afw.
    origin : `tuple` [`int`, `int`], optional
        x and y of the first pixel on the detector.
    header : mapping, optional
        Keywords of the primary header.
    wcs : `astropy.wcs.WCS`, optional
        What the header of the image says, in pixels of the image.
    """

    def __init__(
        self,
        image: np.ndarray,
        variance: np.ndarray,
        mask: Mapping[str, np.ndarray],
        *,
        origin: tuple[int, int] = (0, 0),
        header: Mapping[str, Any] | None = None,
        wcs: WCS | None = None,
    ) -> None:
        bits = np.zeros(image.shape, dtype=np.int32)
        cards = fits.Header()
        for bit, (name, plane) in enumerate(mask.items()):
            cards[f"HIERARCH MP_{name}"] = bit
            bits |= plane.astype(np.int32) << bit
        arrays = {"IMAGE": image.astype(np.float32), "MASK": bits, "VARIANCE": variance.astype(np.float32)}
        self._primary = fits.Header(dict(header or {}))
        self._pixels = []
        for kind, array in arrays.items():
            hdu = fits.CompImageHDU(array, compression_type="GZIP_1", quantize_level=0, name=kind)
            if wcs is not None:
                hdu.header.update(wcs.to_header(relax=True))
            hdu.header["EXTTYPE"] = kind
            hdu.header["LTV1"], hdu.header["LTV2"] = (-float(start) for start in origin)
            if kind == "MASK":
                hdu.header.update(cards)
            self._pixels.append(hdu)
        self._tables: list[fits.BinTableHDU] = []
        self._index: list[tuple[int, int, int, int, int, str, str]] = []
        self._count = 0

    def add(self, kind: str, *tables: Sequence[Mapping[str, Any]], component: str = "") -> int:
        """Put an object into the archive.

        Parameters
        ----------
        kind : `str`
            Name of its class.
        *tables : sequence of mappings
            Its tables, as rows; a `bool` becomes a flag.
        component : `str`, optional
            What it is to the exposure, such as ``PSF``.

        Returns
        -------
        number : `int`
            By which others refer to it.
        """
        self._count += 1
        for position, rows in enumerate(tables):
            self._tables.append(_make_table(rows, kind))
            self._index.append((self._count, len(self._tables), position, 0, len(rows), kind, ""))
        if component:
            self._primary[f"HIERARCH ARCHIVE_ID_{component}"] = self._count
        return self._count

    def add_wcs(self, wcs: WCS) -> int:
        """Add the exact WCS; ``wcs`` is in 0-based pixels of the detector."""
        import starlink.Ast

        cards = [str(card) for card in wcs.to_header(relax=True).cards]
        frames = starlink.Ast.FitsChan(cards).read()
        # Pixels of FITS count from one.
        frames.remapframe(1, starlink.Ast.ShiftMap([-1.0, -1.0]))
        lines: list[str] = []
        starlink.Ast.Channel(None, _Sink(lines), "Comment=0").write(frames)
        text = "1 SkyWcs 0 " + "\n".join(lines)
        return self.add("SkyWcs", [{"wcs": np.frombuffer(text.encode(), np.uint8)}], component="SKYWCS")

    def add_photo_calib(self, mean: float, coefficients: np.ndarray | None = None) -> int:
        """Add nJy per count, or Chebyshev coefficients ``[y, x]`` of it over the image."""
        height, width = self._pixels[0].data.shape
        table = np.atleast_2d(mean if coefficients is None else coefficients)
        box = {"bbox_min_x": 0, "bbox_min_y": 0, "bbox_max_x": width - 1, "bbox_max_y": height - 1}
        field = self.add(
            "ChebyshevBoundedField", [{"order_x": table.shape[1] - 1, **box, "coefficients": table.ravel()}]
        )
        row = {"calibrationMean": mean, "calibrationErr": 0.0, "field": field, "version": 1}
        return self.add("PhotoCalib", [{"isConstant": coefficients is None, **row}], component="PHOTOCALIB")

    def add_filter(self, band: str, physical: str) -> int:
        """Add the filter."""
        row = {"band_exists": True, "physical_exists": True, "band": band, "physical": physical}
        return self.add("FilterLabel", [row], component="FILTER")

    def add_kernel(self, image: np.ndarray) -> int:
        """Add a fixed kernel, for others to use."""
        height, width = image.shape
        place = {"center_x": width // 2, "center_y": height // 2}
        return self.add(
            "FixedKernel", [{"dimensions_x": width, "dimensions_y": height, **place, "image": image.ravel()}]
        )

    def add_piff_psf(self, psf: Any, size: int) -> int:
        """Add a Piff PSF as afw keeps it: pickled."""
        content = np.frombuffer(pickle.dumps((size, size, psf)), np.uint8)
        return self.add("PiffPsf", [{"bytes": content}], component="PSF")

    def write(self, path: Path) -> Path:
        """Write the file, and return where."""
        formats = ("J", "J", "J", "J", "J", "64A", "64A")
        names = ("id", "cat.archive", "cat.persistable", "row0", "nrows", "name", "module")
        columns = [
            fits.Column(name, form, array=[entry[i] for entry in self._index])
            for i, (name, form) in enumerate(zip(names, formats, strict=True))
        ]
        index = fits.BinTableHDU.from_columns(columns, name="ARCHIVE_INDEX")
        self._primary["AR_HDU"] = 2 + len(self._pixels)
        primary = fits.PrimaryHDU(header=self._primary)
        fits.HDUList([primary, *self._pixels, index, *self._tables]).writeto(path)
        return path


class _Sink:
    """Takes the lines that AST writes."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def astsink(self, line: str) -> None:
        self._lines.append(line)


def _make_table(rows: Sequence[Mapping[str, Any]], name: str) -> fits.BinTableHDU:
    flags = [key for key, value in rows[0].items() if isinstance(value, bool)]
    columns = []
    if flags:
        bits = np.array([[row[key] for key in flags] for row in rows])
        columns.append(fits.Column("flags", f"{len(flags)}X", array=bits))
    for key, value in rows[0].items():
        if key not in flags:
            columns.append(_make_column(key, value, [row[key] for row in rows]))
    hdu = fits.BinTableHDU.from_columns(columns, name=name)
    for i, key in enumerate(flags):
        hdu.header[f"TFLAG{i + 1}"] = key
    return hdu


def _make_column(key: str, value: Any, values: list[Any]) -> fits.Column:
    if isinstance(value, str):
        return fits.Column(key, "32A", array=values)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        # Bytes have another length in each file.
        return fits.Column(key, "QB()", array=np.array([*values, None], dtype=object)[:-1])
    array = np.asarray(values)
    kind = "J" if np.issubdtype(array.dtype, np.integer) else "D"
    size = array[0].size
    return fits.Column(key, f"{size}{kind}", array=array if size > 1 else array.reshape(-1))
