# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Settings of the restorers: the only place where defaults are stated."""

from __future__ import annotations

__all__ = (
    "SETTINGS_CLASSES",
    "AstroClearNetSettings",
    "CombinedSettings",
    "DirectSettings",
    "ImageMMSettings",
    "make_settings",
)

import dataclasses
from typing import Any


def _setting(
    default: Any,
    doc: str,
    *,
    min: float | None = None,
    max: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Declare a dataclass field with its documentation and its limits."""
    metadata: dict[str, Any] = {"doc": doc}
    if min is not None:
        metadata["min"] = min
    if max is not None:
        metadata["max"] = max
    if choices is not None:
        metadata["choices"] = choices
    return dataclasses.field(default=default, metadata=metadata)


class _Checked:
    """Check every field against the limits in its metadata."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            limits = field.metadata
            where = f"{type(self).__name__}.{field.name}={value!r}"
            if "choices" in limits and value not in limits["choices"]:
                raise ValueError(f"{where}: choose one of {', '.join(limits['choices'])}.")
            if "min" in limits and not value >= limits["min"]:
                raise ValueError(f"{where}: must be at least {limits['min']}.")
            if "max" in limits and not value <= limits["max"]:
                raise ValueError(f"{where}: must be at most {limits['max']}.")


@dataclasses.dataclass(frozen=True)
class DirectSettings(_Checked):
    """Settings of the plain inverse-variance coadd."""

    weighting: str = _setting(
        "exposure",
        "Weights of the mean: 'exposure' (one number per exposure, the inverse of its median variance, so "
        "that the PSF does not depend on brightness) or 'pixel' (inverse variance of each pixel).",
        choices=("exposure", "pixel"),
    )
    clip: bool = _setting(False, "Leave out single-exposure outliers (tolerant in the cores of stars)?")
    clip_sigma: float = _setting(
        5.0, "Deviation from the median exposure at which a pixel is an outlier, in sigma.", min=0.0
    )


@dataclasses.dataclass(frozen=True)
class ImageMMSettings(_Checked):
    """Settings of ImageMM."""

    form: str = _setting(
        "accelerated",
        "'accelerated' (the target PSF is in the model; projected, scaled gradient steps with momentum) or "
        "'published' (the multiplicative update of the paper).",
        choices=("accelerated", "published"),
    )
    target_fwhm: float = _setting(
        2.0,
        "FWHM of the Gaussian PSF of the result, in latent pixels; 0 gives the bare latent image.",
        min=0.0,
    )
    pixel_spread: float = _setting(
        0.25,
        "Accelerated form: variance (latent px^2, per axis, before it is sampled) that is left to the "
        "non-negative solution. A source between pixels needs up to 0.25; what remains of the target PSF "
        "bounds the width of the narrowest feature.",
        min=0.0,
        max=1.0,
    )
    residual_damping: float = _setting(
        0.05,
        "Accelerated form: response of the PSFs, relative to that at zero frequency, below which the linear "
        "correction for what the non-negative solution missed fades out; 0 leaves the correction out.",
        min=0.0,
    )
    sky_damping: float = _setting(
        0.4,
        "Accelerated form: the same in the sky between sources, where a higher value brings back less noise "
        "and predicts the data better; 0, or the same as residual_damping, treats both alike.",
        min=0.0,
    )
    smooth_scale: float = _setting(
        2.5,
        "Accelerated form: standard deviation (latent px) of the second component, Gaussians for extended "
        "sources; 0 leaves points alone.",
        min=0.0,
    )
    point_penalty: float = _setting(
        0.4,
        "Accelerated form: price of points against Gaussians, in units of the noise of the gradient. Higher "
        "makes smoother galaxies and sky, and takes light from faint stars.",
        min=0.0,
    )
    point_threshold: float = _setting(
        3.5,
        "Accelerated form: sources of at least this many sigma that are points, as far as noise lets one "
        "tell, get a position between pixels and the target PSF itself; 0 leaves them to the pixels.",
        min=0.0,
    )
    sky_penalty: float = _setting(
        4.0,
        "Accelerated form: price of points where exposures show no source, so that noise does not become "
        "specks; values below point_penalty do nothing.",
        min=0.0,
    )
    n_start: int = _setting(
        60, "Accelerated form: steps of the cheap start, where gaps and outliers are filled in.", min=0
    )
    n_iter: int = _setting(200, "Largest number of updates; the published form needs a few hundred.", min=1)
    n_steps: int = _setting(
        0, "Accelerated form: inner steps of an update; 0 takes the number of exposures, 10 to 20.", min=0
    )
    tolerance: float = _setting(
        5e-7,
        "Stop when three updates lower the loss per good pixel by less than this per update, unless "
        "`settled` decides; 0 never stops.",
        min=0.0,
    )
    settled: float = _setting(
        0.003,
        "Accelerated form: a place is left as it is when ten updates change neither the height of a star "
        "there by more than this many sigma, nor the flux in an aperture by more than four times as many. "
        "When few places are left, or after 100 updates, they go on in windows of their own. "
        "0 asks for `tolerance` instead.",
        min=0.0,
    )
    n_block: int = _setting(
        20,
        "Accelerated form: updates between two looks at whether to stop, so that tiles which overlap mostly "
        "make the same number of updates; 1 looks after each.",
        min=1,
    )
    time_limit: float = _setting(0.0, "Stop after this many seconds; 0 means no limit.", min=0.0)
    huber_delta: float = _setting(3.0, "Residual in sigma beyond which the loss is linear.", min=0.01)
    reject_sigma: float = _setting(
        6.0,
        "Accelerated form: after a first fit, pixels that one exposure has and the model lacks by more than "
        "this many sigma (and a fifth of the model) are left out of a second one; 0 keeps them.",
        min=0.0,
    )
    held_out: float = _setting(
        0.0,
        "Fraction of pixels that is held out; the update that they like best is kept. 0 uses all pixels.",
        min=0.0,
        max=0.5,
    )
    kappa: float = _setting(2.0, "Largest factor by which a published update changes a pixel.", min=1.0)
    n_realizations: int = _setting(4, "Number of noise realizations to make.", min=0)


@dataclasses.dataclass(frozen=True)
class AstroClearNetSettings(_Checked):
    """Settings of AstroClearNet, a network trained on the exposures."""

    form: str = _setting(
        "improved",
        "'improved' (asinh in and out, skip from a linear deconvolution, target PSF in the model) or "
        "'published' (parallel depthwise convolutions, ReLU, bare latent image, smoothed afterwards).",
        choices=("improved", "published"),
    )
    target_fwhm: float = _setting(
        2.0,
        "FWHM of the Gaussian PSF of the result, in latent pixels; 0 gives the bare latent image.",
        min=0.0,
    )
    pixel_spread: float = _setting(
        10.0,
        "Improved form: variance (latent px^2, per axis) of the PSF of the network's own image, at most that "
        "of the target PSF (the best, and the default). What remains of the target PSF is applied to it.",
        min=0.0,
    )
    point_threshold: float = _setting(
        4.0,
        "Improved form: sources of at least this many sigma that are points, as far as noise lets one tell, "
        "are taken out of the exposures, and put into the result at the target PSF; 0 leaves them to the "
        "network.",
        min=0.0,
    )
    skip: str = _setting(
        "linear",
        "Improved form: what the network adds to, a linear deconvolution or the coadd.",
        choices=("linear", "coadd"),
    )
    normalisation: str = _setting(
        "channel", "Improved form: normalisation of layers.", choices=("channel", "group", "none")
    )
    width: int = _setting(16, "Channels of the network, a multiple of 4.", min=4)
    depth: int = _setting(3, "Improved form: number of halvings of the resolution.", min=0, max=5)
    start: str = _setting(
        "stored",
        "Improved form: weights that training begins with: 'stored' (trained on simulated fields; for the "
        "default width, depth and normalisation, others begin at random) or 'random' (which takes 800 steps "
        "at a learning rate of 0.01).",
        choices=("stored", "random"),
    )
    n_iter: int = _setting(200, "Largest number of training steps.", min=1)
    learning_rate: float = _setting(5e-3, "Largest learning rate of AdamW.", min=0.0)
    implants: float = _setting(
        3.0,
        "Improved form: weight of the error on stars and galaxies of known light that are added to the "
        "exposures during training, against the misfit of the exposures; 0 trains on the exposures alone.",
        min=0.0,
    )
    average: float = _setting(
        0.99,
        "Decay per step of the running mean of the network's weights, which is what is kept; 0 keeps the "
        "weights of single steps.",
        min=0.0,
        max=0.9999,
    )
    warm_up: int = _setting(20, "Steps over which the rate rises.", min=0)
    weight_decay: float = _setting(0.01, "Weight decay of AdamW.", min=0.0)
    clip_norm: float = _setting(1.0, "Largest norm of the gradient of the weights.", min=0.0)
    held_out: float = _setting(
        0.03, "Fraction of pixels that is held out, to choose the best step.", min=0.001, max=0.5
    )
    check_every: int = _setting(20, "Steps between looks at the held-out pixels.", min=1)
    patience: int = _setting(20, "Looks without improvement after which training ends.", min=1)
    crop: int = _setting(128, "Largest width of the latent image that a step uses.", min=64)
    time_limit: float = _setting(0.0, "End training after this many seconds; 0 means no limit.", min=0.0)
    huber_delta: float = _setting(3.0, "Residual in sigma beyond which the loss is linear.", min=0.01)
    reject_sigma: float = _setting(
        6.0,
        "Half-way, pixels that one exposure has and the model lacks by more than this many sigma (and a "
        "fifth of the model) are left out of the rest; 0 keeps them.",
        min=0.0,
    )
    residual_damping: float = _setting(
        0.08,
        "Improved form: as for ImageMM, the linear correction for what was missed; 0 leaves it out.",
        min=0.0,
    )
    sky_damping: float = _setting(
        0.3, "Improved form: as for ImageMM, the same in the sky between sources.", min=0.0
    )
    n_realizations: int = _setting(4, "Number of noise realizations to make.", min=0)


@dataclasses.dataclass(frozen=True)
class CombinedSettings(ImageMMSettings):
    """Settings of ImageMM followed by a network.

    Those of ImageMM, and those of the network that is added to its result.
    """

    network_steps: int = _setting(60, "Largest number of training steps.", min=1)
    width: int = _setting(16, "Channels of the network, a multiple of 4.", min=4)
    learning_rate: float = _setting(2e-3, "Largest learning rate of AdamW.", min=0.0)
    held_out: float = _setting(
        0.03, "Fraction of pixels that is held out, to choose the best step.", min=0.001, max=0.5
    )
    check_every: int = _setting(5, "Steps between looks at the held-out pixels.", min=1)
    patience: int = _setting(6, "Looks without improvement after which training ends.", min=1)
    crop: int = _setting(256, "Largest width of the latent image that a step uses.", min=64)


SETTINGS_CLASSES: dict[str, type] = {
    "direct": DirectSettings,
    "imagemm": ImageMMSettings,
    "astroclearnet": AstroClearNetSettings,
    "combined": CombinedSettings,
}


def make_settings(method: str, **values: Any) -> Any:
    """Make the settings of a restorer from keywords.

    Parameters
    ----------
    method : `str`
        Name of the restorer.
    **values
        Fields of its settings dataclass.

    Returns
    -------
    settings
        An instance of ``SETTINGS_CLASSES[method]``.

    Raises
    ------
    ValueError
        The method is unknown, or a value is outside of its limits.
    TypeError
        A setting is unknown.
    """
    if method not in SETTINGS_CLASSES:
        raise ValueError(f"Unknown restorer {method!r}; known are {', '.join(sorted(SETTINGS_CLASSES))}.")
    cls = SETTINGS_CLASSES[method]
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise TypeError(
            f"Unknown setting of restorer {method!r}: {', '.join(unknown)}; known are {', '.join(known)}."
        )
    return cls(**values)
