"""Every method against its rivals: cases with known answers."""

from __future__ import annotations

import json

import pytest

from reports.analysis.verdicts.rival_tests import RivalTest
from reports.analysis.view import build_view
from reports.build import write_report
from reports.notation.table_formats import to_csv, to_latex, to_markdown
from reports.tables.catalogue import Contents
from reports.terminal import summary

FULL = 2_000_000.0


def answers(n: int, wrong: int, start: int = 0) -> list[bool]:
    """Return ``n`` answers of which ``wrong`` are wrong, starting at ``start``."""
    return [not start <= i < start + wrong for i in range(n)]


def against(run) -> dict[tuple[str, str, str], RivalTest]:
    """Return (method, point, rival) -> test for one dataset."""
    return {(test.method, test.point, test.rival): test for test in build_view(run.path).rivals}


def shown(table, **keys) -> dict[str, str]:
    """Return heading -> text of the one row with these values."""
    (i,) = [i for i, row in enumerate(table.rows) if all(getattr(row, k) == v for k, v in keys.items())]
    return {c.heading: text for c, text in zip(table.columns, table.cells[i], strict=True)}


def test_difference_and_exact_p(fabricate):
    """Eight losses and no win among 200 rows: 4 points, p = 2 / 2^8; in the other direction the sign changes."""
    run = fabricate()
    run.cell("bert", correct=answers(200, 0))
    run.cell("fastbert", "speed=0.5", correct=answers(200, 8))
    found = against(run)
    loss, gain = found["fastbert", "speed=0.5", "bert"], found["bert", "full", "fastbert"]
    assert (loss.wins, loss.losses, loss.pairs) == (0, 8, 200)
    assert loss.difference == pytest.approx(-0.04) and gain.difference == pytest.approx(0.04)
    assert loss.p == pytest.approx(2 / 2**8) == gain.p
    # 8 of 200: a Binomial(200, 0.04) has 2.5 % and 97.5 % quantiles 3 and 14.
    assert (loss.difference_low, loss.difference_high) == pytest.approx((-14 / 200, -3 / 200), abs=1 / 200)
    assert len(found) == 2


def test_a_variant_is_compared_with_its_base(fabricate):
    """A variant is compared with the method that it is like, if that was measured."""
    run = fabricate()
    run.cell("bert", correct=answers(200, 0))
    run.cell("distilbert", correct=answers(200, 2))
    run.cell("distilbert-2l", correct=answers(200, 10))
    run.cell("bert-patience", correct=answers(200, 4))
    tables = {"distilbert-2l": {"like": "distilbert", "layers": 2}, "bert-patience": {"like": "exit-rule"}}
    (run.path / "run.json").write_text(json.dumps({"profile": {"method": tables}}))
    assert set(against(run)) == {
        *((method, "full", "bert") for method in ("distilbert", "distilbert-2l", "bert-patience")),
        ("distilbert-2l", "full", "distilbert"),
    }


def test_rivals_of_the_profile(fabricate):
    """Rivals of the profile are added to bert and fastbert, for the method that names them, if they were measured."""
    run = fabricate()
    run.cell("bert", correct=answers(200, 0))
    run.cell("distilbert", correct=answers(200, 2))
    run.cell("distilbert-labels", correct=answers(200, 10))
    named = {"distilbert": ["distilbert-labels", "bert", "tinybert"], "tinybert": ["bert"]}
    (run.path / "run.json").write_text(json.dumps({"profile": {"compare": named}}))
    found = against(run)
    assert set(found) == {
        ("distilbert", "full", "bert"),
        ("distilbert", "full", "distilbert-labels"),
        ("distilbert-labels", "full", "bert"),
    }
    gain = found["distilbert", "full", "distilbert-labels"]
    assert (gain.wins, gain.losses) == (8, 0)
    assert gain.p == gain.p_holm == pytest.approx(2 / 2**8)


