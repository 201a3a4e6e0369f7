# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The codes that `peers.py` compares, each with the settings that it is given.

A code takes a scene and returns an image and its PSF. Codes without a PSF of
their own are convolved with a Gaussian of two pixels, which then counts as
theirs. Codes that want positive data get them with a pedestal, which is taken
off again.
"""

from __future__ import annotations

import sys
import tempfile
import types
from collections.abc import Callable

import measure
import numpy as np
from astropy.io import fits
from photutils.detection import find_peaks
from scenes import Scene
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from lsst.latent_coadds.restoration import gaussian_kernel, matching_kernels, restore

TARGET = 2.0
"""FWHM, in pixels, that bare images are smoothed to."""

Image = tuple[np.ndarray, np.ndarray]
Code = Callable[[Scene], Image]


def smooth(image: np.ndarray) -> Image:
    """Return a bare image with the target PSF."""
    kernel = gaussian_kernel(TARGET, 25).numpy()
    return fftconvolve(image, kernel, mode="same"), kernel


def own(scene: Scene, method: str, **settings: object) -> Image:
    """Run a restorer of this package."""
    result = restore(measure.make_stack(scene), method, device="cpu", **settings)
    return result.image.numpy(), result.psf.numpy()


def plain(scene: Scene) -> Image:
    """Return the inverse-variance coadd."""
    return own(scene, "direct")


def pedestal(scene: Scene) -> float:
    """Return a level that keeps the coadd positive."""
    return float(10 * scene.coadd_sigma)


def richardson_lucy(scene: Scene, n_iter: int = 30) -> Image:
    """Run scikit-image on the plain coadd with its mean PSF."""
    from skimage.restoration import richardson_lucy as deconvolve

    image, psf = plain(scene)
    level = pedestal(scene)
    data = np.maximum(image + level, 1e-3 * level).astype(float)
    return smooth(deconvolve(data, psf.astype(float), num_iter=n_iter, clip=False) - level)


def joint_richardson_lucy(scene: Scene, n_iter: int = 30) -> Image:
    """Run the same update with all exposures at once."""
    level = pedestal(scene) * np.sqrt(len(scene.image))
    weight = (1 / scene.sigma**2)[:, None, None]
    data = np.maximum(scene.image + level, 1e-3 * level)
    latent = np.full(data.shape[1:], float(data.mean()))
    flipped = scene.psf[:, ::-1, ::-1]
    norm = sum(
        fftconvolve(np.broadcast_to(w, latent.shape), f, mode="same")
        for w, f in zip(weight, flipped, strict=True)
    )
    for _ in range(n_iter):
        ratio = sum(
            w * fftconvolve(y / fftconvolve(latent, f, mode="same").clip(1e-6), b, mode="same")
            for w, y, f, b in zip(weight, data, scene.psf, flipped, strict=True)
        )
        latent = latent * ratio / norm
    return smooth(latent - level)


def published(scene: Scene) -> Image:
    """Run the multiplicative update of ImageMM, at most 200 times."""
    return own(scene, "imagemm", form="published", n_realizations=0)


def imagemm(scene: Scene) -> Image:
    """Run the default of this package, uncertainty included."""
    return own(scene, "imagemm")


def astroclearnet(scene: Scene) -> Image:
    """Run the network of this package, uncertainty included."""
    return own(scene, "astroclearnet")


def deep_image_prior(scene: Scene, n_iter: int = 2500) -> Image:
    """Run the deep image prior of DeepInverse with its convolutional decoder."""
    import deepinv
    import torch

    torch.manual_seed(0)
    height, width = scene.image.shape[1:]
    # It expects values of order one, and the same noise in all data.
    unit = float(scene.coadd_sigma) * 10
    whitened = torch.as_tensor(scene.image / scene.sigma[:, None, None], dtype=torch.float32)[None]
    kernels = torch.as_tensor(scene.psf, dtype=torch.float32)[None]
    scale = torch.as_tensor(unit / scene.sigma, dtype=torch.float32)[None, :, None, None]

    class Exposures(deepinv.physics.LinearPhysics):
        def A(self, x: torch.Tensor, **_: object) -> torch.Tensor:
            x = torch.nn.functional.pad(x, 4 * [kernels.shape[-1] // 2])
            return scale * torch.cat(
                [
                    deepinv.physics.functional.conv2d_fft(x, kernels[:, t : t + 1], real_fft=True)
                    for t in range(kernels.shape[1])
                ],
                dim=1,
            )

    decoder = deepinv.models.ConvDecoder(img_size=(1, height, width), layers=7, channels=32, in_size=(8, 8))
    prior = deepinv.models.DeepImagePrior(
        decoder, img_size=(32, 8, 8), iterations=n_iter, learning_rate=0.01, verbose=False
    )
    image = prior(whitened, Exposures())[0, 0].detach().numpy() * unit
    return smooth(image)


def starred(scene: Scene, n_iter: int = 300) -> Image:
    """Run STARRED: points where the coadd has peaks, and a starlet background.

    Its model has the target PSF in it, so the PSFs are divided by that.
    """
    from starred.deconvolution.deconvolution import setup_model
    from starred.deconvolution.loss import Loss
    from starred.deconvolution.parameters import ParametersDeconv
    from starred.optim.optimization import Optimizer
    from starred.utils.noise_utils import propagate_noise
    from torch import as_tensor

    narrow = matching_kernels(as_tensor(scene.psf), TARGET).numpy()
    narrow /= narrow.sum(axis=(1, 2), keepdims=True)
    coadd, psf = plain(scene)
    found = gaussian_filter(coadd, 1.5)
    noise = 1.4826 * np.median(np.abs(found - np.median(found)))
    # Each point is compiled by itself, so there are not more than a few dozen.
    peaks = find_peaks(found, 6 * noise, box_size=3, border_width=4, n_peaks=30)
    half = (np.array(coadd.shape[::-1]) - 1) / 2
    xs, ys = (np.asarray(peaks[n], float) - h for n, h in zip(("x_peak", "y_peak"), half, strict=True))
    heights = coadd[np.asarray(peaks["y_peak"]), np.asarray(peaks["x_peak"])] / psf.max()
    n = len(scene.image)
    variance = np.broadcast_to(scene.sigma[:, None, None] ** 2, scene.image.shape).copy()
    model, start, up, down, fixed = setup_model(
        scene.image, variance, narrow, xs, ys, 1, initial_a=np.tile(heights, n), astrometric_bound=2
    )
    # One sky, registered: no shifts between exposures, and no sky levels.
    for name in ("dx", "dy", "alpha"):
        fixed["kwargs_analytic"][name] = start["kwargs_analytic"][name]
    fixed["kwargs_background"]["mean"] = np.zeros(n)
    weight = propagate_noise(
        model, np.sqrt(variance), start, wavelet_type_list=["starlet"], method="MC", num_samples=20, seed=1
    )[0]
    parameters = ParametersDeconv(start, fixed, kwargs_up=up, kwargs_down=down)
    loss = Loss(
        scene.image,
        model,
        parameters,
        variance,
        regularization_strength_scales=1.0,
        regularization_strength_hf=1.0,
        regularization_strength_positivity=100.0,
        W=weight,
    )
    optimizer = Optimizer(loss, parameters, method="adabelief")
    optimizer.minimize(
        max_iterations=n_iter,
        init_learning_rate=3e-3,
        schedule_learning_rate=True,
        restart_from_init=True,
        stop_at_loss_increase=False,
        progress_bar=False,
        return_param_history=False,
    )
    image = model.getDeconvolved(parameters.best_fit_values(as_kwargs=True))[0]
    return np.asarray(image), gaussian_kernel(TARGET, 25).numpy()


def deconvolve(scene: Scene) -> Image:
    """Run `DeconvolveExposureTask` of a full stack on the plain coadd, all pixels allowed."""
    import lsst.afw.image as afw_image
    import lsst.scarlet.lite as scarlet
    from lsst.afw.math import FixedKernel
    from lsst.meas.algorithms import KernelPsf
    from lsst.meas.extensions.scarlet.deconvolveExposureTask import DeconvolveExposureTask

    image, psf = plain(scene)
    exposure = afw_image.ExposureF(*image.shape[::-1])
    exposure.image.array[:] = image
    exposure.variance.array[:] = scene.coadd_sigma**2
    kernel = afw_image.ImageD(np.ascontiguousarray(psf, dtype=np.float64))
    exposure.setPsf(KernelPsf(FixedKernel(kernel)))
    config = DeconvolveExposureTask.ConfigClass()
    config.useFootprints = False
    result = DeconvolveExposureTask(config=config).run(exposure).deconvolved.image.array
    # What it attaches is the PSF of the input; this is the one of its model.
    own_psf = np.asarray(scarlet.utils.integrated_circular_gaussian(sigma=0.8))
    return result, np.pad(own_psf / own_psf.sum(), 5)


def mfdeconv(scene: Scene, n_iter: int = 20) -> Image:
    """Run the multi-frame deconvolution of SetiAstro Suite Pro, with the defaults of its window.

    It reads and writes files and measures PSFs itself; here it gets the true
    ones. Its engine needs Qt to report progress, and a torch of its own.
    """
    import torch

    stand_in("PyQt6")
    stand_in("PyQt6.QtCore", QObject=object, QThread=object, pyqtSignal=lambda *_, **__: None)
    stand_in("PyQt6.QtWidgets", QApplication=types.SimpleNamespace(instance=lambda: None))
    stand_in("setiastro.saspro.runtime_torch", import_torch=lambda **_: torch)
    from setiastro.saspro import mfdeconv as engine

    psfs = [np.ascontiguousarray(psf, dtype=np.float32) for psf in scene.psf]
    engine._build_psf_and_assets = lambda *_, **__: (psfs, None, None, None)
    variances = [np.full(scene.image.shape[1:], sigma**2, dtype=np.float32) for sigma in scene.sigma]
    # Zero is a pixel that counts: it turns masks round, and fails without any.
    masks = [np.zeros_like(variance) for variance in variances]
    with tempfile.TemporaryDirectory() as directory:
        paths = [f"{directory}/{number}.fits" for number in range(len(psfs))]
        for path, plane in zip(paths, scene.image, strict=True):
            fits.PrimaryHDU(plane.astype(np.float32)).writeto(path)
        settings = {"kappa": 2.0, "huber_delta": -2.0, "color_mode": "luma"}
        output = f"{directory}/output.fits"
        written = engine.multiframe_deconv_normal_rebuild(
            paths, output, iters=n_iter, masks=masks, variances=variances, **settings
        )
        return smooth(np.squeeze(fits.getdata(written)).astype(float))


def stand_in(name: str, **members: object) -> None:
    """Put a module with these members in the place of another, if that was not imported."""
    sys.modules.setdefault(name, types.ModuleType(name)).__dict__.update(members)


CODES: dict[str, Code] = {
    "plain": plain,
    "richardson_lucy": richardson_lucy,
    "joint_richardson_lucy": joint_richardson_lucy,
    "published": published,
    "imagemm": imagemm,
    "astroclearnet": astroclearnet,
    "deep_image_prior": deep_image_prior,
    "starred": starred,
    "deconvolve": deconvolve,
    "mfdeconv": mfdeconv,
}
