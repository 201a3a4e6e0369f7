# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""All that is measured of a patch, and whether it is what it should be."""

from __future__ import annotations

__all__ = ("Check", "PatchAnalysis", "PatchLimits", "analyze_patch")

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._artifacts import Artifact, find_clusters, find_disagreements, find_holes
from ._coadd import CoaddLike
from ._noise import aperture_noise_ratio
from ._rings import ring_depth
from ._sources import CoaddFigures, SourceTable, describe_coadd, measure_sources
from ._star import measure_star
from ._stars import ResidualStack, stack_residuals
from ._statistics import robust_rms

_BRIGHT = 100.0
"""Significance of the stars whose width and residuals stand for a patch."""


def _limit(default: float, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"doc": doc, "min": 1e-6})


@dataclasses.dataclass(frozen=True)
class PatchLimits:
    """How far the figures of a patch may be from what they should be."""

    chi2: float = _limit(0.1, "Difference of the worst visit's reduced chi2 from one.")
    star_fwhm: float = _limit(0.05, "Relative difference of the FWHM of bright stars from the PSF's.")
    psf_residual: float = _limit(0.05, "What the PSF leaves of bright stars, over their peak.")
    flux_ratio: float = _limit(
        0.02, "Difference of the median flux ratio of stars to the reference from one."
    )
    ring: float = _limit(0.01, "Depth of rings around bright stars, over their peak.")
    hole_density: float = _limit(5.0, "Significant holes per square arcminute.")
    disagreement_density: float = _limit(
        5.0, "Places per square arcminute that disagree with the reference where nothing was clipped."
    )
    variance_ratio: float = _limit(
        0.3,
        "Natural logarithm of how far a sixth of empty sky lies below its median, over the same of "
        "the realizations, or over what the variance plane says if there are none.",
    )
    no_data: float = _limit(0.1, "Fraction of the pixels without data.")
    rejected_inputs: float = _limit(0.1, "Fraction of the exposures that could not be used.")


@dataclasses.dataclass(frozen=True)
class Check:
    """One figure against its limit.

    Parameters
    ----------
    name : `str`
        Field of `PatchLimits`.
    value : `float`
        What was found.
    deviation : `float`
        How far that is from what it should be, in units of the limit.
    """

    name: str
    value: float
    deviation: float

    @property
    def passed(self) -> bool:
        """Whether it is within the limit (`bool`)."""
        return self.deviation <= 1


@dataclasses.dataclass(frozen=True)
class PatchAnalysis:
    """What was found in a patch.

    Parameters
    ----------
    numbers : `dict` [`str`, `float`]
        One number for each figure, NaN where it cannot be measured.
    checks : `list` [`Check`]
        Those that were compared with a limit, the worst first.
    artifacts : `list` [`Artifact`]
        Places that deserve a look.
    figures, reference_figures : `CoaddFigures`
        Of the coadd and of the reference, if there is one.
    sources : `SourceTable`
        Lone sources.
    residuals : `list` [`ResidualStack`]
        What the PSF leaves of stars.
    disagreement : `numpy.ndarray`, ``(h, w)``, or `None`
        See `find_disagreements`.
    """

    numbers: dict[str, float]
    checks: list[Check]
    artifacts: list[Artifact]
    figures: CoaddFigures
    reference_figures: CoaddFigures | None
    sources: SourceTable
    residuals: list[ResidualStack]
    disagreement: np.ndarray | None

    @property
    def concern(self) -> float:
        """The worst deviation, in units of its limit (`float`)."""
        return max((check.deviation for check in self.checks), default=0.0)


