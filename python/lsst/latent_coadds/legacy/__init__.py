# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Detector images that lsst.afw wrote, read without it.

A file of ``Exposure.writeFits`` has its pixels in three image extensions, and
PSF, WCS and photometric calibration in tables that afw calls an archive.
"""

from ._archive import *
from ._bounded_field import *
from ._errors import *
from ._exposure import *
from ._piff import *
from ._psf import *
from ._sky_wcs import *
