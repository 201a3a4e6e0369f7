# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("draw_coadd_plots",)

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..adapters import CoaddPlanes
from ..qa import (
    PatchAnalysis,
    Stretch,
    artifact_figure,
    detail_figure,
    fit_figure,
    image_figure,
    noise_figure,
    photometry_figure,
    star_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HALF = 24
"""Half the side of a detail in pixels."""


def draw_coadd_plots(
    found: PatchAnalysis,
    coadd: CoaddPlanes,
    metrics: Mapping[str, Any],
    reference: CoaddPlanes | None,
    *,
    names: tuple[str, str],
    largest: int,
) -> dict[str, Figure]:
    """Draw what was found in a patch.

    Parameters
    ----------
    found : `~lsst.latent_coadds.qa.PatchAnalysis`
        What was found.
    coadd : `~lsst.latent_coadds.adapters.CoaddPlanes`
        The coadd.
    metrics : `~collections.abc.Mapping`
        How it was restored.
    reference : `~lsst.latent_coadds.adapters.CoaddPlanes` or `None`
        Another coadd.
    names : `tuple` [`str`, `str`]
        What both are called.
    largest : `int`
        Largest side of pictures of the whole patch in pixels.

    Returns
    -------
    plots : `dict` [`str`, `matplotlib.figure.Figure`]
        Plots by name.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The plots of the analysis need matplotlib: install lsst-latent-coadds with its qa extra, or set "
            "write_plots=False."
        ) from error
    shown = [np.where(coadd.good, coadd.image, np.nan)]
    noise = found.figures.sky_sigma
    scale = 1.0
    if reference is not None and found.reference_figures is not None:
        shown.append(np.where(reference.good, reference.image, np.nan))
        noise = found.reference_figures.sky_rms
        # Flux per pixel, where pixels are of different size.
        scale = (reference.pixel_scale / coadd.pixel_scale) ** 2
    stretch = Stretch.of(shown[-1], noise)
    own = Stretch(stretch.linear / scale, stretch.brightest / scale)
    plots = {
        "image": image_figure(shown[0], own, largest=largest),
        "photometry": photometry_figure(found, names),
        "star": star_figure(found),
        "noise": noise_figure(found, names),
        "artifact": artifact_figure(coadd, found),
        "fit": fit_figure(metrics),
    }
    details = {names[0]: shown[0]}
    if len(shown) > 1:
        plots["reference"] = image_figure(shown[1], stretch, largest=largest)
        if shown[1].shape == shown[0].shape:
            details[names[1]] = shown[1]
    plots["detail"] = detail_figure(
        details, _choose_places(found), own, half=_HALF, artifacts=found.artifacts
    )
    return plots


def _choose_places(found: PatchAnalysis, number: int = 6) -> list[tuple[str, float, float]]:
    """Choose sources and artefacts worth a look, far enough from each other."""
    sources = found.sources
    wanted = [("star", i) for i in np.flatnonzero(sources.is_star)[:2]]
    wanted += [("galaxy", i) for i in np.flatnonzero(~sources.is_star & np.isfinite(sources.flux))[:1]]
    places = [
        (f"{kind}, {sources.magnitude[i]:.1f} mag", float(sources.x[i]), float(sources.y[i]))
        for kind, i in wanted
    ]
    by_kind = ("hole", "excess", "deficit", "ring", "streak", "clump")
    for kind in by_kind:
        worst = [artifact for artifact in found.artifacts if artifact.kind == kind][:1]
        places += [(f"{kind} ({artifact.value:.3g})", artifact.x, artifact.y) for artifact in worst]
    chosen: list[tuple[str, float, float]] = []
    for place in places:
        if all(max(abs(place[1] - x), abs(place[2] - y)) > _HALF for _, x, y in chosen):
            chosen.append(place)
    height, width = found.figures.clean.shape
    return chosen[:number] or [("middle", width / 2, height / 2)]
