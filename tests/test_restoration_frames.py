# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tests of exposures with pixels of their own; the truth is drawn with GalSim on each."""

from __future__ import annotations

import math

import galsim
import numpy as np
import pytest
import torch

from lsst.latent_coadds.restoration import (
    ConvolutionOperator,
    ExposureStack,
    FrameGeometry,
    InvalidStackError,
    measure_point_error,
    restore,
)
from lsst.latent_coadds.restoration._sampling import FrameSampler, coarsen, refine

STEP = 12
NATIVE = 0.168


class Frame:
    """A detector: rotated, dithered, distorted, perhaps mirrored."""

    def __init__(
        self,
        size: int,
        *,
        angle: float,
        oversampling: float = 1.0,
        dither: tuple[float, float] = (0.3, -0.2),
        distortion: float = 0.0,
        mirrored: bool = False,
    ) -> None:
        self.size, self.latent = size, round(size * oversampling)
        cosine, sine = math.cos(angle) * oversampling, math.sin(angle) * oversampling
        self.matrix = np.array([[cosine, -sine], [sine, cosine]])
        if mirrored:
            self.matrix[:, 0] *= -1.0
        self.dither, self.distortion = np.array(dither), distortion
        self.scale = NATIVE / oversampling

    def to_latent(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q = np.stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)], axis=-1)
        q = q - 0.5 * (self.size - 1) + self.dither
        q = q * (1 + self.distortion * (q**2).sum(axis=-1, keepdims=True))
        p = q @ self.matrix.T + 0.5 * (self.latent - 1)
        return p[..., 0], p[..., 1]

    def to_native(self, x: float, y: float) -> tuple[float, float]:
        p = np.array([x, y], dtype=float)
        q = np.array([0.5, 0.5]) * self.size
        for _ in range(60):
            q = q + np.linalg.solve(self.matrix, p - np.array(self.to_latent(*q)))
        return float(q[0]), float(q[1])

    def wcs(self, x: float, y: float) -> galsim.JacobianWCS:
        ends = [np.array(self.to_latent(x + dx, y + dy)) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        along_x, along_y = (0.5 * self.scale * (a - b) for a, b in (ends[:2], ends[2:]))
        return galsim.JacobianWCS(along_x[0], along_y[0], along_x[1], along_y[1])

    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        line = np.arange(0, self.size + STEP, STEP)
        return self.to_latent(*np.meshgrid(line, line))

    def stamp(self, profile: galsim.GSObject, size: int) -> np.ndarray:
        """The PSF in the middle on the latent grid, the native pixel in it."""
        middle = self.to_native(0.5 * self.latent, 0.5 * self.latent)
        seen = galsim.Convolve(profile, self.wcs(*middle).toWorld(galsim.Pixel(1.0)))
        return seen.drawImage(nx=size, ny=size, scale=self.scale, method="no_pixel").array.astype(float)

    def draw(self, profile: galsim.GSObject, stars: list[tuple[float, float, float]]) -> np.ndarray:
        plane = galsim.ImageD(self.size, self.size)
        for x, y, flux in stars:
            native = self.to_native(x, y)
            stamp = galsim.ImageD(plane.bounds, wcs=self.wcs(*native))
            profile.withFlux(flux).drawImage(
                image=stamp, center=galsim.PositionD(native[0] + 1, native[1] + 1)
            )
            plane.array[:] += stamp.array
        return plane.array


def geometry(frames: list[Frame]) -> FrameGeometry:
    x, y = (np.stack([f.nodes()[i] for f in frames]) for i in (0, 1))
    return FrameGeometry((frames[0].latent, frames[0].latent), x, y, STEP)


def make_operator(frame: Frame, psf: np.ndarray, margin: int = 6) -> ConvolutionOperator:
    kernels = torch.from_numpy(psf)[None]
    sampler = FrameSampler(geometry([frame]), (frame.size, frame.size), kernels / kernels.sum())
    return ConvolutionOperator(kernels, (frame.latent, frame.latent), margin=margin, sampler=sampler)


DISTORTED = {"distortion": 2e-6}


def test_positions_and_inverse() -> None:
    frame = Frame(100, angle=0.7, **DISTORTED)
    g = geometry([frame])
    j, i = np.meshgrid(np.arange(100), np.arange(90))
    for got, expected in zip(g.positions(0, (90, 100)), frame.to_latent(j, i), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, atol=2e-3)
    x, y = g.inverse(0)
    again = frame.to_latent(x.numpy(), y.numpy())
    inside = ((x > 0) & (y > 0) & (x < 99) & (y < 99)).numpy()
    rows, columns = np.indices((100, 100))
    for got, expected in zip(again, (columns, rows), strict=True):
        assert np.median(np.abs(got - expected)[inside]) < 1e-3
        assert np.abs(got - expected)[inside].max() < 1e-2
    assert float(g.area(0, (100, 100))[50, 50]) == pytest.approx(1.0, rel=1e-3)


def test_few_nodes() -> None:
    g = FrameGeometry((20, 20), [[[0.0, 40.0], [0.0, 40.0]]], [[[0.0, 0.0], [40.0, 40.0]]], 40)
    x, y = g.positions(0, (3, 4))
    torch.testing.assert_close(x[1], torch.arange(4.0, dtype=torch.float64))
    torch.testing.assert_close(y[:, 2], torch.arange(3.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.zeros((1, 1, 5)), "one shape"),
        (np.full((1, 4, 4), np.nan), "exposure 0 is not finite"),
        (np.zeros((1, 4, 4)), "degenerate"),
    ],
)
def test_bad_geometry(x: np.ndarray, match: str) -> None:
    with pytest.raises(InvalidStackError, match=match):
        FrameGeometry((20, 20), x, x, 8)


