# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""PSFs, scales, shifts and backgrounds that are wrong, and what calibration makes of them.

One table per kind of error, one command::

    python benchmarks/blind.py --seeds 3 --figure doc/images/blind.png
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import galsim
import measure
import numpy as np
import torch
from measure import Result
from scenes import SCALE, STAMP, Scene, SceneMaker

from lsst.latent_coadds.qa import format_table
from lsst.latent_coadds.restoration import (
    ExposureCalibration,
    ExposureStack,
    calibrate_exposures,
    evaluate_psf_basis,
    fit_psf_basis,
    restore,
)

LEVELS = (20, 50, 100, 300, 1000)
"""Signal-to-noise ratios of the stars."""

KINDS = {
    "none": "the PSFs are right",
    "random": "FWHM of each exposure off by +10 % or -10 %, ellipticity by 0.03 in any direction",
    "wide": "FWHM of all exposures 10 % too large, ellipticity off by 0.03 in one direction",
    "narrow": "FWHM of all exposures 10 % too small, ellipticity off by 0.03 in one direction",
    "profile": "PSFs are said to have Gaussian cores and weak wings (Moffat with beta 8), of the right FWHM",
    "galaxies": "as 'wide', and two of three sources are galaxies",
    "few": "as 'random', and two of three sources are galaxies, which are elliptical",
    "gradient": "FWHM off by what runs from -10 % to +10 % across the field, in any direction per exposure",
    "slope": "the same, in one direction for all exposures",
    "strong": "PSFs are said to have too strong wings (Moffat with beta 2.2), of the right FWHM",
    "double": "PSFs have an aureole of 8 % of the light, 2.5 times as wide, which they are said to lack",
    "varying": "as 'random', and sizes change by 10 % across the field",
    "nuisance": "PSFs are right; fluxes off by 3 %, shifts of 0.15 px, backgrounds of 0.1 sigma (rms)",
}


