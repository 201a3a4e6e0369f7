# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
"""QA as part of a pipeline, and the pages of a run, in a browser too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lsst.daf.butler import Butler
from lsst.latent_coadds import AnalyzeLatentCoaddConfig, AnalyzeLatentCoaddTask, SummarizeLatentCoaddsTask
from lsst.latent_coadds.adapters import CoaddPlanes, MetricBundleError, make_metric_bundle
from lsst.latent_coadds.cli import main
from lsst.latent_coadds.qa import PatchPage, TractPage, write_pages
from lsst.latent_coadds.tests import Browser, MockRepository, MockVisits, find_browser, open_browser
from lsst.pipe.base import Pipeline
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

STARS = tuple(
    (dx, dy, flux) for dx, dy, flux in ((0.0, 0.0, 5000.0), (4.1, -3.3, 2000.0), (-4.0, 3.5, 800.0))
)
PIPELINE = "resource://lsst.latent_coadds/resources/pipelines/latent_coadd_qa.yaml"
PLOTS = ("image", "reference", "detail", "photometry", "star", "noise", "artifact", "fit")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """A run of the whole pipeline on two patches."""
    mock = MockRepository(tmp_path_factory.mktemp("qa") / "repo", n_patches=2, size=64)
    visits = MockVisits(n_visits=3, stars=STARS)
    mock.add(visits.make(visit, size=150) for visit in range(3))
    pipeline = Pipeline.from_uri(PIPELINE)
    pipeline.addConfigOverride("buildLatentCoadd", "restorer.active.n_iter", 5)
    pipeline.addConfigOverride("analyzeLatentCoadd", "preview_size", 200)
    butler = SimplePipelineExecutor.prep_butler(mock.root, mock.inputs.split(","), mock.output)
    executor = SimplePipelineExecutor.from_pipeline(pipeline, where=mock.data_query, butler=butler)
    quanta = executor.run(register_dataset_types=True)
    assert len(quanta) == 2 + 2 + 2 + 1
    return mock


def test_pipeline_writes_numbers_and_plots(repository: MockRepository) -> None:
    butler = Butler.from_config(repository.root, collections=repository.output)
    assert sorted(repository.find("direct_coadd")) == [0, 1]
    for name in PLOTS:
        assert sorted(repository.find(f"latent_coadd_{name}_plot")) == [0, 1]
    for patch, ref in repository.find("latent_coadd_analysis").items():
        analysis = butler.get(ref)
        coadd = butler.get("latent_coadd", ref.dataId)
        numbers = analysis["numbers"]
        assert analysis["patch"] == patch and analysis["reference"] == "direct_coadd"
        assert numbers["n_inputs"] == 3
        np.testing.assert_allclose(numbers["no_data_fraction"], np.mean(coadd.mask.get("NO_DATA")))
        np.testing.assert_allclose(numbers["psf_fwhm"], 2.0, rtol=1e-3)
        assert 3.5 < numbers["reference_psf_fwhm"] < 4.1
        assert analysis["concern"] == max(check["deviation"] for check in analysis["checks"])
        assert json.loads(json.dumps(analysis, allow_nan=False)) == analysis
    table = butler.get("latent_coadd_summary", skymap="mock", tract=0, band="i")
    assert sorted(table["patch"]) == [0, 1]
    assert np.all(np.diff(table["concern"]) <= 0)
    assert str(table["depth"].unit) == "mag"
    path = butler.getURI("latent_coadd_summary_plot", skymap="mock", tract=0, band="i")
    assert path.read(8) == b"\x89PNG\r\n\x1a\n"


def test_configuration_chooses_datasets() -> None:
    config = AnalyzeLatentCoaddConfig()
    connections = config.connections.ConnectionsClass(config=config)
    assert connections.prerequisiteInputs == {"reference"}
    assert connections.reference.minimum == 0
    config.reference, config.write_plots, config.write_metric_bundle = "none", False, True
    config.coadd_storage_class = "ExposureF"
    connections = config.connections.ConnectionsClass(config=config)
    assert connections.outputs == {"analysis", "metric_bundle"}
    assert connections.latent_coadd.storageClass == "ExposureF"
    assert not connections.prerequisiteInputs
    config.reference = "required"
    connections = config.connections.ConnectionsClass(config=config)
    assert "reference" in connections.inputs
    assert "reference_plot" not in connections.outputs


def test_parts_of_the_pipeline_can_be_left_out() -> None:
    graph: PipelineGraph = Pipeline.from_uri(PIPELINE).to_graph()
    assert set(graph.task_subsets) == {"latentCoadd", "latentCoaddQA"}
    assert set(graph.task_subsets["latentCoadd"]) == {"buildLatentCoadd"}
    assert "buildLatentCoadd" not in graph.task_subsets["latentCoaddQA"]
    assert set(graph.task_subsets["latentCoaddQA"]) | {"buildLatentCoadd"} == set(graph.tasks)


def test_task_without_reference_or_plots(repository: MockRepository) -> None:
    butler = Butler.from_config(repository.root, collections=repository.output)
    ref = repository.find("latent_coadd")[0]
    config = AnalyzeLatentCoaddConfig()
    config.write_plots = False
    result = AnalyzeLatentCoaddTask(config=config).run(
        latent_coadd=CoaddPlanes.from_coadd(butler.get(ref)),
        latent_coadd_metrics=butler.get("latent_coadd_metrics", ref.dataId),
    )
    assert set(result.getDict()) == {"analysis", "metric_bundle"}
    assert result.analysis["reference"] == ""
    assert "flux_ratio" not in result.analysis["numbers"]
    other = result.analysis | {"patch": 7, "concern": 99.0, "numbers": {}, "checks": []}
    task = SummarizeLatentCoaddsTask()
    summary = task.run(analyses=[result.analysis, other]).summary
    assert summary["patch"][0] == 7 and summary["worst_check"][0] == ""
    assert np.isnan(summary["depth"][0]) and np.isfinite(summary["depth"][1])


def test_planes_know_where_there_is_no_psf(repository: MockRepository) -> None:
    butler = Butler.from_config(repository.root, collections=repository.output)
    coadd = butler.get(repository.find("latent_coadd")[1])
    planes = CoaddPlanes.from_coadd(coadd)
    np.testing.assert_allclose(planes.pixel_scale, 0.2, rtol=1e-4)
    assert planes.kernel(1e5, 0) is None
    kernel = planes.kernel(10, 10)
    assert kernel is not None
    np.testing.assert_allclose(kernel.sum(), 1)
    assert len(planes.noise) == len(coadd.noise_realizations)


def test_metric_bundle_says_what_it_needs() -> None:
    try:
        import lsst.analysis.tools  # noqa: F401
    except ImportError:
        with pytest.raises(MetricBundleError, match="write_metric_bundle=False"):
            make_metric_bundle("a", {"depth": 25.0}, {"depth": "mag"})
    else:
        bundle = make_metric_bundle("a", {"depth": 25.0, "none": np.nan}, {"depth": "mag"})
        (measurement,) = bundle["a"]
        assert measurement.quantity.value == 25.0
        assert type(bundle).parse_obj(json.loads(bundle.json()))["a"][0].metric_name.metric == "depth"


# The pages


class Links(HTMLParser):
    """What a page refers to, and its texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == [], f"{path}: {self.open} are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(values)
        for name in ("href", "src"):
            if values.get(name):
                self.links.append(str(values[name]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pages(repository: MockRepository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pages") / "report"
    result = CliRunner().invoke(
        main, ["report", str(repository.root), repository.output, "--output", str(output)]
    )
    assert result.exit_code == 0, result.output
    assert (output / "index.html").as_uri() in result.output
    return output


def test_every_link_resolves_and_every_patch_is_there(pages: Path) -> None:
    found = sorted(pages.rglob("*.html"))
    assert [path.name for path in found] == ["index.html", "0_0_i.html", "0_1_i.html"]
    reached = set()
    for path in found:
        page = Links(path)
        for link in page.links:
            if link == "data:,":
                continue
            assert not link.startswith(("http", "//")), link
            target = (path.parent / link).resolve()
            assert target.is_file(), f"{path.name} refers to {link}"
            reached.add(target)
        assert all(image.get("alt") for image in page.images)
        assert "nan" not in page.text.split("use strict")[0].lower().split()
    assert {path for path in pages.rglob("*") if path.is_file()} - reached == {pages / "index.html"} - reached
    overview = Links(pages / "index.html").text
    assert "Tract 0, band i" in overview


def test_worst_patches_come_first(tmp_path: Path) -> None:
    check = {"name": "chi2", "value": 1.0, "limit": 0.1, "deviation": 0.0, "passed": True}
    base = {"tract": 0, "band": "i", "restorer": "x<y", "numbers": {}, "artifacts": [], "reference": ""}
    patches = [
        PatchPage(base | {"patch": p, "concern": c, "checks": [check | {"passed": c <= 1}]}, {})
        for p, c in ((0, 0.5), (1, 3.0), (2, 1.5))
    ]
    path = write_pages(tmp_path, [TractPage(0, "i", None, patches)], title="a & b", description="<none>")
    text = path.read_text()
    order = [text.index(f'href="patches/0_{p}_i.html">{p}<') for p in (1, 2, 0)]
    assert order == sorted(order)
    assert "2 of 3 patches are beyond a limit" in text
    assert "a &amp; b" in text and "&lt;none&gt;" in text
    middle = (tmp_path / "patches" / "0_2_i.html").read_text()
    assert 'rel="prev" href="0_1_i.html"' in middle and 'rel="next" href="0_0_i.html"' in middle
    assert "x&lt;y" in middle


def test_errors_say_what_to_do(repository: MockRepository, tmp_path: Path) -> None:
    arguments = ["report", str(repository.root), "Mock/calexps", "--output", str(tmp_path / "p")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "latent_coadd_qa.yaml#latentCoaddQA" in result.output
    result = CliRunner().invoke(main, [*arguments[:2], "no/such", *arguments[3:]])
    assert result.exit_code == 1 and "no/such" in result.output
    assert not (tmp_path / "p").exists()


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("There is no Chromium or Chrome on PATH to look at the pages with.")
    with open_browser(path) as browser:
        yield browser


def test_overview_in_a_browser(browser: Browser, pages: Path) -> None:
    browser.open(pages / "index.html")
    # Images that are loaded lazily do not hold up the page.
    browser.wait_for("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    patches = "[...document.querySelectorAll('tbody th a')].map(a => a.textContent).join()"
    before = browser.evaluate(patches)
    depth = "[...document.querySelectorAll('thead button')].find(b => b.textContent.includes('depth'))"
    values = "[...document.querySelectorAll('tbody tr')].map(r => Number(r.cells[7].dataset.value))"
    for sign in (-1, 1):
        browser.evaluate(f"{depth}.click()")
        found = browser.evaluate(values)
        assert found == sorted(found, reverse=sign < 0)
    assert sorted(before.split(",")) == sorted(browser.evaluate(patches).split(","))
    failed = browser.evaluate("document.querySelectorAll('tr[data-passed=false]').length")
    browser.evaluate("document.querySelector('#only-failed').click()")
    assert (
        browser.evaluate("[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).length") == failed
    )
    assert browser.errors == []


def test_blinking_in_a_browser(browser: Browser, pages: Path) -> None:
    first = Links(pages / "index.html").links
    page = next(link for link in first if link.startswith("patches/"))
    browser.open(pages / page)
    opacity = "Number(getComputedStyle(document.querySelectorAll('.blink img')[1]).opacity)"
    box = "[i.offsetTop, i.offsetLeft, i.width, i.naturalWidth]"
    one, other = browser.evaluate(f"[...document.querySelectorAll('.blink img')].map(i => {box})")
    assert one == other and one[3] > 100
    assert browser.evaluate(opacity) == 0
    browser.press("2")
    assert browser.evaluate(opacity) == 1
    assert (
        browser.evaluate("document.querySelector('[data-show=\"1\"]').getAttribute('aria-pressed')") == "true"
    )
    browser.press("1")
    browser.press("b")
    browser.wait_for(f"{opacity} === 1")
    browser.wait_for(f"{opacity} === 0")
    browser.press("b")
    slider = "document.querySelector('input[type=range]')"
    browser.evaluate(f"{slider}.value = 40; {slider}.dispatchEvent(new Event('input'));")
    assert browser.evaluate(opacity) == pytest.approx(0.4)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.errors == []


def test_leafing_with_the_arrow_keys(browser: Browser, pages: Path) -> None:
    link = next(link for link in Links(pages / "index.html").links if link.startswith("patches/"))
    browser.open(pages / link)
    following = browser.evaluate("document.querySelector('a[rel=next]').href")
    browser.press("ArrowRight")
    browser.wait_for(f"document.readyState === 'complete' && location.href === {following!r}")
    assert browser.evaluate("document.querySelector('a[rel=prev]') !== null")


def test_pages_keep_to_the_reader_s_colours(browser: Browser, pages: Path) -> None:
    shades = []
    for scheme in ("light", "dark"):
        browser.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        browser.open(pages / "index.html")
        shades.append(browser.evaluate("getComputedStyle(document.body).color"))
    assert shades[0] != shades[1]
    browser.call("Emulation.setEmulatedMedia", features=[])
