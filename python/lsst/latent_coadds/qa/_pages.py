# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Static HTML pages of a run: an overview, and a page for each patch."""

from __future__ import annotations

__all__ = ("TractPage", "write_pages")

import dataclasses
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ._html import make_document, make_figure, show_number
from ._patch_numbers import PATCH_NUMBERS
from ._patch_page import PatchPage

_COLUMNS = {
    "concern": "concern",
    "chi2_worst": "worst χ²",
    "star_fwhm": "star FWHM (px)",
    "flux_ratio": "flux ratio",
    "depth": "depth (mag)",
    "n_detections": "sources",
    "n_inputs": "inputs",
    "no_data_fraction": "no data",
}
"""Columns of the overview, by the number that they show."""


@dataclasses.dataclass(frozen=True)
class TractPage:
    """What the overview shows of a tract in a band.

    Parameters
    ----------
    tract : `int`
        The tract.
    band : `str`
        The band.
    summary_plot : `bytes` or `None`
        PNG file with maps of the tract.
    patches : sequence of `PatchPage`
        Its patches, in any order.
    """

    tract: int
    band: str
    summary_plot: bytes | None
    patches: Sequence[PatchPage]

    @property
    def ordered(self) -> list[PatchPage]:
        """The patches, those of the greatest concern first (`list` [`PatchPage`])."""
        return sorted(self.patches, key=lambda p: (-float(p.analysis["concern"]), p.analysis["patch"]))


def write_pages(
    directory: str | os.PathLike[str], tracts: Sequence[TractPage], *, title: str, description: str
) -> Path:
    """Write the overview, the pages of the patches and all images.

    Parameters
    ----------
    directory : path
        Where to write; pages of an earlier run there are replaced.
    tracts : sequence of `TractPage`
        What to show.
    title, description : `str`
        What the run is called, and what is to be known of it.

    Returns
    -------
    path : `pathlib.Path`
        The overview, ``index.html``.
    """
    directory = Path(directory)
    for name in ("images", "patches"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    for tract in tracts:
        if tract.summary_plot is not None:
            (directory / "images" / f"{tract.tract}_{tract.band}_summary.png").write_bytes(tract.summary_plot)
        ordered = tract.ordered
        for i, patch in enumerate(ordered):
            for name, data in patch.plots.items():
                (directory / "images" / f"{patch.stem}_{name}.png").write_bytes(data)
            if "image" in patch.plots:
                _write_thumbnail(directory / "images" / f"{patch.stem}_thumbnail.png", patch.plots["image"])
            neighbours = ordered[i - 1] if i else None, ordered[i + 1] if i + 1 < len(ordered) else None
            page = patch.to_html(title, *neighbours)
            (directory / "patches" / f"{patch.stem}.html").write_text(page, encoding="utf-8")
    path = directory / "index.html"
    path.write_text(_overview(tracts, title, description), encoding="utf-8")
    return path


def _write_thumbnail(path: Path, data: bytes, side: int = 192) -> None:
    # Matplotlib, which made the image, cannot be installed without Pillow.
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((side, side))
        image.convert("RGB").save(path)


def _overview(tracts: Sequence[TractPage], title: str, description: str) -> str:
    patches = [patch for tract in tracts for patch in tract.patches]
    n_failed = sum(bool(patch.failed) for patch in patches)
    parts = [
        f"<main>\n<h1>{escape(title)}</h1>\n<p>{escape(description)}</p>",
        f"<p>{n_failed} of {len(patches)} patches are beyond a limit. Patches of the greatest concern come "
        "first; <em>concern</em> is the worst deviation of a figure from what it should be, "
        "over its limit.</p>",
        '<div class="controls"><label><input type="checkbox" id="only-failed"> '
        "Only patches that are beyond a limit</label></div>",
    ]
    for tract in tracts:
        parts.append(f"<section>\n<h2>Tract {tract.tract}, band {escape(tract.band)}</h2>")
        parts.append(_tract_table(tract))
        if tract.summary_plot is not None:
            parts.append(make_figure(f"images/{tract.tract}_{tract.band}_summary.png", "Maps of the tract"))
        parts.append("</section>")
    return make_document(title, "\n".join([*parts, "</main>"]))


def _tract_table(tract: TractPage) -> str:
    heads = []
    for name, label in _COLUMNS.items():
        doc = "Worst deviation over its limit" if name == "concern" else PATCH_NUMBERS[name].doc
        order = ' aria-sort="descending"' if name == "concern" else ""
        button = f'<button type="button" title="{escape(doc)}">{escape(label)}</button>'
        heads.append(f'<th scope="col"{order}>{button}</th>')
    rows = "\n".join(_tract_row(patch) for patch in tract.ordered)
    return (
        '<div class="scroll"><table data-sort>\n<thead><tr><td></td><th scope="col" class="text">patch</th>'
        f'<th scope="col" class="text">state</th>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _tract_row(patch: PatchPage) -> str:
    link = f"patches/{patch.stem}.html"
    thumbnail = ""
    if "image" in patch.plots:
        source = f"images/{patch.stem}_thumbnail.png"
        image = f'<img class="thumb" loading="lazy" src="{source}" alt="{escape(patch.title)}">'
        thumbnail = f'<a href="{link}">{image}</a>'
    cells = []
    for name in _COLUMNS:
        found = (
            patch.analysis["concern"] if name == "concern" else patch.analysis["numbers"].get(name, np.nan)
        )
        cells.append(f'<td data-value="{float(found)}">{show_number(name, float(found))}</td>')
    return (
        f'<tr data-passed="{str(not patch.failed).lower()}"><td>{thumbnail}</td>'
        f'<th scope="row"><a href="{link}">{patch.analysis["patch"]}</a></th>'
        f'<td class="text">{patch.state}</td>{"".join(cells)}</tr>'
    )
