# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write the configuration and datasets of the pipeline's tasks as Markdown.

All of it comes from the classes themselves, so that it cannot go stale::

    python tools/document_config.py > configuration.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lsst.pex.config import (
    ChoiceField,
    Config,
    ConfigChoiceField,
    ConfigField,
    ConfigurableField,
    Field,
    ListField,
    RangeField,
)
from lsst.pex.config.configChoiceField import ConfigInstanceDict
from lsst.pex.config.configurableField import ConfigurableInstance
from lsst.pipe.base import PipelineTask, PipelineTaskConnections
from lsst.utils.doImport import doImportType

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"

_INHERITED = ("connections", "saveLogOutput", "saveMetadata")
"""Fields of every pipeline task."""


def find_tasks(directory: Path = PIPELINES) -> dict[str, type[PipelineTask]]:
    """Return the tasks of the pipelines in a directory, each of them once."""
    tasks: dict[str, type[PipelineTask]] = {}
    for path in sorted(directory.glob("*.yaml")):
        for label, entry in yaml.safe_load(path.read_text()).get("tasks", {}).items():
            task = doImportType(entry["class"] if isinstance(entry, Mapping) else entry)
            if task not in tasks.values():
                tasks[label] = task
    return tasks


def document_pipelines(directory: Path = PIPELINES) -> str:
    """Return the reference of all tasks of the pipelines.

    Parameters
    ----------
    directory : `pathlib.Path`, optional
        Where the definitions of the pipelines are.

    Returns
    -------
    text : `str`
        Markdown, with a second-level heading for each task.
    """
    parts = []
    for label, task in find_tasks(directory).items():
        config_class: type[Config] = task.ConfigClass
        parts += [
            f"## {label}",
            f"`{task.__module__.rpartition('._')[0] or task.__module__}.{task.__name__}`: {_summary(task)}",
            f"### Datasets of {label}",
            document_connections(config_class.ConnectionsClass, config_class()),
            f"### Settings of {label}",
            *document_config(config_class),
        ]
    return "\n\n".join(parts) + "\n"


def document_config(config_class: type[Config], prefix: str = "", level: int = 4) -> Iterator[str]:
    """Yield the reference of a configuration class.

    Parameters
    ----------
    config_class : `type`
        The class.
    prefix : `str`, optional
        What stands before its fields' names on a command line; it is part
        of the headings alone.
    level : `int`, optional
        Level of the headings of parts that have settings of their own.

    Yields
    ------
    part : `str`
        A table of the fields, and then headings and tables for each
        configuration that a field holds or chooses from.
    """
    rows, parts = [], []
    defaults = config_class()
    for name, field in config_class._fields.items():
        if name in _INHERITED:
            continue
        rows.append((f"`{name}`", _default(getattr(defaults, name)), _allowed(field), _cell(field.doc)))
        for part, held in _held_configs(name, field):
            parts += [f"{'#' * level} {prefix}{part}", _summary(held)]
            parts += document_config(held, f"{prefix}{part}.", level + 1)
    yield _table(("setting", "default", "allowed", "meaning"), rows) if rows else "It has no settings."
    yield from parts


def document_connections(connections_class: type[PipelineTaskConnections], config: Config) -> str:
    """Return a table of the datasets that a task reads and writes.

    Parameters
    ----------
    connections_class : `type`
        The connections.
    config : `lsst.pex.config.Config`
        Configuration of the task, for the templates in names.
    """
    templates = getattr(connections_class, "defaultTemplates", {})
    rows = []
    for kind, names in (
        ("prerequisite", connections_class.prerequisiteInputs),
        ("input", connections_class.inputs),
        ("output", connections_class.outputs),
    ):
        for name in sorted(names):
            connection = connections_class.allConnections[name]
            rows.append(
                (
                    f"`{connection.name.format(**templates)}`",
                    kind,
                    connection.storageClass,
                    ", ".join(connection.dimensions),
                    _cell(connection.doc),
                )
            )
    changeable = ", ".join(f"`connections.{name}` (`{value}`)" for name, value in sorted(templates.items()))
    text = _table(("dataset type", "kind", "storage class", "dimensions", "what it is"), rows)
    return (
        f"{text}\n\nNames that can be changed, and what they are by default: {changeable}."
        if changeable
        else text
    )


def _held_configs(name: str, field: Field) -> Iterator[tuple[str, type[Config]]]:
    """Yield the path and the class of each configuration inside a field."""
    if isinstance(field, ConfigChoiceField):
        for key in sorted(field.typemap):
            held = getattr(field.typemap[key], "ConfigClass", field.typemap[key])
            yield f'{name}["{key}"]', held
    elif isinstance(field, ConfigurableField):
        yield name, field.target.ConfigClass
    elif isinstance(field, ConfigField):
        yield name, field.dtype


def _default(value: Any) -> str:
    if isinstance(value, Config):
        return ""
    if isinstance(value, ConfigurableInstance):
        value = value.target.__name__
    elif isinstance(value, ConfigInstanceDict):
        value = value.name
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = ", ".join(str(item) for item in value)
    return "" if value is None else f"`{value}`"


def _allowed(field: Field) -> str:
    if isinstance(field, ConfigChoiceField):
        return ", ".join(f"`{key}`" for key in sorted(field.typemap))
    if isinstance(field, ChoiceField):
        # With None as an explanation the choice is "Field is optional".
        choices = [(k, v) for k, v in field.allowed.items() if k is not None]
        if all(str(key) == str(doc) for key, doc in choices):
            return ", ".join(f"`{key}`" for key, _ in choices)
        return "; ".join(f"`{key}`: {_cell(doc)}" for key, doc in choices)
    if isinstance(field, ConfigField | ConfigurableField):
        return ""
    if isinstance(field, ListField):
        return f"list of {field.itemtype.__name__}"
    kinds = field.dtype if isinstance(field.dtype, tuple) else (field.dtype,)
    kind = " or ".join(k.__name__ for k in kinds)
    if isinstance(field, RangeField):
        return f"{kind}{_limits(field)}"
    return kind


def _limits(field: RangeField) -> str:
    # Whether limits are allowed themselves is kept as brackets only.
    low = "" if field.min is None else f"{'≥' if field.rangeString[0] == '[' else '>'} {field.min}"
    high = "" if field.max is None else f"{'≤' if field.rangeString[-1] == ']' else '<'} {field.max}"
    return "".join(f", {limit}" for limit in (low, high) if limit)


def _summary(described: type) -> str:
    lines = (described.__doc__ or "").strip().split("\n\n")
    return " ".join(lines[0].split()).replace("`~", "`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("*", r"\*")


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(document_pipelines())
