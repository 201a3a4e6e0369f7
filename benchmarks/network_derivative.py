# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Noise of AstroClearNet: derivative of the network, other data, and training again.

One field, one command::

    python benchmarks/network_derivative.py --steps 60 --again 30

The scatter of the restored image, over measurements of each kind, for new noise:
by the derivative along random probes with the weights as they are; by finite
changes of the data with these weights; and with weights that are trained on the
changed data for some steps more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from coverage import MEASUREMENTS, make_weights
from fourier_scenes import FieldMaker

from lsst.latent_coadds.qa import format_table
from lsst.latent_coadds.restoration import ExposureStack, restore, train_weights
from lsst.latent_coadds.restoration._astroclearnet import prepare
from lsst.latent_coadds.restoration._fidelity import HuberFidelity
from lsst.latent_coadds.restoration._learned_restorer import _make_network
from lsst.latent_coadds.restoration._settings import AstroClearNetSettings


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--again", type=int, default=30, help="training steps on changed data")
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--size", type=int, default=136)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    maker = FieldMaker(arguments.seed, size=arguments.size, n_exposures=8)
    targets = maker.stars(maker.grid(20.0), (0, 10, 30, 100))
    field = maker.draw(targets[targets[:, 2] > 0])

    def make(image: np.ndarray) -> ExposureStack:
        planes = (image, field.variance, field.good, field.psf)
        return ExposureStack(*(torch.tensor(a, dtype=torch.float32) for a in planes))

    stack = make(field.image)
    # The network makes all light: points that are measured apart have no derivative through it.
    weights = train_weights([stack], "astroclearnet", point_threshold=0.0, n_iter=arguments.steps)
    settings = AstroClearNetSettings(n_realizations=0, point_threshold=0.0)
    with torch.no_grad():
        preparation = prepare(stack, settings, None)
    network = _make_network(preparation, weights, torch.Generator().manual_seed(0))
    network.requires_grad_(False)
    inverse_sigma = stack.inverse_variance.sqrt()
    operator = preparation.output.operator
    nothing = operator.transform(torch.zeros(operator.latent_shape))

    def respond(data: torch.Tensor) -> torch.Tensor:
        problem = HuberFidelity(data, inverse_sigma, settings.huber_delta)
        response = preparation.respond(network, problem, nothing)
        return preparation.output.finish(response, problem)

    rng = np.random.default_rng(arguments.seed)
    noise = [rng.normal(size=field.image.shape) * np.sqrt(field.variance) for _ in range(arguments.probes)]
    with torch.no_grad():
        reference = respond(torch.tensor(field.clean, dtype=torch.float32))
        trained = [w.clone() for w in weights.values()]
        assert all(bool(torch.isfinite(w).all()) for w in trained)
    clean = torch.tensor(field.clean, dtype=torch.float32)
    images: dict[str, list[np.ndarray]] = {"derivative": [], "other data": [], "trained again": []}
    for change in noise:
        probe = torch.tensor(change, dtype=torch.float32)
        images["derivative"].append(derivative(respond, stack.image, probe).numpy())
        with torch.no_grad():
            images["other data"].append((respond(clean + probe) - reference).numpy())
        other = make(field.clean + change)
        again = train_weights(
            [other], "astroclearnet", weights=weights, point_threshold=0.0, n_iter=arguments.again
        )
        result = restore(other, "astroclearnet", weights=again, point_threshold=0.0, n_realizations=0)
        images["trained again"].append(result.image.numpy() - reference.numpy())
    psf = preparation.psf.numpy()
    rows = []
    for name, found in images.items():
        for s in (0, 10, 30, 100):
            scatter = [measure(found, targets[targets[:, 2] == s], psf, kind) for kind in MEASUREMENTS]
            rows.append([name, s, *(f"{v / field.flux_error:.3f}" for v in scatter)])
    print(format_table(["noise by", "S/N", *MEASUREMENTS], rows))


def derivative(
    respond: Callable[[torch.Tensor], torch.Tensor], data: torch.Tensor, probe: torch.Tensor
) -> torch.Tensor:
    """Return the derivative of the restored image along a probe."""
    _, tangent = torch.func.jvp(respond, (data,), (probe,))
    return tangent.detach()


def measure(images: list[np.ndarray], targets: np.ndarray, psf: np.ndarray, kind: str) -> float:
    """Return the rms of a measurement about its mean over realizations."""
    values = []
    for x, y, *_ in targets:
        row, column = round(y) - 9, round(x) - 9
        weights = make_weights(x - column, y - row, psf)[kind]
        values.append([float((weights * i[row : row + 19, column : column + 19]).sum()) for i in images])
    table = np.array(values)
    return float(np.sqrt(table.var(axis=1, ddof=1).mean()))


if __name__ == "__main__":
    main()
