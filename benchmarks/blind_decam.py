# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
r"""Ten DECam exposures, calibrated with the sky and not, side by side.

The exposures are those of doc/real-data.md, imported without the registration
and the flux scales that the import finds::

    sed 's/^settings:/settings:\n  registration: "off"\n  flux_scale: "off"/' \
        doc/decam_i_10epoch.yaml > decam_off.yaml
    latent-coadds import decam_off --manifest decam_off.yaml --base ../shared/data/decam_i_10epoch
    python benchmarks/blind_decam.py decam_off --figure doc/images/blind-decam.png
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

from lsst.daf.butler import Butler
from lsst.latent_coadds.adapters import PatchExposure, PatchGrid, VisitImageReader, stack_tile
from lsst.latent_coadds.qa import aperture_flux, format_table, measure_star, ring_depth
from lsst.latent_coadds.restoration import (
    ExposureCalibration,
    ExposureStack,
    Restoration,
    calibrate_exposures,
    restore,
)

STARS = ((58, 180), (101, 73), (105, 233), (179, 202))
"""Clean stars on the reference. The first moved by a quarter of a pixel between the years."""

BAD = ("BAD", "SATURATED", "NO_DATA", "SUSPECT", "UNMASKED_NAN", "COSMIC_RAY")
RADIUS = 8.0
"""Pixels around stars, but for the one that moves, whose residuals are looked at."""


@dataclasses.dataclass
class Case:
    """A restoration of the exposures."""

    stack: ExposureStack
    calibration: ExposureCalibration
    restoration: Restoration

    def residuals(self) -> np.ndarray:
        """Return residuals (T, H, W) in sigma; NaN where a pixel is not used."""
        planes = []
        for t in range(self.stack.n_exposures):
            r = (self.stack.image[t] - self.restoration.model(t)) / self.stack.variance[t].sqrt()
            planes.append(torch.where(self.stack.good[t], r, torch.nan).numpy())
        return np.stack(planes)


def read_stack(repo: Path) -> tuple[ExposureStack, list[str]]:
    """Return the exposures on the pixels of the patch, and their names in the import."""
    butler = Butler.from_config(repo)
    geometry = butler.get("sky_map_geometry", skymap="decam_i_10epoch", collections="skymaps")
    patch = PatchGrid.from_sky_map(geometry, skymap="decam_i_10epoch", tract=0, patch=0)
    exposures, names = [], []
    with butler.query() as query:
        refs = list(query.datasets("calexp", "DECam/calexps").with_dimension_records())
    for ref in sorted(refs, key=lambda ref: ref.dataId["visit"]):
        image = butler.get(ref)
        record = ref.dataId.records["visit"]
        data_id = dict(ref.dataId.mapping) | {
            "physical_filter": record.physical_filter,
            "day_obs": record.day_obs,
        }
        reader = VisitImageReader(image, data_id)
        exposures.append(PatchExposure(reader, patch, bad=BAD, saturated=("SATURATED",), margin=0))
        names.append(str(image.metadata["import_name"]))
    tile = stack_tile(exposures, patch.outer_bbox, 0)
    assert tile is not None, "Every exposure covers the patch."
    stack = tile.stack
    # In the order of the table of the import.
    order = np.argsort(names).tolist()
    planes = (plane[order] for plane in (stack.image, stack.variance, stack.good, stack.psf))
    names = [names[i] for i in order]
    return ExposureStack(*planes, names=names), names


def find_stars(stack: ExposureStack) -> list[tuple[int, int]]:
    """Return the pixels of the patch where the stars are brightest in the first exposure."""
    image, found = stack.image[0].numpy(), []
    for x, y in STARS:
        rows, columns = slice(y - 3, y + 12), slice(x - 3, x + 12)
        row, column = np.unravel_index(image[rows, columns].argmax(), (15, 15))
        found.append((x - 3 + int(column), y - 3 + int(row)))
    return found


def widen(stack: ExposureStack, stretch: float) -> ExposureStack:
    """Return exposures whose PSFs are said to be wider by a factor."""
    if stretch == 1.0:
        return stack
    wider = ExposureCalibration.identity(stack.names)
    wider.parameters[:, 0] = np.log(stretch)
    return ExposureStack(stack.image, stack.variance, stack.good, wider.apply(stack).psf, names=stack.names)


def restore_case(stack: ExposureStack, calibration: ExposureCalibration) -> Case:
    """Restore with what a calibration says."""
    corrected = calibration.apply(stack)
    return Case(corrected, calibration, restore(corrected, "imagemm", device="cpu", n_realizations=1))


def exposure_table(cases: dict[str, Case], names: list[str], near: np.ndarray) -> str:
    """Return chi2 of each exposure, everywhere and near the stars, and what was learned."""
    learned = list(cases.values())[-1].calibration
    residuals = {name: case.residuals() for name, case in cases.items()}
    rows = []
    for t, exposure in enumerate(names):
        row = [exposure]
        row += [f"{np.nanmean(r[t] ** 2):.3f}" for r in residuals.values()]
        row += [f"{np.nanmean(r[t][near] ** 2):.2f}" for r in residuals.values()]
        p, e = learned.parameters[t], learned.errors[t]
        row += [
            f"{p[3]:+.3f}, {p[4]:+.3f} ± {e[3]:.3f}",
            f"{float(learned.flux_scale[t]):.4f} ± {e[5]:.4f}",
            f"{100 * p[0]:+.2f} ± {100 * e[0]:.2f}",
            f"{float(torch.hypot(p[1], p[2])):.4f} ± {e[1]:.4f}",
            f"{learned.background[t]:+.2f} ± {learned.background_error[t]:.2f}",
        ]
        rows.append(row)
    header = ["exposure", *(f"chi2: {name}" for name in cases), *(f"near stars: {name}" for name in cases)]
    return format_table([*header, "shift x, y px", "flux scale", "size %", "shear", "background"], rows)


def star_table(cases: dict[str, Case], places: list[tuple[int, int]]) -> str:
    """Return widths, rings and fluxes of stars."""
    rows = []
    for star, (x, y) in zip(STARS, places, strict=True):
        row = [str(star)]
        for case in cases.values():
            image, psf = case.restoration.image.numpy(), case.restoration.psf.numpy()
            shape = measure_star(image, x, y, radius=5.0)
            centre = psf.shape[0] // 2
            target = measure_star(psf, centre, centre, radius=5.0)
            if shape is None or target is None or shape.fwhm > 5.0:
                row.append("not a star")
                continue
            ring = ring_depth(image, shape.x, shape.y, peak=shape.peak, fwhm=shape.fwhm, radius=15.0)
            flux = aperture_flux(image, shape.x, shape.y, 10.0, psf=psf)
            row.append(f"{shape.fwhm / target.fwhm:.3f} {100 * ring.depth:.2f} {flux:.0f}")
        rows.append(row)
    return format_table(["star: FWHM/target, ring % of peak, flux", *cases], rows)


def draw(
    cases: dict[str, Case], names: list[str], path: Path, shown: list[str], star: tuple[int, int]
) -> None:
    """Draw the restored images, one star in them, and residuals of some exposures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * (2 + len(shown)), 3.05 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), 2 + len(shown), squeeze=False)
    x, y = star
    for row, (name, case) in zip(axes, cases.items(), strict=True):
        image = case.restoration.image.numpy()
        sigma = float(case.restoration.variance[torch.isfinite(case.restoration.variance)].median()) ** 0.5
        row[0].imshow(np.arcsinh(image / sigma / 3), origin="lower", cmap="gray", vmin=-0.7, vmax=5)
        row[0].set_title(name)
        stamp = image[y - 16 : y + 17, x - 16 : x + 17]
        row[1].imshow(100 * stamp / stamp.max(), origin="lower", cmap="RdBu_r", vmin=-0.6, vmax=0.6)
        row[1].set_title("a star, ± 0.6 % of its peak")
        residuals = case.residuals()
        for axis, exposure in zip(row[2:], shown, strict=True):
            axis.imshow(residuals[names.index(exposure)], origin="lower", cmap="RdBu_r", vmin=-6, vmax=6)
            axis.set_title(f"residuals of {exposure}, ± 6 sigma")
        for axis in row:
            axis.set_axis_off()
    figure.savefig(path, dpi=70)


