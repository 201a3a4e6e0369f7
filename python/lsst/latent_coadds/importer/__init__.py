# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""FITS exposures into a Butler repository.

Exposures that did not come from the LSST pipelines are read with whatever
they bring, completed with a variance, a mask and a PSF model, put on one
flux scale and one astrometry, and written as ``calexp`` datasets. Detector
images that afw wrote bring all of that themselves.
"""

from ._background import *
from ._calibration import *
from ._candidates import *
from ._constant import *
from ._cosmic_rays import *
from ._errors import *
from ._exposure import *
from ._identity import *
from ._import import *
from ._legacy import *
from ._manifest import *
from ._mask import *
from ._prepare import *
from ._projection import *
from ._psf import *
from ._psf_fit import *
from ._report import *
from ._settings import *
from ._star_fit import *
from ._stars import *
from ._tract import *
from ._variance import *
