# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers and figures that show what an image is worth.

All functions take plain arrays, indexed ``[y, x]`` with integer coordinates
at pixel centres, and can so compare images from anywhere.
"""

from ._figure import *
from ._photometry import *
from ._rings import *
from ._star import *
from ._statistics import *
