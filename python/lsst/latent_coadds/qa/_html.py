# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pieces of HTML pages."""

from __future__ import annotations

__all__ = ()

from collections.abc import Sequence
from html import escape
from importlib import resources

import numpy as np

from ._patch_numbers import PATCH_NUMBERS


def make_document(title: str, body: str) -> str:
    """Return a page that needs no other file but its images."""
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en" class="noscript">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n{body}\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _resource(name: str) -> str:
    path = resources.files("lsst.latent_coadds") / "resources" / "report" / name
    return path.read_text(encoding="utf-8")


def make_figure(source: str, caption: str) -> str:
    """Return an image that links to its file."""
    text = escape(caption)
    return (
        f"<figure>\n<figcaption>{text}</figcaption>\n"
        f'<a href="{source}"><img loading="lazy" src="{source}" alt="{text}"></a>\n</figure>'
    )


def make_table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> str:
    """Return a table of texts and numbers, with heads of the columns.

    Entries are a `str` of HTML, which is set to the left, or anything else,
    which is set to the right. The first of a row is its head.
    """
    texts = [all(isinstance(row[i], str) for row in rows) for i in range(len(heads))]
    head = "".join(
        f'<th scope="col"{" class=text" if text else ""}>{escape(name)}</th>'
        for name, text in zip(heads, texts, strict=True)
    )
    body = []
    for row in rows:
        cells = "".join(f"<td{' class=text' if isinstance(v, str) else ''}>{v}</td>" for v in row[1:])
        body.append(f'<tr><th scope="row">{row[0]}</th>{cells}</tr>')
    described = f'<caption class="quiet">{escape(caption)}</caption>\n' if caption else ""
    return (
        f'<div class="scroll"><table>\n{described}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{'\n'.join(body)}\n</tbody></table></div>"
    )


def show_number(name: str, value: float) -> str:
    """Return a number with the decimals that mean something."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.{PATCH_NUMBERS[name].decimals if name in PATCH_NUMBERS else 2}f}"
