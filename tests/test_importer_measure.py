# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measurements of the importer against scenes that GalSim drew."""

from __future__ import annotations

import galsim
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import fit_wcs_from_points

from lsst.latent_coadds.importer import (
    PsfSettings,
    background_variance,
    cover_exposures,
    detector_variance,
    find_cosmic_rays,
    find_saturated,
    find_sources,
    fit_psf,
    flux_scale,
    kernel_fwhm,
    match_stars,
    measure_stars,
    noise_scale,
    pixel_scale,
    psf_from_stamp,
    registration,
    residual_background,
    select_stars,
    serialisable_wcs,
    shifted_wcs,
)
from lsst.latent_coadds.tests._plain_scene import PlainScene

SCENE = PlainScene()


def truth_kernel(fwhm, size):
    image = galsim.Image(size, size, scale=1.0, dtype=float)
    SCENE.psf(fwhm).drawImage(image)
    return image.array / image.array.sum()


def exposure(**drawing):
    image, hit = SCENE.draw(**drawing)
    variance = detector_variance(image, gain=SCENE.gain, read_noise=SCENE.read_noise, sky=SCENE.sky)
    return image, variance, hit


def fitted(image, variance, bad=None, **settings):
    bad = np.zeros(image.shape, dtype=bool) if bad is None else bad
    sources = find_sources(image, variance, bad)
    stars = sources[select_stars(sources, image.shape)]
    return sources, stars, fit_psf(image, variance, bad, stars, PsfSettings(**settings))


def test_detector_variance_is_the_noise():
    image, variance, _ = exposure()
    use = np.ones(image.shape, dtype=bool)
    assert noise_scale(image, variance, use) == pytest.approx(1.0, abs=0.03)
    assert variance.min() == pytest.approx(SCENE.variance)


def test_background_variance_is_the_noise():
    image, _, _ = exposure()
    variance = background_variance(image, np.ones(image.shape, dtype=bool))
    assert variance[0, 0] == pytest.approx(SCENE.variance, rel=0.08)


def test_variance_without_a_source_of_noise_is_refused():
    with pytest.raises(ValueError, match="sky"):
        detector_variance(np.zeros((4, 4)), gain=2.0)
    with pytest.raises(ValueError, match="gain must be positive"):
        detector_variance(np.zeros((4, 4)), gain=0.0, sky=10.0)
    with pytest.raises(ValueError, match="no scatter"):
        background_variance(np.zeros((20, 20)), np.ones((20, 20), dtype=bool))


@pytest.mark.parametrize("mesh", [None, 40])
def test_background_leaves_sources_out(mesh):
    image, _, _ = exposure(background=37.0)
    background, level = residual_background(image, np.zeros(image.shape, dtype=bool), mesh=mesh)
    noise = np.sqrt(SCENE.variance)
    assert level == pytest.approx(37.0, abs=0.04 * noise)
    assert np.max(np.abs(background - 37.0)) < (0.04 if mesh is None else 0.5) * noise


def test_stars_are_found_and_the_galaxy_is_not_one():
    image, variance, _ = exposure()
    sources = find_sources(image, variance, np.zeros(image.shape, dtype=bool))
    stars = sources[select_stars(sources, image.shape)]
    assert len(stars) == len(SCENE.positions)
    for x, y in SCENE.positions:
        assert np.min(np.hypot(stars["x"] - x, stars["y"] - y)) < 0.1
    assert np.min(np.hypot(sources["x"] - 80.3, sources["y"] - 80.7)) < 1.0


@pytest.mark.parametrize("fwhm", [3.0, 5.0])
@pytest.mark.parametrize("model", ["grid", "moffat"])
def test_psf_is_that_of_the_scene(fwhm, model):
    image, variance, _ = exposure(fwhm=fwhm)
    _, _, fit = fitted(image, variance, model=model)
    truth = truth_kernel(fwhm, fit.stamp_size)
    kernel = fit.kernel(80.0, 80.0)
    assert fit.model == model
    assert kernel.sum() == pytest.approx(1.0)
    assert np.max(np.abs(kernel - truth)) < 0.02 * truth.max()
    assert fit.fwhm == pytest.approx(kernel_fwhm(truth), rel=0.02)
    assert 0.7 < fit.chi2 < 1.3