def test_frames_that_do_not_fit() -> None:
    g = geometry([Frame(40, angle=0.1)])
    planes, psf = np.ones((1, 60, 60)), np.ones((1, 5, 5))
    with pytest.raises(InvalidStackError, match="last node"):
        ExposureStack(planes, planes, planes > 0, psf, frames=g)
    planes = np.ones((2, 40, 40))
    with pytest.raises(InvalidStackError, match="1 mappings for 2"):
        ExposureStack(planes, planes, planes > 0, np.ones((2, 5, 5)), frames=g)


def test_refine_interpolates_and_coarsen_is_its_adjoint() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((30, 36), generator=generator, dtype=torch.float64)
    y = torch.randn((60, 72), generator=generator, dtype=torch.float64)
    fine = refine(torch.fft.rfft2(x), (30, 36), (60, 72))
    # The highest frequency included.
    torch.testing.assert_close(fine[::2, ::2], x)
    back = torch.fft.irfft2(coarsen(y, (30, 36)), s=(30, 36))
    assert float((fine * y).sum()) == pytest.approx(float((x * back).sum()), rel=1e-10)


def test_predictions_do_not_depend_on_the_size_of_the_area() -> None:
    """A sharp PSF has light at the highest frequency of the grid."""
    frame = Frame(60, angle=0.4)
    psf = frame.stamp(galsim.Gaussian(fwhm=0.4), 21)
    whole = make_operator(frame, psf)
    sampler, corners, inside = whole.sampler.part([0], (10, 14), (36, 31))
    part = ConvolutionOperator(torch.from_numpy(psf)[None], (36, 31), margin=6, sampler=sampler)
    latent = torch.zeros(whole.latent_shape, dtype=torch.float64)
    latent[30, 33], latent[33, 35] = 1.0, 0.5
    expected = whole.forward(latent)[0]
    (row, column), (height, width) = corners[0], sampler.frame_shape
    cut = expected[row : row + height, column : column + width]
    found = part.forward(latent[10 : 10 + 48, 14 : 14 + 43])[0]
    assert int(inside.sum()) > 900 and float(expected.max()) > 0.05
    seen = inside[0] & (cut > 1e-3 * expected.max())
    assert float((found - cut)[seen].abs().max()) < 4e-5 * float(expected.max())
    assert float(found[~inside[0]].abs().max()) == 0.0
    assert part.adjointness_test(torch.Generator().manual_seed(3)) < 1e-12


@pytest.mark.parametrize("n_terms", [1, 3])
@pytest.mark.parametrize("oversampling", [1.0, 2.0])
def test_adjoint(n_terms: int, oversampling: float) -> None:
    frames = [Frame(40, angle=a, oversampling=oversampling, **DISTORTED) for a in (0.4, 2.0, -1.5)]
    generator = torch.Generator().manual_seed(2)
    kernels = torch.rand((3, n_terms, 9, 9), generator=generator, dtype=torch.float64)
    sampler = FrameSampler(geometry(frames), (40, 40), kernels[:, 0])
    shape = (frames[0].latent,) * 2
    operator = ConvolutionOperator(kernels, shape, margin=5, padding=2, chunk=2, sampler=sampler)
    assert operator.forward(torch.zeros(operator.latent_shape, dtype=torch.float64)).shape == (3, 40, 40)
    assert operator.adjointness_test(generator) < 1e-12


def test_autograd_passes() -> None:
    frame = Frame(30, angle=0.3)
    generator = torch.Generator().manual_seed(6)
    operator = make_operator(frame, np.ones((5, 5)), margin=2)
    latent = torch.randn(operator.latent_shape, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn((1, 30, 30), generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((operator.forward(latent) * weights).sum(), latent)
    torch.testing.assert_close(gradient, operator.adjoint(weights))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.3, 0.785, 1.6])
