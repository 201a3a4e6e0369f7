# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("main",)

import importlib
import logging

import click

_COMMANDS = {
    "demo": ("._demo", "Simulate exposures, restore them, and compare with the truth."),
    "evaluate": ("._evaluate", "Inject sources of known flux, and say what becomes of them."),
    "import": ("._import", "Put FITS exposures into a Butler repository."),
    "report": ("._pages", "Make HTML pages of a run's analysis."),
    "simulate": ("._simulate", "Make a Butler repository of simulated exposures."),
}


class _LazyGroup(click.Group):
    """Group that imports a subcommand only where it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0], __package__)
        return module.command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
def main(verbose: bool) -> None:
    """Latent-image coadds for the LSST Science Pipelines."""
    logging.basicConfig(format="%(name)s %(levelname)s: %(message)s")
    logging.getLogger("lsst.latent_coadds").setLevel(logging.INFO if verbose else logging.WARNING)
