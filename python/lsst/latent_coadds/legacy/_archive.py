# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("Archive", "ArchivedObject")

import dataclasses
from typing import Any

import numpy as np
from astropy.io import fits

from ._errors import LegacyFileError


@dataclasses.dataclass(frozen=True)
class ArchivedObject:
    """An object as the archive of a file has it.

    Parameters
    ----------
    kind : `str`
        Name of its class.
    tables : `list` [`list` [`dict` [`str`, `typing.Any`]]]
        Its tables, each a list of rows; names of fields have ``_`` where
        older files have a full stop, and flags are `bool`.
    """

    kind: str
    tables: list[list[dict[str, Any]]]

    @property
    def row(self) -> dict[str, Any]:
        """The first row of the first table (`dict`)."""
        return self.tables[0][0]


class Archive:
    """The objects in a file of afw, by number.

    Parameters
    ----------
    hdus : `astropy.io.fits.HDUList`
        The file; needed as long as objects are read.

    Raises
    ------
    LegacyFileError
        If the file has no such archive.

    Notes
    -----
    The primary header says which HDU is the index (``AR_HDU``, from one) and
    which number a component has (``PSF_ID``, ``SKYWCS_ID``, ...). The index
    says in which rows of which of the tables that follow it an object is.
    """

    def __init__(self, hdus: fits.HDUList) -> None:
        self._hdus = hdus
        self._header = hdus[0].header
        try:
            first = int(self._header["AR_HDU"]) - 1
            index = hdus[first].data
            self._index = [
                (int(row["id"]), first + int(row["cat.archive"]), int(row["cat.persistable"]))
                + (int(row["row0"]), int(row["nrows"]), str(row["name"]).strip())
                for row in index
            ]
        except (KeyError, IndexError, TypeError) as error:
            raise LegacyFileError(f"it has no archive of afw objects ({error}).") from error

    def find(self, component: str) -> ArchivedObject | None:
        """Return a component of the exposure.

        Parameters
        ----------
        component : `str`
            Such as ``PSF``.

        Returns
        -------
        found : `ArchivedObject` or `None`
            `None` if the exposure has none.
        """
        for keyword in (f"ARCHIVE_ID_{component}", f"{component}_ID"):
            if number := int(self._header.get(keyword, 0)):
                return self.get(number)
        return None

    def get(self, number: int) -> ArchivedObject:
        """Return an object by its number.

        Raises
        ------
        LegacyFileError
            If there is none of this number.
        """
        entries = sorted((entry for entry in self._index if entry[0] == number), key=lambda entry: entry[2])
        if not entries:
            raise LegacyFileError(f"its archive has no object {number}; the file is damaged, write it again.")
        tables = [self._read(hdu, start, count) for _, hdu, _, start, count, _ in entries]
        return ArchivedObject(entries[0][-1], tables)

    def _read(self, hdu: int, start: int, count: int) -> list[dict[str, Any]]:
        table, header = self._hdus[hdu].data[start : start + count], self._hdus[hdu].header
        rows = []
        for record in table:
            row: dict[str, Any] = {}
            for name in table.names:
                if name == "flags":
                    bits = np.atleast_1d(record[name])
                    row |= {header[f"TFLAG{i + 1}"]: bool(bit) for i, bit in enumerate(bits)}
                else:
                    row[name.replace(".", "_")] = record[name]
            rows.append(row)
        return rows
