# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Co-registered exposures of one piece of sky."""

from __future__ import annotations

__all__ = ("ExposureStack",)

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ._errors import InvalidStackError, NoGoodPixelsError


class ExposureStack:
    """Co-registered exposures, all on the grid of the latent image.

    Parameters
    ----------
    image : array-like, shape (T, H, W)
        Sky-subtracted images, in units of flux per pixel.
    variance : array-like, shape (T, H, W)
        Variance of ``image``; must be positive where ``good``.
    good : array-like of `bool`, shape (T, H, W)
        `True` where a pixel may be used.
    psf : array-like, shape (T, k, k)
        PSF of each exposure with its centre at the centre of the middle
        pixel; ``k`` is odd. Any positive sum: normalised here.
    names : `~collections.abc.Sequence` [ `str` ], optional
        One label per exposure, for messages.

    Raises
    ------
    InvalidStackError
        The arrays do not fit together or hold values that cannot be used;
        the message names the exposure.
    NoGoodPixelsError
        Not one pixel of any exposure is good.

    Notes
    -----
    Values of pixels that are not good are never used; they are replaced
    (image 0, variance infinite). An exposure without any good pixel is
    permitted and contributes nothing. Tensors keep float32 or float64 (the
    wider of image and variance); everything else becomes float32.
    """

    def __init__(
        self, image: Any, variance: Any, good: Any, psf: Any, *, names: Sequence[str] | None = None
    ) -> None:
        image, variance, psf = (_as_tensor(a) for a in (image, variance, psf))
        good = _as_tensor(good).to(torch.bool)
        _check_shapes(image, variance, good, psf)
        dtype = _float_dtype(image, variance)
        self.names = _check_names(names, image.shape[0])
        image, variance, psf = (a.to(dtype) for a in (image, variance, psf))
        _check_psf(psf, self.names)
        _check_pixels(image, variance, good, self.names)
        self.image = torch.where(good, image, torch.zeros((), dtype=dtype, device=image.device))
        self.variance = torch.where(
            good, variance, torch.full((), torch.inf, dtype=dtype, device=image.device)
        )
        self.good = good
        self.psf = psf / psf.sum(dim=(-2, -1), keepdim=True)

    @property
    def n_exposures(self) -> int:
        """Number of exposures, T."""
        return self.image.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (H, W) of the grid."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def inverse_variance(self) -> torch.Tensor:
        """Inverse variance (T, H, W), zero where not good."""
        return 1.0 / self.variance

    @property
    def n_image(self) -> torch.Tensor:
        """Number of good exposures at each pixel, (H, W) int32."""
        return self.good.sum(dim=0, dtype=torch.int32)

    def to(self, *, device: torch.device | str, dtype: torch.dtype) -> ExposureStack:
        """Return the stack on another device, in another precision."""
        result = object.__new__(ExposureStack)
        result.names = self.names
        result.good = self.good.to(device)
        for name in ("image", "variance", "psf"):
            setattr(result, name, getattr(self, name).to(device=device, dtype=dtype))
        return result

    def without(self, held_out: torch.Tensor) -> ExposureStack:
        """Return the stack without the pixels (T, H, W) that are `True`."""
        result = self.to(device=self.image.device, dtype=self.image.dtype)
        result.good = self.good & ~held_out
        result.image = self.image.masked_fill(held_out, 0.0)
        result.variance = self.variance.masked_fill(held_out, torch.inf)
        return result

    def exposure_weights(self) -> torch.Tensor:
        """Return one weight per exposure, shape (T,).

        The inverse of the median variance of its good pixels; zero for an
        exposure that has none.
        """
        weights = self.image.new_zeros(self.n_exposures)
        for t in range(self.n_exposures):
            variance = self.variance[t][self.good[t]]
            if variance.numel():
                weights[t] = 1.0 / variance.median()
        return weights


def _as_tensor(array: Any) -> torch.Tensor:
    """Return a tensor, and a copy where the memory is read-only."""
    if isinstance(array, np.ndarray) and not (array.flags.writeable and array.dtype.isnative):
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.as_tensor(array).detach()


def _check_shapes(image: torch.Tensor, variance: torch.Tensor, good: torch.Tensor, psf: torch.Tensor) -> None:
    if image.ndim != 3 or 0 in image.shape:
        raise InvalidStackError(f"image must have shape (T, H, W) without a zero, not {tuple(image.shape)}.")
    for name, array in (("variance", variance), ("good", good)):
        if array.shape != image.shape:
            raise InvalidStackError(
                f"{name} has shape {tuple(array.shape)}, but image has {tuple(image.shape)}; "
                "give one plane per exposure, on the same grid."
            )
    if psf.ndim != 3 or psf.shape[0] != image.shape[0] or psf.shape[1] != psf.shape[2]:
        raise InvalidStackError(
            f"psf must have shape ({image.shape[0]}, k, k), one square stamp per exposure, "
            f"not {tuple(psf.shape)}."
        )
    if psf.shape[1] % 2 == 0:
        raise InvalidStackError(
            f"PSF stamps of every exposure are {psf.shape[1]} pixels wide; an odd size is needed, with the "
            "PSF centred on the middle pixel. Evaluate the PSF on an odd stamp or pad and recentre it."
        )


def _check_names(names: Sequence[str] | None, n: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"exposure {t}" for t in range(n))
    if len(names) != n:
        raise InvalidStackError(f"{len(names)} names were given for {n} exposures.")
    return tuple(str(name) for name in names)


def _check_psf(psf: torch.Tensor, names: tuple[str, ...]) -> None:
    for stamp, name in zip(psf, names, strict=True):
        if not bool(torch.isfinite(stamp).all()):
            raise InvalidStackError(
                f"PSF of {name} is not finite; leave that exposure out or fit its PSF again."
            )
        total = float(stamp.sum())
        if not total > 0.0:
            raise InvalidStackError(
                f"PSF of {name} sums to {total:g}; it must be positive. Leave that exposure out or fit its "
                "PSF again."
            )


def _check_pixels(
    image: torch.Tensor, variance: torch.Tensor, good: torch.Tensor, names: tuple[str, ...]
) -> None:
    if not bool(good.any()):
        raise NoGoodPixelsError(
            f"None of {len(names)} exposures has a good pixel here; check the mask planes that are rejected."
        )
    bad_image = good & ~torch.isfinite(image)
    bad_variance = good & ~(torch.isfinite(variance) & (variance > 0))
    for bad, what in (
        (bad_image, "a non-finite value"),
        (bad_variance, "a zero, negative or non-finite variance"),
    ):
        for t in torch.nonzero(bad.any(dim=(1, 2))).flatten().tolist():
            raise InvalidStackError(
                f"{int(bad[t].sum())} good pixels of {names[t]} have {what}; mask them (good=False) or give "
                "their true value."
            )


def _float_dtype(*arrays: torch.Tensor) -> torch.dtype:
    return torch.float64 if any(a.dtype == torch.float64 for a in arrays) else torch.float32
