# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tree shows the data flow, and the imports keep to it.

Butler -> adapters -> restoration -> adapters -> Butler: restoration knows
tensors alone, and what exists in a full stack only is imported inside
functions of adapters.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import pytest

import lsst.latent_coadds

PACKAGE = "lsst.latent_coadds"
ROOT = Path(lsst.latent_coadds.__file__).parent
SUBPACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

ON_PYPI = (
    "lsst.ctrl.bps",
    "lsst.ctrl.mpexec",
    "lsst.daf.butler",
    "lsst.images",
    "lsst.pex.config",
    "lsst.pipe.base",
    "lsst.resources",
    "lsst.sphgeom",
    "lsst.utils",
)
"""Packages of the pipelines that the package needs; the rest of lsst is in a
full stack only.
"""

OPTIONAL = {"astroscrappy", "galsim", "matplotlib", "piff", "sep", "tqdm"}
"""Packages of the extras, without which the core loads."""

CORE = {"restoration", "adapters", "tasks", "repository"}

MAY_USE = {
    "restoration": set(),
    "adapters": {"restoration", "repository"},
    "tasks": {"restoration", "adapters", "qa"},
    "qa": {"restoration"},
    "repository": set(),
    # The truth of a simulation owes nothing to the code that it tests.
    "simulation": {"repository", "adapters"},
    "importer": {"repository", "adapters", "simulation", "legacy"},
    "legacy": {"repository", "adapters"},
    "workflow": {"adapters", "restoration", "tasks"},
    "evaluation": {"adapters", "tasks", "qa", "restoration"},
}
"""Which subpackages each may import besides itself; cli and tests may use all."""


@dataclass(frozen=True)
class Import:
    """One imported name and where it stands."""

    name: str
    line: int
    in_function: bool = False
    for_types: bool = False


def find_imports(source: str, package: str) -> Iterator[Import]:
    """Yield everything that a module of ``package`` imports, lazily or not."""

    def visit(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name, node.lineno, in_function, for_types)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.split(".")[: len(package.split(".")) + 1 - level] if level else []
                prefix = ".".join([*base, *([module] if module else [])])
                for alias in names:
                    yield Import(f"{prefix}.{alias.name}", node.lineno, in_function, for_types)
            case ast.Call(func=ast.Name(id="__import__") | ast.Attribute(attr="import_module"), args=args):
                if args and isinstance(args[0], ast.Constant):
                    yield Import(str(args[0].value), node.lineno, in_function, for_types)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = for_types or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside, typing)

    yield from visit(ast.parse(source), False, False)


def is_part_of(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_stack_only(name: str) -> bool:
    """Return whether a name belongs to a package of a full stack."""
    ours = any(is_part_of(name, package) or is_part_of(package, name) for package in (*ON_PYPI, PACKAGE))
    return name.startswith("lsst.") and not ours


def find_faults(source: str, subpackage: str) -> list[str]:
    """Return what is wrong with the imports of a module of a subpackage."""
    faults = []
    for found in find_imports(source, f"{PACKAGE}.{subpackage}"):
        top = found.name.partition(".")[0]
        where = f"line {found.line}: {found.name}"
        if subpackage == "restoration":
            allowed = top in {"torch", "numpy", *sys.stdlib_module_names}
            if not allowed and not is_part_of(found.name, f"{PACKAGE}.restoration"):
                faults.append(f"{where} in restoration, which has torch, numpy and itself")
        if is_stack_only(found.name) and not (
            subpackage == "adapters" and (found.in_function or found.for_types)
        ):
            faults.append(f"{where} belongs to a full stack: import it inside a function of adapters")
        if subpackage in CORE and top in OPTIONAL and not (found.in_function or found.for_types):
            faults.append(f"{where} is in an extra: {subpackage}, as core, imports it where it needs it")
        if is_part_of(found.name, PACKAGE) and subpackage in MAY_USE:
            other = found.name.removeprefix(PACKAGE).lstrip(".").partition(".")[0]
            if other in SUBPACKAGES and other not in MAY_USE[subpackage] | {subpackage}:
                faults.append(f"{where}: {subpackage} does not build on {other}")
    return faults


def get_modules() -> list[Path]:
    return sorted(path for name in SUBPACKAGES for path in (ROOT / name).rglob("*.py"))


@pytest.mark.parametrize("path", get_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_the_layers(path: Path) -> None:
    assert find_faults(path.read_text(), path.relative_to(ROOT).parts[0]) == []


@pytest.mark.parametrize(
    ("subpackage", "source"),
    [
        ("restoration", "import scipy.ndimage"),
        ("restoration", "def f():\n    from lsst.images import Box"),
        ("restoration", "from ..adapters import read"),
        ("restoration", "from .. import adapters"),
        ("restoration", "import importlib\nimportlib.import_module('lsst.afw.image')"),
        ("adapters", "import lsst.afw.image"),
        ("adapters", "import lsst.geom as geom"),
        ("adapters", "from lsst.pipe.tasks.coaddBase import makeSkyInfo"),
        ("adapters", "class A:\n    from lsst.skymap import BaseSkyMap"),
        ("adapters", "from lsst.latent_coadds.tasks import BuildLatentCoaddTask"),
        ("adapters", "import galsim"),
        ("tasks", "def f():\n    import lsst.afw.image"),
        ("tasks", "import matplotlib.pyplot"),
        ("simulation", "from ..restoration import restore"),
    ],
)
def test_offences_are_found(subpackage: str, source: str) -> None:
    assert find_faults(source, subpackage)


@pytest.mark.parametrize(
    ("subpackage", "source"),
    [
        ("restoration", "import torch.fft\nimport numpy as np\nimport math\nfrom ._stack import Stack"),
        ("adapters", "def f():\n    import lsst.afw.image\n    from lsst.geom import Box2I"),
        ("adapters", "import typing\nif typing.TYPE_CHECKING:\n    from lsst.afw.image import Exposure"),
        ("adapters", "from lsst.images import Box\nfrom lsst.daf.butler import Butler"),
        ("tasks", "from lsst.pipe.base import PipelineTask\nfrom ..restoration import restore"),
    ],
)
def test_permitted_imports_pass(subpackage: str, source: str) -> None:
    assert find_faults(source, subpackage) == []


def load(module: str, *, without: Set[str] = frozenset()) -> list[str]:
    """Return what importing a module in a new interpreter loads.

    Packages named in ``without`` cannot be imported there.
    """
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(without)!r}))\n"
        f"import {module}\n"
        "print(*(name for name, module in sys.modules.items() if module), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_restoration_loads_no_other_lsst_package() -> None:
    loaded = load(f"{PACKAGE}.restoration")
    ours = [name for name in loaded if is_part_of(name, "lsst")]
    assert f"{PACKAGE}.restoration" in ours
    permitted = {"lsst", PACKAGE, f"{PACKAGE}.version"}
    assert [n for n in ours if n not in permitted and not is_part_of(n, f"{PACKAGE}.restoration")] == []


@pytest.mark.parametrize("name", sorted(CORE.intersection(SUBPACKAGES)))
def test_core_loads_without_the_extras(name: str) -> None:
    assert f"{PACKAGE}.{name}" in load(f"{PACKAGE}.{name}", without=OPTIONAL)


def test_command_line_starts_without_heavy_packages() -> None:
    loaded = load(f"{PACKAGE}.cli")
    assert {"torch", "galsim", "astropy", "lsst.daf.butler"}.intersection(loaded) == set()
