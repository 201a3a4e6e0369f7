# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""A wheel carries all that is needed, and shares the lsst namespace."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="needs the source tree of the package"
)


def normalise(name: str) -> str:
    """Return the name of a distribution as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of a wheel built from a copy of the tree."""
    pytest.importorskip("lsst_versions")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "COPYRIGHT", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("python", "pipelines", "bps"):
        skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "version.py")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", source / "wheels", source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (source / "wheels").glob("lsst_latent_coadds-*.whl")
    directory = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def test_wheel_carries_every_module_and_pipeline(installed: Path) -> None:
    package = "lsst/latent_coadds"
    for path in (ROOT / "python" / package).rglob("*.py"):
        assert (installed / path.relative_to(ROOT / "python")).exists() or path.name == "version.py"
    definitions = sorted(
        path.relative_to(ROOT) for name in ("pipelines", "bps") for path in (ROOT / name).rglob("*.yaml")
    )
    assert {Path("pipelines/latent_coadd.yaml"), Path("bps/parsl_local.yaml")} < set(definitions)
    for path in definitions:
        assert (installed / package / "resources" / path).read_bytes() == (ROOT / path).read_bytes()
    assert (installed / package / "py.typed").exists()


def test_wheel_is_importable_beside_the_other_lsst_packages(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib.resources
import lsst.latent_coadds, lsst.images, lsst.daf.butler
import lsst.latent_coadds.version
print(lsst.latent_coadds.__file__)
resources = importlib.resources.files("lsst.latent_coadds") / "resources" / "pipelines"
print(resources.joinpath("latent_coadd.yaml").read_text())
"""
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    where, _, text = done.stdout.partition("\n")
    assert Path(where).is_relative_to(installed)
    assert yaml.safe_load(text)["tasks"]


def test_wheel_declares_the_command_and_the_licence(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info")
    assert "latent-coadds = lsst.latent_coadds.cli:main" in (metadata / "entry_points.txt").read_text()
    assert "License-Expression: GPL-3.0-or-later" in (metadata / "METADATA").read_text()
    assert {path.name for path in (metadata / "licenses").iterdir()} == {"COPYRIGHT", "LICENSE"}


def test_command_line_runs() -> None:
    command = [sys.executable, "-c", "from lsst.latent_coadds.cli import main; main()", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("simulate", "demo", "import"):
        assert re.search(rf"^ +{command}\b", done.stdout, re.MULTILINE)


def test_pins_satisfy_the_declared_dependencies(project: dict[str, Any]) -> None:
    packaging = pytest.importorskip("packaging.requirements")
    pins = {}
    lists = [ROOT / "tools" / name for name in ("requirements.txt", "requirements-docs.txt")]
    for line in (line for path in lists for line in path.read_text().splitlines()):
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), f"not a plain pin: {line}"
            name, _, version = line.partition("==")
            pins[normalise(name)] = version
    declared = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(need for extra in project["project"]["optional-dependencies"].values() for need in extra),
    ]
    for text in declared:
        requirement = packaging.Requirement(text)
        if requirement.name != project["project"]["name"]:
            assert requirement.specifier.contains(pins[normalise(requirement.name)]), text
    weekly = {version for name, version in pins.items() if name in {"lsst-images", "lsst-pipe-base"}}
    assert weekly == {pins["lsst-daf-butler"]} == {pins["lsst-ctrl-mpexec"]}


def test_every_import_is_declared(project: dict[str, Any]) -> None:
    distributions = importlib.metadata.packages_distributions()
    needs = [*project["project"]["dependencies"]]
    needs += [need for extra in project["project"]["optional-dependencies"].values() for need in extra]
    declared = {normalise(re.split(r"[ \[<>=!~;]", need)[0]) for need in needs}
    undeclared = {}
    for path in (ROOT / "python" / "lsst" / "latent_coadds").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - {"lsst", *sys.stdlib_module_names}:
                owners = {normalise(name) for name in distributions.get(top, [top])}
                if not owners & declared:
                    undeclared[top] = str(path.relative_to(ROOT))
    assert undeclared == {}


def test_links_of_the_documents_resolve() -> None:
    for page in (ROOT / "README.md", *(ROOT / "doc").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} points at {target}"


def test_tree_builds_with_eups_too() -> None:
    table = (ROOT / "ups" / "latent_coadds.table").read_text()
    assert "envPrepend(PYTHONPATH, ${PRODUCT_DIR}/python)" in table
    assert '"latent_coadds"' in (ROOT / "SConstruct").read_text()
    assert (ROOT / "tests" / "SConscript").exists()
    for name in ("pipelines", "bps"):
        link = ROOT / "python" / "lsst" / "latent_coadds" / "resources" / name
        assert link.resolve() == ROOT / name