class BlindScene(SceneMaker):
    """A scene whose exposures differ from what is said about them.

    Parameters
    ----------
    seed : `int`
        Seed of everything.
    size : `int`
        Width in pixels.
    n_exposures : `int`
        Number of exposures.
    kind : `str`
        A key of ``KINDS``.
    """

    def __init__(self, seed: int, *, size: int, n_exposures: int, kind: str) -> None:
        super().__init__(seed, size=size, n_exposures=n_exposures)
        self.kind, self.seed = kind, seed
        rng = np.random.default_rng(seed + 7000)
        self.levels, self.shifts = np.zeros(self.n), np.zeros((self.n, 2))
        if kind == "nuisance":
            self.scale = np.exp(rng.normal(0.0, 0.03, self.n))
            self.shifts = rng.normal(0.0, 0.15, (self.n, 2))
            self.levels = rng.normal(0.0, 0.1, self.n) * self.sigma
        self.slopes = rng.uniform(-0.05, 0.05, (self.n, 2)) if kind == "varying" else np.zeros((self.n, 2))
        common = kind in ("wide", "narrow", "galaxies")
        angle = rng.uniform(0, 2 * np.pi, 1 if common else self.n) * np.ones(self.n)
        sign = {"wide": 1.0, "galaxies": 1.0, "narrow": -1.0}.get(kind, 0.0) * np.ones(self.n)
        if kind in ("random", "varying", "few"):
            sign = rng.choice([-1.0, 1.0], self.n)
        self.stretch = 1.0 + 0.1 * sign
        self.shear = 0.03 * np.abs(np.sign(sign))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        angle = rng.uniform(0, 2 * np.pi, 1 if kind == "slope" else self.n) * np.ones(self.n)
        tilted = kind in ("gradient", "slope")
        self.tilt = 0.1 * tilted * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        source_rng = np.random.default_rng(seed + 8000)
        self.rng = source_rng
        self.sources = self.stars(self.grid(36.0), LEVELS)

    def true_psf(self, t: int, x: float, y: float) -> galsim.GSObject:
        """Return the PSF of an exposure at a pixel."""
        psf = self.psfs[t].dilate(float(np.exp(self.slopes[t] @ self.in_field(x, y))))
        return 0.92 * psf + 0.08 * psf.dilate(2.5) if self.kind == "double" else psf

    def in_field(self, x: float, y: float) -> tuple[float, float]:
        """Return a place in the field, from -1 to 1."""
        return 2.0 * x / (self.size - 1) - 1.0, 2.0 * y / (self.size - 1) - 1.0

    def told_psf(self, t: int, x: float, y: float) -> galsim.GSObject:
        """Return what is said about it."""
        if self.kind in ("profile", "strong"):
            beta = 8.0 if self.kind == "profile" else 2.2
            return galsim.Moffat(beta=beta, fwhm=self.psfs[t].original.fwhm).transform(
                *self.psfs[t].jac.flatten()
            )
        psf = self.psfs[t] if self.kind == "double" else self.true_psf(t, x, y)
        psf = psf.dilate(self.stretch[t] * float(np.exp(self.tilt[t] @ self.in_field(x, y))))
        return psf.shear(e1=self.shear[t, 0], e2=self.shear[t, 1])

    def make(self) -> Scene:
        """Draw the exposures."""
        n_stars = len(self.sources)
        mixed = self.kind in ("galaxies", "few")
        is_galaxy = np.arange(n_stars) % 3 > 0 if mixed else np.zeros(n_stars, dtype=bool)
        galaxies = [
            (x, y, galsim.Exponential(half_light_radius=self.rng.uniform(0.1, 0.4), flux=flux))
            for x, y, _, flux in self.sources[is_galaxy]
        ]
        if self.kind == "few":
            shears = np.random.default_rng(self.seed + 9000).uniform(-0.3, 0.3, (len(galaxies), 2))
            galaxies = [
                (x, y, galaxy.shear(e1=e1, e2=e2))
                for (x, y, galaxy), (e1, e2) in zip(galaxies, shears, strict=True)
            ]
        self.profiles: list[tuple[float | galsim.GSObject, bool]] = [
            *((float(flux), False) for flux in self.sources[~is_galaxy, 3]),
            *((galaxy, True) for _, _, galaxy in galaxies),
        ]
        scene = self.draw(self.sources[~is_galaxy], galaxies, n_rays=4)
        return dataclasses.replace(scene, image=scene.image + self.levels[:, None, None])

    def _draw_one(
        self, t: int, stars: np.ndarray, galaxies: Sequence[tuple[float, float, galsim.GSObject]]
    ) -> np.ndarray:
        plane = galsim.ImageD(self.size, self.size, scale=SCALE)
        for x, y, source in [*((x, y, f) for x, y, _, f in stars), *galaxies]:
            psf = self.true_psf(t, x, y)
            psf = psf.withFlux(self.scale[t] / _stamp(psf).sum())
            profile = psf.withScaledFlux(source) if np.isscalar(source) else galsim.Convolve(source, psf)
            self._add(plane, profile, x + self.shifts[t, 0], y + self.shifts[t, 1])
        return plane.array

    def ellipticity_bounds(self) -> tuple[float, float]:
        """Return Cramer-Rao errors (rms of the modulus) of ellipticities, from stars and from all sources.

        Places and fluxes of stars cost nothing, by symmetry; what shapes of
        galaxies cost is neglected.
        """
        bounds = []
        for galaxies in (False, True):
            squares = []
            for t in range(self.n):
                information = np.zeros(2)
                for source, is_galaxy in self.profiles:
                    if galaxies or not is_galaxy:
                        information += self._shear_information(t, source)
                squares.append((1.0 / information).sum())
            bounds.append(float(np.sqrt(np.mean(squares))))
        return bounds[0], bounds[1]

    def _shear_information(self, t: int, source: float | galsim.GSObject, step: float = 0.01) -> np.ndarray:
        """Return the inverse variances of both components that a source alone would leave."""
        stamps = []
        for e1, e2 in ((step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step)):
            psf = self.psfs[t].shear(e1=e1, e2=e2)
            profile = psf.withFlux(source) if np.isscalar(source) else galsim.Convolve(source, psf)
            stamps.append(_stamp(profile))
        changes = np.stack([stamps[0] - stamps[1], stamps[2] - stamps[3]]) / (2.0 * step)
        return (changes**2).sum(axis=(1, 2)) / self.sigma[t] ** 2

    def basis(self, told: bool) -> np.ndarray:
        """Return the PSFs (T, k, k), or (T, J, k, k) where they vary."""
        psf = self.told_psf if told else self.true_psf
        middle = 0.5 * (self.size - 1)
        if self.kind not in ("varying", "gradient", "slope"):
            return np.stack([_normalised(psf(t, middle, middle)) for t in range(self.n)])
        x, y = (a.reshape(-1) for a in np.meshgrid(*(np.linspace(0, self.size - 1, 4),) * 2))
        u, v = x / middle - 1.0, y / middle - 1.0
        bases = []
        for t in range(self.n):
            stamps = np.stack([_normalised(psf(t, *place)) for place in zip(x, y, strict=True)])
            bases.append(fit_psf_basis(stamps, u, v, degree=2, tolerance=0.0)[0])
        return np.stack(bases)


