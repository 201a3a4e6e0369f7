# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("read_piff_psf",)

import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

from ._archive import ArchivedObject
from ._errors import LegacyFileError

if TYPE_CHECKING:
    import piff

_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}
_PLAIN = {
    *(
        ("builtins", name)
        for name in ("set", "frozenset", "slice", "complex", "range", "bytearray", "object")
    ),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("copyreg", "_reconstructor"),
    ("_codecs", "encode"),
}
_PACKAGES = ("piff", "galsim", "coord")


class _ModelUnpickler(pickle.Unpickler):
    """Reads pickles of models, and of nothing else that could be run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY | _PLAIN:
            return super().find_class(module, name)
        if module.partition(".")[0] in _PACKAGES and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__.partition(".")[0] in _PACKAGES:
                return found
        raise LegacyFileError(
            f"its Piff PSF has a part of the class {module}.{name}, which is not read here: models that were "
            "fitted in pixels (useCoordinates='pixel') are. Give psf=stars to have one "
            "fitted, or import it in a full stack."
        )


def read_piff_psf(psf: ArchivedObject) -> tuple[piff.PSF, int]:
    """Read a Piff PSF.

    Parameters
    ----------
    psf : `ArchivedObject`
        A ``PiffPsf``.

    Returns
    -------
    model : `piff.PSF`
        The model, without the stars that it was fitted to.
    stamp_size : `int`
        Side of its kernel images, made odd.

    Raises
    ------
    LegacyFileError
        If it cannot be read.

    Notes
    -----
    afw has a Python pickle there. Only classes of Piff and GalSim and arrays
    are accepted in it, so that a file cannot run anything else.
    """
    import galsim

    content = np.asarray(psf.row["bytes"]).astype(np.uint8).tobytes()
    try:
        width, _, model = _ModelUnpickler(io.BytesIO(content)).load()
        _complete(model)
        if not all(type(wcs) is galsim.PixelScale for wcs in model.wcs.values()):
            raise LegacyFileError(
                "its Piff PSF was not fitted in pixels (useCoordinates='pixel'), and only such are read. "
                "Give psf=stars to have one fitted, or import it in a full stack."
            )
        model.draw(0.0, 0.0, stamp_size=5, center=True)
    except LegacyFileError:
        raise
    except Exception as error:
        raise LegacyFileError(
            f"its Piff PSF cannot be read by this version of Piff ({type(error).__name__}: {error}). Give "
            "psf=stars to have one fitted, or write the exposure again in a newer stack."
        ) from error
    model.stars = []
    return model, int(width) | 1


def _complete(model: Any) -> None:
    """Add what models of Piff before 1.4 lack."""
    if not hasattr(model, "_num"):
        model._num = None
        model.model._num = None
        model.model._fit_flux = None
        model.interp._num = None
