"""The table of the search whose winners a run trains with."""

from __future__ import annotations

import json

import pytest

from reports.analysis.view import build_view
from reports.build import write_report
from reports.tables.search_table import search_tables


def trial(dataset, settings, score, best_epoch=2, failed=""):
    facts = {"dataset": dataset, "seed": 0, "method": "bert", "settings": settings, "dev_rows": 50, "score": score}
    return {**facts, "best_epoch": best_epoch, "epochs": 3, "steps": 30, "failed": failed}


LOW, HIGH = {"learning_rate": 1e-4}, {"learning_rate": 1.0}
SEARCH = {
    "datasets": ["a", "b"],
    "trials": [
        trial("a", LOW, 0.5),
        trial("a", HIGH, None, failed="the loss is not finite"),
        trial("b", LOW, 0.7, best_epoch=3),
        trial("b", HIGH, 0.9),
    ],
    "best": {"bert": LOW},
}


def make(fabricate, searches):
    run = fabricate()
    run.cell("bert")
    (run.path / "run.json").write_text(json.dumps({"profile": {}, "searches": searches}), encoding="utf-8")
    return run


def test_what_was_tried_is_shown(fabricate):
    """Settings have a row each with their mean dev score; the winner is marked, and what failed says why."""
    run = make(fabricate, [SEARCH])
    (table,) = search_tables(build_view(run.path))
    assert table.cells == [
        ["bert", "learning_rate = 0.0001", "2", "30", "60.00", "1", "yes"],
        ["bert", "learning_rate = 1.0", "2", "30", "—", "0", "the loss is not finite"],
    ]
    assert table.caption == "Search for training settings on dev of a, b (synthetic data)"
    page = write_report(run.path)
    assert "Search for training settings: 2 settings" in page.read_text(encoding="utf-8")
    assert (page.parent / "tables" / "search-synthetic.csv").is_file()


@pytest.mark.parametrize("searches", [[], [{}], "text", [{"datasets": ["a"]}]])
def test_a_run_without_a_readable_search_has_no_such_table(fabricate, searches):
    """Neither no search nor a damaged record stops the report."""
    assert search_tables(build_view(make(fabricate, searches).path)) == []