def analyze_patch(
    coadd: CoaddLike,
    metrics: Mapping[str, Any],
    reference: CoaddLike | None = None,
    *,
    threshold: float = 5.0,
    max_sources: int = 400,
    limits: PatchLimits = PatchLimits(),
) -> PatchAnalysis:
    """Measure a restored patch, without any truth.

    Parameters
    ----------
    coadd : `CoaddLike`
        The restored patch.
    metrics : `~collections.abc.Mapping`
        The metrics that came with it.
    reference : `CoaddLike`, optional
        Another coadd of the patch, such as the plain one.
    threshold : `float`, optional
        Significance of sources and of holes.
    max_sources : `int`, optional
        Shapes are measured of the brightest so many.
    limits : `PatchLimits`, optional
        What is of no concern.

    Returns
    -------
    analysis : `PatchAnalysis`
        What was found.

    Raises
    ------
    ValueError
        If the coadd has no PSF anywhere.
    """
    reference_figures = None if reference is None else describe_coadd(reference, threshold=threshold)
    sky = None
    if reference_figures is not None and reference_figures.empty.shape == coadd.image.shape:
        sky = reference_figures.empty & coadd.good
    figures = describe_coadd(coadd, threshold=threshold, sky=sky)
    sources = measure_sources(coadd, figures, reference, reference_figures, max_sources=max_sources)
    measured = sources.is_star & np.isfinite(sources.residual).all(axis=(1, 2))
    edges = np.arange(14.0, 30.0, 2.0)
    residuals = stack_residuals(sources.residual[measured], sources.magnitude[measured], edges)
    artifacts = find_holes(coadd, figures.psf, figures.hole_noise, threshold=threshold)
    rings = _measure_rings(coadd, sources)
    artifacts += [ring for ring in rings if ring.value > limits.ring]
    if "CLIPPED" in coadd.mask:
        artifacts += find_clusters(coadd.mask["CLIPPED"])
    disagreement = None
    if reference is not None and reference_figures is not None:
        if reference.image.shape == coadd.image.shape:
            disagreement, places = find_disagreements(
                coadd, reference, reference_figures.psf, reference_figures.flux_noise, threshold=threshold
            )
            artifacts += places
    numbers = {
        **_fit_numbers(metrics),
        **_image_numbers(coadd, figures, artifacts),
        **_star_numbers(figures, sources, rings, measured),
        **_reference_numbers(figures, reference_figures, sources, artifacts, coadd, disagreement),
    }
    numbers = {name: float(value) for name, value in numbers.items()}
    return PatchAnalysis(
        numbers=numbers,
        checks=_check(numbers, limits),
        artifacts=artifacts,
        figures=figures,
        reference_figures=reference_figures,
        sources=sources,
        residuals=residuals,
        disagreement=disagreement,
    )


def _measure_rings(coadd: CoaddLike, sources: SourceTable) -> list[Artifact]:
    rings = []
    for i in np.flatnonzero(sources.is_star & (sources.snr > 3 * _BRIGHT)):
        shape = measure_star(coadd.image, sources.x[i], sources.y[i])
        if shape is None:
            continue
        depth = ring_depth(coadd.image, shape.x, shape.y, peak=shape.peak, fwhm=1.5 * shape.fwhm, radius=18.0)
        rings.append(Artifact("ring", shape.x, shape.y, depth.depth))
    return rings


def _fit_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    chi2 = np.array([float(visit["chi2"]) for visit in metrics.get("visits", {}).values()])
    chi2 = chi2[np.isfinite(chi2)]
    offered = int(metrics.get("n_offered", 0))
    worst = chi2[np.argmax(np.abs(chi2 - 1))] if chi2.size else np.nan
    return {
        "n_inputs": float(metrics.get("n_inputs", 0)),
        "rejected_input_fraction": len(metrics.get("rejected_inputs", {})) / offered if offered else np.nan,
        "chi2_median": float(np.median(chi2)) if chi2.size else np.nan,
        "chi2_worst": float(worst),
        "n_iterations": float(metrics.get("n_iterations", 0)),
        "flux_closure_sigma": float(metrics.get("flux_closure", {}).get("sigma", np.nan)),
        "limiting_magnitude": float(metrics.get("limiting_magnitude", np.nan)),
        "run_time": float(metrics.get("timings", {}).get("total", np.nan)),
    }


def _image_numbers(coadd: CoaddLike, figures: CoaddFigures, artifacts: list[Artifact]) -> dict[str, float]:
    area = np.count_nonzero(coadd.good) * (coadd.pixel_scale / 60) ** 2
    correlation = figures.sky_correlation
    middle = len(correlation) // 2
    holes = sum(a.kind == "hole" for a in artifacts)
    clusters = sum(a.kind in ("streak", "clump") for a in artifacts)
    expected = figures.noise_spread if np.isfinite(figures.noise_spread) else figures.sky_sigma
    return {
        "n_detections": float(len(figures.detections)),
        "depth": figures.depth,
        "area": area,
        "sky_mean": figures.sky_mean,
        "sky_rms": figures.sky_rms,
        "sky_rms_over_sigma": figures.sky_rms / figures.sky_sigma if figures.sky_sigma else np.nan,
        "sky_spread_over_noise": figures.sky_spread / expected if expected else np.nan,
        "noise_rms_over_sigma": figures.noise_rms / figures.sky_sigma if figures.sky_sigma else np.nan,
        "sky_correlation_1": float(correlation[middle, middle + 1] + correlation[middle + 1, middle]) / 2,
        "aperture_noise_ratio": aperture_noise_ratio(
            correlation if figures.noise_correlation is None else figures.noise_correlation, 3.0
        ),
        "hole_density": holes / area if area else np.nan,
        "n_clipped_clusters": float(clusters),
        "no_data_fraction": float(np.mean(~coadd.good)),
        **{
            f"{name.lower()}_fraction": float(np.mean(plane))
            for name, plane in sorted(coadd.mask.items())
            if name in ("SATURATED", "REJECTED", "CLIPPED", "COSMIC_RAY", "SENSOR_EDGE", "INEXACT_PSF")
        },
    }


