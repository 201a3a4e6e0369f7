# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exposures of one piece of sky."""

from __future__ import annotations

__all__ = ("ExposureStack",)

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ._errors import InvalidStackError, NoGoodPixelsError
from ._frames import FrameGeometry, flags_to_frame, flags_to_latent, interpolate, pixel_area
from ._psf_basis import psf_basis_degree, psf_basis_terms
from ._resample import lanczos_resample
from ._sampling import FrameSampler
from ._whole_field import WholeField


class ExposureStack:
    """Exposures on the grid of the latent image, or on grids of their own.

    Parameters
    ----------
    image : array-like, shape (T, h, w)
        Sky-subtracted images, in units of flux per pixel.
    variance : array-like, shape (T, h, w)
        Variance of ``image``; must be positive where ``good``.
    good : array-like of `bool`, shape (T, h, w)
        `True` where a pixel may be used.
    psf : array-like, shape (T, k, k) or (T, J, k, k)
        PSF of each exposure on the latent grid, the response of its pixels
        included, with its centre at the centre of the middle pixel; ``k`` is
        odd. Any positive sum: normalised here. A PSF that varies is the sum
        of basis images times the terms of `psf_basis_terms` at the source.
    names : `~collections.abc.Sequence` [ `str` ], optional
        One label per exposure, for messages.
    frames : `FrameGeometry`, optional
        Where the pixels of the exposures lie on the latent grid. By default
        they are those of the latent grid. The latent image is in flux per
        latent pixel then, and ``image`` in flux per pixel of the exposure.

    origin : `tuple` [ `int`, `int` ], optional
        Where (row, column) the latent area begins on a larger grid. Networks
        pool pixels in cells of that grid, so that tiles of one image agree
        where they overlap.
    reference : array-like, shape (T, 2), optional
        Where (u, v; see `psf_basis_terms`) the PSF of each exposure is a
        typical one. By default the mean over the latent area is. Parts of one
        image agree if it is the same place on the sky for all of them.
    weights : array-like, shape (T,), optional
        Typical weight of a pixel of each exposure, the same for all parts of
        one image; by default the inverse of the median variance here.
    field : `WholeField`, optional
        Exposures of the whole image that this is a part of.

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
    wider of image and variance); everything else becomes float32. Pixels
    of a frame that lie outside of the latent area are not good.
    """

    def __init__(
        self,
        image: Any,
        variance: Any,
        good: Any,
        psf: Any,
        *,
        names: Sequence[str] | None = None,
        frames: FrameGeometry | None = None,
        origin: tuple[int, int] = (0, 0),
        reference: Any = None,
        weights: Any = None,
        field: WholeField | None = None,
    ) -> None:
        image, variance, psf = (_as_tensor(a) for a in (image, variance, psf))
        good = _as_tensor(good).to(torch.bool)
        _check_shapes(image, variance, good, psf)
        dtype = _float_dtype(image, variance)
        self.names = _check_names(names, image.shape[0])
        self.frames = frames
        self.origin = origin
        self.field = field
        self._sampler: FrameSampler | None = None
        if frames is not None:
            _check_frames(frames, image)
            good = good & _on_latent_grid(frames, image)
        image, variance, psf = (a.to(dtype) for a in (image, variance, psf))
        _check_psf(psf, self.names)
        _check_pixels(image, variance, good, self.names)
        self.image = torch.where(good, image, torch.zeros((), dtype=dtype, device=image.device))
        self.variance = torch.where(
            good, variance, torch.full((), torch.inf, dtype=dtype, device=image.device)
        )
        self.good = good
        self.psf = _normalise_psf(psf)
        self.reference = None if reference is None else _as_tensor(reference).to(torch.float64).cpu()
        self.weights = None if weights is None else _as_tensor(weights).to(image)
        for name, array, shape in (
            ("reference", self.reference, (self.n_exposures, 2)),
            ("weights", self.weights, (self.n_exposures,)),
        ):
            if array is not None and (array.shape != shape or not bool(torch.isfinite(array).all())):
                raise InvalidStackError(
                    f"{name} has shape {tuple(array.shape)}; give {shape} finite numbers, or leave it out."
                )

    @property
    def n_exposures(self) -> int:
        """Number of exposures, T."""
        return self.image.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (H, W) of the latent grid."""
        return self.frame_shape if self.frames is None else self.frames.latent_shape

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Shape (h, w) of the planes of an exposure."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def mean_psf(self) -> torch.Tensor:
        """Mean of each PSF over the latent area, or the one at ``reference``, (T, k, k)."""
        if self.psf.ndim == 3:
            return self.psf
        terms = self.reference_terms
        if terms is not None:
            return (terms[:, :, None, None] * self.psf).sum(dim=1)
        line = np.linspace(-1.0, 1.0, 33)
        u, v = (a.reshape(-1) for a in np.meshgrid(line, line))
        mean = psf_basis_terms(u, v, psf_basis_degree(self.psf.shape[1])).mean(axis=0)
        return (torch.from_numpy(mean).to(self.psf)[:, None, None] * self.psf).sum(dim=1)

    @property
    def reference_terms(self) -> torch.Tensor | None:
        """Terms (T, J) of the PSFs at ``reference``; `None` without it, or if PSFs do not vary."""
        if self.reference is None or self.psf.ndim == 3:
            return None
        u, v = self.reference.numpy().T
        return torch.from_numpy(psf_basis_terms(u, v, psf_basis_degree(self.psf.shape[1]))).to(self.psf)

    @property
    def inverse_variance(self) -> torch.Tensor:
        """Inverse variance (T, h, w), zero where not good."""
        return 1.0 / self.variance

    @property
    def n_image(self) -> torch.Tensor:
        """Number of good exposures at each latent pixel, (H, W) int32."""
        if self.frames is None:
            return self.good.sum(dim=0, dtype=torch.int32)
        count = torch.zeros(self.shape, dtype=torch.int32, device=self.image.device)
        for t in range(self.n_exposures):
            count += self.to_latent(t, self.good[t])
        return count

    def to_latent(self, t: int, plane: torch.Tensor) -> torch.Tensor:
        """Return flags (h, w) of exposure ``t`` on the latent grid (H, W).

        Each latent pixel has the flag of the nearest pixel of the exposure,
        and none where the exposure does not reach.
        """
        return flags_to_latent(self.frames, t, plane)

    def to_frame(self, t: int, plane: torch.Tensor) -> torch.Tensor:
        """Return a plane (H, W) of the latent grid on exposure ``t`` (h, w).

        Flags are those of the nearest latent pixel. An image in flux per
        latent pixel is interpolated linearly, in flux per pixel of the frame.
        """
        if self.frames is None:
            return plane
        if plane.dtype == torch.bool:
            return flags_to_frame(self.frames, t, plane, self.frame_shape)
        x, y = self.frames.positions(t, self.frame_shape)
        image = interpolate(plane, x, y)
        return image * self.frames.area(t, self.frame_shape).to(plane)

    def make_sampler(self) -> FrameSampler | None:
        """Return what interpolates at the pixels of frames; `None` without frames."""
        if self.frames is None:
            return None
        if self._sampler is None:
            self._sampler = FrameSampler(self.frames, self.frame_shape, self.mean_psf)
        return self._sampler

    def register(self) -> ExposureStack:
        """Return the exposures interpolated onto the latent grid."""
        if self.frames is None:
            return self
        result = object.__new__(ExposureStack)
        result.names, result.frames, result.psf, result._sampler = (self.names, None, self.psf, None)
        result.origin, result.reference, result.weights = self.origin, self.reference, self.weights
        result.field = self.field
        planes: list[tuple[torch.Tensor, ...]] = []
        for t in range(self.n_exposures):
            x, y = self.frames.inverse(t)
            resampled = lanczos_resample(
                self.image[t],
                self.variance[t],
                self.good[t],
                x.to(self.image.device),
                y.to(self.image.device),
                pixel_area(x, y).to(self.image),
            )
            planes.append((resampled.image, resampled.variance, resampled.good))
        result.image, variance, result.good = (torch.stack(p) for p in zip(*planes, strict=True))
        result.variance = variance.masked_fill(~result.good, torch.inf)
        return result

    def to(self, *, device: torch.device | str, dtype: torch.dtype) -> ExposureStack:
        """Return the stack on another device, in another precision."""
        result = object.__new__(ExposureStack)
        result.names, result.frames, result._sampler = self.names, self.frames, None
        result.origin, result.reference, result.weights = self.origin, self.reference, self.weights
        result.field = self.field
        if self.weights is not None:
            result.weights = self.weights.to(device=device, dtype=dtype)
        result.good = self.good.to(device)
        for name in ("image", "variance", "psf"):
            setattr(result, name, getattr(self, name).to(device=device, dtype=dtype))
        return result

    def without(self, held_out: torch.Tensor) -> ExposureStack:
        """Return the stack without the pixels (T, h, w) that are `True`."""
        result = self.to(device=self.image.device, dtype=self.image.dtype)
        result._sampler = self.make_sampler()
        result.good = self.good & ~held_out
        result.image = self.image.masked_fill(held_out, 0.0)
        result.variance = self.variance.masked_fill(held_out, torch.inf)
        return result

    def exposure_weights(self) -> torch.Tensor:
        """Return one weight per exposure, shape (T,).

        What was given, or the inverse of the median variance of its good
        pixels; zero for an exposure that has none.
        """
        if self.weights is not None:
            return self.weights * self.good.any(dim=2).any(dim=1)
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
    if psf.ndim not in (3, 4) or psf.shape[0] != image.shape[0] or psf.shape[-1] != psf.shape[-2]:
        raise InvalidStackError(
            f"psf must have shape ({image.shape[0]}, k, k), one square stamp per exposure, or "
            f"({image.shape[0]}, J, k, k), not {tuple(psf.shape)}."
        )
    if psf.ndim == 4:
        try:
            psf_basis_degree(psf.shape[1])
        except ValueError as error:
            raise InvalidStackError(f"psf has shape {tuple(psf.shape)}: {error}") from error
    if psf.shape[-1] % 2 == 0:
        raise InvalidStackError(
            f"PSF stamps of every exposure are {psf.shape[-1]} pixels wide; an odd size is needed, with the "
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
        total = float(stamp.sum() if stamp.ndim == 2 else stamp[0].sum())
        if not total > 0.0:
            raise InvalidStackError(
                f"PSF of {name} sums to {total:g}; it must be positive. Leave that exposure out or fit its "
                "PSF again."
            )


def _normalise_psf(psf: torch.Tensor) -> torch.Tensor:
    """Return PSFs of sum one: the sums of the terms that vary are taken out."""
    if psf.ndim == 3:
        return psf / psf.sum(dim=(-2, -1), keepdim=True)
    psf = psf / psf[:, :1].sum(dim=(-2, -1), keepdim=True)
    excess = psf.sum(dim=(-2, -1), keepdim=True)
    excess[:, 0] = 0.0
    return psf - excess * psf[:, :1]


def _check_frames(frames: FrameGeometry, image: torch.Tensor) -> None:
    n, height, width = image.shape
    if frames.n_exposures != n:
        raise InvalidStackError(f"frames has {frames.n_exposures} mappings for {n} exposures.")
    if min(height, width) < 2 or frames.frame_limit[0] < height or frames.frame_limit[1] < width:
        raise InvalidStackError(
            f"The nodes of frames enclose {frames.frame_limit} pixels, and image has {(height, width)}; the "
            "last node must lie on or beyond the last pixel, and two rows and columns are the least."
        )


def _on_latent_grid(frames: FrameGeometry, image: torch.Tensor) -> torch.Tensor:
    shape = (image.shape[1], image.shape[2])
    return torch.stack([frames.covered(t, shape) for t in range(len(image))]).to(image.device)


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
