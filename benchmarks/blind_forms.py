# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forms that a correction of PSFs may take, side by side.

What each can mend, without noise; and decoder weights of AstroClearNet that
are learned with the network, as in the appendix of its paper::

    python benchmarks/blind_forms.py
"""

from __future__ import annotations

import argparse
import time

import galsim
import numpy as np
import torch
from blind import KINDS, BlindScene, shape_errors
from scenes import SCALE, STAMP
from scipy.optimize import least_squares

from lsst.latent_coadds.qa import format_table
from lsst.latent_coadds.restoration import ExposureStack, calibrate_exposures, matching_kernels
from lsst.latent_coadds.restoration._astroclearnet import prepare
from lsst.latent_coadds.restoration._operators import ConvolutionOperator
from lsst.latent_coadds.restoration._psf_spline import PsfSpline
from lsst.latent_coadds.restoration._settings import AstroClearNetSettings


def stamp(psf: galsim.GSObject) -> np.ndarray:
    """Return a normalised stamp."""
    image = psf.drawImage(nx=STAMP, ny=STAMP, scale=SCALE).array.astype(float)
    return image / image.sum()


def best_stretch(told: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the PSF nearest to the truth among those stretched and sheared."""
    spline = PsfSpline(torch.from_numpy(told))

    def make(p: np.ndarray) -> np.ndarray:
        image = spline.stamps(torch.from_numpy(p), torch.zeros(2, dtype=torch.float64))[0].numpy()
        return image / image.sum()

    return make(least_squares(lambda p: (make(p) - truth).ravel(), np.zeros(3)).x)


