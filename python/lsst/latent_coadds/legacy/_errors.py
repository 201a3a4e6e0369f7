# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


from __future__ import annotations

__all__ = ("LegacyFileError",)


class LegacyFileError(ValueError):
    """A file of afw holds what cannot be read here; says what to do."""
