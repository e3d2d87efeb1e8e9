"""The report as files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

import reports.build
from harness.core.errors import ResultError
from harness.results.published_run import publish
from reports.build import write_report


@pytest.fixture(scope="module")
def report(plausible_report: Path) -> Path:
    """The report of the plausible run."""
    return plausible_report.parent


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    """Return its HTML."""
    return (report / "index.html").read_text(encoding="utf-8")


def test_every_expected_file_exists(report):
    """Page, Markdown, tables in three formats and figures in two are there, and nothing is empty."""
    files = {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}
    slugs = ("weibo", "a_b_c-synthetic")
    tables = [
        "summary",
        "summary-synthetic",
        *(f"{kind}{tail}" for kind in ("verdicts", "bounds", "controls") for tail in ("", "-synthetic")),
        *(f"{kind}{tail}" for kind in ("rivals", "curves") for tail in ("", "-synthetic")),
        "paper-zh",
        "paper-en-synthetic",
        "difficulty-a_b_c-synthetic",
        *(f"{kind}-{slug}" for kind in ("results", "details", "anatomy") for slug in slugs),
    ]
    figures = [f"{kind}-{slug}" for kind in ("pareto-flops", "pareto-throughput", "exits") for slug in slugs]
    wanted = {"index.html", "report.md"}
    wanted |= {f"tables/{name}.{suffix}" for name in tables for suffix in ("md", "csv", "tex")}
    wanted |= {f"figures/{name}.{suffix}" for name in figures for suffix in ("svg", "png")}
    assert wanted <= files
    assert all((report / name).stat().st_size for name in files)
    assert "tables/difficulty-weibo.csv" not in files


def test_a_published_copy_gives_the_same_tables(plausible_run, report, without_figures, tmp_path):
    """Verdicts, predictor quality and difficulty need rows of single samples, which a copy has in one file."""
    copy = tmp_path / plausible_run.name
    publish(plausible_run, copy)
    shutil.rmtree(copy / "report", ignore_errors=True)
    made = write_report(copy).parent / "tables"
    tables = sorted(path.name for path in (report / "tables").iterdir())
    assert sorted(path.name for path in made.iterdir()) == tables
    for name in tables:
        assert (made / name).read_text("utf-8") == (report / "tables" / name).read_text("utf-8"), name


def test_every_link_leads_to_a_file(report, page):
    """Relative links of page and Markdown exist; anchors have targets."""
    for target in re.findall(r'href="([^"#:]+)"', page) + re.findall(
        r"\]\(([^)]+)\)", (report / "report.md").read_text("utf-8")
    ):
        assert (report / target).is_file(), target
    for anchor in re.findall(r'<a href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page


def test_page_fetches_nothing(page):
    """No address outside the report is loaded or linked."""
    assert not re.search(r"https?://", page)
    assert not re.search(r"<link[^>]+stylesheet|<script[^>]+src|@import|url\((?!#)", page)


def test_names_are_escaped_in_the_page(page):
    """A dataset called ``a_b & <c>`` is text, not a tag, in tables and in figures."""
    assert "<c>" not in page
    assert "a_b &amp; &lt;c&gt;" in page


def test_ids_in_the_page_are_unique(page):
    """Figures inlined in one page share no id, so that no clip path or marker is mixed up."""
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'xlink:href="#|url\(#([^)]+)\)', page)) <= {*ids, ""}


def test_synthetic_data_is_named_everywhere(report):
    """Captions, figure titles and file names of synthetic numbers carry the word; real ones do not."""
    for path in report.glob("tables/*"):
        text = path.read_text(encoding="utf-8")
        assert ("synthetic" in text) == ("synthetic" in path.name), path.name
        if path.suffix == ".md" and "synthetic" in path.name:
            assert "synthetic" in text.splitlines()[0]
    for path in report.glob("figures/*.svg"):
        assert ("synthetic" in path.read_text(encoding="utf-8")) == ("synthetic" in path.name), path.name
    for path in report.rglob("*a_b_c*"):
        assert "synthetic" in path.name


def test_svg_files_are_well_formed(report):
    """Every SVG parses, and the name with markup in it is text."""
    for path in report.glob("figures/*.svg"):
        ElementTree.parse(path)
    assert "&lt;c&gt;" in (report / "figures" / "pareto-flops-a_b_c-synthetic.svg").read_text(encoding="utf-8")


def test_rules_and_machine_are_printed(report, page):
    """Both formats carry the rules of comparison and the machine."""
    for text in (page, (report / "report.md").read_text(encoding="utf-8")):
        assert "Sorting is not early exit" in text and "a test CPU" in text and "2.13.0" in text


def test_verdicts_are_in_words(page):
    """The page answers whether prediction beats its controls."""
    assert "Does prediction beat its controls?" in page
    assert (
        "<li>geep speed=0.5, over 1 set and 1 seed, accuracy against hull of constant depths at equal mean layers: "
        in page
    )


def test_report_is_reproducible(plausible_run, report, page):
    """The same run gives the same bytes, figures included."""
    before = {path.name: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    again = write_report(plausible_run).parent
    after = {path.name: path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert before == after


def minimal(fabricate):
    run = fabricate()
    run.cell("lonely", speedup=None, reference=None, synthetic=False)
    return run


def test_single_unknown_method_is_reported(fabricate):
    """One third-party cell without reference, controls or known names makes a whole report."""
    page = write_report(minimal(fabricate).path).read_text(encoding="utf-8")
    assert "lonely" in page and "there is nothing to compare" in page


def test_a_failing_write_keeps_the_old_report(fabricate, monkeypatch):
    """If writing fails, the old report remains and no temporary file is left."""
    run = minimal(fabricate)
    old = write_report(run.path).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reports.build, "render_page", full)
    with pytest.raises(ResultError, match="No space left on device"):
        write_report(run.path)
    assert (run.path / "report" / "index.html").read_bytes() == old
    assert not list(run.path.glob(".*.tmp"))


def test_report_of_no_run(tmp_path):
    """A folder without a run is an error."""
    with pytest.raises(ResultError, match="no run at"):
        write_report(tmp_path)
