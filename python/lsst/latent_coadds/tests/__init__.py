# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Importable helpers of the tests: mock exposures and repositories."""

from ._afw_file import *
from ._browser import *
from ._mock import *
from ._repository import *
