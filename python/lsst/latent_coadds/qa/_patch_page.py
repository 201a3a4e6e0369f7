# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page of a patch."""

from __future__ import annotations

__all__ = ("PatchPage",)

import dataclasses
from collections.abc import Mapping
from html import escape
from typing import Any

from ._html import make_document, make_figure, make_table, show_number
from ._patch_numbers import PATCH_NUMBERS

_PLOTS = {
    "detail": "Details",
    "photometry": "Photometry against the reference, and counts",
    "star": "Stars: FWHM, and what the PSF leaves",
    "noise": "Noise and its correlation",
    "artifact": "Artefacts: what was clipped or rejected, and what looks wrong",
    "fit": "Residuals of the visits, and history of the loss",
}
"""Plots of a patch, in their order, with their captions."""

_LONGEST = 60
"""Number of artefacts that are listed."""


@dataclasses.dataclass(frozen=True)
class PatchPage:
    """What the page of a patch shows.

    Parameters
    ----------
    analysis : `dict`
        ``analysis`` of `lsst.latent_coadds.AnalyzeLatentCoaddTask`.
    plots : `dict` [`str`, `bytes`]
        PNG files by name: ``image``, ``reference`` and others.
    """

    analysis: Mapping[str, Any]
    plots: Mapping[str, bytes]

    @property
    def stem(self) -> str:
        """Beginning of the names of its files (`str`)."""
        return "{tract}_{patch}_{band}".format(**self.analysis)

    @property
    def title(self) -> str:
        """What it is called (`str`)."""
        return "Tract {tract}, patch {patch}, band {band}".format(**self.analysis)

    @property
    def failed(self) -> list[str]:
        """Names of the checks that it fails (`list` [`str`])."""
        return [str(check["name"]) for check in self.analysis["checks"] if not check["passed"]]

    @property
    def state(self) -> str:
        """Whether it is within the limits, as HTML (`str`)."""
        if self.failed:
            return f'<span class="bad">beyond: {escape(", ".join(self.failed))}</span>'
        return '<span class="good">within limits</span>'

    def to_html(self, run: str, worse: PatchPage | None, better: PatchPage | None) -> str:
        """Return the page.

        Parameters
        ----------
        run : `str`
            What the run is called.
        worse, better : `PatchPage` or `None`
            Those to leaf to.
        """
        links = ['<a href="../index.html">All patches</a>']
        if worse is not None:
            links.append(
                f'<a rel="prev" href="{worse.stem}.html">← worse: patch {worse.analysis["patch"]}</a>'
            )
        if better is not None:
            links.append(
                f'<a rel="next" href="{better.stem}.html">better: patch {better.analysis["patch"]} →</a>'
            )
        restorer = escape(str(self.analysis.get("restorer") or "an unknown restorer"))
        figures = [
            make_figure(f"../images/{self.stem}_{name}.png", caption)
            for name, caption in _PLOTS.items()
            if name in self.plots
        ]
        parts = [
            f'<nav aria-label="Patches">{" ".join(links)}</nav>\n<main>\n<h1>{escape(self.title)}</h1>',
            f"<p>{escape(run)}, restored with {restorer}: {self.state}.</p>",
            self._viewer(),
            "<h2>Checks</h2>",
            self._checks(),
            *figures,
            "<h2>Numbers</h2>",
            self._numbers(),
            "<h2>Artefacts</h2>",
            self._artifacts(),
            self._rejected(),
            "</main>",
        ]
        return make_document(f"{self.title} – {run}", "\n".join(parts))

    def _viewer(self) -> str:
        """Return both images on top of each other, or the only one."""
        if "image" not in self.plots:
            return ""
        image, reference = (f"../images/{self.stem}_{name}.png" for name in ("image", "reference"))
        if "reference" not in self.plots:
            return make_figure(image, "The latent coadd")
        name = escape(str(self.analysis.get("reference") or "reference"))
        return f"""<section data-viewer aria-label="Latent coadd and {name}">
<div class="controls">
<button type="button" data-blink aria-pressed="false">Blink (b)</button>
<button type="button" data-show="0" data-key="1" aria-pressed="true">latent (1)</button>
<button type="button" data-show="1" data-key="2" aria-pressed="false">{name} (2)</button>
<label>fade <input type="range" min="0" max="100" value="0"></label>
<a href="{image}">latent as PNG</a> <a href="{reference}">{name} as PNG</a>
</div>
<div class="blink">
<img src="{image}" alt="The latent coadd">
<img src="{reference}" alt="{name}">
</div>
<p class="quiet">Both have the same asinh stretch; blue is without data.</p>
</section>"""

    def _checks(self) -> str:
        rows = [
            (
                escape(check["name"]),
                *(f'<span class="number">{check[key]:.4g}</span>' for key in ("value", "limit", "deviation")),
                '<span class="good">within</span>' if check["passed"] else '<span class="bad">beyond</span>',
            )
            for check in self.analysis["checks"]
        ]
        return make_table(("check", "value", "limit of the deviation", "deviation / limit", "state"), rows)

    def _numbers(self) -> str:
        numbers = self.analysis["numbers"]
        rows = [
            (
                escape(info.doc),
                show_number(name, float(numbers[name])),
                escape(info.unit),
                f"<code>{name}</code>",
            )
            for name, info in PATCH_NUMBERS.items()
            if name in numbers
        ]
        return make_table(("number", "value", "unit", "name"), rows)

    def _artifacts(self) -> str:
        artifacts = self.analysis["artifacts"]
        if not artifacts:
            return "<p>None was found.</p>"
        rows = [
            (escape(a["kind"]), round(a["x"]), round(a["y"]), float(f"{a['value']:.3g}"))
            for a in artifacts[:_LONGEST]
        ]
        caption = (
            "Positions are pixels of the tract. Values are significances of holes, excesses, deficits and "
            "outliers; depths of rings over the star's peak; numbers of pixels of streaks and clumps."
        )
        table = make_table(("kind", "x", "y", "value"), rows, caption=caption)
        if len(artifacts) > _LONGEST:
            table += f"<p>{len(artifacts) - _LONGEST} more are in the dataset.</p>"
        return table

    def _rejected(self) -> str:
        rejected = self.analysis.get("rejected_inputs") or {}
        if not rejected:
            return ""
        items = "".join(f"<li>{escape(str(message))}</li>" for message in rejected.values())
        return f"<h2>Exposures that were not used</h2>\n<ul>{items}</ul>"
