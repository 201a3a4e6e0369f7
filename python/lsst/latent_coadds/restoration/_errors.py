# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Errors that the restoration raises."""

from __future__ import annotations

__all__ = ("InvalidStackError", "NoGoodPixelsError", "RestorationError")


class InvalidStackError(ValueError):
    """The exposures cannot be restored as given.

    The message names the exposure and says what to do about it.
    """


class NoGoodPixelsError(InvalidStackError):
    """No exposure of the stack has a single good pixel."""


class RestorationError(RuntimeError):
    """A restoration diverged or became non-finite.

    Nothing is returned in that case: a result that exists is a good one.
    """