@pytest.mark.parametrize("table", [[], {"distilbert": "bert"}, {"distilbert": [3]}, None])
def test_an_invalid_table_of_rivals_is_ignored(fabricate, table):
    """``run.json`` is informative: with a wrong table the report is still made."""
    run = fabricate()
    run.cell("bert", correct=answers(20, 0))
    run.cell("distilbert", correct=answers(20, 2))
    (run.path / "run.json").write_text(json.dumps({"profile": {"compare": table}}))
    assert set(against(run)) == {("distilbert", "full", "bert")}


def test_equal_answers_have_no_difference(fabricate):
    """Equal answers have a degenerate interval and p = 1."""
    run = fabricate()
    run.cell("bert", correct=answers(50, 5))
    run.cell("distilbert", correct=answers(50, 5))
    r = against(run)["distilbert", "full", "bert"]
    assert (r.difference, r.difference_low, r.difference_high, r.p) == (0, 0, 0, 1)


def test_family_is_one_method_and_one_rival(fabricate):
    """The Holm family is one method against one rival over datasets; real and synthetic data are separate."""
    run = fabricate()
    for dataset, lost in (("one", 8), ("two", 7)):
        run.cell("bert", dataset=dataset, correct=answers(100, 0))
        run.cell("geep", "speed=0.5", dataset=dataset, correct=answers(100, lost))
        run.cell("tinybert", dataset=dataset, correct=answers(100, 7))
    run.cell("bert", dataset="three", synthetic=False, correct=answers(100, 0))
    run.cell("geep", "speed=0.5", dataset="three", synthetic=False, correct=answers(100, 7))
    geep = {test.dataset: test.p_holm for test in build_view(run.path).rivals if test.method == "geep"}
    assert geep["one"] == pytest.approx(2 * 2 / 2**8)
    assert geep["two"] == pytest.approx(2 / 2**7)
    assert geep["three"] == pytest.approx(2 / 2**7)
    for table in Contents(build_view(run.path)).named("rivals"):
        assert "p adjusted (Holm) over the datasets and points of one method and one rival" in table.caption


def test_choice_of_the_rivals_row(fabricate):
    """The rival is taken at the same point, its base, or its most accurate point; never at another speed or device."""
    run = fabricate()
    run.cell("bert")
    run.cell("fastbert", "speed=0.1", accuracy=0.9)
    run.cell("fastbert", "speed=0.5", accuracy=0.95)
    for point in ("speed=0.1", "speed=0.1/once", "speed=0.3"):
        run.cell("geep", point)
    run.cell("distilbert")
    run.cell("tinybert", device="cuda")
    run.cell("control-constant", "speed=0.5", kind="control")
    run.cell("fastbert", "speed=0.5", dataset="other")
    run.cell("geep", "speed=0.9", dataset="other")
    found = {key: r.rival_point for key, r in against(run).items() if r.rival_point is not None}
    assert found["geep", "speed=0.1", "fastbert"] == found["geep", "speed=0.1/once", "fastbert"] == "speed=0.1"
    assert found["distilbert", "full", "fastbert"] == "speed=0.5"
    assert found["geep", "speed=0.3", "bert"] == "full"
    without = {("geep", "speed=0.3", "fastbert"), ("geep", "speed=0.9", "fastbert"), ("tinybert", "full", "bert")}
    assert without <= against(run).keys() and not without & found.keys()
    assert not any(key[0].startswith("control") or key[0] == key[2] for key in found)
    (table,) = Contents(build_view(run.path)).named("rivals")
    row = shown(table, point="speed=0.3", rival="fastbert")
    assert row["Rival"] == "fastbert, no such point"
    assert {row[h] for h in ("Test rows", "p exact", "Speed-up over rival", "At worst: speed-up")} == {"—"}
    assert shown(table, method="distilbert", rival="fastbert")["Rival"] == "fastbert at speed=0.5"


