# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Finding a Python, and making or repairing the environment."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"

pytestmark = pytest.mark.skipif(not TOOLS.exists(), reason="needs the source tree of the package")


@pytest.fixture
def make_environment(tmp_path: Path) -> ModuleType:
    """The set-up script, at work on a small tree of its own."""
    tree = tmp_path / "tree"
    (tree / "tools").mkdir(parents=True)
    shutil.copy(TOOLS / "make_environment.py", tree / "tools")
    (tree / "tools" / "requirements.txt").write_text("# pins\nSome-Thing==1.0\n")
    (tree / "pyproject.toml").write_text("[project]\n")
    spec = importlib.util.spec_from_file_location("make_environment", tree / "tools" / "make_environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_distribution(site_packages: Path, name: str, version: str) -> Path:
    """Write what pip leaves of a distribution with one module."""
    module = site_packages / f"{name.lower()}.py"
    module.write_text("x = 1\n")
    metadata = site_packages / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (metadata / "RECORD").write_text(f"{module.name},sha256=x,6\n{metadata.name}/RECORD,,\n")
    return metadata


class FakePip:
    """Installs the pins as pip would, and can be interrupted."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.calls: list[tuple[str, ...]] = []
        self.interrupt = False

    def __call__(self, python: Path, *arguments: str) -> None:
        self.calls.append(arguments)
        site_packages = self.module.find_site_packages(python.parent.parent)
        if "--editable" in arguments:
            (python.parent / "latent-coadds").write_text("#!\n")
            return
        if not list(site_packages.glob("some_thing-1.0.dist-info")):
            metadata = write_distribution(site_packages, "some_thing", "1.0")
            if self.interrupt:
                (metadata / "RECORD").unlink()
                raise KeyboardInterrupt


@pytest.fixture
def pip(make_environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip(make_environment)
    monkeypatch.setattr(make_environment, "run_pip", fake)
    return fake


@pytest.fixture
def base_python() -> str:
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def test_environment_is_made_once(make_environment: ModuleType, pip: FakePip, base_python: str) -> None:
    environment = make_environment.ROOT / ".venv"
    assert not make_environment.is_ready(environment, base_python)
    make_environment.make(environment, base_python)
    assert [call[0] for call in pip.calls] == ["install", "install"]
    assert make_environment.is_ready(environment, base_python)


def test_changed_pins_are_noticed(make_environment: ModuleType, pip: FakePip, base_python: str) -> None:
    environment = make_environment.ROOT / ".venv"
    make_environment.make(environment, base_python)
    make_environment.REQUIREMENTS.write_text("some-thing==2.0\n")
    assert not make_environment.is_ready(environment, base_python)


def test_interrupted_pip_is_repaired(make_environment: ModuleType, pip: FakePip, base_python: str) -> None:
    environment = make_environment.ROOT / ".venv"
    pip.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        make_environment.make(environment, base_python)
    pip.interrupt = False
    site_packages = make_environment.find_site_packages(environment)
    (site_packages / "~ome_thing").mkdir()
    (environment / "tmp-download").mkdir()
    assert not make_environment.is_ready(environment, base_python)
    make_environment.make(environment, base_python)
    assert make_environment.is_ready(environment, base_python)
    assert not (site_packages / "~ome_thing").exists()
    assert not (environment / "tmp-download").exists()


@pytest.mark.parametrize("damage", ["file gone", "file cut short", "stamp gone", "interpreter gone"])
def test_damage_is_repaired(
    make_environment: ModuleType, pip: FakePip, base_python: str, damage: str
) -> None:
    environment = make_environment.ROOT / ".venv"
    make_environment.make(environment, base_python)
    module = make_environment.find_site_packages(environment) / "some_thing.py"
    match damage:
        case "file gone":
            module.unlink()
        case "file cut short":
            module.write_text("")
        case "stamp gone":
            (environment / make_environment.STAMP).unlink()
        case "interpreter gone":
            for path in (environment / "bin").glob("python*"):
                path.unlink()
    assert not make_environment.is_ready(environment, base_python)
    make_environment.make(environment, base_python)
    assert make_environment.is_ready(environment, base_python)
    assert module.read_text() == "x = 1\n"


def test_moved_tree_gets_a_new_environment(
    make_environment: ModuleType, pip: FakePip, base_python: str
) -> None:
    environment = make_environment.ROOT / ".venv"
    make_environment.make(environment, base_python)
    moved = environment.rename(make_environment.ROOT / ".venv-moved")
    assert not make_environment.is_ready(moved, base_python)


def test_local_version_satisfies_a_pin(make_environment: ModuleType, tmp_path: Path) -> None:
    write_distribution(tmp_path, "torch", "2.15.0+cpu")
    assert make_environment.find_unmet(tmp_path, {"torch": "2.15.0"}) == []
    assert make_environment.find_unmet(tmp_path, {"torch": "2.14.0"}) == ["torch==2.14.0"]


def write_python(path: Path, answer: str, status: int = 0) -> None:
    """Write a command that stands for a Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The search asks twice: whether it is fit, and where it is.
    path.write_text(
        f'#!/bin/sh\ncase "$2" in *executable*) echo "$0";; *) echo "{answer}"; exit {status};; esac\n'
    )
    path.chmod(0o755)


def find_python(tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Search where there is nothing but what a test has put there."""
    commands = tmp_path / "bin"
    commands.mkdir(exist_ok=True)
    for name in ("sh", "sed", "cat"):
        found = shutil.which(name)
        if not (commands / name).exists() and found is not None:
            (commands / name).symlink_to(found)
    return subprocess.run(
        [str(commands / "sh"), str(TOOLS / "find_python.sh"), str(tmp_path / ".venv")],
        env={"PATH": str(commands), "HOME": str(tmp_path / "home")} | environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_python_on_the_path_is_found(tmp_path: Path) -> None:
    write_python(tmp_path / "bin" / "python3.13", "is Python 3.13 but lacks ensurepip", 2)
    write_python(tmp_path / "bin" / "python3", "")
    assert find_python(tmp_path).stdout.strip() == str(tmp_path / "bin" / "python3")


def test_python_under_pyenv_is_found(tmp_path: Path) -> None:
    write_python(tmp_path / "bin" / "python3", "is Python 3.11", 1)
    hidden = tmp_path / "home" / ".pyenv" / "versions" / "3.12.1" / "bin" / "python3.12"
    write_python(hidden, "")
    assert find_python(tmp_path).stdout.strip() == str(hidden)


def test_named_python_is_used_or_refused(tmp_path: Path) -> None:
    write_python(tmp_path / "bin" / "python3", "")
    write_python(tmp_path / "mine", "is Python 3.9", 1)
    refused = find_python(tmp_path, PYTHON=str(tmp_path / "mine"))
    assert refused.returncode == 1
    assert "is Python 3.9" in refused.stderr
    write_python(tmp_path / "mine", "")
    assert find_python(tmp_path, PYTHON=str(tmp_path / "mine")).stdout.strip() == str(tmp_path / "mine")


def test_python_of_the_environment_is_kept(tmp_path: Path) -> None:
    write_python(tmp_path / "bin" / "python3", "")
    write_python(tmp_path / "elsewhere" / "python3.12", "")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text(f"executable = {tmp_path}/elsewhere/python3.12\n")
    assert find_python(tmp_path).stdout.strip() == str(tmp_path / "elsewhere" / "python3.12")


def test_missing_python_is_explained(tmp_path: Path) -> None:
    write_python(tmp_path / "bin" / "python3", "is Python 3.13 but lacks ensurepip", 2)
    done = find_python(tmp_path)
    if done.returncode == 0:
        pytest.skip(f"this machine has a Python in a place that is always searched: {done.stdout}")
    for words in ("3.12 or 3.13", "lacks ensurepip", "python3.13-venv", "pyenv install", "PYTHON="):
        assert words in done.stderr


def test_real_search_finds_a_python_that_fits() -> None:
    done = subprocess.run(
        ["sh", str(TOOLS / "find_python.sh")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).exists()