@pytest.mark.parametrize(
    ("seeing", "oversampling", "bound"), [(0.5, 1, 1e-3), (0.5, 2, 8e-4), (0.7, 1, 6e-4)]
)
def test_against_drawn_stars(
    angle: float, mirrored: bool, seeing: float, oversampling: int, bound: float
) -> None:
    frame = Frame(72, angle=angle, oversampling=oversampling, mirrored=mirrored)
    profile = galsim.Moffat(beta=3.0, fwhm=seeing)
    operator = make_operator(frame, frame.stamp(profile, 40 * oversampling + 1))
    for dx, dy in ((0, 0), (3, 5), (-7, -4)):
        x, y = frame.latent // 2 + dx, frame.latent // 2 + dy
        latent = torch.zeros(operator.latent_shape, dtype=torch.float64)
        latent[y + 6, x + 6] = 1.0
        predicted = operator.forward(latent)[0].numpy()
        truth = frame.draw(profile, [(x, y, 1.0)])
        center = np.array(frame.to_native(x, y))
        near = np.hypot(*(np.indices(truth.shape)[::-1] - center[:, None, None])) < 12
        assert np.abs(predicted - truth)[near].max() < bound * truth.max()


def test_area_scales_flux() -> None:
    """A distorted frame sees the flux of a pixel of its own size."""
    frame = Frame(90, angle=0.4, distortion=4e-5)
    profile = galsim.Moffat(beta=3.0, fwhm=0.7)
    operator = make_operator(frame, frame.stamp(profile, 41))
    x, y = 15, 45
    latent = torch.zeros(operator.latent_shape, dtype=torch.float64)
    latent[y + 6, x + 6] = 1.0
    center = np.array(frame.to_native(x, y))
    near = np.hypot(*(np.indices((90, 90))[::-1] - center[:, None, None])) < 15
    truth = frame.draw(profile, [(x, y, 1.0)])
    predicted = operator.forward(latent)[0].numpy()
    assert (predicted[near].sum() / truth[near].sum()) == pytest.approx(1.0, abs=2e-3)
    assert np.abs(predicted - truth)[near].max() < 1e-2 * truth.max()


def make_stack(
    oversampling: float = 1.0, noise: float = 0.5, dtype: type = np.float64
) -> tuple[ExposureStack, list[tuple[float, float, float]]]:
    """Four frames with bad columns; fluxes count within the stamps."""
    rng = np.random.default_rng(7)
    size = 84
    frames = [
        Frame(size, angle=angle, oversampling=oversampling, dither=tuple(rng.uniform(-2, 2, 2)), **DISTORTED)
        for angle in (0.2, 1.9, 3.3, 5.0)
    ]
    unit = oversampling
    stars = [(24.3 * unit, 27.0 * unit, 900.0), (58.0 * unit, 33.6 * unit, 2500.0)]
    stars += [(33.5 * unit, 57.2 * unit, 6000.0), (60.1 * unit, 60.9 * unit, 400.0)]
    images, psfs = [], []
    for t, frame in enumerate(frames):
        profile = galsim.Moffat(beta=3.0, fwhm=0.6 + 0.1 * t).shear(g1=0.03, g2=0.02 * t)
        stamp = frame.stamp(profile, 2 * int(20 * unit) + 1)
        images.append(frame.draw(profile, [(x, y, f / stamp.sum()) for x, y, f in stars]))
        psfs.append(stamp)
    image = np.stack(images) + rng.normal(size=(4, size, size)) * noise
    good = np.ones(image.shape, dtype=bool)
    for t in range(4):
        good[t, :, 10 + 17 * t] = False
        image[t, :, 10 + 17 * t] = np.nan
    variance = np.full(image.shape, noise**2)
    arrays = (a.astype(dtype) for a in (image, variance))
    return ExposureStack(*arrays, good, np.stack(psfs), frames=geometry(frames)), stars


def aperture(image: torch.Tensor, x: float, y: float, radius: float) -> float:
    rows, columns = np.indices(image.shape)
    soft = np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1)
    return float((image.numpy() * soft).sum())


def test_register() -> None:
    stack, stars = make_stack(noise=0.05)
    registered = stack.register()
    assert registered.frames is None and registered.image.shape == (4, 84, 84)
    for t in range(4):
        for x, y, flux in stars[:3]:
            box = np.s_[int(y) - 10 : int(y) + 11, int(x) - 10 : int(x) + 11]
            if bool(registered.good[t][box].all()):
                assert aperture(registered.image[t], x, y, 9.0) == pytest.approx(flux, rel=0.07)


