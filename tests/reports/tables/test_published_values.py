"""Published values beside measured ones."""

from __future__ import annotations

from reports.analysis.view import build_view
from reports.papers import paper_tables
from reports.tables.formats import to_markdown
from reports.tables.published_values import PAPER, QUOTED, README


def test_quoted_values_keep_to_what_the_paper_says_of_itself():
    """Accuracies are shares, FLOPs never exceed BERT's, fall as the speed rises, and every value has a source."""
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


def test_they_stand_in_a_column_of_their_own_with_their_source(fabricate):
    """Measured numbers stay where they were; the published ones are beside them, named and sourced."""
    table = make(fabricate)
    assert table.columns[-1].heading == "lcqmc published: acc. %; FLOPs"
    assert {row[0]: row[-1] for row in table.cells} == {
        "bert": "86.68; 21.8G",
        "fastbert": "84.05; 6.35G",
        "tinybert": "—",
    }
    assert {row[2] for row in table.cells} == {"90.00"}
    notes = " ".join(table.notes)
    assert PAPER in notes and "not measured here" in notes and "no verified published value" in notes
    assert "published" in to_markdown(table)


def test_never_beside_another_kind_of_measurement(fabricate):
    """Synthetic data and backbones of another depth have no published column."""
    assert not any("published" in c.heading for c in make(fabricate, synthetic=True).columns)


def test_never_beside_a_smaller_backbone(fabricate):
    """Six layers are not BERT-base."""
    assert not any("published" in c.heading for c in make(fabricate, depth=6, layers=6).columns)


def test_depth_tells_distilbert_rows_apart(fabricate):
    """A student of six layers meets the paper's six-layer row, one of three its three-layer row."""
    run = fabricate()
    common = {"dataset": "weibo", "language": "zh", "synthetic": False}
    run.cell("bert", depth=12, layers=12, histogram=[0] * 11 + [200], **common)
    run.cell("distilbert", depth=3, layers=3, histogram=[0, 0, 200], **common)
    (table,) = paper_tables(build_view(run.path))
    assert table.cells[1][-1] == "97.58; 5.43G"
