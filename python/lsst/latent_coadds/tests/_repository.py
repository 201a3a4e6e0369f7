# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("MockRepository",)

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import ClassVar

import astropy.units as u
from astropy.time import Time

from lsst.daf.butler import Butler, DatasetRef, MissingCollectionError, MissingDatasetTypeError
from lsst.images import VisitImage

from ..repository import (
    VisitRecord,
    box_region,
    make_or_open,
    put_calexp,
    register_instrument,
    register_sky_map,
    register_visit,
)
from ._mock import make_mock_geometry


@dataclasses.dataclass
class MockRepository:
    """A Butler repository of mock exposures, and the pipeline run on it.

    Parameters
    ----------
    root : `pathlib.Path`
        Directory, made here.
    n_patches : `int`, optional
        Number of patches, in a row.
    size : `int`, optional
        Side of the inner box of a patch, in pixels.
    border : `int`, optional
        How far the outer box reaches beyond it.
    inputs : `str`, optional
        Input collections of the pipeline.
    data_query : `str`, optional
        What the pipeline is run on.
    """

    root: Path
    n_patches: int = 1
    size: int = 64
    border: int = 8
    inputs: str = "Mock/calexps,skymaps"
    data_query: str = "skymap='mock' AND tract=0 AND band='i'"

    calexp_run: ClassVar[str] = "Mock/calexps"
    output: ClassVar[str] = "u/test/latent"

    def __post_init__(self) -> None:
        self.butler = make_or_open(self.root)
        register_instrument(self.butler, "Mock", [0], {"i-mock": "i"})
        self.geometry = make_mock_geometry(self.size, self.n_patches, 1, self.border)
        register_sky_map(self.butler, self.geometry)

    def add(self, visit_images: Iterable[VisitImage]) -> list[DatasetRef]:
        """Register and write exposures.

        Parameters
        ----------
        visit_images : `~collections.abc.Iterable` [`lsst.images.VisitImage`]
            Exposures of instrument ``Mock``.

        Returns
        -------
        refs : `list` [`lsst.daf.butler.DatasetRef`]
            The ``calexp`` datasets.
        """
        refs = []
        for image in visit_images:
            frame = image.sky_projection.pixel_frame
            assert frame.visit is not None
            region = box_region(image.sky_projection.as_astropy(image.bbox), image.bbox)
            begin = Time("2026-01-01T03:00:00", scale="tai") + frame.visit * u.min
            record = VisitRecord("Mock", frame.visit, "i-mock", begin, 30.0, {frame.detector: region})
            register_visit(self.butler, record)
            refs.append(put_calexp(self.butler, image, self.calexp_run))
        return refs

    def get_path(self, ref: DatasetRef) -> Path:
        """Return the file of a dataset."""
        return Path(self.butler.getURI(ref).ospath)

    def command(self, *options: str, config: Mapping[str, object] | None = None) -> list[str]:
        """Return the command line that runs the pipeline here.

        Parameters
        ----------
        *options : `str`
            Options to add to ``pipetask run``.
        config : `~collections.abc.Mapping`, optional
            Configuration of ``buildLatentCoadd`` to change.

        Returns
        -------
        command : `list` [`str`]
            Arguments.
        """
        pipeline = resources.files("lsst.latent_coadds") / "resources" / "pipelines" / "latent_coadd.yaml"
        # The one that belongs to this Python, if there is one.
        path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
        command = [shutil.which("pipetask", path=path) or "pipetask", "run", "-b", str(self.root)]
        command += ["-i", self.inputs, "-o", self.output, "-p", str(pipeline)]
        command += ["--register-dataset-types", "-d", self.data_query]
        for name, value in (config or {}).items():
            command += ["-c", f"buildLatentCoadd:{name}={value}"]
        return [*command, *options]

    def run(
        self, *options: str, config: Mapping[str, object] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the pipeline in a process of its own; see `command`.

        All that it prints is in ``stdout`` of what is returned.
        """
        return subprocess.run(
            self.command(*options, config=config),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )

    def find(self, dataset_type: str = "latent_coadd") -> dict[int, DatasetRef]:
        """Return the outputs of a type by patch.

        Raises
        ------
        AssertionError
            If a patch has more than one in the output collection's runs.
        """
        butler = Butler.from_config(self.root)
        found: dict[int, DatasetRef] = {}
        try:
            refs = butler.query_datasets(dataset_type, self.output, find_first=False, explain=False)
        except (MissingCollectionError, MissingDatasetTypeError):
            return found
        for ref in refs:
            patch = int(ref.dataId["patch"])
            assert patch not in found, f"Patch {patch} has more than one {dataset_type}."
            found[patch] = ref
        return found
