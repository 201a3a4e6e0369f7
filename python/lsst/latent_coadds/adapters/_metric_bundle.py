# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Numbers in the form that lsst.analysis.tools keeps and reads."""

from __future__ import annotations

__all__ = ("MetricBundleError", "make_metric_bundle")

from collections.abc import Mapping
from typing import Any

import numpy as np


class MetricBundleError(RuntimeError):
    """There is no lsst.analysis.tools to make a bundle with."""


def make_metric_bundle(name: str, numbers: Mapping[str, float], units: Mapping[str, str]) -> Any:
    """Make a bundle of measurements.

    Parameters
    ----------
    name : `str`
        What measured them, such as the label of a task.
    numbers : `~collections.abc.Mapping` [`str`, `float`]
        Values by name. Those that are not finite are left out.
    units : `~collections.abc.Mapping` [`str`, `str`]
        Their units.

    Returns
    -------
    bundle : `lsst.analysis.tools.interfaces.MetricMeasurementBundle`
        One list of measurements, under ``name``.

    Raises
    ------
    MetricBundleError
        If lsst.analysis.tools or lsst.verify cannot be imported.
    """
    try:
        from lsst.analysis.tools.interfaces import MetricMeasurementBundle
        from lsst.verify import Measurement
    except ImportError as error:
        raise MetricBundleError(
            f"A metric bundle needs lsst.analysis.tools and lsst.verify of a full stack ({error}); set "
            "write_metric_bundle=False. The same numbers are in the analysis dataset."
        ) from error
    import astropy.units as u

    return MetricMeasurementBundle(
        {
            name: [
                Measurement(key, value * u.Unit(units.get(key, "")))
                for key, value in numbers.items()
                if np.isfinite(value)
            ]
        }
    )
