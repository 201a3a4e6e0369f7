# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("make_or_open",)

import os
import tempfile
from pathlib import Path

from lsst.daf.butler import Butler
from lsst.resources import ResourcePath, ResourcePathExpression


def make_or_open(root: ResourcePathExpression) -> Butler:
    """Open a Butler repository for writing, making it first where needed.

    Parameters
    ----------
    root : convertible to `lsst.resources.ResourcePath`
        Directory of the repository.  It may be absent, empty, or hold a
        repository already.

    Returns
    -------
    butler : `lsst.daf.butler.Butler`
        A writeable client without default collections.

    Raises
    ------
    FileExistsError
        Raised if ``root`` holds files but no repository.
    """
    path = ResourcePath(root, forceDirectory=True, forceAbsolute=True)
    if not path.join("butler.yaml", forceDirectory=False).exists():
        if path.isLocal:
            _make_local(Path(path.ospath))
        else:
            Butler.makeRepo(path)
    return Butler.from_config(path, writeable=True)


def _make_local(root: Path) -> None:
    """Make a repository elsewhere and move it, so that it is never half-made."""
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(
            f"{root} is not empty and holds no butler.yaml; "
            "give another directory for the repository, or remove this one."
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    # No dot in the name: makeRepo would take what follows for a file type.
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=root.parent) as partial:
        Butler.makeRepo(ResourcePath(partial, forceDirectory=True))
        Path(partial).chmod(0o755)
        os.replace(partial, root)
        # What the context manager removes.
        Path(partial).mkdir()
