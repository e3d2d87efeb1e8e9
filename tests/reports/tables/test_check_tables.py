"""Checks of every run, and the marks of failed checks in every table."""

from __future__ import annotations

import pytest

from reports.analysis.view import build_view
from reports.notation.marks import MARKS, footnotes
from reports.notation.table_formats import to_latex, to_markdown
from reports.tables.catalogue import Contents
from reports.tables.check_tables import checks_tables, overlap_tables
from reports.terminal import summary

SHARED = {"train_test": 3, "dev_test": 1, "train_dev": 5, "within_test": 2}
FAILING = [
    ("†", {"rounds_agree": 0.98}),
    ("‡", {"checks": {"batches_agree": 0.975}}),
    ("§", {"checks": {"state_unchanged": False}}),
    ("¤", {"checks": {"engine_agrees": 0.97}}),
    ("¶", {"overlaps": SHARED}),
    ("°", {"samples": False}),
    ("»", {"training": {"best_epoch": 5, "epochs": 5}}),
    ("‖", {"training": {"exit_scores": [0.5, 0.8, 0.6, 0.9], "dev_rows": 500}}),
]


@pytest.mark.parametrize("sign, failing", FAILING, ids=[sign for sign, _ in FAILING])
def test_a_failing_check_marks_every_table(fabricate, sign, failing):
    """Each failed check marks the method in every table and on the terminal, with a footnote."""
    run = fabricate()
    run.cell("bert", factors={"layers": 1.0})
    run.cell("geep", "speed=0.5", predicted=[3] * 200, factors={"layers": 2.0}, **failing)
    for control in ("control-random", "control-sequential"):
        run.cell(control, "speed=0.5", kind="control", predicted=[3] * 200)
    view = build_view(run.path)
    held = [table for table in Contents(view).all if "geep" in {getattr(row, "method", None) for row in table.rows}]
    assert len(held) >= 9
    for table in held:
        shown = [cell for row in table.cells for cell in row if cell.startswith("geep")]
        assert shown and all(sign in cell for cell in shown), table.name
        assert any(note.startswith(f"{sign} ") for note in table.notes), table.name
        assert to_latex(table).isascii(), table.name
    if sign != "°":  # the terminal reads no samples
        assert f"geep {sign}" in summary(run.path) and f"\n{sign} " in summary(run.path)


def test_caveats_name_what_training_left_doubtful(fabricate):
    """A method is named once for all its points, with the collapsed heads; a method that keeps the last epoch is not marked."""
    run = fabricate()
    run.cell("bert", training={"best_epoch": 2, "epochs": 5})
    run.cell("fastbert", training={"best_epoch": None, "epochs": 5})
    doubtful = {"best_epoch": 5, "epochs": 5, "exit_scores": [0.5, 0.8, 0.6, 0.9], "dev_rows": 500}
    for point in ("speed=0.1", "speed=0.5"):
        run.cell("geep", point, training=doubtful)
    view = build_view(run.path)
    assert {row.method: row.marks for row in view.rows} == {"bert": "", "fastbert": "", "geep": "»‖"}
    about = [caveat for caveat in view.caveats if "geep" in caveat]
    assert about == [
        "The epoch that was kept is the last one allowed (trained too short?), in rows marked »: geep on ag_news (synthetic).",
        "Heads of geep on ag_news (synthetic) collapsed, in rows marked ‖: head 3 has 60.0 % on dev, head 2 80.0 %.",
    ]


def test_sound_rows_have_no_mark(fabricate):
    """If all checks hold, no row is marked, and the table of checks states it."""
    run = fabricate()
    run.cell("bert", checks={"batches_agree": 1.0, "state_unchanged": True}, overlaps=dict.fromkeys(SHARED, 0))
    view = build_view(run.path)
    assert {row.marks for row in view.rows} == {""} and footnotes(view.rows) == []
    (table,) = checks_tables(view)
    assert table.cells[0][1:] == ["bert", "1", "100.00", "100.00", "yes", "—", "holds"]


