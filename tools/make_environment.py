#!/usr/bin/env python3
# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make, check or repair the virtual environment of a source tree.

Uses the standard library alone. Does nothing when the environment is whole:
its stamp agrees with the requirements and every installed file is there.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tools" / "requirements.txt"
PROJECT = ROOT / "pyproject.toml"
STAMP = "latent_coadds.stamp"
ROOM = 9 * 1024**3
"""Bytes that the environment takes with PyTorch's CUDA libraries."""

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)")


class EnvironmentFailedError(RuntimeError):
    """The environment could not be made; the message says what to do."""


def read_pins(requirements: Path) -> dict[str, str]:
    """Return the pinned version of each distribution by normalised name."""
    pins = {}
    for line in requirements.read_text().splitlines():
        if match := _PIN.match(line.strip()):
            pins[normalise(match[1])] = match[2]
    return pins


def normalise(name: str) -> str:
    """Return the name of a distribution as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def compute_stamp(environment: Path, base_python: str) -> str:
    """Return what the stamp of an up-to-date environment says."""
    digest = hashlib.sha256()
    for part in (REQUIREMENTS.read_bytes(), PROJECT.read_bytes(), str(environment).encode()):
        digest.update(hashlib.sha256(part).digest())
    return f"{digest.hexdigest()} {base_python}\n"


def find_site_packages(environment: Path) -> Path | None:
    """Return the environment's site-packages, or `None`."""
    return next(iter(sorted(environment.glob("lib/python3.*/site-packages"))), None)


def find_broken(site_packages: Path) -> list[Path]:
    """Return the metadata directories of distributions that lack files.

    An interrupted pip leaves a distribution whose list of files (RECORD) is
    missing or names files that are not there, and counts it as installed.
    """
    return [path for path in sorted(site_packages.glob("*.dist-info")) if not is_whole(path)]


def is_whole(dist_info: Path) -> bool:
    """Return whether every file of a distribution is there, in full size."""
    try:
        with open(dist_info / "RECORD", newline="", encoding="utf-8") as stream:
            for name, _, size in csv.reader(stream):
                if name.endswith((".pyc", "/RECORD")):
                    continue
                found = os.stat(os.path.join(dist_info.parent, name)).st_size
                # Distributions of one namespace may each bring the file that opens it.
                if size and int(size) != found and name not in ("lsst/__init__.py", "lsst/ctrl/__init__.py"):
                    return False
    except (OSError, ValueError):
        return False
    return True