def main() -> None:
    """Restore, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("repo", type=Path, help="repository of the import")
    parser.add_argument("--shown", nargs="+", default=["04c", "18c"], help="exposures to draw")
    parser.add_argument("--stretch", type=float, default=1.1, help="factor by which PSFs are made too wide")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    stack, names = read_stack(arguments.repo)
    places = find_stars(stack)
    y, x = np.mgrid[: stack.shape[0], : stack.shape[1]]
    near = np.any([np.hypot(x - px, y - py) < RADIUS for px, py in places[1:]], axis=0)
    cases: dict[str, Case] = {}
    for name, stretch in (("as imported", 1.0), (f"PSFs times {arguments.stretch}", arguments.stretch)):
        told = widen(stack, stretch)
        # Shifts between the years are larger than the default expects.
        learned = calibrate_exposures(told, device="cpu", shift_sigma=0.5, min_stars=3)
        pair = {
            name: restore_case(told, ExposureCalibration.identity(names)),
            f"{name}, calibrated": restore_case(told, learned),
        }
        print(f"\n{name}: {learned.n_sources} sources, reference: {learned.reference}\n")
        print(exposure_table(pair, names, near))
        cases |= pair
    print("\n" + star_table(cases, places))
    if arguments.figure:
        draw(cases, names, arguments.figure, arguments.shown, places[1])


if __name__ == "__main__":
    main()
