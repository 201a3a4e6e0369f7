# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restorations of exposures with injected sources."""

from __future__ import annotations

__all__ = ("EvaluationSettings", "ImageResult", "PatchResult", "evaluate", "evaluate_patch")

import dataclasses
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
import torch
from astropy.table import Table

from lsst.pipe.base import Struct

from ..adapters import BadInputError, CoaddPlanes, ExposureReader, PatchGrid, parse_oversampling
from ..qa import CoaddFigures, describe_coadd
from ..tasks import BuildLatentCoaddTask
from ._field import Field, FieldSpec
from ._injection import Injection, inject
from ._measure import Detected, detect_injected, measure_injected
from ._sources import SourcePlan, choose_sites, make_sources

_LOG = logging.getLogger(__name__)

_LOWEST = 3.5
"""Significance from which detections are kept, so that others can be chosen."""


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate.

    Parameters
    ----------
    n_rounds : `int`, optional
        How often sources are injected into each patch, at new places.
    n_noise_rounds : `int`, optional
        How often they are injected into noise instead.
    threshold : `float`, optional
        Significance of a detection.
    spacing : `float`, optional
        Least distance between two injected sources, in pixels.
    brightest, faintest : `float`, optional
        Range of magnitudes. By default it begins 3.5 magnitudes above the
        depth of the plain coadd and ends 1 magnitude below.
    max_sources : `int`, optional
        Greatest number of sources in a round of a patch.
    seed : `int`, optional
        Everything random follows from it.
    n_threads : `int`, optional
        Threads of a process.
    """

    n_rounds: int = 1
    n_noise_rounds: int = 1
    threshold: float = 5.0
    spacing: float = 30.0
    brightest: float | None = None
    faintest: float | None = None
    max_sources: int = 1000
    seed: int = 1
    n_threads: int = 1


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """What one coadd made of the injected sources.

    Parameters
    ----------
    name : `str`
        Which coadd: ``plain`` or ``latent``.
    sources : `astropy.table.Table`
        See `make_sources` and `measure_injected`; and ``snr``, the
        significance of the detection or 0, and ``best_error``, the
        Cramér-Rao bound on the flux of a lone source of known shape.
    detected : `Detected`
        All detections.
    depth : `float`
        Magnitude of a point source of five times its noise.
    psf_fwhm : `float`
        FWHM of the coadd's PSF in arcsec.
    area : `float`
        Area with data in square arcminutes.
    """

    name: str
    sources: Table
    detected: Detected
    depth: float
    psf_fwhm: float
    area: float


@dataclasses.dataclass(frozen=True)
class PatchResult:
    """A round of a patch.

    Parameters
    ----------
    patch : `str`
        Which patch.
    noise_only : `bool`
        Whether there was nothing but noise before.
    images : `list` [`ImageResult`]
        The coadds.
    """

    patch: str
    noise_only: bool
    images: list[ImageResult]


def evaluate_patch(
    field: Field, index: int, settings: EvaluationSettings, *, number: int, noise_only: bool
) -> PatchResult:
    """Inject sources into the exposures of a patch, and restore them.

    Parameters
    ----------
    field : `Field`
        The patches.
    index : `int`
        Which of them.
    settings : `EvaluationSettings`
        How to evaluate.
    number : `int`
        Number of the round, which makes it differ from others.
    noise_only : `bool`
        Whether the sky is replaced by noise.

    Returns
    -------
    result : `PatchResult`
        What came of it.
    """
    inputs = field.open(index)
    grid = inputs.patch.refined(parse_oversampling(field.config.oversampling))
    tasks = {"plain": field.make_task(restorer="direct"), "latent": field.make_task()}
    before, figures = _restore(tasks["plain"], inputs, inputs.exposures)
    plan = _choose_plan(settings, figures)
    rng = np.random.default_rng([settings.seed, index, number, int(noise_only)])
    allowed = _find_room(before, figures, noise_only)
    sites = choose_sites(allowed, settings.spacing, rng, most=settings.max_sources)
    sources = make_sources(sites + [before.bbox.x.start, before.bbox.y.start], plan, rng)
    injections = _inject_all(field, inputs, sources, grid, before.pixel_scale, rng, noise_only)
    information = np.sum([injection.information for injection in injections], axis=0)
    with np.errstate(divide="ignore"):
        sources["best_error"] = 1 / np.sqrt(information)
    images = []
    radius = 1.6 * figures.psf_fwhm
    for name, task in tasks.items():
        coadd, found = _restore(
            task, inputs, [injection.reader for injection in injections], min(settings.threshold, _LOWEST)
        )
        x, y = (
            np.asarray(sources[c]) - start
            for c, start in (("x", coadd.bbox.x.start), ("y", coadd.bbox.y.start))
        )
        measured = measure_injected(coadd, sources, x, y, radius=radius)
        snr, detected = detect_injected(
            found,
            x,
            y,
            radius=0.6 * figures.psf_fwhm,
            size=np.asarray(sources["half_light_radius"]) / coadd.pixel_scale,
        )
        table = sources.copy()
        table["snr"] = snr
        for column in measured.colnames:
            table[f"measured_{column}" if column == "flux" else column] = measured[column]
        images.append(
            ImageResult(
                name,
                table,
                detected,
                found.depth,
                found.psf_fwhm * coadd.pixel_scale,
                float(np.count_nonzero(coadd.good)) * (coadd.pixel_scale / 60) ** 2,
            )
        )
    return PatchResult(field.describe(index), noise_only, images)


def _inject_all(
    field: Field,
    inputs: Struct,
    sources: Table,
    grid: PatchGrid,
    pixel_scale: float,
    rng: np.random.Generator,
    noise_only: bool,
) -> list[Injection]:
    injections = []
    for reader in inputs.exposures:
        seed = int(rng.integers(2**31))
        try:
            injection = inject(
                reader,
                sources,
                grid,
                pixel_scale=pixel_scale,
                seed=seed,
                bad=tuple(field.config.bad_mask_planes),
                saturated=tuple(field.config.saturated_mask_planes),
                noise_only=noise_only,
            )
        except BadInputError as error:
            # The task would not have used it either.
            _LOG.warning("Leaving out %s", error)
            continue
        injections.append(injection)
    return injections


def _restore(
    task: BuildLatentCoaddTask, inputs: Struct, readers: Sequence[ExposureReader], threshold: float = 5.0
) -> tuple[CoaddPlanes, CoaddFigures]:
    restored = task.run(
        exposures=readers, patch=inputs.patch, band=inputs.band, known_calibration=inputs.known_calibration
    )
    coadd = CoaddPlanes.from_coadd(restored.latent_coadd)
    return coadd, describe_coadd(coadd, threshold=threshold)


def _choose_plan(settings: EvaluationSettings, figures: CoaddFigures) -> SourcePlan:
    depth = figures.depth
    return SourcePlan(
        brightest=depth - 3.5 if settings.brightest is None else settings.brightest,
        faintest=depth + 1.0 if settings.faintest is None else settings.faintest,
        spacing=settings.spacing,
    )


def _find_room(coadd: CoaddPlanes, figures: CoaddFigures, noise_only: bool) -> np.ndarray:
    """Return pixels with data all around, and away from what is there."""
    margin = int(np.ceil(2.5 * figures.psf_fwhm)) + 4
    room = np.zeros(coadd.image.shape, dtype=bool)
    room[margin:-margin, margin:-margin] = True
    return room & (figures.clean if noise_only else figures.empty)


_field: Field | None = None


def _open_field(spec: FieldSpec, n_threads: int) -> None:
    """Begin a worker."""
    global _field
    torch.set_num_threads(n_threads)
    logging.getLogger("lsst").setLevel(logging.WARNING)
    _field = Field(spec)


def _work(job: tuple[int, int, bool], settings: EvaluationSettings) -> PatchResult:
    assert _field is not None, "The worker was not begun."
    index, number, noise_only = job
    return evaluate_patch(_field, index, settings, number=number, noise_only=noise_only)


def evaluate(
    spec: FieldSpec,
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    n_jobs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[PatchResult]:
    """Evaluate all patches of a field.

    Parameters
    ----------
    spec : `FieldSpec`
        Which patches.
    settings : `EvaluationSettings`, optional
        How to evaluate them.
    n_jobs : `int`, optional
        Number of processes.
    progress : `~collections.abc.Callable`, optional
        Called with a line of text after each round of a patch.

    Returns
    -------
    results : `list` [`PatchResult`]
        One for each round of each patch, in no particular order.

    Raises
    ------
    FieldError
        If there is no patch to evaluate.
    """
    field = Field(spec)
    rounds = [(n, False) for n in range(settings.n_rounds)] + [
        (n, True) for n in range(settings.n_noise_rounds)
    ]
    jobs = [(index, *which) for which in rounds for index in range(len(field))]
    results = []
    for result in _run(spec, settings, jobs, n_jobs):
        results.append(result)
        if progress is not None:
            kind = "noise" if result.noise_only else "data"
            n = len(result.images[0].sources)
            progress(f"{len(results)} of {len(jobs)}: {result.patch}, {n} sources in {kind}")
    return results


def _run(
    spec: FieldSpec, settings: EvaluationSettings, jobs: list[tuple[int, int, bool]], n_jobs: int
) -> Iterator[PatchResult]:
    if n_jobs == 1:
        _open_field(spec, settings.n_threads)
        yield from (_work(job, settings) for job in jobs)
        return
    # A fork of a process that has used torch or CUDA may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        n_jobs, mp_context=context, initializer=_open_field, initargs=(spec, settings.n_threads)
    ) as pool:
        for future in as_completed([pool.submit(_work, job, settings) for job in jobs]):
            yield future.result()
