# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""PSF stamps on a finer grid than the one that they are known on."""

from __future__ import annotations

__all__ = ("refine_psf",)

import math

import torch

_SUBPIXELS = 4
"""Points per axis that stand for the area of a pixel."""

_N_STEPS = 30
"""Largest number of iterations of the fit of a profile."""


def refine_psf(stamp: torch.Tensor, factor: int) -> torch.Tensor:
    """Return a PSF stamp on a grid that is finer by a whole factor.

    Parameters
    ----------
    stamp : `torch.Tensor`, shape (k, k)
        PSF with the response of its pixels, sampled at their centres, with
        its own centre in the middle pixel; k is odd.
    factor : `int`
        Fine pixels per pixel, along each axis.

    Returns
    -------
    refined : `torch.Tensor`, shape (factor (k - 1) + 1, factor (k - 1) + 1)
        The same function sampled more finely, float64: still with the
        response of the original pixels, and no other. Its sum is one.

    Raises
    ------
    ValueError
        The stamp is not square with an odd side, its sum is not positive, or
        the factor is below one.

    Notes
    -----
    Samples of a PSF that is narrower than 2.5 pixels do not determine it. An
    elliptical Moffat profile with the response of a pixel is fitted; what it leaves is
    interpolated as the smallest function, in the metric of the power spectrum of the
    fit, that passes through all samples: an aliased frequency is shared among those that
    it may stand for by the power that the fit has there. So a wrong profile costs little
    where the PSF is well sampled, and the samples are kept exactly.

    Where a PSF model can be evaluated off the pixel grid, evaluate it instead.
    """
    if stamp.ndim != 2 or stamp.shape[0] != stamp.shape[1] or stamp.shape[0] % 2 == 0:
        raise ValueError(f"A PSF stamp must be square with an odd side, not {tuple(stamp.shape)}.")
    if factor < 1:
        raise ValueError(f"factor must be at least 1, not {factor}.")
    samples = stamp.to(torch.float64)
    total = float(samples.sum())
    if not (math.isfinite(total) and total > 0.0):
        raise ValueError(f"The PSF stamp sums to {total}; it must be positive and finite.")
    samples = samples / total
    if factor == 1:
        return samples
    parameters = _fit(samples)
    half = samples.shape[0] // 2
    fine = _profile(parameters, half, factor)
    scale = (samples * fine[::factor, ::factor]).sum() / (fine[::factor, ::factor] ** 2).sum()
    model = scale * fine
    refined = model + _interpolate(samples - model[::factor, ::factor], model, factor)
    return refined / refined.sum()


def _profile(parameters: torch.Tensor, half: int, factor: int) -> torch.Tensor:
    """Return a Moffat profile averaged over pixels, at steps of 1 / factor pixel."""
    log_alpha, log_beta, shear_1, shear_2, x0, y0 = parameters
    n = half * factor
    line = torch.arange(-n, n + 1, dtype=torch.float64, device=parameters.device) / factor
    offsets = (
        torch.arange(_SUBPIXELS, dtype=torch.float64, device=parameters.device) + 0.5
    ) / _SUBPIXELS - 0.5
    x = (line[:, None] + offsets).reshape(1, -1) - x0
    y = (line[:, None] + offsets).reshape(-1, 1) - y0
    u = (1.0 - shear_1) * x - shear_2 * y
    v = (1.0 + shear_1) * y - shear_2 * x
    value = (1.0 + (u**2 + v**2) * torch.exp(-2.0 * log_alpha)) ** -torch.exp(log_beta)
    return value.reshape(len(line), _SUBPIXELS, len(line), _SUBPIXELS).mean(dim=(1, 3))


def _fit(samples: torch.Tensor) -> torch.Tensor:
    """Return the parameters of the profile that is nearest to samples."""
    half = samples.shape[0] // 2
    # The width of a Gaussian with the same peak, for a start.
    width = math.sqrt(1.0 / (2.0 * math.pi * float(samples.max())))
    start = [math.log(2.0 * width), math.log(3.0), 0.0, 0.0, 0.0, 0.0]
    parameters = torch.tensor(start, dtype=torch.float64, device=samples.device)

    def residuals(p: torch.Tensor) -> torch.Tensor:
        model = _profile(p, half, 1)
        return (model * ((model * samples).sum() / (model**2).sum()) - samples).reshape(-1)

    damping, current = 1e-3, residuals(parameters)
    for _ in range(_N_STEPS):
        slopes = torch.stack(
            [(residuals(parameters + step) - current) / 1e-5 for step in 1e-5 * torch.eye(6).to(parameters)],
            dim=1,
        )
        normal = slopes.T @ slopes
        normal = normal + damping * torch.diag(normal.diagonal() + 1e-12 * float(normal.diagonal().max()))
        trial = parameters - torch.linalg.solve(normal, slopes.T @ current)
        trial[1] = trial[1].clamp(math.log(1.2), math.log(20.0))
        following = residuals(trial)
        if float((following**2).sum()) < float((current**2).sum()):
            fall = 1.0 - float((following**2).sum() / (current**2).sum())
            parameters, current, damping = trial, following, 0.3 * damping
            if fall < 1e-6:
                break
        else:
            damping *= 10.0
    return parameters


def _interpolate(residual: torch.Tensor, model: torch.Tensor, factor: int) -> torch.Tensor:
    """Return a residual on the fine grid; aliases share by the power of a model."""
    k = residual.shape[0]
    n = 2 * k
    power = torch.fft.fft2(model, s=(factor * n, factor * n)).abs() ** 2
    power = power + 1e-12 * float(power.max())
    aliases = power.reshape(factor, n, factor, n).sum(dim=(0, 2))
    spectrum = torch.fft.fft2(residual, s=(n, n)) / aliases
    fine = torch.fft.ifft2(spectrum.repeat(factor, factor) * power).real * factor**2
    size = factor * (k - 1) + 1
    return fine[:size, :size]
