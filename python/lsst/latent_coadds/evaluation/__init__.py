# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""How well a restoration keeps sources of known flux.

Sources are injected into copies of the exposures in memory, and the copies
are restored by the task itself; nothing is written to a repository.
"""

from ._evaluate import *
from ._field import *
from ._injection import *
from ._measure import *
from ._plots import *
from ._sources import *
from ._tables import *