def _star_numbers(
    figures: CoaddFigures, sources: SourceTable, rings: list[Artifact], measured: np.ndarray
) -> dict[str, float]:
    bright = sources.is_star & (sources.snr > _BRIGHT)
    fwhm = sources.fwhm[bright & np.isfinite(sources.fwhm)]
    stack = sources.residual[measured & bright]
    return {
        "psf_fwhm": figures.psf_fwhm,
        "n_stars": float(np.count_nonzero(sources.is_star)),
        "star_fwhm": float(np.median(fwhm)) if fwhm.size else np.nan,
        "star_fwhm_scatter": robust_rms(fwhm) if fwhm.size > 2 else np.nan,
        "psf_residual": float(np.abs(np.median(stack, axis=0)).max()) if len(stack) > 2 else np.nan,
        "ring_depth": float(np.median([ring.value for ring in rings])) if rings else np.nan,
    }


def _reference_numbers(
    figures: CoaddFigures,
    reference: CoaddFigures | None,
    sources: SourceTable,
    artifacts: list[Artifact],
    coadd: CoaddLike,
    disagreement: np.ndarray | None,
) -> dict[str, float]:
    if reference is None:
        return {}
    area = np.count_nonzero(coadd.good) * (coadd.pixel_scale / 60) ** 2
    use = sources.is_star & np.isfinite(sources.flux) & (sources.reference_flux > 0)
    ratio = sources.flux[use] / sources.reference_flux[use]
    places = sum(a.kind in ("excess", "deficit") for a in artifacts)
    return {
        "reference_psf_fwhm": reference.psf_fwhm,
        "reference_n_detections": float(len(reference.detections)),
        "reference_depth": reference.depth,
        "reference_sky_rms": reference.sky_rms,
        "flux_ratio": float(np.median(ratio)) if ratio.size > 2 else np.nan,
        "flux_ratio_scatter": robust_rms(ratio) if ratio.size > 2 else np.nan,
        "disagreement_density": places / area if area and disagreement is not None else np.nan,
    }


def _check(numbers: Mapping[str, float], limits: PatchLimits) -> list[Check]:
    """Compare with the limits; what could not be measured is not compared."""
    found = {name: numbers.get(name, np.nan) for name in ("star_fwhm", "flux_ratio", "psf_residual")}
    deviations = {
        "chi2": (numbers["chi2_worst"], abs(numbers["chi2_worst"] - 1)),
        "star_fwhm": (found["star_fwhm"], abs(found["star_fwhm"] / numbers["psf_fwhm"] - 1)),
        "psf_residual": (found["psf_residual"], found["psf_residual"]),
        "flux_ratio": (found["flux_ratio"], abs(found["flux_ratio"] - 1)),
        "ring": (numbers["ring_depth"], numbers["ring_depth"]),
        "hole_density": (numbers["hole_density"], numbers["hole_density"]),
        "disagreement_density": 2 * (numbers.get("disagreement_density", np.nan),),
        "variance_ratio": (
            numbers["sky_spread_over_noise"],
            abs(np.log(numbers["sky_spread_over_noise"])),
        ),
        "no_data": (numbers["no_data_fraction"], numbers["no_data_fraction"]),
        "rejected_inputs": 2 * (numbers["rejected_input_fraction"],),
    }
    checks = [
        Check(name, float(value), float(deviation) / getattr(limits, name))
        for name, (value, deviation) in deviations.items()
        if np.isfinite(deviation)
    ]
    return sorted(checks, key=lambda check: -check.deviation)