def test_budgets_are_compared_by_layers(fabricate):
    """A budget is compared with the speed that is nearest in mean layers."""
    run = fabricate()
    run.cell("bert")
    run.cell("fastbert", "speed=0.1", layers=5.0)
    run.cell("fastbert", "speed=0.5", layers=2.0)
    run.cell("pabee", "budget=0.5", layers=2.9)
    run.cell("pabee", "budget=0.75", layers=4.0)
    found = against(run)
    assert found["pabee", "budget=0.5", "fastbert"].rival_point == "speed=0.5"
    assert found["pabee", "budget=0.75", "fastbert"].rival_point == "speed=0.1"


def test_rows_with_other_execution_are_compared(fabricate):
    """Rows that run their blocks in another way are still compared."""
    run = fabricate()
    run.cell("bert", compute="eager")
    run.cell("bert-compiled", compute="compiled")
    view = build_view(run.path)
    assert against(run)["bert-compiled", "full", "bert"].rival_point == "full"
    assert "compute" not in view.varying


def test_rows_on_another_engine_are_shown_and_compared(fabricate):
    """The engine is a column, tells two rows of a method apart, and a rival on the same engine is preferred."""
    run = fabricate()
    run.cell("bert", accuracy=0.9)
    run.cell("bert", accuracy=0.8, engine="int8")
    run.cell("geep", "speed=0.5", layers=3.0)
    run.cell("geep-int8", "speed=0.5", layers=3.0, engine="int8")
    view = build_view(run.path)
    assert [row.engine for row in view.rows if row.method == "bert"] == [None, "int8"]
    found = against(run)
    assert found["geep", "speed=0.5", "bert"].rival_accuracy == pytest.approx(0.9)
    assert found["geep-int8", "speed=0.5", "bert"].rival_accuracy == pytest.approx(0.8)
    (table,) = Contents(view).named("results", view.groups[0])
    assert shown(table, method="geep-int8")["Engine"] == "int8"
    assert shown(table, method="geep")["Engine"] == "—"
    assert "float32, eager unless an engine is named" in table.caption
    assert "bert full [int8]" in summary(run.path) and "None" not in summary(run.path)
    assert "engine" in to_csv(table).splitlines()[0].split(",")


def test_speedup_over_a_rival(fabricate):
    """Over the reference it is the speed-up itself, else a marked ratio of speed-ups, else a dash."""
    run = fabricate()
    run.cell("bert")
    run.cell("fastbert", "speed=0.5", speedup=1.5)
    run.cell("geep", "speed=0.5", speedup=3.0)
    run.cell("geep", "speed=0.5/shared", speedup=3.0, reference="another")
    (table,) = Contents(build_view(run.path)).named("rivals")
    texts = {
        (r.point, r.rival): shown(table, method="geep", point=r.point, rival=r.rival)["Speed-up over rival"]
        for r in table.rows
        if r.method == "geep"
    }
    assert texts == {
        ("speed=0.5", "bert"): "3.00×",
        ("speed=0.5", "fastbert"): "2.00× (ratio)",
        ("speed=0.5/shared", "bert"): "—",
        ("speed=0.5/shared", "fastbert"): "—",
    }


def judged(fabricate, n=1000, lost=0, seconds=(0.5,), name="a-run"):
    """Return the table of geep against bert (passes of 1 s) and fastbert (0.8 s), with one seed for each of ``seconds``."""
    run = fabricate(name)
    for seed, own in enumerate(seconds):
        common = {"reference_seconds": [1.0, 1.0, 1.0], "seed": seed}
        run.cell("bert", correct=answers(n, 0), samples_per_s=n, **common)
        run.cell("fastbert", "speed=0.5", correct=answers(n, 0), samples_per_s=n / 0.8, **common)
        run.cell("geep", "speed=0.5", correct=answers(n, lost), samples_per_s=n / own, **common)
    (table,) = Contents(build_view(run.path)).named("rivals")
    return table


VERDICT = "Faster and not worse by 0.5 points"


