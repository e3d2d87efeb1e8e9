"""Tables register themselves: one file in the folder is enough."""

from __future__ import annotations

import sys

import pytest

import reports.tables
from reports.analysis.view import build_view
from reports.build import write_report
from reports.tables.catalogue import Contents, DatasetTable, declared

MODULE = """
from reports.notation.numbers import times
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import DatasetTable, RunTables
from reports.tables.shared_columns import dataset_table, identity_columns

def mine(view, group):
    columns = [*identity_columns(view), Column("speedup", "Speed-up", lambda row: times(row.speedup))]
    return dataset_table("mine", "Mine", group, view.of(group), columns, csv=("method", "point", "speedup"))

def names(view):
    columns = [Column("method", "Method", lambda row: row.method, numeric=False)]
    return [Table("all-names", "All names", view.rows, columns, ("method",))]

TABLES = (DatasetTable("mine", 75, "My own table of {label}", mine), RunTables("names", "summary", 30, names, "{rows} names"))
"""


@pytest.fixture
def a_table_of_my_own(tmp_path, monkeypatch):
    """Add one file to the modules of tables."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "my_table.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setattr(reports.tables, "__path__", [*reports.tables.__path__, str(folder)])
    yield
    sys.modules.pop("reports.tables.my_table", None)


def test_a_new_table_is_one_file(fabricate, a_table_of_my_own):
    """A table of a new file is on the page, in the Markdown report, and a file in each format."""
    run = fabricate()
    run.cell("bert", synthetic=False)
    run.cell("fastbert", "speed=0.5", speedup=2.0, synthetic=False)
    page = write_report(run.path)
    text, markdown = page.read_text(encoding="utf-8"), (page.parent / "report.md").read_text(encoding="utf-8")
    section = text[text.index('<section id="d-1"') : text.index('<section id="papers">')]
    assert "<summary>My own table of ag_news</summary>" in section and "tables/mine-ag_news.csv" in section
    assert (
        "<summary>2 names</summary>" in text[text.index('<section id="summary">') : text.index('<section id="checks">')]
    )
    assert "**Mine: ag\\_news" in markdown and "| fastbert | speed=0.5 | 2.00× |" in markdown
    tables = page.parent / "tables"
    assert (tables / "mine-ag_news.csv").read_text() == "method,point,speedup\nbert,full,1.0\nfastbert,speed=0.5,2.0\n"
    assert (tables / "mine-ag_news.tex").is_file() and (tables / "all-names.md").is_file()


def test_every_declared_name_and_place_is_unique():
    """No two declarations share a name or a place."""
    kinds = declared()
    for of in (
        lambda kind: kind.name,
        lambda kind: (isinstance(kind, DatasetTable), getattr(kind, "section", ""), kind.place),
    ):
        assert len({of(kind) for kind in kinds}) == len(kinds)


def test_empty_tables_are_left_out(fabricate):
    """A run of one method has no tables of controls, rivals or predictors."""
    run = fabricate()
    run.cell("lonely", speedup=None, reference=None, synthetic=False)
    view = build_view(run.path)
    contents = Contents(view)
    assert [block.kind.name for block in contents.section("controls")] == ["curves"]
    assert contents.named("predictor", view.groups[0]) == []
    assert [block.kind.name for block in contents.datasets["ag_news"]] == ["anatomy", "ownership", "results", "details"]
