# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""Butler repositories made from nothing, and what goes into them.

Everything here works with the packages on PyPI alone: an SQLite registry,
an instrument, a sky map kept as a `SkyMapGeometry`, and `VisitImage` datasets.
Each function may be called again on a repository that already holds what it
would add; nothing that is there is ever removed.
"""

from ._butler import *
from ._detector import *
from ._geometry import *
from ._instrument import *
from ._psf import *
from ._regions import *
from ._sky_map import *
from ._visit import *
from ._visit_image import *
