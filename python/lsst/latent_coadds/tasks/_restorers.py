# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

__all__ = ("Restorer", "RestorerField", "SettingsRestorer", "make_config_class", "restorer_registry")

import copy
import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch

from lsst.pex.config import (
    ChoiceField,
    Config,
    Field,
    FieldValidationError,
    RangeField,
    Registry,
    RegistryField,
    makeRegistry,
)
from lsst.pex.config.registry import RegistryInstanceDict

from ..restoration import (
    LEARNED_METHODS,
    SETTINGS_CLASSES,
    ExposureStack,
    Restoration,
    load_weights,
    restore,
    train_weights,
)


class Restorer(Protocol):
    """What the task asks of a restorer.

    Parameters
    ----------
    config : `lsst.pex.config.Config`
        Settings of the restorer.
    """

    ConfigClass: ClassVar[type[Config]]

    has_chosen_psf: bool
    """Whether the PSF of the result is the same everywhere because it was
    chosen (`bool`); otherwise it is the mean of the exposures' PSFs.
    """

    trains_per_patch: bool
    """Whether a patch of several tiles needs one training for all (`bool`)."""

    prefers_native: bool
    """Whether exposures in their own pixels are worth their time (`bool`);
    a restorer that does not say so gets them registered, unless configured.
    """

    def __init__(self, config: Config) -> None: ...

    def train(
        self,
        stacks: Sequence[ExposureStack],
        *,
        device: str,
        generator: torch.Generator,
        weights_file: str | None = None,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> Restorer:
        """Return a restorer that was trained on parts of a patch.

        Parameters
        ----------
        stacks : `~collections.abc.Sequence`
            Parts of the patch, as `lsst.latent_coadds.restoration.ExposureStack`.
        device, generator, progress
            As for `restore`.
        weights_file : `str`, optional
            File with weights to start from.

        Returns
        -------
        trained : `Restorer`
            Another restorer, which leaves this one as it is.
        """
        ...

    def restore(
        self,
        stack: ExposureStack,
        *,
        device: str,
        generator: torch.Generator,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> Restoration:
        """Restore a stack of exposures.

        Parameters
        ----------
        stack : `lsst.latent_coadds.restoration.ExposureStack`
            The exposures.
        device : `str`
            Device to work on.
        generator : `torch.Generator`
            Source of random numbers.
        progress : `~collections.abc.Callable`, optional
            Called with the iteration, the largest number of iterations, and
            the objective.

        Returns
        -------
        restoration : `lsst.latent_coadds.restoration.Restoration`
            The result.
        """
        ...


restorer_registry: Registry = makeRegistry(
    "Restorers that `BuildLatentCoaddTask` can use. Each is called with its config and implements `Restorer`."
)


class _Restorers(RegistryInstanceDict):
    def __getitem__(self, k: str, *args: Any, **kwargs: Any) -> Config:
        if k not in self.types:
            raise FieldValidationError(
                self._field,
                self._config,
                f"There is no restorer {k!r}; the known ones are {sorted(self.types)}. One of another "
                "package is known once the module that registers it is imported in the configuration.",
            )
        return super().__getitem__(k, *args, **kwargs)


class RestorerField(RegistryField):
    """A choice of restorer, whose errors name those that there are."""

    instanceDictClass = _Restorers


def make_config_class(settings_class: type, name: str) -> type[Config]:
    """Make a config class that mirrors a settings dataclass.

    Parameters
    ----------
    settings_class : `type`
        Dataclass whose fields have defaults, and metadata with ``doc`` and
        optionally ``min``, ``max`` and ``choices``.
    name : `str`
        Name of the new class.

    Returns
    -------
    config_class : `type`
        A `lsst.pex.config.Config` with a field for each field of the
        dataclass. Names, defaults and limits are stated there alone.
    """
    types = typing.get_type_hints(settings_class)
    fields: dict[str, Any] = {"__doc__": settings_class.__doc__, "__module__": __name__}
    for field in dataclasses.fields(settings_class):
        doc, dtype, metadata = field.metadata["doc"], types[field.name], field.metadata
        if "choices" in metadata:
            allowed = {choice: choice for choice in metadata["choices"]}
            fields[field.name] = ChoiceField(
                doc=doc, dtype=dtype, allowed=allowed, default=field.default, optional=False
            )
        elif "min" in metadata or "max" in metadata:
            low, high = metadata.get("min"), metadata.get("max")
            fields[field.name] = RangeField(
                doc=doc, dtype=dtype, default=field.default, min=low, max=high, inclusiveMax=True
            )
        else:
            fields[field.name] = Field(doc=doc, dtype=dtype, default=field.default)
    return type(name, (Config,), fields)


class SettingsRestorer:
    """A restorer of the numeric core.

    Parameters
    ----------
    config : `lsst.pex.config.Config`
        Mirror of the restorer's settings.
    """

    ConfigClass: ClassVar[type[Config]]
    method: ClassVar[str]
    has_chosen_psf: bool = True
    trains_per_patch: bool = False
    prefers_native: bool = False

    def __init__(self, config: Config) -> None:
        self.settings = config.toDict()
        self._weights: dict[str, torch.Tensor] | None = None

    def train(
        self,
        stacks: Sequence[ExposureStack],
        *,
        device: str,
        generator: torch.Generator,
        weights_file: str | None = None,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> SettingsRestorer:
        """Train the network on parts of a patch; see `Restorer.train`."""
        trained = copy.copy(self)
        trained._weights = train_weights(
            stacks,
            self.method,
            device=device,
            generator=generator,
            weights=load_weights(weights_file) if weights_file else None,
            progress=progress,
            **self.settings,
        )
        return trained

    def restore(
        self,
        stack: ExposureStack,
        *,
        device: str,
        generator: torch.Generator,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> Restoration:
        """Restore a stack of exposures; see `Restorer.restore`."""
        return restore(
            stack,
            self.method,
            device=device,
            generator=generator,
            progress=progress,
            weights=self._weights,
            **self.settings,
        )


def _register_core_restorers() -> None:
    for method, settings_class in SETTINGS_CLASSES.items():
        config_name = settings_class.__name__.replace("Settings", "Config")
        config_class = make_config_class(settings_class, config_name)
        restorer = type(
            settings_class.__name__.replace("Settings", "Restorer"),
            (SettingsRestorer,),
            {
                "__doc__": settings_class.__doc__,
                "ConfigClass": config_class,
                "method": method,
                "has_chosen_psf": method != "direct",
                "trains_per_patch": method in LEARNED_METHODS,
                # The plain coadd registers exposures anyway, and so do networks for their inputs.
                "prefers_native": method == "imagemm",
            },
        )
        # pickling a config needs its class to be importable by name.
        globals()[config_class.__name__] = config_class
        globals()[restorer.__name__] = restorer
        restorer_registry.register(method, restorer)


_register_core_restorers()
