# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages say what is so: examples run, messages and places exist."""

from __future__ import annotations

import ast
import doctest
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import astropy.units as u
import pytest
from astropy.coordinates import SkyCoord

from lsst.daf.butler import DatasetType
from lsst.latent_coadds import BuildLatentCoaddConfig, BuildLatentCoaddTask
from lsst.latent_coadds.adapters import PatchGrid
from lsst.latent_coadds.repository import SkyMapGeometry, make_or_open, register_instrument, register_sky_map
from lsst.latent_coadds.restoration import SETTINGS_CLASSES
from lsst.latent_coadds.tasks import restorer_registry
from lsst.latent_coadds.tests import MockVisits
from lsst.pipe.base import Pipeline, Struct

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "doc"
SOURCE = ROOT / "python" / "lsst" / "latent_coadds"
PAGES = {path.stem: path.read_text() for path in sorted(DOC.glob("*.md"))}

pytestmark = pytest.mark.skipif(not PAGES, reason="needs the source tree of the package")

BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?^```python\n(?P<code>.*?)^```$", re.M | re.S)


def python_blocks(page: str) -> list[tuple[str | None, str]]:
    """Return the Python blocks of a page, with the names of those that are files."""
    return [(match["file"], match["code"]) for match in BLOCK.finditer(PAGES[page])]


def has_examples(page: str) -> bool:
    return any(">>>" in code for _, code in python_blocks(page))


@pytest.fixture
def page_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory from which modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def demo_repository(page_directory: Path) -> Path:
    """What `make demo` leaves, smaller: one restored patch of the scene."""
    geometry = SkyMapGeometry.from_grid(
        "latent_sim",
        SkyCoord(150.0 * u.deg, 2.0 * u.deg),
        n_x=1,
        n_y=1,
        inner_size=96,
        border=8,
        pixel_scale=0.2,
    )
    butler = make_or_open(page_directory / "demo" / "repo")
    register_instrument(butler, "Mock", [0], {"i-mock": "i"})
    register_sky_map(butler, geometry)
    patch = PatchGrid.from_sky_map(geometry.to_dict(), skymap="latent_sim", tract=0, patch=0)
    outputs = restore_mock(patch)
    butler.registry.registerRun("LatentSim/imagemm")
    storage = {"": "CellCoadd", "_n_image": "ImageV2", "_metrics": "StructuredDataDict"}
    for suffix, storage_class in storage.items():
        name = f"latent_coadd{suffix}"
        dimensions = {"skymap", "tract", "patch", "band"}
        definition = DatasetType(name, dimensions, storage_class, universe=butler.dimensions)
        butler.registry.registerDatasetType(definition)
        data_id = {"skymap": "latent_sim", "tract": 0, "patch": 0, "band": "i"}
        butler.put(getattr(outputs, name), definition, data_id, run="LatentSim/imagemm")
    return page_directory


def restore_mock(patch: PatchGrid) -> Struct:
    config = BuildLatentCoaddConfig()
    config.device = "cpu"
    task = BuildLatentCoaddTask(config=config)
    return task.run(exposures=MockVisits(n_visits=4).readers(), patch=patch, band="i")


@pytest.mark.parametrize("page", [page for page in PAGES if has_examples(page)])
def test_examples(page: str, page_directory: Path, request: pytest.FixtureRequest) -> None:
    if '"demo/repo"' in PAGES[page]:
        request.getfixturevalue("demo_repository")
    known, modules = set(restorer_registry), set(sys.modules)
    examples = []
    for file, code in python_blocks(page):
        if file is not None:
            Path(file).write_text(code)
        elif ">>>" in code:
            examples.append(code)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    test = doctest.DocTestParser().get_doctest("\n".join(examples), {}, page, str(DOC / f"{page}.md"), 0)
    assert test.examples
    report: list[str] = []
    try:
        result = doctest.DocTestRunner(optionflags=flags).run(test, out=report.append)
    finally:
        for name in set(sys.modules) - modules:
            if (page_directory / f"{name}.py").exists():
                del sys.modules[name]
        for name in set(restorer_registry) - known:
            del restorer_registry._dict[name]
    assert result.failed == 0, "".join(report)


def test_there_are_examples() -> None:
    assert {"add-a-restorer", "arrays", "output"} <= {page for page in PAGES if has_examples(page)}


# Troubleshooting


def source_texts() -> list[str]:
    """Return all texts in the source, with … for what is filled in."""
    texts = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(_piece(value) for value in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return [re.sub(r"%[-.\d]*[sdfg]", "…", text) for text in texts]


def _piece(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def messages() -> list[str]:
    """Return the messages that the page on troubleshooting explains."""
    rows = re.findall(r"^\| `(.+?)` \|", PAGES["troubleshooting"], re.M)
    return [row for row in rows if row != "message"]


def test_every_message_is_in_the_source() -> None:
    texts = source_texts()
    assert len(messages()) >= 40
    for message in messages():
        assert any(message in text for text in texts), message


def test_every_problem_of_an_exposure_is_explained() -> None:
    """What is left out with a warning has a row of its own."""
    from lsst.latent_coadds.adapters import InputProblem

    for problem in InputProblem:
        assert f"`{problem}`" in PAGES["troubleshooting"], problem


# Places


def test_every_place_named_for_contributors_exists() -> None:
    named = re.findall(r"`([\w./-]+/|[\w./-]+\.(?:py|md|yaml|toml|txt|sh|table))`", PAGES["contributing"])
    assert len(named) > 20
    for place in named:
        if place.startswith("_"):
            continue
        roots = [ROOT, SOURCE, DOC]
        assert any((root / place).exists() for root in roots), place


def test_every_page_is_in_the_contents() -> None:
    contents = set(re.findall(r"^([\w-]+)$", PAGES["index"], re.M))
    missing = set(PAGES) - contents - {"index"}
    assert not missing, f"Add {sorted(missing)} to a toctree of doc/index.md."


# Configuration


@pytest.fixture(scope="module")
def reference() -> str:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from document_config import document_pipelines
    finally:
        sys.path.pop(0)
    return document_pipelines()


def test_configuration_reference_has_every_setting(reference: str) -> None:
    for name in BuildLatentCoaddConfig().toDict():
        if name not in ("connections", "saveLogOutput"):
            assert f"| `{name}` |" in reference
    for method, settings_class in SETTINGS_CLASSES.items():
        section = reference.partition(f'restorer["{method}"]\n')[2].partition("\n#")[0]
        for name in settings_class.__dataclass_fields__:
            assert f"| `{name}` |" in section
    assert "| `max_invalid_fraction` | `0.01` | float, ≥ 0.0, ≤ 1.0 |" in reference


def test_configuration_reference_has_every_task(reference: str) -> None:
    for path in (ROOT / "pipelines").glob("*.yaml"):
        for node in Pipeline.fromFile(str(path)).to_graph().tasks.values():
            assert f".{node.task_class.__name__}`: " in reference


# News


def test_news_fragments_have_a_known_kind() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    kinds = {kind["directory"] for kind in project["tool"]["towncrier"]["type"]}
    fragments = [p for p in (DOC / "changes").glob("*.md") if p.name != "README.md"]
    assert fragments
    for path in fragments:
        assert re.fullmatch(rf"[\w+.-]+\.({'|'.join(kinds)})(\.\d+)?\.md", path.name), path.name
