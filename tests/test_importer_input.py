# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the importer makes of files, headers and manifests, good and bad."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from lsst.latent_coadds.importer import (
    BadExposureError,
    ImportSettings,
    ManifestError,
    PixelSource,
    constant_areas,
    read_exposure,
    read_manifest,
    specs_from_files,
)
from lsst.latent_coadds.tests._plain_scene import PlainScene

SCENE = PlainScene()
SHAPE = (SCENE.size, SCENE.size)


@pytest.fixture(scope="module")
def drawn():
    return SCENE.draw()[0]


@pytest.fixture
def write(tmp_path, drawn):
    """Return a function that writes a file, with the header or HDUs changed."""

    def write(name="a.fits", data=None, drop=(), hdus=(), **cards):
        header = SCENE.header()
        for keyword in drop:
            header.remove(keyword, remove_all=True, ignore_missing=True)
        header.update(cards)
        primary = fits.PrimaryHDU(drawn if data is None else data, header)
        path = tmp_path / name
        fits.HDUList([primary, *hdus]).writeto(path, overwrite=True)
        return path

    return write


def read(path, **options):
    return read_exposure(specs_from_files([path], options)[0])


def test_plain_file(write, drawn):
    exposure = read(write())
    np.testing.assert_array_equal(exposure.image, drawn)
    assert exposure.name == "a"
    assert exposure.variance is None
    assert not exposure.has_mask
    assert not exposure.bad.any()
    assert (exposure.gain, exposure.read_noise, exposure.sky) == (2.0, 5.0, 200.0)
    # The usual keyword counts the sky, which was subtracted.
    assert exposure.saturation == 60000.0 - 200.0
    assert read(write(), saturation="SATURATE").saturation == 60000.0
    assert exposure.zero_point is None
    identity = exposure.identity
    assert identity.begin.isot == "2020-01-02T03:04:05.000"
    assert identity.visit == 20200102 * 100000 + 3 * 3600 + 4 * 60 + 5
    assert (identity.physical_filter, identity.band, identity.exposure_time) == ("r", "r", 30.0)


def test_planes_in_extensions_and_other_files(write, tmp_path):
    mask = np.zeros(SHAPE, dtype=np.int16)
    mask[3, 4], mask[5, 6], mask[7, 8] = 1, 2, 4
    weight = np.full(SHAPE, 0.25)
    weight[9, 10] = 0.0
    path = write(hdus=[fits.ImageHDU(mask, name="MASK")])
    fits.PrimaryHDU(weight).writeto(tmp_path / "a.weight.fits")
    exposure = read(
        path,
        mask="MASK",
        weight="{dir}/{stem}.weight.fits",
        mask_bits={"SATURATED": 1, "BAD": [0, 2]},
        zero_point=27.0,
    )
    assert exposure.has_mask
    assert exposure.mask["SATURATED"][5, 6]
    assert exposure.mask["SATURATED"].sum() == 1
    assert exposure.mask["BAD"][3, 4]
    assert exposure.mask["BAD"][7, 8]
    assert exposure.mask["BAD"][9, 10]
    assert np.all(exposure.variance == 4.0)
    assert exposure.zero_point == 27.0


def test_pixels_without_a_value_have_no_data(write, drawn):
    data = drawn.copy()
    data[2, 3] = np.nan
    exposure = read(write(data=data))
    assert exposure.mask["NO_DATA"].sum() == 1
    assert exposure.image[2, 3] == 0.0


def test_first_image_extension_inherits_the_primary_header(tmp_path, drawn):
    primary = fits.PrimaryHDU(header=SCENE.header())
    path = tmp_path / "mef.fits"
    wcs = SCENE.wcs().to_header()
    fits.HDUList([primary, fits.ImageHDU(drawn, wcs, name="SCI")]).writeto(path)
    assert read(path).gain == 2.0
    assert read(path, image="SCI").image.shape == SHAPE


def test_headers_that_lie_are_overridden(write):
    path = write(EXP_BN="c4d_180804_092331_ooi_i_v1")
    exposure = read(path, date="EXP_BN", date_format="c4d_%y%m%d_%H%M%S")
    assert exposure.identity.begin.isot == "2018-08-04T09:23:31.000"
    exposure = read(path, set={"DATE-OBS": "2021-02-03T00:00:00", "GAIN": 7.0}, visit=12, detector=3)
    assert exposure.identity.begin.isot == "2021-02-03T00:00:00.000"
    assert (exposure.identity.visit, exposure.identity.detector, exposure.gain) == (12, 3, 7.0)
    assert read(path, date=59000.5).identity.begin.mjd == 59000.5


