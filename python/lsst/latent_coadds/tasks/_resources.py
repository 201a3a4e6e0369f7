# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("choose_max_memory",)

import astropy.units as u

from lsst.pipe.base import ExecutionResources
from lsst.utils.logging import LsstLogAdapter

_DEFAULT_MEMORY = 4.0
"""Memory in GiB where nobody says how much there is."""


def choose_max_memory(
    configured: float | None,
    resources: ExecutionResources | None = None,
    log: LsstLogAdapter | None = None,
) -> float:
    """Return the memory that a quantum should stay below.

    Parameters
    ----------
    configured : `float`, optional
        What the configuration says, in GiB.
    resources : `lsst.pipe.base.ExecutionResources`, optional
        What the quantum was granted.
    log : `lsst.utils.logging.LsstLogAdapter`, optional
        Where to warn of a configuration that exceeds the grant.

    Returns
    -------
    max_memory : `float`
        In GiB. What is configured wins over what was granted.
    """
    granted = None
    if resources is not None and resources.max_mem is not None:
        granted = float(resources.max_mem.to_value(u.GiB))
    if configured is None:
        return granted or _DEFAULT_MEMORY
    if granted and configured > granted and log is not None:
        log.warning(
            "max_memory is configured as %.2f GiB, and the quantum was granted %.2f GiB; leave it out "
            "of the configuration to stay within that.",
            *(configured, granted),
        )
    return configured
