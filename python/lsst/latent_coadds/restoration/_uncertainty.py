# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Uncertainty of a restored image, from refits to perturbed models."""

from __future__ import annotations

__all__ = ("find_sources", "perturb", "realize_noise", "refit", "smooth_variance")

from collections.abc import Callable, Iterator

import torch

from ._fidelity import HuberFidelity
from ._fit import evaluate
from ._kernels import convolve, gaussian_kernel, value_at_origin
from ._operators import ConvolutionOperator
from ._proximal import NonNegativeQuadratic


def realize_noise(
    fidelity: HuberFidelity,
    quadratic: NonNegativeQuadratic,
    coefficients: torch.Tensor,
    finish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    n_realizations: int,
    generator: torch.Generator,
    *,
    n_iter: int = 3,
    n_steps: int = 20,
) -> torch.Tensor:
    """Refit the solution's own prediction with new noise, several times.

    Parameters
    ----------
    fidelity, quadratic
        The problem that was solved.
    coefficients : `torch.Tensor`
        Its solution.
    finish : `~collections.abc.Callable`
        Turns the transforms of a latent image and of the gradient there into
        the final image (H, W).
    n_realizations : `int`
        Number of refits.
    generator : `torch.Generator`
        Source of the noise, on the CPU.
    n_iter, n_steps : `int`, optional
        Updates of a refit, and inner steps of an update.

    Returns
    -------
    realizations : `torch.Tensor`, shape (n_realizations, H, W)
        Deviations of the refitted images from the image without new noise.

    Notes
    -----
    Where there is no source the prediction is first set to zero: a solution
    has already turned noise into faint specks there, and specks would take
    part of the new noise that an empty sky does not.

    The noise is white and Gaussian, as the variance plane has it. Errors of
    the PSFs, of the registration, of the flux scales and correlated input
    noise are not in it.
    """
    operator = quadratic.operator
    coefficients = quadratic.select(coefficients, find_sources(fidelity, quadratic))
    transform = quadratic.combine(coefficients)
    reference = finish(transform, torch.zeros_like(transform))
    results = []
    for problem in perturb(operator, fidelity, transform, n_realizations, generator):
        _, seen, slope = refit(quadratic, problem, coefficients, n_iter=n_iter, n_steps=n_steps)
        results.append(finish(seen, slope) - reference)
    if not results:
        return reference.new_zeros((0, *reference.shape))
    return torch.stack(results)


def perturb(
    operator: ConvolutionOperator,
    fidelity: HuberFidelity,
    transform: torch.Tensor,
    n_realizations: int,
    generator: torch.Generator,
) -> Iterator[HuberFidelity]:
    """Yield data terms whose data are a prediction and new noise.

    Parameters
    ----------
    operator, fidelity
        Forward model, and the data term to imitate.
    transform : `torch.Tensor`
        Padded transform of a latent image.
    n_realizations : `int`
        How many.
    generator : `torch.Generator`
        Source of the noise, on the CPU.
    """
    covered = fidelity.inverse_sigma > 0
    sigma = torch.where(covered, 1.0 / fidelity.inverse_sigma, torch.zeros_like(fidelity.inverse_sigma))
    lifted = operator.lift(transform)
    for _ in range(n_realizations):
        data = torch.empty_like(sigma)
        for which in operator.chunks():
            noise = torch.randn(sigma[which].shape, generator=generator, dtype=sigma.dtype)
            data[which] = operator.predict(lifted, which) + noise.to(sigma.device) * sigma[which]
        yield HuberFidelity(data, fidelity.inverse_sigma, fidelity.delta)


def refit(
    quadratic: NonNegativeQuadratic,
    problem: HuberFidelity,
    coefficients: torch.Tensor,
    *,
    n_iter: int = 3,
    n_steps: int = 20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return coefficients fitted to a data term nearby.

    Returns
    -------
    coefficients, transform, gradient : `torch.Tensor`
        The new coefficients, and the padded transforms of their latent image
        and of the gradient there.
    """
    seen = quadratic.combine(coefficients)
    slope = evaluate(quadratic.operator, problem, seen)[1]
    for _ in range(n_iter):
        coefficients = quadratic.solve(coefficients, slope, n_steps, transform=seen)
        seen = quadratic.combine(coefficients)
        slope = evaluate(quadratic.operator, problem, seen)[1]
    return coefficients, seen, slope


def find_sources(
    fidelity: HuberFidelity, quadratic: NonNegativeQuadratic, *, threshold: float = 4.0, grow: int = 3
) -> torch.Tensor:
    """Return where (latent shape) a matched filter finds something."""
    operator = quadratic.operator
    sky = torch.zeros_like(operator.transform(quadratic.curvature.new_zeros(operator.latent_shape)))
    signal = -operator.untransform(evaluate(operator, fidelity, sky)[1])
    noise = value_at_origin(quadratic.curvature, operator.fft_shape).sqrt()
    found = (signal > threshold * noise).to(signal.dtype)
    size = 2 * grow + 1
    return torch.nn.functional.max_pool2d(found[None, None], size, stride=1, padding=grow)[0, 0]


def smooth_variance(realizations: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return a variance plane from noise realizations.

    Parameters
    ----------
    realizations : `torch.Tensor`, shape (N, H, W)
        Noise realizations, N > 0.
    image : `torch.Tensor`, shape (H, W)
        The image they belong to.

    Notes
    -----
    Few realizations make a noisy variance, so squares are averaged over
    neighbours too: widely where the image is faint, and where it is bright
    only over the width of a star. No pixel is surer than the sky around it:
    the specks of a realization are rarely where those of the image are.
    """
    square = (realizations**2).mean(dim=0)
    ones = torch.ones_like(square)
    wide, narrow = (
        convolve(square, kernel) / convolve(ones, kernel).clamp_min(1e-6)
        for kernel in (gaussian_kernel(10.0, 31), gaussian_kernel(2.5, 9))
    )
    wide = wide.clamp_min(1e-30)
    bright = torch.sigmoid(4.0 * (image / wide.sqrt() - 5.0).clamp(-5.0, 5.0))
    return torch.maximum(bright * narrow + (1.0 - bright) * wide, wide)