def test_planes_on_the_latent_grid() -> None:
    stack, _ = make_stack()
    assert stack.shape == (84, 84)
    n = stack.n_image
    assert n.shape == (84, 84) and int(n[42, 42]) >= 3 and int(n.max()) == 4
    flags = torch.zeros((84, 84), dtype=torch.bool)
    flags[42, 42] = True
    there = torch.nonzero(stack.to_frame(1, flags))
    assert 1 <= len(there) <= 2
    back = torch.nonzero(stack.to_latent(1, stack.to_frame(1, flags)))
    assert bool(((back - 42).abs() <= 1).all())


@pytest.mark.parametrize(("method", "oversampling"), [("direct", 1), ("imagemm", 1), ("imagemm", 2)])
def test_restore(method: str, oversampling: int) -> None:
    stack, stars = make_stack(oversampling)
    result = restore(stack, method, **({"n_realizations": 1} if method == "imagemm" else {}))
    assert result.image.shape == stack.shape and result.variance.shape == stack.shape
    assert result.model(2).shape == (84, 84) and result.n_image.shape == stack.shape
    for x, y, flux in stars:
        radius = (6.0 if method == "direct" else 4.0) * oversampling
        got = aperture(result.image, x, y, radius)
        # Wings and bad columns take their part of the plain mean.
        bound = 0.15 if method == "direct" else max(0.02, 14.0 / flux)
        assert got / flux == pytest.approx(1.0, abs=bound)
    if method == "imagemm":
        np.testing.assert_allclose(result.chi2.numpy(), 1.0, atol=0.08)


def test_a_ray_is_left_out() -> None:
    stack, _ = make_stack()
    image = stack.image.clone()
    image[1, 40:43, 40:44] += 200.0
    hit = ExposureStack(image, stack.variance, stack.good, stack.psf, frames=stack.frames)
    result = restore(hit, "imagemm", n_realizations=0)
    clean = restore(stack, "imagemm", n_realizations=0)
    x, y = stack.frames.positions(1, (84, 84))
    row, column = round(float(y[41, 41])), round(float(x[41, 41]))
    box = np.s_[row - 3 : row + 4, column - 3 : column + 4]
    assert bool(result.mask["CLIPPED"][box].any())
    assert float((result.image - clean.image)[box].abs().max()) < 3.0


def test_repeatable() -> None:
    stack, _ = make_stack(dtype=np.float32)
    first, second = (restore(stack, "imagemm", n_iter=5, n_realizations=0).image for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("form", ["improved", "published"])
def test_astroclearnet_on_frames(form: str) -> None:
    """The network sees registered exposures, and is judged by the frames' own pixels."""
    stack, stars = make_stack(dtype=np.float32)
    result = restore(stack, "astroclearnet", form=form, n_iter=4, n_realizations=1)
    assert result.image.shape == (84, 84) and result.model(1).shape == (84, 84)
    assert result.noise_realizations.shape == (1, 84, 84)
    if form == "improved":
        # What it starts from, a linear deconvolution, explains the frames but for the noise, 0.5 per pixel.
        assert min(entry["held_out"] for entry in result.history) < 0.6
        x, y, flux = stars[2]
        assert aperture(result.image, x, y, 4.0) == pytest.approx(flux, rel=0.1)


def test_combined_on_frames() -> None:
    stack, stars = make_stack(dtype=np.float32)
    result = restore(stack, "combined", network_steps=2, n_iter=15, n_realizations=1)
    for x, y, flux in stars[:3]:
        assert aperture(result.image, x, y, 4.0) == pytest.approx(flux, rel=0.04)
    np.testing.assert_allclose(result.chi2.numpy(), 1.0, atol=0.1)


@pytest.mark.parametrize("oversampling", [1.0, 1.5])
def test_error_of_a_point_is_that_of_the_pixels_of_the_detectors(oversampling: float) -> None:
    stack, _ = make_stack(oversampling)
    assert stack.frames is not None
    rng = np.random.default_rng(7)
    x = y = 42.0 * oversampling
    precision = 0.0
    for t, angle in enumerate((0.2, 1.9, 3.3, 5.0)):
        dither = tuple(rng.uniform(-2, 2, 2))
        frame = Frame(84, angle=angle, oversampling=oversampling, dither=dither, **DISTORTED)
        profile = galsim.Moffat(beta=3.0, fwhm=0.6 + 0.1 * t).shear(g1=0.03, g2=0.02 * t)
        seen = frame.draw(profile, [(x, y, 1.0)]) * stack.good[t].numpy()
        precision += (seen**2).sum() / 0.5**2
    error = float(measure_point_error(stack)[round(y), round(x)])
    assert error == pytest.approx(precision**-0.5, rel=0.03)
