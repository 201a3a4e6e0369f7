# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("SETTING_RANGES", "ImportSettings")

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from ._cosmic_rays import CosmicRaySettings
from ._errors import ManifestError
from ._psf_fit import PsfSettings
from ._stars import StarSelection

_CHOICES = {
    "flux_scale": ("apply", "report", "off"),
    "registration": ("apply", "report", "off"),
    "background": ("constant", "mesh", "off"),
    "cosmic_rays": ("auto", "always", "never"),
    "orientation": ("reference", "north"),
    "psf_model": ("auto", "grid", "moffat"),
}

SETTING_RANGES: dict[str, tuple[type, int | None, bool]] = {
    "mesh": (int, 4, False),
    "nominal_zero_point": (float, None, False),
    "match_radius": (float, 0, True),
    "min_stars": (int, 1, False),
    "patch_size": (int, 16, False),
    "border": (int, 0, False),
    "pixel_scale": (float, 0, True),
    "min_snr": (float, 0, True),
    "cosmic_ray_threshold": (float, 0, True),
    "cosmic_ray_contrast": (float, 0, True),
}
"""Type, least value, and whether that is excluded, of the settings that are numbers."""


@dataclasses.dataclass(frozen=True)
class ImportSettings:
    """What holds for an import as a whole.

    Parameters
    ----------
    instrument : `str`, optional
        Name under which the repository knows the camera.
    run : `str`, optional
        Run collection for the exposures; by default ``<instrument>/calexps``.
    skymap : `str`, optional
        Sky map to use, or to make when the repository has none of that name.
    reference : `str`, optional
        Name of the exposure that sets the flux scale and the astrometry; by
        default the first one.
    flux_scale, registration : {'apply', 'report', 'off'}, optional
        What to do about differences from the reference.
    background : {'constant', 'mesh', 'off'}, optional
        Residual sky to subtract.
    mesh : `int`, optional
        Cell of the background mesh in pixels.
    cosmic_rays : {'auto', 'always', 'never'}, optional
        Whether to look for cosmic rays and saturated pixels; ``auto`` does
        so where no mask came with the exposure.
    nominal_zero_point : `float`, optional
        Magnitude of one count where no zero point is known. At 31.4, one
        count is one nJy.
    match_radius : `float`, optional
        Arcseconds within which stars are the same star.
    min_stars : `int`, optional
        Matched stars below which differences are reported but not applied.
    patch_size, border : `int`, optional
        Largest side and border of the patches of a new sky map.
    pixel_scale : `float`, optional
        Pixel of a new sky map in arcseconds.
    orientation : {'reference', 'north'}, optional
        Of a new sky map.
    replace : `bool`, optional
        Replace exposures that the run has already, instead of skipping them.
    min_snr : `float`, optional
        Least signal-to-noise ratio of a star for the PSF model.
    psf_model : {'auto', 'grid', 'moffat'}, optional
        See `PsfSettings`.
    cosmic_ray_threshold, cosmic_ray_contrast : `float`, optional
        See `CosmicRaySettings`.
    """

    instrument: str = "Imported"
    run: str = ""
    skymap: str = "imported"
    reference: str = ""
    flux_scale: str = "apply"
    registration: str = "apply"
    background: str = "constant"
    mesh: int = 64
    cosmic_rays: str = "auto"
    nominal_zero_point: float = 31.4
    match_radius: float = 1.5
    min_stars: int = 2
    patch_size: int = 2000
    border: int = 100
    pixel_scale: float | None = None
    orientation: str = "reference"
    replace: bool = False
    min_snr: float = StarSelection.min_snr
    psf_model: str = "auto"
    cosmic_ray_threshold: float = CosmicRaySettings.threshold
    cosmic_ray_contrast: float = CosmicRaySettings.contrast

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ManifestError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(choices)}.")
        self._check_numbers()
        for name in ("instrument", "run", "skymap", "reference"):
            if not isinstance(getattr(self, name), str):
                raise ManifestError(f"{name} is {getattr(self, name)!r}; it must be text (in quotes).")
        if not isinstance(self.replace, bool):
            raise ManifestError(f"replace is {self.replace!r}; use true or false.")
        if not self.run:
            object.__setattr__(self, "run", f"{self.instrument}/calexps")

    def _check_numbers(self) -> None:
        for name, (kind, low, exclusive) in SETTING_RANGES.items():
            value = getattr(self, name)
            if value is None and name == "pixel_scale":
                continue
            kinds = int if kind is int else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
                what = "whole" if kind is int else "finite"
                raise ManifestError(f"{name} is {value!r}; it must be a {what} number.")
            if low is not None and (value < low or (exclusive and value == low)):
                least = f"above {low}" if exclusive else f"at least {low}"
                raise ManifestError(f"{name} is {value}; it must be {least}.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Make settings from those of a manifest or command line.

        Parameters
        ----------
        values : mapping
            Values by name.

        Returns
        -------
        settings : `ImportSettings`
            The settings.

        Raises
        ------
        ManifestError
            Raised if a name is unknown.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ManifestError(f"Unknown settings {sorted(unknown)}; the known ones are {sorted(known)}.")
        # YAML reads a bare off as false.
        fixed: dict[str, Any] = {k: "off" if v is False and k in _CHOICES else v for k, v in values.items()}
        return cls(**fixed)

    @property
    def stars(self) -> StarSelection:
        """Star selection (`StarSelection`)."""
        return StarSelection(min_snr=self.min_snr)

    @property
    def psf(self) -> PsfSettings:
        """PSF fit (`PsfSettings`)."""
        return PsfSettings(model=self.psf_model)

    @property
    def cosmic_ray_settings(self) -> CosmicRaySettings:
        """Cosmic-ray finder (`CosmicRaySettings`)."""
        return CosmicRaySettings(threshold=self.cosmic_ray_threshold, contrast=self.cosmic_ray_contrast)