def test_psf_without_stars_is_refused():
    image, variance, _ = exposure()
    sources = find_sources(image, variance, np.zeros(image.shape, dtype=bool))
    with pytest.raises(ValueError, match="No clean star"):
        fit_psf(image, variance, np.zeros(image.shape, dtype=bool), sources[:0])
    with pytest.raises(ValueError, match="Unknown PSF model"):
        fit_psf(image, variance, np.zeros(image.shape, dtype=bool), sources, PsfSettings(model="x"))


def test_stamp_comes_back_from_its_model():
    # Not symmetric, so that exchanged axes would show.
    stamp = truth_kernel(3.0, 21) * (1.0 + 0.02 * np.arange(21)[None, :])
    fit = psf_from_stamp(5.0 * stamp)
    np.testing.assert_allclose(fit.kernel(3.0, 7.0), stamp / stamp.sum(), atol=1e-12)
    assert fit.stamp_size == 21


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        (np.ones((4, 4)), "odd"),
        (np.ones((3, 5)), "square"),
        (-np.ones((5, 5)), "positive"),
        (np.full((5, 5), np.nan), "finite"),
    ],
)
def test_bad_stamps_are_refused(stamp, message):
    with pytest.raises(ValueError, match=message):
        psf_from_stamp(stamp)


def test_cosmic_rays_are_found_and_stars_are_not():
    image, variance, hit = exposure(rays=12, seed=5)
    bad = np.zeros(image.shape, dtype=bool)
    found = find_cosmic_rays(image, variance, bad, fwhm=4.2)
    rows, columns = np.nonzero(hit)
    distance = np.min(
        np.hypot(columns[:, None] - SCENE.positions[:, 0], rows[:, None] - SCENE.positions[:, 1]), axis=1
    )
    assert found[rows[distance > 6], columns[distance > 6]].mean() > 0.95
    clean, variance, _ = exposure(seed=5)
    assert not find_cosmic_rays(clean, variance, bad, fwhm=4.2).any()


@pytest.mark.parametrize("fwhm", [2.0, 2.6])
def test_sharp_stars_are_not_cosmic_rays(fwhm):
    image, variance, _ = exposure(fwhm=fwhm)
    found = find_cosmic_rays(image, variance, np.zeros(image.shape, dtype=bool), fwhm=fwhm + 0.2)
    rows, columns = np.nonzero(found)
    for x, y in SCENE.positions:
        assert not np.any(np.hypot(columns - x, rows - y) < 3.0)


@pytest.mark.parametrize("x", [-0.4, 0.2, 1.3, 2.2, 3.2, 4.6])
def test_stars_at_the_edge_are_not_cosmic_rays(x):
    image, _, _ = exposure(fwhm=3.5)
    stamp = galsim.Image(image.shape[1], image.shape[0], xmin=0, ymin=0, scale=1.0, dtype=float)
    SCENE.psf(3.5).withFlux(SCENE.flux).drawImage(stamp, center=(x, 57.7))
    image = image + np.random.default_rng(4).poisson(stamp.array * SCENE.gain) / SCENE.gain
    variance = detector_variance(image, gain=SCENE.gain, read_noise=SCENE.read_noise, sky=SCENE.sky)
    found = find_cosmic_rays(image, variance, np.zeros(image.shape, dtype=bool), fwhm=3.7)
    assert not found[45:70, :20].any()


def test_saturated_pixels_are_grown():
    image = np.zeros((9, 9))
    image[4, 4] = 100.0
    assert find_saturated(image, 100.0).sum() == 9
    assert not find_saturated(image, 101.0).any()


def test_flux_scale_and_shift_are_recovered_whatever_the_seeing():
    shift, scale = (0.43, -0.31), 0.93
    reference = exposure(fwhm=3.4, seed=1)
    other = exposure(fwhm=4.8, seed=2, shift=shift, scale=scale)
    tables = []
    for image, variance, _ in (reference, other):
        sources, _, psf = fitted(image, variance)
        bad = np.zeros(image.shape, dtype=bool)
        tables.append(measure_stars(image, variance, bad, sources, psf, SCENE.wcs()))
    pairs = match_stars(*tables, SCENE.wcs(), radius=5.0)
    dx, dy = registration(pairs)
    measured = flux_scale(pairs)
    assert len(pairs) == len(SCENE.positions)
    assert dx.value == pytest.approx(shift[0], abs=0.02)
    assert dy.value == pytest.approx(shift[1], abs=0.02)
    assert measured.value == pytest.approx(1.0 / scale, rel=0.01)
    assert dx.error < 0.02
    assert measured.error < 0.01


