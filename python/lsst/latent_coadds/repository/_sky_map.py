# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("SKY_MAP_GEOMETRY", "SKY_MAP_RUN", "read_sky_map", "register_sky_map")

from lsst.daf.butler import Butler, DatasetRef, DatasetType

from ._geometry import SkyMapGeometry

SKY_MAP_GEOMETRY = "sky_map_geometry"
"""Name of the dataset type that holds a `SkyMapGeometry`."""

SKY_MAP_RUN = "skymaps"
"""Run collection in which sky maps are kept."""


def register_sky_map(butler: Butler, geometry: SkyMapGeometry, *, run: str = SKY_MAP_RUN) -> DatasetRef:
    """Register a sky map's dimension records and write its pixel geometry.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        A writeable client.
    geometry : `SkyMapGeometry`
        The sky map.
    run : `str`, optional
        Run collection for the ``sky_map_geometry`` dataset.

    Returns
    -------
    ref : `lsst.daf.butler.DatasetRef`
        The ``sky_map_geometry`` dataset, written now or before.

    Raises
    ------
    ValueError
        Raised if the repository has another sky map of that name.
    """
    known = list(butler.registry.queryDimensionRecords("skymap", skymap=geometry.name, check=False))
    if known and known[0].hash != geometry.digest():
        raise ValueError(
            f"The repository already has a sky map {geometry.name!r} with another geometry; "
            "give this one another name."
        )
    dataset_type = DatasetType(SKY_MAP_GEOMETRY, {"skymap"}, "StructuredDataDict", universe=butler.dimensions)
    butler.registry.registerDatasetType(dataset_type)
    butler.collections.register(run)
    if not known:
        with butler.transaction():
            _insert_records(butler, geometry)
    ref = butler.find_dataset(dataset_type, skymap=geometry.name, collections=run)
    if ref is None:
        ref = butler.put(geometry.to_dict(), dataset_type, skymap=geometry.name, run=run)
    return ref


def read_sky_map(butler: Butler, name: str, *, run: str = SKY_MAP_RUN) -> SkyMapGeometry:
    """Read a sky map's pixel geometry.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        Client of a repository that has the sky map.
    name : `str`
        Name of the sky map.
    run : `str`, optional
        Collection to read from.

    Returns
    -------
    geometry : `SkyMapGeometry`
        The sky map.
    """
    return SkyMapGeometry.from_dict(butler.get(SKY_MAP_GEOMETRY, skymap=name, collections=run))


def _insert_records(butler: Butler, geometry: SkyMapGeometry) -> None:
    tracts = geometry.tracts
    indices = [patch.index for tract in tracts.values() for patch in tract.patches.values()]
    butler.registry.insertDimensionData(
        "skymap",
        {
            "name": geometry.name,
            "hash": geometry.digest(),
            "tract_max": max(tracts) + 1,
            "patch_nx_max": max(x for x, _ in indices) + 1,
            "patch_ny_max": max(y for _, y in indices) + 1,
        },
    )
    for tract_id, tract in tracts.items():
        butler.registry.insertDimensionData(
            "tract", {"skymap": geometry.name, "id": tract_id, "region": tract.region()}
        )
        butler.registry.insertDimensionData(
            "patch",
            *(
                {
                    "skymap": geometry.name,
                    "tract": tract_id,
                    "id": patch_id,
                    "cell_x": patch.index[0],
                    "cell_y": patch.index[1],
                    "region": tract.region(patch_id),
                }
                for patch_id, patch in tract.patches.items()
            ),
        )
