# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Native geometry and a finer grid from a repository to a repository."""

from __future__ import annotations

import subprocess
from importlib import resources
from pathlib import Path

import astropy.units as u
import galsim
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from scipy.ndimage import binary_dilation

from lsst.daf.butler import Butler
from lsst.images import Box
from lsst.latent_coadds.cli._pipetask import find_executable
from lsst.latent_coadds.simulation import (
    CALEXP_RUN,
    SceneSettings,
    draw_sources,
    make_catalog,
    plan_pointings,
    simulate,
)
from lsst.latent_coadds.tests import MockRepository
from lsst.latent_coadds.tests._mock import MockVisits

CENTER = SkyCoord(150.0 * u.deg, 2.0 * u.deg)
STARS = ((4.0, 1.0, 5000.0), (-5.1, -3.3, 2000.0))
NATIVE = {"geometry": "native", "oversampling": "2", "device": "cpu"}


def test_pipeline_writes_the_finer_grid(tmp_path: Path) -> None:
    repository = MockRepository(tmp_path / "repo", n_patches=2, size=48, border=8)
    visits = MockVisits(n_visits=3, stars=STARS)
    repository.add(visits.make(visit) for visit in range(3))
    done = repository.run(config=NATIVE | {"restorer.name": "direct"})
    assert done.returncode == 0, done.stdout
    butler = Butler.from_config(tmp_path / "repo")
    coadds = [butler.get(ref) for _, ref in sorted(repository.find().items())]
    n_images = [butler.get(ref) for _, ref in sorted(repository.find("latent_coadd_n_image").items())]
    assert len(coadds) == 2
    tract = repository.geometry.tracts[0]
    for number, (coadd, n_image) in enumerate(zip(coadds, n_images, strict=True)):
        coarse = tract.patches[number].outer_bbox
        assert (
            coadd.bbox
            == Box.factory[2 * coarse.y.start : 2 * coarse.y.stop, 2 * coarse.x.start : 2 * coarse.x.stop]
        )
        assert n_image.bbox == coadd.bbox
        assert coadd.grid.bbox == coadd.bbox
        assert sorted(set(coadd.provenance.inputs["visit"])) == [0, 1, 2]
    # Their pixels are those of one grid.
    shared = coadds[0].bbox.intersection(coadds[1].bbox)
    assert shared.x.size == 32
    halves = [coadd.image.array[shared.slice_within(coadd.bbox)] for coadd in coadds]
    assert np.nanmax(np.abs(halves[0] - halves[1])) < 1e-3
    for (east, north, flux), coadd in zip(STARS, coadds, strict=True):
        sky = CENTER.spherical_offsets_by(east * u.arcsec, north * u.arcsec)
        found = coadd.sky_projection.sky_to_pixel(sky)
        rows = np.arange(coadd.bbox.y.start, coadd.bbox.y.stop)[:, None] - float(found.y)
        columns = np.arange(coadd.bbox.x.start, coadd.bbox.x.stop)[None, :] - float(found.x)
        image = np.where(np.hypot(rows, columns) < 16, np.nan_to_num(coadd.image.array), 0.0)
        assert image.sum() == pytest.approx(flux, rel=0.03)
        assert (image * columns).sum() / image.sum() == pytest.approx(0.0, abs=0.3)
        assert (image * rows).sum() / image.sum() == pytest.approx(0.0, abs=0.3)


def test_oversampling_that_does_not_fit_says_so(tmp_path: Path) -> None:
    repository = MockRepository(tmp_path / "repo", size=49, border=0)
    repository.add([MockVisits(stars=STARS).make(0)])
    done = repository.run(config={"oversampling": "3/2", "restorer.name": "direct", "device": "cpu"})
    assert done.returncode != 0
    assert "Oversampling by 3/2 does not fit patch 0" in done.stdout


SCENE = SceneSettings(
    seed=3,
    n_visits=4,
    n_detectors=2,
    detector_size=(110, 200),
    chip_gap=14,
    n_x=1,
    inner_size=150,
    border=6,
    dither=2.0,
    rotation=20.0,
    seeing=(0.45, 0.7),
    psf_variation=0.02,
    bright_stars=(),
)


def test_psf_of_the_scene_varies() -> None:
    width, height = SCENE.detector_size
    changes = []
    for pointing in plan_pointings(SCENE):
        for detector in range(2):
            field = pointing.psf(SCENE, detector)
            widths = [field.profile(x, y).calculateFWHM() for x in (0, width / 2, width) for y in (0, height)]
            changes.append(max(widths) / min(widths) - 1)
    assert 0.05 < np.median(changes) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("oversampling", [1, 2])
def test_rotated_detectors_with_varying_psfs_and_gaps(tmp_path: Path, oversampling: int) -> None:
    simulate(tmp_path, SCENE, progress=False)
    pipeline = resources.files("lsst.latent_coadds") / "resources" / "pipelines" / "latent_coadd.yaml"
    error = {}
    for method in ("direct", "imagemm"):
        options = {
            "geometry": "native",
            "oversampling": oversampling,
            "psf_degree": 3,
            "restorer.name": method,
        }
        command = [find_executable("pipetask"), "run", "-b", str(tmp_path / "repo"), "-p", str(pipeline)]
        command += ["-i", f"{CALEXP_RUN},skymaps", "-o", f"LatentSim/{method}", "--register-dataset-types"]
        command += ["-d", f"skymap='{SCENE.skymap}' AND tract=0 AND band='i'"]
        for name, value in options.items():
            command += ["-c", f"buildLatentCoadd:{name}={value}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        butler = Butler.from_config(tmp_path / "repo")
        coadd = butler.get(
            "latent_coadd",
            skymap=SCENE.skymap,
            tract=0,
            patch=0,
            band="i",
            collections=f"LatentSim/{method}",
        )
        metrics = butler.get(
            "latent_coadd_metrics",
            skymap=SCENE.skymap,
            tract=0,
            patch=0,
            band="i",
            collections=f"LatentSim/{method}",
        )
        assert metrics["psf_error"] < 1.5e-3
        n_image = coadd.mask.get("NO_DATA")
        assert n_image.mean() < 0.05
        # The gap between the detectors is there in some exposures.
        assert coadd.mask.get("SENSOR_EDGE").any()
        truth = _draw(coadd)
        spoilt = coadd.mask.get("NO_DATA") | coadd.mask.get("SATURATED")
        clean = ~binary_dilation(spoilt, iterations=12 * oversampling)
        edge = 10 * oversampling
        clean[:edge] = clean[-edge:] = clean[:, :edge] = clean[:, -edge:] = False
        difference = (coadd.image.array - truth)[clean]
        error[method] = np.std(difference)
        if method == "imagemm":
            assert abs(difference.sum()) < 0.05 * truth[clean].sum()
            for figures in metrics["visits"].values():
                assert figures["chi2"] == pytest.approx(1.0, abs=0.12)
    assert error["imagemm"] < 0.5 * error["direct"]


def _draw(coadd: object) -> np.ndarray:
    """Draw the truth on the pixels of a coadd."""
    target = galsim.Gaussian(fwhm=SCENE.target_fwhm)
    wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
    return draw_sources(
        make_catalog(SCENE),
        wcs,
        tuple(coadd.bbox.shape),
        lambda x, y: target,
        integrate_pixels=False,
        noise=0.1,
    )