def best_blur(told: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the nearest among those (de)convolved with an elliptical Gaussian."""
    n = 3 * STAMP
    ky, kx = np.meshgrid(2 * np.pi * np.fft.fftfreq(n), 2 * np.pi * np.fft.rfftfreq(n), indexing="ij")
    transform = np.fft.rfft2(told, s=(n, n))

    def make(p: np.ndarray) -> np.ndarray:
        power = p[0] * kx**2 + p[1] * ky**2 + 2 * p[2] * kx * ky
        image = np.fft.irfft2(transform * np.exp(np.clip(-0.5 * power, None, 3.0)), s=(n, n))
        return image[:STAMP, :STAMP] / image[:STAMP, :STAMP].sum()

    return make(least_squares(lambda p: (make(p) - truth).ravel(), np.zeros(3)).x)


def best_kernel(told: np.ndarray, truth: np.ndarray, radius: int = 2) -> np.ndarray:
    """Return the nearest among those convolved with a free kernel that sums to one."""
    padded = np.pad(told, radius)
    offsets = range(2 * radius + 1)
    moved = np.stack([padded[i : i + STAMP, j : j + STAMP].ravel() for i in offsets for j in offsets], axis=1)
    image = (moved @ np.linalg.lstsq(moved, truth.ravel(), rcond=1e-8)[0]).reshape(told.shape)
    return image / image.sum()


def compare_forms() -> str:
    """Return what is left of errors of a PSF of 0.7 arcsec: peak, %, and light within 3 pixels, %."""
    true = galsim.Moffat(beta=3.2, fwhm=0.7)
    cases = {
        "10 % too wide": true.dilate(1.1),
        "10 % too narrow": true.dilate(0.9),
        "blurred with 0.3 arcsec": galsim.Convolve(true, galsim.Gaussian(fwhm=0.3)),
        "Moffat with beta 8": galsim.Moffat(beta=8.0, fwhm=0.7),
    }
    truth = stamp(true)
    y, x = np.mgrid[:STAMP, :STAMP] - STAMP // 2
    inside = np.hypot(x, y) <= 3.0

    def describe(psf: np.ndarray) -> str:
        worst = 100 * abs(psf - truth).max() / truth.max()
        return f"{worst:.2f} {100 * (psf[inside].sum() / truth[inside].sum() - 1):+.2f}"

    rows = []
    for name, psf in cases.items():
        told = stamp(psf)
        forms = (told, best_stretch(told, truth), best_blur(told, truth), best_kernel(told, truth))
        forms += (best_kernel(best_stretch(told, truth), truth),)
        rows.append([name, *(describe(form) for form in forms)])
    return format_table(
        ["error", "none", "stretch, shear", "Gaussian", "5x5 kernel", "stretch and kernel"], rows
    )


def learn_decoder(stack: ExposureStack, n_steps: int, anchor: float, rate: float) -> np.ndarray:
    """Return PSFs (T, k, k) that are learned together with the network's weights.

    They are ``f exp(a)``, normalised: positive, with a sum of one; a is
    drawn to zero by ``anchor``, and its centroid stays.
    """
    # Stars are made by the network, as in the paper: points apart would have the PSFs as told.
    settings = AstroClearNetSettings(point_threshold=0.0)
    preparation = prepare(stack, settings, torch.Generator().manual_seed(0))
    network = preparation.make_network()
    if preparation.start is not None:
        network.load_state_dict(preparation.start)
    told = stack.psf.clamp_min(1e-9)
    logits = torch.zeros_like(told, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [{"params": network.parameters(), "lr": 2e-3}, {"params": [logits], "lr": rate, "weight_decay": 0.0}]
    )
    operator, data = preparation.problem.operator, preparation.problem.training
    whole = (slice(0, operator.latent_shape[0]), slice(0, operator.latent_shape[1]))
    line = torch.arange(stack.psf.shape[-1], dtype=told.dtype) - stack.psf.shape[-1] // 2

    def psfs() -> torch.Tensor:
        # No drift of the centroid: the part of a that moves it is taken out.
        weight = told * line[None, None] ** 2
        tilt_x = (weight * logits).mul(line.sign()).sum((1, 2)) / (weight * line.abs()).sum((1, 2))
        weight = told * line[None, :, None] ** 2
        tilt_y = (weight * logits).mul(line.sign()[:, None]).sum((1, 2)) / (weight * line.abs()[:, None]).sum(
            (1, 2)
        )
        flat = logits - tilt_x[:, None, None] * line - tilt_y[:, None, None] * line[:, None]
        psf = told * flat.clamp(-3.0, 3.0).exp()
        return psf / psf.sum(dim=(1, 2), keepdim=True)

    for step in range(n_steps):
        optimizer.zero_grad()
        kernels = matching_kernels(psfs(), preparation.spread).to(stack.image.dtype)
        forward = ConvolutionOperator(kernels, stack.shape, margin=operator.margin)
        model = forward.forward(preparation.predict(network, whole, step % 8))
        residual = (model - data.image) * data.inverse_sigma
        loss = torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), delta=data.delta)
        (loss + anchor * (told * logits**2).sum(dim=(1, 2)).mean()).backward()
        optimizer.step()
    return psfs().detach().numpy().astype(np.float64)


def compare_decoders(arguments: argparse.Namespace) -> str:
    """Return how far PSFs are off that are learned in either way."""
    rows = []
    for kind in arguments.kinds:
        maker = BlindScene(0, size=128, n_exposures=6, kind=kind)
        scene = maker.make()
        told, truth = maker.basis(told=True), maker.basis(told=False)
        stack = ExposureStack(
            *(a.astype(np.float32) for a in (scene.image, scene.variance)),
            scene.good,
            told.astype(np.float32),
        )
        start = time.process_time()
        decoder = learn_decoder(stack, arguments.steps, arguments.anchor, arguments.rate)
        middle = time.process_time()
        calibration = calibrate_exposures(stack, device="cpu")
        seconds = (middle - start, time.process_time() - middle)
        learned = np.stack(
            [calibration.correct_psf(n, f).numpy() for n, f in zip(stack.names, stack.psf, strict=True)]
        )
        for name, psf, cost in (
            ("as told", told, 0.0),
            ("decoder", decoder, seconds[0]),
            ("stars", learned, seconds[1]),
        ):
            errors = shape_errors(psf, truth)
            rows.append(
                [
                    KINDS[kind].split(",")[0],
                    name,
                    f"{100 * errors[:, 0].mean():+.2f}, {100 * errors[:, 0].std():.2f}",
                    f"{np.sqrt((errors[:, 1] ** 2).mean()):.4f}",
                    f"{cost:.1f}",
                ]
            )
    return format_table(["error", "PSFs", "FWHM: mean, scatter, %", "ellipticity, rms", "CPU s"], rows)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="steps of AdamW")
    parser.add_argument("--anchor", type=float, default=0.01, help="weight of the anchor of the decoder")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of the decoder")
    parser.add_argument("--kinds", nargs="+", default=["none", "random", "wide"], choices=list(KINDS))
    arguments = parser.parse_args()
    print("What is left of errors of a PSF: peak, and light within 3 pixels, %\n")
    print(compare_forms())
    print("\nPSFs learned as the weights of a decoder, and from stars\n")
    print(compare_decoders(arguments))


if __name__ == "__main__":
    main()
