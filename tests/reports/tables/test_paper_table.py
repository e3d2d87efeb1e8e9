"""The papers' table form, and published values beside measured ones."""

from __future__ import annotations

import json

from reports.analysis.view import build_view
from reports.notation.table_formats import to_latex, to_markdown
from reports.tables.paper_table import QUOTED, paper_tables

PAPER, README = "Liu et al., FastBERT, ACL 2020, Table 2", "README of the FastBERT repository"


def test_published_values_are_consistent():
    """Published accuracies are shares, FLOPs never exceed BERT's and fall with the speed, and every value has a source."""
    assert len(QUOTED) == 6 * 7 + 2
    for (dataset, method, _), value in QUOTED.items():
        assert 0.5 < value.accuracy < 1 and value.source in (PAPER, README)
        assert value.flops is None or value.flops <= 21_785e6
        assert (value.source == README) == (dataset == "ag_news")
        if method == "bert" and dataset != "ag_news":
            assert value.flops == 21_785e6
    for dataset in {dataset for dataset, _, _ in QUOTED} - {"ag_news"}:
        flops = [QUOTED[dataset, "fastbert", f"speed={speed}"].flops for speed in (0.1, 0.5, 0.8)]
        assert flops == sorted(flops, reverse=True)


def make(fabricate, **options):
    run = fabricate()
    common = {"dataset": "lcqmc", "language": "zh", "synthetic": False, "depth": 12, "layers": 12, **options}
    common["histogram"] = [0] * (common["depth"] - 1) + [200]
    run.cell("bert", **common)
    run.cell("fastbert", "speed=0.5", **common)
    run.cell("tinybert", **common)
    (table,) = paper_tables(build_view(run.path))
    return table


def test_published_values_have_their_own_column_and_source(fabricate):
    """Published values are in their own column, with their source, and measured numbers are unchanged."""
    table = make(fabricate)
    assert table.columns[-1].heading == "lcqmc published: acc. %; FLOPs (ratio)"
    assert {row[0]: row[-1] for row in table.cells} == {
        "bert": "86.68; 21.8G (1.00×)",
        "fastbert": "84.05; 6.35G (3.43×)",
        "tinybert": "—",
    }
    assert {row[2] for row in table.cells} == {"90.00"}
    notes = " ".join(table.notes)
    assert PAPER in notes and "not measured here" in notes and "no verified published value" in notes
    assert "What differs here: embedded-mini, 12 layers; 200 test rows, at most 64 tokens." in notes
    assert "published" in to_markdown(table)


def test_published_values_need_the_same_kind_of_measurement(fabricate):
    """Synthetic data and backbones of another depth have no published column."""
    assert not any("published" in c.heading for c in make(fabricate, synthetic=True).columns)


def test_published_values_need_the_same_depth(fabricate):
    """A backbone of six layers has no published column."""
    assert not any("published" in c.heading for c in make(fabricate, depth=6, layers=6).columns)


def test_distilbert_rows_are_matched_by_depth(fabricate):
    """A student of six layers is compared with the paper's six-layer row, one of three with its three-layer row."""
    run = fabricate()
    common = {"dataset": "weibo", "language": "zh", "synthetic": False}
    run.cell("bert", depth=12, layers=12, histogram=[0] * 11 + [200], **common)
    run.cell("distilbert", depth=3, layers=3, histogram=[0, 0, 200], **common)
    (table,) = paper_tables(build_view(run.path))
    assert table.cells[1][-1] == "97.58; 5.43G (4.01×)"


def test_a_variant_of_fewer_layers_is_the_papers_row(fabricate):
    """A variant of DistilBERT with other layers has the value of its depth; one with another loss has none."""
    run = fabricate()
    common = {"dataset": "weibo", "language": "zh", "synthetic": False}
    run.cell("bert", depth=12, layers=12, histogram=[0] * 11 + [200], **common)
    for name in ("distilbert-3l", "distilbert-labels"):
        run.cell(name, depth=3, layers=3, histogram=[0, 0, 200], **common)
    tables = {"distilbert-3l": {"like": "distilbert", "layers": 3}, "distilbert-labels": {"like": "distilbert", "a": 0}}
    profile = {"datasets": ["weibo"], "max_train": 1000, "method": tables, "rows": {"weibo": {"max_train": 500}}}
    (run.path / "run.json").write_text(json.dumps({"profile": profile}), encoding="utf-8")
    (table,) = paper_tables(build_view(run.path))
    published = {row[0]: row[-1] for row in table.cells}
    assert published["distilbert-3l"] == "97.58; 5.43G (4.01×)" and published["distilbert-labels"] == "—"
    assert "at most 500 train rows" in " ".join(table.notes)


def test_form_of_the_paper(fabricate):
    """Rows are method and speed, columns accuracy and FLOPs with the FLOPs ratio; each language has its table."""
    run = fabricate()
    run.cell("bert", dataset="weibo", language="zh", flops=21_785_247_744, accuracy=0.9769, synthetic=False)
    run.cell(
        "fastbert",
        "speed=0.5",
        dataset="weibo",
        language="zh",
        flops=10_892_623_872,
        accuracy=0.9,
        speedup=1.5,
        synthetic=False,
    )
    run.cell("bert", dataset="ag_news", language="en", synthetic=False)
    chinese, english = paper_tables(build_view(run.path))
    assert (chinese.name, english.name) == ("paper-zh", "paper-en")
    assert chinese.cells == [
        ["bert", "full", "97.69", "21.8G (1.00×)"],
        ["fastbert", "speed=0.5", "90.00", "10.9G (2.00×)"],
    ]
    assert "weibo FLOPs (FLOPs ratio)" in to_markdown(chinese)
    assert r"\multicolumn{2}{c}{weibo}" in to_latex(chinese)
    assert any("it is not wall time" in note for note in chinese.notes)


def test_only_methods_are_shown(fabricate):
    """Controls and bounds have no row in the papers' table."""
    run = fabricate()
    run.cell("bert")
    run.cell("control-random", "speed=0.5", kind="control")
    run.cell("oracle", "speed=0.5", kind="bound")
    (table,) = paper_tables(build_view(run.path))
    assert [row[0] for row in table.cells] == ["bert"]


def test_missing_cell_is_a_dash_with_a_reason(fabricate):
    """A method that was not measured on a dataset has a dash there."""
    run = fabricate()
    run.cell("bert", dataset="a")
    run.cell("bert", dataset="b")
    run.cell("fastbert", "speed=0.5", dataset="a")
    (table,) = paper_tables(build_view(run.path))
    assert table.cells[1][-2:] == ["—", "—"]
    assert any("was not measured on this dataset" in note for note in table.notes)


def test_devices_have_separate_rows(fabricate):
    """The same method on two devices makes two rows that name the device."""
    run = fabricate()
    run.cell("bert", device="cpu")
    run.cell("bert", device="cuda")
    (table,) = paper_tables(build_view(run.path))
    assert [row[2] for row in table.cells] == ["cpu", "cuda"]
