# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Point sources that a network need not make."""

from __future__ import annotations

__all__ = ("PointsApart",)

import dataclasses
import functools

import torch

from ._accelerated import subtract_light
from ._blended_points import find_blended_points
from ._direct import DirectCoadd, direct_coadd
from ._fidelity import HuberFidelity
from ._filled import fill_exposures
from ._find_points import find_points, local_precision, share_seen
from ._fit import evaluate
from ._holes import fill_holes
from ._point_finder import PointFinder
from ._point_sources import MatchedFilter, PointSources
from ._proximal import NonNegativeQuadratic
from ._settings import DirectSettings
from ._stack import ExposureStack


@dataclasses.dataclass(frozen=True)
class PointsApart:
    """Points that are taken out of exposures, and put into the result.

    Attributes
    ----------
    matched : `MatchedFilter`
        What found them.
    points : `PointSources`
        The points.
    threshold : `float`
        Significance from which on sources were looked for; 0 finds none.
    target_fwhm : `float`
        FWHM of the PSF of the result.
    """

    matched: MatchedFilter
    points: PointSources
    threshold: float
    target_fwhm: float

    @functools.cached_property
    def light(self) -> torch.Tensor:
        """Padded transform of the points at the PSF of the latent image."""
        return self.matched.light(self.points)

    @functools.cached_property
    def image(self) -> torch.Tensor:
        """The points (H, W) at the target PSF."""
        return self.matched.render(self.points, self.target_fwhm)

    @classmethod
    def find(
        cls,
        stack: ExposureStack,
        quadratic: NonNegativeQuadratic,
        spread: float,
        target_fwhm: float,
        delta: float,
        threshold: float,
    ) -> PointsApart:
        """Find the points in exposures.

        Parameters
        ----------
        stack : `ExposureStack`
            The exposures.
        quadratic : `NonNegativeQuadratic`
            The curvature of the data term.
        spread : `float`
            FWHM of the Gaussian that the kernels of the model were divided by.
        target_fwhm : `float`
            FWHM of the PSF of the result.
        delta : `float`
            Residual, in sigma, beyond which the loss is linear.
        threshold : `float`
            Least significance of a point; 0 finds none.
        """
        fidelity = HuberFidelity(stack.image, stack.inverse_variance.sqrt(), delta)
        precision = local_precision(quadratic, stack, share_seen(quadratic, stack))
        matched = MatchedFilter(quadratic, spread, precision)
        points = find_points(stack, matched, fidelity, threshold)
        points = points.join(find_blended_points(stack, matched, points, delta, threshold))
        return cls(matched, points, threshold, target_fwhm)

    def again(self, data: HuberFidelity, rest: torch.Tensor) -> PointsApart:
        """Return the points that other data of the same sky have.

        Parameters
        ----------
        data : `HuberFidelity`
            The data.
        rest : `torch.Tensor`
            Padded transform of what else is in that sky.
        """
        if not len(self.points):
            return self
        left = self.matched.left(evaluate(self.matched.operator, data, self.light + rest)[1])
        same, others = PointFinder(self.matched, self.threshold).again(left, self.points)
        return dataclasses.replace(self, points=same.join(others))

    def subtract(self, data: HuberFidelity) -> HuberFidelity:
        """Return data without the points."""
        if not len(self.points):
            return data
        operator = self.matched.operator
        lifted = operator.lift(self.light)
        model = torch.cat([operator.predict(lifted, which) for which in operator.chunks()])
        return HuberFidelity(data.image - model, data.inverse_sigma, data.delta)

    def fill(self, stack: ExposureStack) -> torch.Tensor:
        """Return exposures (T, h, w) without the points, their gaps and outliers filled from the coadd."""
        coadd = direct_coadd(stack, DirectSettings(clip=True))
        if not len(self.points):
            return _fill(stack, coadd)
        # Outliers are those of the exposures as they are: beside a bright star more is tolerated.
        rest = subtract_light(stack.without(~coadd.kept), self.matched.operator, self.light)
        return _fill(rest, direct_coadd(rest, DirectSettings()))


def _fill(stack: ExposureStack, coadd: DirectCoadd) -> torch.Tensor:
    """Return all exposures (T, h, w) with gaps and outliers from the coadd."""
    filled = fill_holes(coadd.image, coadd.variance, coadd.psf)
    return fill_exposures(stack, coadd, filled, slice(0, stack.n_exposures))