def _stamp(psf: galsim.GSObject) -> np.ndarray:
    return psf.drawImage(nx=STAMP, ny=STAMP, scale=SCALE).array.astype(float)


def _normalised(psf: galsim.GSObject) -> np.ndarray:
    stamp = _stamp(psf)
    return stamp / stamp.sum()


def shape_errors(psf: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return errors (n, 2) of the FWHM, relative, and of the ellipticity, by adaptive moments.

    For all exposures; at nine places where one of the two varies.
    """
    line = np.linspace(-1.0, 1.0, 3) if 4 in (psf.ndim, truth.ndim) else np.zeros(1)
    u, v = (plane.reshape(-1) for plane in np.meshgrid(line, line))
    rows = []
    for bases in (psf, truth):
        bases = bases if bases.ndim == 4 else bases[:, None]
        stamps = [stamp for basis in bases for stamp in evaluate_psf_basis(basis, u, v)]
        found = [galsim.hsm.FindAdaptiveMom(galsim.ImageD(np.ascontiguousarray(p))) for p in stamps]
        rows.append([(m.moments_sigma, m.observed_shape.e1, m.observed_shape.e2) for m in found])
    one, other = np.array(rows)
    return np.stack([one[:, 0] / other[:, 0] - 1.0, np.hypot(*(one - other)[:, 1:].T)], axis=1)


@dataclasses.dataclass
class Outcome:
    """What one set of PSFs makes of a scene."""

    stars: np.ndarray
    excess: float
    shapes: np.ndarray
    image: np.ndarray


def judge(
    stack: ExposureStack,
    calibration: ExposureCalibration,
    scene: Scene,
    held: np.ndarray,
    truth: np.ndarray,
    method: str,
) -> Outcome:
    """Restore calibrated exposures; ``excess`` is their loss on held-out pixels."""
    corrected = calibration.apply(stack)
    restoration = restore(corrected, method, n_realizations=1)
    total = 0.0
    for t in range(stack.n_exposures):
        scale, level = float(calibration.flux_scale[t]), float(calibration.background[t])
        model = scale * restoration.model(t).numpy() + level
        size = np.abs((scene.image[t] - model) / scene.sigma[t])[held[t]]
        total += np.where(size < 3.0, 0.5 * size**2, 3.0 * (size - 1.5)).sum()
    psf = corrected.psf.double().numpy()
    table = measure.measure_stars(Result.from_restoration(restoration, 0.0), scene)
    return Outcome(table, total / held.sum(), shape_errors(psf, truth), restoration.image.numpy())


def run(kind: str, seed: int, arguments: argparse.Namespace) -> tuple[dict[str, Outcome], dict[str, float]]:
    """Restore with what is said, with what is learned, and with the truth."""
    maker = BlindScene(seed, size=arguments.size, n_exposures=arguments.exposures, kind=kind)
    scene = maker.make()
    held = measure.hold_out(scene, 0.03, seed)
    told, truth = maker.basis(told=True), maker.basis(told=False)
    stack = ExposureStack(scene.image, scene.variance, ~held, told)
    identity = ExposureCalibration.identity(stack.names)
    start = time.process_time()
    learned = calibrate_exposures(stack, device="cpu", kernel_sigma=arguments.kernel_sigma)
    seconds = time.process_time() - start
    right = ExposureStack(scene.image, scene.variance, ~held, truth)
    weights = (stack.exposure_weights().double() / stack.exposure_weights().double().sum()).numpy()
    known = ExposureCalibration.identity(stack.names)
    logarithms = np.log(maker.scale)
    known.parameters[:, 3:5] = torch.from_numpy(maker.shifts - weights @ maker.shifts)
    known.parameters[:, 5] = torch.from_numpy(logarithms - weights @ logarithms)
    known.background[:] = torch.from_numpy(maker.levels - weights @ maker.levels)
    outcomes = {
        name: judge(s, calibration, scene, held, truth, arguments.method)
        for name, s, calibration in (
            ("as told", stack, identity),
            ("learned", stack, learned),
            ("truth", right, known),
        )
    }
    off = (learned.parameters - known.parameters).numpy()
    bounds = maker.ellipticity_bounds()
    figures = {
        "flux_error": learned.flux_error,
        "bound": bounds[0],
        "bound_all": bounds[1],
        "seconds": seconds,
        "sources": learned.n_sources,
        "shift": float(np.sqrt((off[:, 3:5] ** 2).mean())),
        "scale": float(np.sqrt((off[:, 5] ** 2).mean())),
        "background": float(
            np.sqrt((((learned.background - known.background).numpy() / maker.sigma) ** 2).mean())
        ),
    }
    return outcomes, figures


def describe(outcomes: Sequence[dict[str, Outcome]]) -> list[list[str]]:
    """Return the rows of a table, one column per set of PSFs."""
    names = list(outcomes[0])
    shapes = {name: np.concatenate([o[name].shapes for o in outcomes]) for name in names}
    stars = {name: np.concatenate([o[name].stars for o in outcomes]) for name in names}
    rows = [
        ["FWHM of PSFs: mean, rms, largest error, %"]
        + [
            f"{100 * s[:, 0].mean():+.2f} {100 * s[:, 0].std():.2f} {100 * abs(s[:, 0]).max():.2f}"
            for s in shapes.values()
        ],
        ["ellipticity of PSFs: rms, largest error"]
        + [f"{np.sqrt((s[:, 1] ** 2).mean()):.4f} {s[:, 1].max():.4f}" for s in shapes.values()],
    ]
    for level in LEVELS:
        chosen = [s[(s[:, 0] == level) & np.isfinite(s[:, 1])] for s in stars.values()]
        rows.append([f"flux bias at S/N {level}, %", *(_median(100 * s[:, 1]) for s in chosen)])
    truth = stars["truth"]
    for low, high in ((20, 300), (1000, 1000)):
        label = f"S/N {low}" if low == high else f"S/N {low}-{high}"
        within = (truth[:, 0] >= low) & (truth[:, 0] <= high)
        ratios = [100 * ((1 + s[within, 1]) / (1 + truth[within, 1]) - 1) for s in stars.values()]
        rows.append([f"flux over that with the truth, {label}, %", *(_median(r) for r in ratios)])
    chosen = [s[np.isfinite(s[:, 2]) & (s[:, 0] >= 50)] for s in stars.values()]
    rows.append(["FWHM over target, S/N >= 50", *(_median(s[:, 2], "{:.3f}") for s in chosen)])
    deep = [100 * s[np.isfinite(s[:, 5]), 5] for s in stars.values()]
    rows.append(["rings, S/N >= 100: median, largest, % of peak"])
    rows[-1] += [f"{np.median(d):.2f} {d.max():.2f}" for d in deep]
    excess = [np.array([1e4 * (o[name].excess - o["truth"].excess) for o in outcomes]) for name in names]
    rows.append(["held-out loss over that of the truth, 1e-4"])
    rows[-1] += [" ".join(f"{value:+.1f}" for value in values) for values in excess]
    return rows


def _median(values: np.ndarray, form: str = "{:+.2f}") -> str:
    error = 1.2533 * values.std() / np.sqrt(len(values))
    return f"{form} ± {form.replace('+', '')}".format(np.median(values), error)


def draw(outcomes: dict[str, Outcome], scene_sigma: float, path: Path) -> None:
    """Draw what rings there are round the brightest star."""
    from matplotlib.figure import Figure

    stars = outcomes["truth"].stars
    images = {name: outcome.image for name, outcome in outcomes.items()}
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplots(1, len(images))
    for axis, (name, image) in zip(axes, images.items(), strict=True):
        axis.imshow(np.arcsinh(image / scene_sigma), origin="lower", cmap="gray", vmin=-1.5, vmax=5)
        axis.set_title(f"{name} (S/N up to {stars[:, 0].max():.0f})")
        axis.set_axis_off()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Run all kinds of errors and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3, help="number of scenes of each kind")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=256, help="width of the scenes in pixels")
    parser.add_argument("--exposures", type=int, default=8)
    parser.add_argument("--method", default="imagemm", help="restorer")
    parser.add_argument("--kernel-sigma", type=float, default=0.0, help="setting of the calibration")
    parser.add_argument("--figure", type=Path, help="PNG of the first scene of the first kind")
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        outcomes, figures = [], []
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            outcome, figure = run(kind, seed, arguments)
            outcomes.append(outcome)
            figures.append(figure)
        print(f"\n{kind}: {KINDS[kind]}\n")
        print(format_table(["", *outcomes[0]], describe(outcomes)))
        means = {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
        print(
            f"\nerrors of what was learned (rms): shifts {means['shift']:.4f} px, scales "
            f"{100 * means['scale']:.3f} %, backgrounds {means['background']:.4f} sigma; "
            f"{means['sources']:.0f} stars, {means['seconds']:.1f} s of CPU time\n"
            f"error of all fluxes by its own account: {100 * means['flux_error']:.2f} %\n"
            f"Cramer-Rao error (rms) of ellipticities: {means['bound']:.4f} from stars alone, "
            f"{means['bound_all']:.4f} from all sources",
            flush=True,
        )
        if arguments.figure and kind == arguments.kinds[0]:
            draw(outcomes[0], 0.1, arguments.figure)


if __name__ == "__main__":
    main()
