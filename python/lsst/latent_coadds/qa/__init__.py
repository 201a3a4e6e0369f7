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

from ._artifacts import *
from ._coadd import *
from ._detection import *
from ._figure import *
from ._noise import *
from ._pages import *
from ._patch_analysis import *
from ._patch_numbers import *
from ._patch_page import *
from ._photometry import *
from ._plot_style import *
from ._plots_image import *
from ._plots_patch import *
from ._plots_tract import *
from ._rings import *
from ._sources import *
from ._star import *
from ._stars import *
from ._statistics import *