def test_wcs_from_another_file(write):
    other = write("b.fits", CRVAL1=10.0)
    exposure = read(write(drop=("CTYPE1", "CTYPE2")), wcs=str(other.resolve()))
    assert exposure.wcs.wcs.crval[0] == 10.0


BAD = [
    pytest.param({"drop": ("CTYPE1", "CTYPE2")}, {}, "no celestial WCS", id="no WCS"),
    pytest.param({"data": np.zeros((3, 8, 8))}, {}, "two-dimensional", id="three-dimensional"),
    pytest.param({"data": np.full(SHAPE, np.nan)}, {}, "no finite pixel", id="all NaN"),
    pytest.param({"drop": ("DATE-OBS",)}, {}, "DATE-OBS", id="no date"),
    pytest.param({"DATE-OBS": "yesterday"}, {}, "no date", id="bad date"),
    pytest.param({"drop": ("FILTER",)}, {}, "no FILTER", id="no filter"),
    pytest.param({"FILTER": "clear"}, {}, "no band", id="no band"),
    pytest.param({}, {"gain": "EGAINX"}, "no keyword 'EGAINX'", id="missing keyword"),
    pytest.param({"GAIN": "high"}, {}, "must be a number", id="keyword without a number"),
    pytest.param({}, {"visit": "RUNID"}, "neither a number nor a keyword", id="bad visit"),
    pytest.param({}, {"mask": 3}, "no HDU 3 for the mask", id="no such HDU"),
    pytest.param({}, {"mask": "absent.fits"}, "cannot be read", id="no such file"),
    pytest.param(
        {"hdus": [fits.ImageHDU(np.zeros((5, 5)))]}, {"mask": 1}, "must have the same pixels", id="shape"
    ),
    pytest.param(
        {"hdus": [fits.ImageHDU(np.zeros(SHAPE))]}, {"variance": 1}, "positive nowhere", id="no variance"
    ),
    pytest.param(
        {"hdus": [fits.ImageHDU(np.zeros(SHAPE))]},
        {"mask": 1, "mask_bits": {"BAD": [0]}},
        "integer mask",
        id="mask of floats",
    ),
]


@pytest.mark.parametrize(("file", "options", "message"), BAD)
def test_bad_exposures_name_themselves_and_the_remedy(write, file, options, message):
    with pytest.raises(BadExposureError, match=message) as caught:
        read(write("poor.fits", **file), **options)
    assert str(caught.value).startswith("poor: ")


def test_file_that_is_not_fits(tmp_path):
    path = tmp_path / "text.fits"
    path.write_text("hello")
    with pytest.raises(BadExposureError, match="cannot be read as FITS"):
        read(path)


def test_sources(tmp_path):
    image = tmp_path / "x.fits.fz"
    assert PixelSource.parse("2", image, tmp_path) == PixelSource(image, 2)
    assert PixelSource.parse("WHT", image, tmp_path) == PixelSource(image, "WHT")
    assert PixelSource.parse("[WHT]", image, tmp_path) == PixelSource(image, "WHT")
    assert PixelSource.parse("w/{stem}.fits[1]", image, tmp_path) == PixelSource(tmp_path / "w/x.fits", 1)


def test_manifest(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(
        "settings: {instrument: Cam, flux_scale: off}\n"
        "defaults: {band: r, gain: 3, set: {A: 1, B: 1}}\n"
        "exposures:\n"
        "  - one.fits\n"
        "  - {file: two.fits, gain: 5, set: {B: 2}, name: second}\n"
    )
    settings, (one, two) = read_manifest(path, {"band": "g"})
    assert ImportSettings.from_mapping(settings).flux_scale == "off"
    assert ImportSettings.from_mapping(settings).run == "Cam/calexps"
    assert one.file == tmp_path / "one.fits"
    assert (one.name, two.name) == ("one", "second")
    assert (one.gain, two.gain, one.band) == (3, 5, "g")
    assert two.set == {"A": 1, "B": 2}
    assert read_manifest(path, base="/data")[1][0].file.as_posix() == "/data/one.fits"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "list 'exposures'"),
        ("exposures: [{fiel: a.fits}]", "unknown keys \\['fiel'\\]"),
        ("exposures: [{name: a}]", "no 'file'"),
        ("{exposures: [], default: {}}", "unknown keys \\['default'\\]"),
        ("exposures: [", "cannot be read"),
    ],
)
def test_bad_manifests(tmp_path, text, message):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(path)


