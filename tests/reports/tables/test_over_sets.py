"""Tables and figures over all sets: means, what depth is worth, ranks; with sets, times and references missing."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from harness.core.errors import ResultError
from reports.analysis.view import build_view
from reports.build import write_report
from reports.figures.dataset_figures import draw_figures_over_sets
from reports.notation.table_formats import to_markdown
from reports.tables.over_sets.depth_table import COUNTS, NO_CLAIM, depth_tables
from reports.tables.over_sets.mean_table import mean_tables
from reports.tables.over_sets.rank_table import rank_tables
from tests.reports.conftest import FULL

N = 100


def right(share: float) -> list[bool]:
    return (np.arange(N) < round(share * N)).tolist()


def fill(run, sets, seeds=(0, 1), **common):
    for number, dataset in enumerate(sets):
        for seed in seeds:
            about = {"dataset": dataset, "seed": seed, "label_names": ("a", "b"), **common}
            run.cell("bert", correct=right(0.9), flops=FULL, **about)
            for method, lost, speedup in (("distilbert", 0.04, 2.0), ("tinybert", 0.1, 8.0), ("fastbert", 0.02, 1.5)):
                share = 0.9 - lost - 0.01 * number + 0.02 * seed
                run.cell(method, correct=right(share), flops=FULL / 2, speedup=speedup, **about)
    (run.path / "run.json").write_text(json.dumps({"profile": {"datasets": [*sets, "weibo"]}}), encoding="utf-8")


@pytest.fixture
def run(fabricate):
    made = fabricate()
    fill(made, ("ag_news", "yahoo", "dbpedia"), synthetic=False)
    return made


def test_means_by_hand(run):
    """Accuracy and loss are means over sets and seeds; seeds and test rows have intervals of their own; ratios are geometric."""
    run.cell(
        "distilbert",
        dataset="yahoo",
        seed=0,
        correct=right(0.85),
        flops=FULL / 2,
        speedup=4.0,
        synthetic=False,
        label_names=("a", "b"),
    )
    (table,) = mean_tables(build_view(run.path, samples=False))
    row = next(row for row in table.rows if row.method == "distilbert")
    assert row.accuracy == pytest.approx(np.mean([0.86, 0.88, 0.85, 0.87, 0.84, 0.86]))
    assert row.lost == pytest.approx(0.9 - row.accuracy)
    assert row.speedup == pytest.approx((2 * 3 * 2) ** (1 / 3))
    assert row.seeds == 2 and row.seeds_low < row.accuracy < row.seeds_high
    error = np.sqrt(sum(p * (1 - p) / N for p in (0.87, 0.86, 0.85))) / 3
    assert row.high - row.accuracy == pytest.approx(1.96 * error, rel=1e-3)


def test_missing_sets_are_named(run):
    """The set that the profile names and nobody measured stands in the notes of means and ranks."""
    view = build_view(run.path, samples=False)
    for table in (*mean_tables(view), *rank_tables(view)):
        assert any(
            note == "Not measured in this run, or not under the conditions of these rows: weibo."
            for note in table.notes
        ), table.name


def test_a_missing_time_is_a_dash(run):
    """Without a time on one set the mean speed-up is a dash, and the rest of the row stands."""
    for seed in (0, 1):
        run.cell(
            "tinybert", dataset="yahoo", seed=seed, correct=right(0.8), flops=FULL / 2, speedup=None, synthetic=False
        )
    (table,) = mean_tables(build_view(run.path, samples=False))
    cells = {row.method: cells for row, cells in zip(table.rows, table.cells, strict=True)}
    assert cells["tinybert"][7] == "—" and cells["tinybert"][6] == "2.00×"
    assert draw_figures_over_sets(build_view(run.path, samples=False))


def write_depth(run, **accuracies):
    rows = [
        {"dataset": name, "source": "local", "method": "fastbert", "layers": [1, 2, 3], "accuracy": values}
        for name, values in accuracies.items()
    ]
    (run.path / "depth.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")


def test_depth_says_on_which_sets_it_counts(run):
    """Two points or more count; less is no ground for a claim, and the text says so."""
    write_depth(run, ag_news=[0.5, 0.7, 0.8], yahoo=[0.88, 0.9, 0.9], dbpedia=[0.97, 0.98, 0.985])
    (table,) = depth_tables(build_view(run.path, samples=False))
    assert {row.dataset: cells[-2] for row, cells in zip(table.rows, table.cells, strict=True)} == {
        "ag_news": COUNTS,
        "yahoo": COUNTS,
        "dbpedia": NO_CLAIM,
    }
    text = to_markdown(table)
    assert "on 2 of 3 sets: ag\\_news, yahoo" in text and "less on dbpedia: no claim about exits rests on it" in text


def test_depth_comes_from_the_oracle_without_the_file(fabricate):
    """An oracle's answers give the accuracy after every layer that has a head."""
    made = fabricate()
    right_at = np.zeros((N, 6), dtype=bool)
    for layer in range(6):
        right_at[: 50 + 5 * layer, layer] = True
    made.cell("bert", correct=right(0.75))
    made.cell("oracle", "agree", kind="bound", role="oracle", correct=right_at[:, -1], right_at=right_at)
    (row,) = build_view(made.path).depths
    assert row.accuracy == pytest.approx({layer + 1: (50 + 5 * layer) / N for layer in range(6)})
    assert row.worth == pytest.approx(0.25) and row.counts