@pytest.mark.parametrize(
    ("changes", "bert", "fastbert"),
    [
        ({}, "yes", "yes"),
        ({"n": 500}, "not shown: accuracy", "not shown: accuracy"),
        ({"lost": 8}, "not shown: accuracy", "not shown: accuracy"),
        ({"seconds": (0.9,)}, "yes", "not shown: speed"),
        ({"n": 500, "seconds": (1.2,)}, "not shown: both", "not shown: both"),
        ({"seconds": (0.5, 0.9)}, "yes", "not shown: speed"),
    ],
)
def test_faster_and_not_worse(fabricate, changes, bert, fastbert):
    """Both halves must hold for every seed and rival; 500 equal rows are too few for 0.5 points."""
    table = judged(fabricate, **changes)
    found = [shown(table, method="geep", rival=rival)[VERDICT] for rival in ("bert", "fastbert")]
    assert found == [bert, fastbert]
    assert "0.5 points" in " ".join(table.notes)


def test_bounds_by_hand(fabricate):
    """Without a differing row Tango's bound is -z^2 / (n + z^2); without noise the lowest speed-up is the median."""
    table = judged(fabricate)
    (r,) = [r for r in table.rows if r.method == "geep" and r.rival == "bert"]
    z2 = 1.6448536**2
    assert r.judgement.lowest_difference == pytest.approx(-z2 / (1000 + z2), abs=1e-6)
    assert r.judgement.lowest_speedup == pytest.approx(1 / 0.5)
    (r,) = [r for r in table.rows if r.method == "geep" and r.rival == "fastbert"]
    assert r.judgement.lowest_speedup == pytest.approx(0.8 / 0.5)


def test_missing_samples_are_a_dash_and_a_mark(fabricate):
    """Without the rival's rows there is no test and no verdict, but a mark, and the speed-up remains."""
    run = fabricate()
    run.cell("bert", samples=False)
    run.cell("geep", "speed=0.5", speedup=2.0)
    (table,) = Contents(build_view(run.path)).named("rivals")
    row = shown(table, method="geep")
    assert row["Method"] == "geep °" and row["Speed-up over rival"] == "2.00×"
    assert {row[h] for h in ("Test rows", "p exact", "p adjusted", VERDICT)} == {"—"}
    assert any("Per-sample rows are missing" in note for note in table.notes)


def test_seeds_are_paired_by_number(fabricate):
    """Only seeds that both sides have are compared."""
    run = fabricate()
    for seed in (2, 1):
        run.cell("bert", seed=seed, correct=answers(100, seed))
    for seed in (1, 2, 3):
        run.cell("geep", "speed=0.5", seed=seed, correct=answers(100, seed))
    r = against(run)["geep", "speed=0.5", "bert"]
    assert (r.seeds, r.difference, r.pairs) == (2, 0, 100)


def test_all_formats_have_both_tables(fabricate):
    """Page, Markdown, CSV and LaTeX have both tables, and the same run gives the same numbers."""
    run = fabricate()
    run.cell("bert", accuracy=0.95)
    run.cell("geep", "speed=0.5", flops=FULL / 2, accuracy=0.9)
    page = write_report(run.path)
    text, markdown = page.read_text("utf-8"), (page.parent / "report.md").read_text("utf-8")
    section = text[text.index('<section id="controls">') : text.index('<section id="summary">')]
    for name, caption in (("rivals", "Against rivals"), ("curves", "Curves of accuracy against FLOPs")):
        assert caption in section and f"tables/{name}-synthetic.csv" in section
        assert caption in markdown[: markdown.index("## Summary")]
    first, second = (Contents(build_view(run.path)) for _ in range(2))
    for a, b in zip(first.all, second.all, strict=True):
        for render in (to_csv, to_markdown, to_latex):
            assert render(a) == render(b)


def test_without_a_rival_there_is_no_table(fabricate):
    """A run without bert and fastbert has no such table."""
    run = fabricate()
    run.cell("geep", "speed=0.5")
    assert not Contents(build_view(run.path)).named("rivals")
