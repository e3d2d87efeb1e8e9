"""The table of a run's variants."""

from __future__ import annotations

import json

import pytest

from reports.analysis.view import build_view
from reports.build import write_report
from reports.tables.result_tables import variants_tables

TABLES = {
    "distilbert": {"layers": 3},
    "distilbert-third": {"like": "distilbert", "layers": 2, "needs": {"bert": "bert-long"}},
    "geep-b": {"like": "geep"},
    "never-measured": {"like": "bert"},
}


def make(fabricate, tables=TABLES):
    run = fabricate()
    for method in ("bert", "distilbert-third", "geep-b"):
        run.cell(method)
    (run.path / "run.json").write_text(json.dumps({"profile": {"method": tables}}), encoding="utf-8")
    return run


def test_variants_are_explained(fabricate):
    """Each measured variant has a row with its base, its settings and its teachers, in all formats."""
    run = make(fabricate)
    (table,) = variants_tables(build_view(run.path))
    assert table.cells == [
        ["distilbert-third", "distilbert", "layers = 2", "bert-long as bert"],
        ["geep-b", "geep", "—", "as geep"],
    ]
    assert "synthetic" in table.caption
    page = write_report(run.path)
    assert "Variants: methods with settings of their own" in page.read_text(encoding="utf-8")
    assert "| distilbert-third | distilbert | layers = 2 |" in (page.parent / "report.md").read_text(encoding="utf-8")
    assert "never-measured" not in page.read_text(encoding="utf-8")
    assert (page.parent / "tables" / f"{table.name}.csv").read_text().startswith("method,like,settings,needs\n")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"profile": 3}', '{"profile": {"method": []}}', '{"profile": {"method": {"geep-b": 1}}}']
)
def test_a_damaged_description_only_drops_the_table(fabricate, text):
    """With a damaged run.json the report lacks this table and nothing else."""
    run = make(fabricate)
    (run.path / "run.json").write_text(text, encoding="utf-8")
    assert variants_tables(build_view(run.path)) == []


def test_a_run_without_variants_has_no_such_table(fabricate):
    """A run without variants has no such table."""
    run = make(fabricate, {"bert": {"epochs": 3}})
    assert variants_tables(build_view(run.path)) == []
