# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sphinx configuration; ``make docs`` builds the pages."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(HERE.parent / "tools"))
sys.path.insert(0, str(HERE.parent / "python"))

project = "latent_coadds"
author = copyright = "the latent_coadds developers"
try:
    release = importlib.metadata.version("lsst-latent-coadds")
except importlib.metadata.PackageNotFoundError:
    release = "unreleased"

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "mathml"]
exclude_patterns = ["_build", "_generated/*.md", "changes/+*"]
nitpicky = False
default_role = "py:obj"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

numpydoc_show_class_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"

html_theme = "furo"
html_title = "latent_coadds"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["latent.css"]


def write_configuration(app: Sphinx) -> None:
    """Write the configuration reference from the classes of the tasks."""
    from document_config import document_pipelines

    _write("configuration.md", document_pipelines())


def write_changes(app: Sphinx) -> None:
    """Write the news since the last release, from their fragments."""
    towncrier = shutil.which("towncrier", path=str(Path(sys.executable).parent)) or shutil.which("towncrier")
    text = "(The package towncrier, which joins the fragments in `doc/changes`, is not installed.)"
    if towncrier:
        command = [towncrier, "build", "--draft", "--version", "next", "--date", "not yet released"]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
        text = done.stdout
    _write("changes.md", text)


def write_api(app: Sphinx) -> None:
    """Write a page for each subpackage that others may import."""
    for path in sorted((HERE.parent / "python" / "lsst" / "latent_coadds").glob("*/__init__.py")):
        name = path.parent.name
        if name != "cli":
            _write(f"api/{name}.md", _API_PAGE.format(name=f"lsst.latent_coadds.{name}"))


_API_PAGE = """# {name}

```{{eval-rst}}
.. automodule:: {name}
   :members:
   :imported-members:
   :undoc-members:
```
"""


def _write(name: str, text: str) -> None:
    path = HERE / "_generated" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def setup(app: Sphinx) -> None:
    """Generate pages before Sphinx looks for them."""
    app.connect("builder-inited", write_configuration)
    app.connect("builder-inited", write_changes)
    app.connect("builder-inited", write_api)
