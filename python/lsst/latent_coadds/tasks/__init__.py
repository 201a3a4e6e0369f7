# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pipeline tasks, their connections and their configuration."""

from ._analyze_latent_coadd import *
from ._build_latent_coadd import *
from ._coadd_plots import *
from ._config import *
from ._configure_patch import *
from ._connections import *
from ._fill import *
from ._fraction_field import *
from ._metrics import *
from ._patch_settings import *
from ._reporter import *
from ._resources import *
from ._restore_patch import *
from ._restorers import *
from ._summarize_latent_coadds import *
from ._tile_plan import *
from ._train import *