def test_a_broken_depth_file_is_one_line(run):
    """A file of something else is refused with what to do."""
    (run.path / "depth.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ResultError, match=r"suites\.studies\.depth --out"):
        build_view(run.path, samples=False)


def test_the_main_figure_has_a_panel_per_set(fabricate):
    """Four sets or twelve: a panel each and one for the mean; methods that nothing dominates are labelled, others not."""
    for count in (4, 12):
        made = fabricate(f"run-{count}")
        names = [f"set_{number}" for number in range(count)]
        fill(made, names, seeds=(0,), synthetic=False)
        for name in names:
            made.cell("slow", dataset=name, correct=right(0.5), speedup=1.4, synthetic=False)
        losses = draw_figures_over_sets(build_view(made.path, samples=False))[0]
        texts = [
            element.text for element in ElementTree.fromstring(losses.svg).iter("{http://www.w3.org/2000/svg}text")
        ]
        assert f"Mean of {count} sets" in texts and set(names) <= set(texts)
        assert texts.count("tinybert") == count + 2, "in every panel, in that of the mean, and in the legend"
        assert texts.count("slow") == 1, "dominated: in the legend only"
        assert losses.svg.count('class="spot"') == 5 * (count + 1)


def test_every_pool_has_figures_and_tables_of_its_own(fabricate):
    """Two pools of synthetic data, and two of real data, have four names of files each; so no file replaces another one."""
    made = fabricate()
    for synthetic in (True, False):
        for size in (32, 64):
            fill(made, ("ag_news", "yahoo"), seeds=(0,), synthetic=synthetic, batch_size=size)
    view = build_view(made.path, samples=False)
    names = [figure.name for figure in draw_figures_over_sets(view)]
    losses = [name for name in names if name.startswith("losses")]
    assert sorted(losses) == ["losses", "losses-2", "losses-2-synthetic", "losses-synthetic"]
    tables = [table.name for table in (*mean_tables(view), *rank_tables(view))]
    assert len({*names}) == len(names) and len({*tables}) == len(tables) and len(mean_tables(view)) == 4


def test_two_sources_of_a_set_are_not_joined(fabricate):
    """Cells of one name from the hub and from a folder have rows of their own, and a line says why their set is not in means."""
    made = fabricate()
    fill(made, ("ag_news", "yahoo", "dbpedia"), seeds=(0,), synthetic=False)
    about = {"dataset": "yahoo", "synthetic": False, "label_names": ("a", "b"), "source": "hub"}
    made.cell("bert", correct=right(0.5), flops=FULL, **about)
    made.cell("distilbert", correct=right(0.3), flops=FULL, **about)
    view = build_view(made.path, samples=False)
    (table,) = mean_tables(view)
    row = next(row for row in table.rows if row.method == "distilbert")
    assert set(row.rows) == {"ag_news", "dbpedia"} and row.accuracy == pytest.approx(np.mean([0.86, 0.84]))
    assert any("not under the conditions of these rows: yahoo" in note for note in table.notes)
    assert any("B differs from A in source of the data (local and hub)" in caveat for caveat in view.caveats)


def test_the_page_leads_with_all_sets(fabricate):
    """Page and Markdown show the figure and the tables before the controls."""
    run = fabricate()
    fill(run, ("ag_news", "yahoo"), seeds=(0,), synthetic=False)
    page = write_report(run.path)
    text, markdown = page.read_text(encoding="utf-8"), (page.parent / "report.md").read_text(encoding="utf-8")
    assert text.index("All sets together") < text.index("Does prediction beat")
    assert (
        markdown.index("figures/losses.png") < markdown.index("figures/ranks.png") < markdown.index("Does prediction")
    )
    assert {"means.csv", "ranks-flops.tex", "ranks-time.md"} <= {
        path.name for path in (page.parent / "tables").iterdir()
    }