def test_bad_settings():
    with pytest.raises(ManifestError, match="Unknown settings"):
        ImportSettings.from_mapping({"instrment": "x"})
    with pytest.raises(ManifestError, match="use one of apply, report, off"):
        ImportSettings(flux_scale="maybe")


def test_padding_is_no_data(write, drawn):
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    outside = columns < 30 + rows // 8
    padded = np.where(outside, 0.0, drawn)
    np.testing.assert_array_equal(read(write(data=padded)).mask["NO_DATA"], outside)
    # Ties of whole counts are no padding, and what has a mask is taken at its word.
    assert not constant_areas(np.round(drawn)).any()
    mask = np.zeros(SHAPE, dtype=np.uint8)
    assert not read(write(data=padded, hdus=[fits.ImageHDU(mask, name="MASK")]), mask="MASK").bad.any()


@pytest.mark.parametrize("value", ["nan", "inf", float("nan")])
def test_zero_point_must_be_finite(write, value):
    with pytest.raises(BadExposureError, match="a: zero_point is .* must be finite"):
        read(write(), zero_point=value)
    with pytest.raises(BadExposureError, match="zero_point is nan .MAGZP.; it must be finite"):
        read(write(MAGZP="NaN"), zero_point="MAGZP")


def test_negative_numbers_are_refused(write):
    with pytest.raises(BadExposureError, match="exposure time is -1.0"):
        read(write(EXPTIME=-1.0))
    with pytest.raises(BadExposureError, match="detector is -3"):
        read(write(), detector=-3)


def test_star_of_a_stamp_must_be_in_the_middle(write):
    y, x = np.mgrid[-12:13, -12:13]
    stamp = np.exp(-0.5 * ((x - 1.0) ** 2 + (y + 0.6) ** 2) / 1.8**2)
    with pytest.raises(BadExposureError, match=r"a.fits\[PSF\].*\(\+1.00, -0.60\) pixels off the middle"):
        read(write(hdus=[fits.ImageHDU(stamp, name="PSF")]), psf="PSF")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings: [mesh]\nexposures: [a.fits]", "settings is .* must be a mapping"),
        ("defaults: 3\nexposures: [a.fits]", "defaults is 3; it must be a mapping"),
        ("exposures: [3]", "exposure 0 is 3; it must be a mapping"),
        ("exposures: [{file: 3}]", "exposure 0: file is 3; it must be text"),
        ("exposures: [{file: a.fits, set: [1]}]", "exposure 0: set is .* must be a mapping"),
        ("exposures: [{file: a.fits, gain: [1]}]", "exposure 0: gain is .* must be a number or text"),
        ("exposures: [{file: a.fits, mask_bits: {BAD: -1}}]", "bit numbers from 0 to 62"),
        ("exposures: [{file: a.fits, mask_bits: 7}]", "mask_bits is 7; it must be a mapping"),
    ],
)
def test_wrong_types_in_a_manifest(tmp_path, text, message):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(path)


def test_empty_entries_of_a_manifest(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("settings:\ndefaults: {set: }\nexposures: [{file: a.fits, set: , mask_bits: }]\n")
    settings, (spec,) = read_manifest(path)
    assert (settings, spec.set, spec.mask_bits) == ({}, {}, {})


@pytest.mark.parametrize(
    "values",
    [
        {"mesh": 0},
        {"mesh": "64"},
        {"patch_size": 0},
        {"border": -5},
        {"pixel_scale": 0},
        {"nominal_zero_point": float("nan")},
        {"min_stars": 1.5},
        {"instrument": 3},
        {"replace": "yes"},
        {"background": ["mesh"]},
    ],
)
def test_settings_out_of_range(values):
    with pytest.raises(ManifestError, match=f"{next(iter(values))} is .*; (it must be|use) "):
        ImportSettings.from_mapping(values)
