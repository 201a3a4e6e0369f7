# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Between Butler datasets and plain arrays."""

from ._calibration_table import *
from ._cell_coadd_warp_reader import *
from ._coadd import *
from ._coadd_planes import *
from ._cut_out import *
from ._detector_pixels import *
from ._errors import *
from ._exposure_f import *
from ._exposure_f_reader import *
from ._exposure_f_warp_reader import *
from ._exposure_reader import *
from ._masks import *
from ._metric_bundle import *
from ._patch_exposure import *
from ._patch_grid import *
from ._patch_psf import *
from ._pixel_mapping import *
from ._psf_limits import *
from ._registered_exposure import *
from ._summary_limits import *
from ._tile import *
from ._visit_image_reader import *
from ._warp_reader import *
