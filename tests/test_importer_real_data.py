# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ten DECam exposures beside the project, imported, restored and measured."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.wcs import WCS

from lsst.daf.butler import Butler
from lsst.images import XY
from lsst.latent_coadds.importer import ImportSettings, import_exposures, read_manifest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "decam_i_10epoch"
REFERENCE = {
    # name: seeing in pixels of a Moffat fit, as the data's README has it
    **{"04a": 4.9, "04b": 4.7, "04c": 5.5, "04d": 4.8, "04e": 3.7},
    **{"18a": 3.6, "18b": 3.85, "18c": 3.35, "18d": 3.85, "18e": 3.35},
}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    repo = tmp_path_factory.mktemp("decam") / "repo"
    settings, specs = read_manifest(ROOT / "doc" / "decam_i_10epoch.yaml", base=DATA)
    return repo, import_exposures(repo, specs, ImportSettings.from_mapping(settings))


def test_report(imported):
    _, result = imported
    assert not result.failures
    rows = {row["name"]: row for row in result.report}
    assert set(rows) == set(REFERENCE)
    for name, row in rows.items():
        assert row["fwhm"] == pytest.approx(REFERENCE[name], abs=0.2)
        assert row["psf_chi2"] < 1.2
        assert 0.85 < row["noise_scale"] < 1.05
        assert 0.94 < row["flux_scale"] < 1.06
        assert row["calibration"] == ("reference" if name == "04a" else "applied")
        # Cosmic rays are in these, and not to be found in the others.
        if name in ("04c", "04d", "04e", "18d", "18e"):
            assert 5e-4 < row["cosmic_ray"] < 0.01
        elif name != "18c":
            assert row["cosmic_ray"] < 2e-4
        if name.startswith("18"):
            assert row["dx"] == pytest.approx(-0.53, abs=0.08)
            assert row["dy"] == pytest.approx(-0.24, abs=0.05)
            assert row["date"].startswith("2016-08-18")
        elif name != "04a":
            assert row["dx"] == pytest.approx(-0.1, abs=0.03)
            assert row["date"].startswith("2018-08-04")


def test_stars_agree_on_the_sky(imported):
    """Positions of a star in all exposures, by a centroid of the test's own."""
    repo, _ = imported
    butler = Butler.from_config(repo)
    places = []
    tract = WCS(
        butler.get("sky_map_geometry", skymap="decam_i_10epoch", collections="skymaps")["tracts"]["0"]["wcs"]
    )
    for ref in butler.query_datasets("calexp", "DECam/calexps"):
        exposure = butler.get(ref)
        rows, columns = np.mgrid[64:83, 92:111]
        stamp = np.clip(exposure.image.array[rows, columns], 100.0, None) - 100.0
        x, y = (float(np.sum(v * stamp) / stamp.sum()) for v in (columns, rows))
        places.append(tract.world_to_pixel(exposure.sky_projection.pixel_to_sky(XY(x=x, y=y))))
    scatter = np.std(np.array(places, dtype=float), axis=0)
    assert np.all(scatter < 0.08)


@pytest.mark.slow
def test_restored_stars_keep_the_bounds(imported, capsys, monkeypatch, tmp_path):
    repo, _ = imported
    half = {"all": "", "2016": " AND day_obs < 20170101", "2018": " AND day_obs > 20170101"}
    pipetask = Path(sys.executable).with_name("pipetask")
    for restorer in ("direct", "imagemm"):
        for name, condition in half.items():
            query = f"instrument='DECam' AND skymap='decam_i_10epoch' AND tract=0 AND band='i'{condition}"
            subprocess.run(
                [
                    pipetask,
                    "run",
                    "-b",
                    repo,
                    "-i",
                    "DECam/calexps,skymaps",
                    "-o",
                    f"u/decam/{restorer}/{name}",
                ]
                + ["-p", ROOT / "pipelines" / "latent_coadd.yaml", "--register-dataset-types"]
                + ["-c", f"buildLatentCoadd:restorer.name={restorer}", "-d", query],
                check=True,
            )
    figure = tmp_path / "figure.png"
    monkeypatch.setattr(sys, "argv", ["real_data.py", str(repo), "--figure", str(figure)])
    script = runpy.run_path(str(ROOT / "benchmarks" / "real_data.py"))
    figures = script["measure_repository"](repo)
    for star in figures.stars:
        assert star["latent fwhm"] / star["target"] < 1.15
        assert max(star["latent negative"], star["latent rise"]) < 0.05
        assert star["latent flux"] == pytest.approx(star["plain flux"], rel=0.01)
    script["main"]()
    assert "latent/target" in capsys.readouterr().out
    assert figure.stat().st_size > 10000