def test_checks_show_the_worst_row_of_a_method(fabricate):
    """One line per method: lowest agreement, most syncs, and whether anything failed over its points and seeds."""
    run = fabricate()
    run.cell("geep", "speed=0.1", checks={"batches_agree": 1.0, "state_unchanged": True, "syncs": 1})
    run.cell("geep", "speed=0.5", checks={"batches_agree": 0.995, "state_unchanged": True, "syncs": 4})
    run.cell("fastbert", "speed=0.5")
    (table,) = checks_tables(build_view(run.path))
    rows = {row[1].split()[0]: row for row in table.cells}
    assert rows["geep"][1:] == ["geep ‡", "2", "100.00", "99.50", "yes", "4", "fails"]
    assert rows["fastbert"][3:] == ["100.00", "—", "—", "—", "holds, as far as checked"]
    assert any("not checked in this run" in note for note in table.notes)


def test_overlaps_are_counted_and_printed(fabricate):
    """Rows that splits share are a table with counts and shares; a caveat names the dataset, too."""
    run = fabricate()
    run.cell("bert", overlaps=SHARED)
    run.cell("bert", dataset="other")
    view = build_view(run.path)
    (table,) = overlap_tables(view)
    assert table.cells[0] == ["ag_news (synthetic)", "200", "3 (1.50 %)", "1 (0.50 %)", "5", "2 (1.00 %)"]
    assert table.cells[1][2:] == ["—"] * 4
    assert any("Test rows also occur in train or dev" in caveat and "ag_news" in caveat for caveat in view.caveats)


def test_results_without_counted_overlaps(fabricate):
    """Older results have no table of overlaps."""
    run = fabricate()
    run.cell("bert")
    assert overlap_tables(build_view(run.path)) == []


def test_every_mark_has_its_own_sign(fabricate):
    """Every mark has its own sign, and a row shows all of its marks."""
    assert len({mark.sign for mark in MARKS}) == len(MARKS)
    run = fabricate()
    run.cell("bert", rounds_agree=0.5, checks={"state_unchanged": False})
    view = build_view(run.path)
    assert [row.marks for row in view.rows] == ["†§"]
    assert "bert †§" in to_markdown(Contents(view).named("summary")[0])


def test_the_worst_seed_counts(fabricate):
    """A check holds only if it holds for every seed."""
    run = fabricate()
    run.cell("geep", "speed=0.5", checks={"batches_agree": 1.0, "state_unchanged": True, "syncs": 1})
    run.cell("geep", "speed=0.5", seed=1, checks={"batches_agree": 0.5, "state_unchanged": False, "syncs": 3})
    run.cell("geep", "speed=0.5", seed=2, rounds_agree=0.75)
    (table,) = checks_tables(build_view(run.path))
    assert table.cells[0][1:] == ["geep †‡§", "1", "75.00", "50.00", "no", "3", "fails"]


def test_answers_of_an_engine_are_shown_beside_those_without_it(fabricate):
    """Float engines are marked beyond a difference, int8 engines below an agreement; without engines there are no columns."""
    run = fabricate()
    run.cell("bert")
    assert not any(table.csv.count("engine_agrees") for table in checks_tables(build_view(run.path)))
    for name, engine, agree, difference in (
        ("near", "openvino", 1.0, 4e-6),
        ("far", "openvino", 1.0, 0.002),
        ("int8", "onnx-int8", 0.98, 0.2),
        ("bad-int8", "onnx-int8", 0.97, 0.2),
    ):
        checks = {"engine_agrees": agree, "engine_exits": 0.75, "engine_difference": difference}
        run.cell(name, engine=engine, checks=checks)
    view = build_view(run.path)
    assert {row.method for row in view.rows if "¤" in row.marks} == {"far", "bad-int8"}
    (table,) = checks_tables(view)
    shown = {cells[1].split()[0]: cells[-4:-1] for cells in table.cells}
    assert shown["far"] == ["100.00", "75.00", "0.00200"] and shown["bert"] == ["—", "—", "—"]
