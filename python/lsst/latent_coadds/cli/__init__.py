# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``latent-coadds``.

Each subcommand is the object ``command`` of a module that is imported only
when it runs, so that help comes at once.
"""

from ._main import *
