# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""What the batch production service (lsst.ctrl.bps) needs to know of our tasks."""

from ._cluster_by_memory import *
from ._memory_request import *
