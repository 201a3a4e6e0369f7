# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scenes with known truth, drawn by GalSim and written to a Butler.

Nothing here uses the forward model of the restoration: sources are drawn
as analytic profiles straight onto the pixels of every detector.
"""

from ._catalog import *
from ._defects import *
from ._exposure import *
from ._render import *
from ._scene import *
from ._settings import *
from ._truth import *