def find_unmet(site_packages: Path, pins: dict[str, str]) -> list[str]:
    """Return the pinned distributions that are absent or of another version.

    A local version (``2.15.0+cpu``) satisfies the pin of its public version.
    """
    found: dict[str, str] = {}
    for path in site_packages.glob("*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        found[normalise(name)] = version
    return [f"{n}=={v}" for n, v in pins.items() if found.get(n, "").partition("+")[0] != v]


def runs(python: Path) -> bool:
    """Return whether an environment's Python starts and has its pip."""
    try:
        done = subprocess.run(
            [python, "-c", "import sys, pip; sys.exit(sys.prefix == sys.base_prefix)"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def is_ready(environment: Path, base_python: str) -> bool:
    """Return whether there is nothing to do."""
    try:
        if (environment / STAMP).read_text() != compute_stamp(environment, base_python):
            return False
    except OSError:
        return False
    site_packages = find_site_packages(environment)
    return (
        site_packages is not None
        and (environment / "bin" / "latent-coadds").exists()
        and runs(environment / "bin" / "python")
        and not find_broken(site_packages)
        and not find_unmet(site_packages, read_pins(REQUIREMENTS))
    )


def remove_debris(site_packages: Path) -> list[str]:
    """Remove what an interrupted pip left, so that pip installs it anew.

    Returns the names of the distributions that were broken.
    """
    for path in (*site_packages.glob("~*"), *site_packages.parents[2].glob("tmp-*")):
        shutil.rmtree(path, ignore_errors=True)
    broken = find_broken(site_packages)
    for path in broken:
        shutil.rmtree(path)
    return [path.name.removesuffix(".dist-info") for path in broken]


def run_pip(python: Path, *arguments: str) -> None:
    """Run pip in an environment, with its output shown.

    Downloads go beside the environment: /tmp is often held in memory, and too
    small for PyTorch.
    """
    environ = {
        key: value for key, value in os.environ.items() if key not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX")
    }
    environ |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "GIT_PYTHON_REFRESH": "quiet"}
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=python.parent.parent) as directory:
        environ["TMPDIR"] = directory
        done = subprocess.run([str(python), "-m", "pip", *arguments], env=environ, check=False)
    if done.returncode:
        raise EnvironmentFailedError(
            "pip did not finish (its message is above). With no network or an overloaded package index, "
            "wait and run the same command again: it goes on where it stopped."
        )


@contextlib.contextmanager
def hold_lock() -> Iterator[None]:
    """Let one process at a time work on the environment of this tree."""
    with open(REQUIREMENTS) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is making the environment; waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def say(message: str) -> None:
    """Show progress."""
    print(f"[environment] {message}", flush=True)


def make(environment: Path, base_python: str) -> None:
    """Make or repair the environment."""
    python = environment / "bin" / "python"
    stamp = environment / STAMP
    start = time.monotonic()
    if environment.exists():
        stamp_base = stamp.read_text().partition(" ")[2].strip() if stamp.exists() else base_python
        stamp.unlink(missing_ok=True)
        if stamp_base != base_python or not runs(python):
            say(f"{environment} is of another Python or does not run: making it anew")
            shutil.rmtree(environment)
    if not environment.exists():
        free = shutil.disk_usage(environment.parent).free
        if free < ROOM:
            say(f"only {free / 1e9:.1f} GB of disk are free here; up to {ROOM / 1e9:.0f} GB may be needed")
        say(f"making {environment} with {base_python}")
        if subprocess.run([base_python, "-m", "venv", str(environment)], check=False).returncode:
            raise EnvironmentFailedError(
                f"{base_python} cannot make a virtual environment (its message is above). "
                f"On Debian and Ubuntu: sudo apt install python3.{sys.version_info.minor}-venv"
            )
    site_packages = find_site_packages(environment)
    assert site_packages is not None
    if broken := remove_debris(site_packages):
        say("installing again what was left incomplete: " + ", ".join(broken))
    if "pip" in {normalise(name.partition("-")[0]) for name in broken}:
        subprocess.run([str(python), "-m", "ensurepip", "--upgrade"], check=True)
    unmet = find_unmet(site_packages, read_pins(REQUIREMENTS))
    if unmet or broken:
        say(f"installing {len(unmet)} distributions (PyTorch is by far the largest; a few minutes)")
        run_pip(python, "install", "--retries", "5", "--timeout", "60", "-r", str(REQUIREMENTS))
    say("installing latent_coadds itself, editable")
    run_pip(python, "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if still := find_broken(site_packages):
        raise EnvironmentFailedError(
            f"After installing, files are missing from {', '.join(p.name for p in still)}; "
            f"remove {environment} and run the same command again."
        )
    stamp.write_text(compute_stamp(environment, base_python))
    say(f"ready after {time.monotonic() - start:.0f} s")


def main() -> int:
    """Make the environment given on the command line."""
    parser = argparse.ArgumentParser(description="Make, check or repair the virtual environment.")
    parser.add_argument("environment", nargs="?", default=".venv", help="directory of the environment")
    environment = (ROOT / parser.parse_args().environment).absolute()
    base_python = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    with hold_lock():
        if is_ready(environment, base_python):
            return 0
        try:
            make(environment, base_python)
        except EnvironmentFailedError as error:
            print(f"[environment] {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
