# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tiles of one patch agree, whatever their sizes and whatever else is in them."""

from __future__ import annotations

import functools

import galsim
import numpy as np
import pytest
import torch

from lsst.images import Box
from lsst.latent_coadds.adapters import PatchExposure, PixelMapping, stack_tile
from lsst.latent_coadds.repository import MoffatField
from lsst.latent_coadds.restoration import restore
from lsst.latent_coadds.tests._mock import make_mock_patch, make_mock_visit_image, read_mock

SIZE, HALO, GAIN = 160, 36, 50.0

BRIGHT = 80.4, 77.8, 1e5
"""x and y on the patch, and flux of a star with a S/N of 4000."""

BLENDS = (
    ((83.3, 33.6, 400.0), (87.2, 36.0, 150.0)),
    ((128.4, 73.7, 400.0), (133.6, 69.4, 250.0)),
)
"""Stars with a S/N of about 100 and less beside a border: too close to be points, and just apart enough."""

FIRST, SECOND = Box.factory[4:82, 4:150], Box.factory[27:150, 76:155]
"""Tiles with borders four pixels from that star; one of the offsets is odd."""


@functools.cache
def exposures(with_rays: bool, ends: tuple[int, ...] = ()) -> list[PatchExposure]:
    """Rotated detectors, PSFs that vary across each, and rays on borders and elsewhere.

    If two of them end, the first sees only a part of both tiles, and the other nothing of the second one.
    """
    patch = make_mock_patch(SIZE)
    rng = np.random.default_rng(5)
    faint = np.stack(
        [*rng.uniform(0, SIZE, (2, 40)), 30.0 + 40.0 * rng.pareto(1.0, 40).clip(max=100.0)], axis=1
    )
    result = []
    for visit in range(4):
        image = make_mock_visit_image(visit, [], size=360, rotation=40.0 * visit, offset=(0.37 * visit, -0.5))
        field = MoffatField.random(
            np.random.default_rng(visit), image.bbox, fwhm=3.3 + 0.4 * visit, beta=3.0, g=0.02, variation=0.02
        )
        image._psf = field.to_psf(image.bbox, stamp_size=41)
        blank = PatchExposure(read_mock(image, visit), patch, bad=(), saturated=(), margin=HALO)
        start = patch.outer_bbox.x.start, patch.outer_bbox.y.start
        sky = galsim.ImageD(image.image.array.shape[1], image.image.array.shape[0], xmin=0, ymin=0)
        for x, y, flux in (BRIGHT, *(star for pair in BLENDS for star in pair), *faint):
            place = [float(p[0]) for p in blank.mapping(np.array([x + start[0]]), np.array([y + start[1]]))]
            (field.profile(*place) * flux).drawImage(sky, center=galsim.PositionD(*place), add_to_image=True)
        variance = 1.0 + sky.array / GAIN
        image.image.array[:] *= np.sqrt(variance)
        image.image.array[:] += sky.array
        image.variance.array[:] = variance
        for x, y in ((110.0, 80.0), (20.0, 20.0)) if with_rays and visit == 1 else ():
            column, row = (
                round(float(p[0])) for p in blank.mapping(np.array([x + start[0]]), np.array([y + start[1]]))
            )
            for step in range(12):
                image.image.array[row + step, column + step // 2] += 90.0
        if visit in ends:
            rows, columns = np.indices(image.image.array.shape, dtype=float)
            x, y = PixelMapping(patch, read_mock(image, visit)).inverse(columns.ravel(), rows.ravel())
            beyond = (y - start[1] > 62.0) if visit == ends[0] else (x - start[0] > 36.0)
            image.mask.set("NO_DATA", beyond.reshape(rows.shape))
        bad = ("NO_DATA",) if ends else ()
        result.append(PatchExposure(read_mock(image, visit), patch, bad=bad, saturated=(), margin=HALO))
    return result


def restore_tile(
    inner: Box, native: bool, with_rays: bool, n_realizations: int, ends: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray, Box]:
    """Return image and sigma of a tile with its halo, and where that is."""
    tile = stack_tile(exposures(with_rays, ends), inner, HALO, native=native)
    assert tile is not None
    # One polynomial per detector, the same for all tiles.
    assert max(tile.psf_error) < 1e-3
    generator = torch.Generator().manual_seed(1)
    result = restore(tile.stack, "imagemm", generator=generator, n_realizations=n_realizations)
    return result.image.numpy(), np.sqrt(result.variance.numpy()), tile.outer


@pytest.mark.parametrize("native", [False, True])
def test_tiles_agree_to_two_per_cent_of_the_noise(native: bool) -> None:
    """Also beside a star with a S/N of 4000, in blends, and where rays cross a border or lie in one tile."""
    shared = FIRST.intersection(SECOND)
    image, sigma, outer = restore_tile(FIRST, native, True, 4)
    other, _, other_outer = restore_tile(SECOND, native, True, 0)
    cut, other_cut = shared.slice_within(outer), shared.slice_within(other_outer)
    seam = np.abs(image[cut.y, cut.x] - other[other_cut.y, other_cut.x]) / sigma[cut.y, cut.x]
    y, x = np.mgrid[shared.y.start : shared.y.stop, shared.x.start : shared.x.stop]
    star = np.hypot(x - BRIGHT[0], y - BRIGHT[1]) < 10
    ray = np.hypot(x - 112, y - 82) < 12
    for where in (star, ray, ~star & ~ray):
        assert np.sqrt((seam[where] ** 2).mean()) < 0.02
        assert np.percentile(seam[where], 99) < 0.04
        assert np.median(seam[where]) < 0.001
    for pair in BLENDS:
        near = np.min([np.hypot(x - px, y - py) for px, py, _ in pair], axis=0) < 8
        assert seam[near].max() < 0.02


@pytest.mark.parametrize("ends", [(1, 2), (1, 0)], ids=["any", "sharpest"])
@pytest.mark.parametrize("native", [False, True])
def test_tiles_agree_where_an_exposure_reaches_only_one(native: bool, ends: tuple[int, ...]) -> None:
    """The tile without it must not take fainter peaks for sources, nor deconvolve less.

    Nor may it do so because that exposure is the sharpest of four (FWHM of 3.3 to 4.5 px).
    """
    shared = FIRST.intersection(SECOND)
    tiles = [stack_tile(exposures(False, ends), inner, HALO, native=native) for inner in (FIRST, SECOND)]
    assert [len(tile.members) for tile in tiles if tile is not None] == [4, 3]
    image, sigma, outer = restore_tile(FIRST, native, False, 4, ends)
    other, _, other_outer = restore_tile(SECOND, native, False, 0, ends)
    cut, other_cut = shared.slice_within(outer), shared.slice_within(other_outer)
    seam = np.abs(image[cut.y, cut.x] - other[other_cut.y, other_cut.x]) / sigma[cut.y, cut.x]
    y, x = np.mgrid[shared.y.start : shared.y.stop, shared.x.start : shared.x.stop]
    # Its S/N is 4000.
    star = np.hypot(x - BRIGHT[0], y - BRIGHT[1]) < 10
    assert seam[star].max() < 1.0
    assert np.sqrt((seam[~star] ** 2).mean()) < 0.005
    assert seam[~star].max() < 0.05
