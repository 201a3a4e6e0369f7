# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later


"""Compute sites of Parsl; needs lsst.ctrl.bps.parsl."""

from __future__ import annotations

__all__ = ("GpuSlurm",)

from typing import Any

from lsst.ctrl.bps.parsl.configuration import get_bps_config_value
from lsst.ctrl.bps.parsl.sites import Slurm


class GpuSlurm(Slurm):
    """Nodes of a Slurm cluster with a Parsl worker for each of their GPUs.

    Parameters
    ----------
    *args, **kwargs
        See `lsst.ctrl.bps.parsl.sites.Slurm`.

    Notes
    -----
    Besides the settings of its base class, the site has ``gpus_per_node``
    (`int`, 1). Parsl sets ``CUDA_VISIBLE_DEVICES`` of each worker to one GPU,
    so that as many quanta run on a node as it has GPUs.
    """

    def make_executor(self, label: str, **options: Any) -> Any:
        """Return an executor with one worker for each GPU of a node.

        Parameters
        ----------
        label : `str`
            Its label.
        **options
            See `lsst.ctrl.bps.parsl.sites.Slurm.make_executor`.

        Returns
        -------
        executor : `parsl.executors.HighThroughputExecutor`
            The executor.
        """
        n_gpus = get_bps_config_value(self.site, "gpus_per_node", int, 1)
        of_site = get_bps_config_value(self.site, "scheduler_options", str, "")
        # The base class prefers what the configuration has.
        self.site["scheduler_options"] = f"{of_site}\n#SBATCH --gpus-per-node={n_gpus}".lstrip()
        options["executor_options"] = {
            "available_accelerators": n_gpus,
            "max_workers_per_node": n_gpus,
            **(options.get("executor_options") or {}),
        }
        try:
            return super().make_executor(label, **options)
        finally:
            self.site["scheduler_options"] = of_site
