# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restoration of co-registered exposures, with torch and numpy alone."""

from ._assemble import *
from ._calibrate import *
from ._calibration_settings import *
from ._device_share import *
from ._direct import *
from ._errors import *
from ._exposure_calibration import *
from ._fidelity import *
from ._frames import *
from ._imagemm import *
from ._interval import *
from ._kernels import *
from ._memory import *
from ._operators import *
from ._peaks import *
from ._psf_basis import *
from ._refine_psf import *
from ._resample import *
from ._restoration import *
from ._restore import *
from ._settings import *
from ._significance import *
from ._stack import *
from ._stream import *
from ._weights import *
from ._whole_field import *