def test_no_matches_give_nothing():
    image, variance, _ = exposure()
    sources, _, psf = fitted(image, variance)
    stars = measure_stars(image, variance, np.zeros(image.shape, dtype=bool), sources, psf, SCENE.wcs())
    pairs = match_stars(stars, stars[:0], SCENE.wcs(), radius=5.0)
    assert flux_scale(pairs).n == 0
    assert np.isnan(registration(pairs)[0].value)


def distorted_wcs():
    """SIP, with a bend of a few pixels."""
    plain = SCENE.wcs()
    y, x = (v.ravel().astype(float) for v in np.mgrid[0:160:8, 0:160:8])
    sky = SkyCoord(*plain.all_pix2world(x + 2e-4 * (y - 70) ** 2, y + 1e-4 * (x - 60) ** 2, 0), unit="deg")
    return fit_wcs_from_points((x, y), sky, projection="TAN", sip_degree=3)


def tpv_wcs():
    header = SCENE.wcs().to_header(relax=True)
    for name in [key for key in header if key.startswith(("PC", "CDELT"))]:
        del header[name]
    header.update(CTYPE1="RA---TPV", CTYPE2="DEC--TPV", CD1_1=-5e-5, CD1_2=1e-5, CD2_1=1e-5, CD2_2=5e-5)
    header.update(PV1_0=1e-4, PV1_1=1.01, PV1_4=0.3, PV2_0=-2e-4, PV2_1=0.99, PV2_6=-0.4)
    return WCS(header)


@pytest.mark.parametrize("make", [SCENE.wcs, distorted_wcs, tpv_wcs])
def test_wcs_is_serialised_and_shifted_exactly(make):
    wcs = make()
    kept, error = serialisable_wcs(wcs, (160, 160))
    assert kept is wcs
    assert error < 1e-3
    moved = shifted_wcs(wcs, 0.4, -0.7)
    x, y = np.array([10.0, 90.0, 140.0]), np.array([20.0, 60.0, 150.0])
    px, py = moved.all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
    np.testing.assert_allclose(px, x + 0.4, atol=1e-4)
    np.testing.assert_allclose(py, y - 0.7, atol=1e-4)
    np.testing.assert_allclose(wcs.all_world2pix(*wcs.all_pix2world(x, y, 0), 0)[0], x, atol=1e-4)


def test_unusual_projection_is_approximated():
    wcs = SCENE.wcs()
    wcs.wcs.ctype = ["RA---ZPN", "DEC--ZPN"]
    wcs.wcs.set_pv([(2, 1, 1.0), (2, 3, 40.0)])
    kept, error = serialisable_wcs(wcs, (160, 160))
    x, y = np.array([3.0, 80.0, 150.0]), np.array([5.0, 20.0, 140.0])
    px, py = kept.all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
    assert error < 0.005
    np.testing.assert_allclose(np.hypot(px - x, py - y), 0.0, atol=0.005)


def test_pixel_scale():
    assert pixel_scale(SCENE.wcs(), (160, 160)) == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize("orientation", ["reference", "north"])
def test_tract_covers_the_exposures(orientation):
    first, second = SCENE.wcs(), shifted_wcs(SCENE.wcs(), -75.3, 20.6)
    geometry = cover_exposures(
        "x", [(first, (160, 160)), (second, (160, 160))], patch_size=150, border=10, orientation=orientation
    )
    tract = geometry.tracts[0]
    assert len(tract.patches) == (4 if orientation == "reference" else 6)
    for wcs in (first, second):
        x, y = tract.wcs.all_world2pix(*wcs.all_pix2world([0, 159, 0, 159], [0, 0, 159, 159], 0), 0)
        assert x.min() >= 0
        assert y.min() >= 0
        assert x.max() <= tract.bbox.x.stop - 1
        assert y.max() <= tract.bbox.y.stop - 1
    x, y = tract.wcs.all_world2pix(*first.all_pix2world([10, 100], [10, 60], 0), 0)
    if orientation == "reference":
        # The reference lies on the tract's own pixels.
        np.testing.assert_allclose(np.concatenate([x, y]), np.round([*x, *y]), atol=1e-3)
        np.testing.assert_allclose([x[1] - x[0], y[1] - y[0]], [90, 50], atol=1e-3)
    else:
        assert tract.wcs_header["CD1_2"] == 0.0
    with pytest.raises(ValueError, match="orientation"):
        cover_exposures("x", [(first, (160, 160))], orientation="south")
