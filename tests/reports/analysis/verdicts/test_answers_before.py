"""Samples answered before layer 1: their share and accuracy, in tables and figures."""

from __future__ import annotations

import numpy as np
import pytest

from reports.analysis.view import build_view
from reports.figures.dataset_figures import draw_figures
from reports.tables.predictor_table import before_table
from reports.tables.result_tables import results_table

EXITS = np.array([0, 0, 0, 0, 2, 6, 6, 6])
BEFORE = np.array([1, 1, 1, 0, 1, 0, 0, 0], dtype=bool)


def make(fabricate, exits=EXITS):
    """Eight samples, four of them answered before layer 1: three right; full depth is right on two of these, and on all others."""
    run = fabricate()
    run.cell("bert", correct=[True] * 8)
    right_at = np.ones((8, 6), dtype=bool)
    right_at[[1, 3]] = False
    correct = np.where(exits == 0, BEFORE, right_at[:, -1])
    depths = {"right_at": right_at, "right_before": BEFORE}
    run.cell("geep-zero", "speed=0.5", exits=exits, correct=correct, layers=float(exits.mean()), **depths)
    return build_view(run.path)


def test_share_and_accuracy_by_hand(fabricate):
    """Half are answered, 75 % of them right where full depth has 50 %: one sample of eight gained."""
    (row,) = make(fabricate).before
    assert (row.share, row.accuracy_before, row.accuracy_full, row.gain) == (0.5, 0.75, 0.5, 0.125)
    assert row.gain_low < 0.125 < row.gain_high


def test_seeds_answer_other_samples(fabricate):
    """Shares are means over seeds, accuracies are over all answered samples, and the change is a mean per test row."""
    run = fabricate()
    right_at = np.ones((8, 6), dtype=bool)
    for seed, answered in enumerate([[0], [0, 1, 2]]):
        exits = np.full(8, 6)
        exits[answered] = 0
        before = np.arange(8) != 0
        correct = np.where(exits == 0, before, True)
        run.cell("geep-zero", exits=exits, correct=correct, seed=seed, right_at=right_at, right_before=before)
    (row,) = build_view(run.path).before
    assert (row.seeds, row.share, row.accuracy_before, row.accuracy_full) == (2, 0.25, 0.5, 1.0)
    assert row.gain == pytest.approx(-1 / 8)


def test_the_table_says_full_depth_on_the_same_samples(fabricate):
    """The row and its note are shown; a run in which nothing can answer before layer 1 has no such table."""
    view = make(fabricate)
    table = before_table(view, view.groups[0])
    assert table is not None
    shown = dict(zip([column.heading for column in table.columns], table.cells[0], strict=True))
    assert (shown["Answered before layer 1 %"], shown["Accuracy there %"]) == ("50.0", "75.0")
    assert shown["Full depth there %"] == "50.0" and shown["Mean layers"] == "2.50"
    plain = fabricate("plain")
    plain.cell("bert")
    view = build_view(plain.path)
    assert before_table(view, view.groups[0]) is None


def test_no_sample_answered_is_a_dash(fabricate):
    """Where the threshold answers nobody, the accuracies are dashes with their reason."""
    view = make(fabricate, np.full(8, 6))
    table = before_table(view, view.groups[0])
    assert table is not None
    shown = dict(zip([column.heading for column in table.columns], table.cells[0], strict=True))
    assert (shown["Answered before layer 1 %"], shown["Accuracy there %"]) == ("0.0", "—")
    assert any("no sample was answered before layer 1" in note for note in table.notes)


def test_results_and_histograms_have_a_place_before_layer_1(fabricate):
    """The results say the share, also in the CSV; the histogram has a bar named 0 and says what it is. Other runs have neither."""
    view = make(fabricate)
    table = results_table(view, view.groups[0])
    at = [column.heading for column in table.columns].index("Before layer 1 %")
    assert {row[0]: row[at] for row in table.cells} == {"bert": "—", "geep-zero": "50.0"}
    (drawing,) = [d for d in draw_figures(view, view.groups[0]) if d.role == "exits"]
    assert "0: before layer 1" in drawing.svg
    plain = make(fabricate, np.array([1, 2, 3, 4, 5, 6, 6, 6]))
    assert "Before layer 1 %" not in [column.heading for column in results_table(plain, plain.groups[0]).columns]
    (drawing,) = [d for d in draw_figures(plain, plain.groups[0]) if d.role == "exits"]
    assert "before layer 1" not in drawing.svg


def test_a_threshold_that_no_dev_row_meets_is_a_caveat(fabricate):
    """The points at which nothing can be answered are named once per method; others are not."""
    run = fabricate()
    for point, share in (("speed=0.1", 0.0), ("speed=0.5", 0.0), ("budget=0.5", 0.2)):
        run.cell("geep-zero", point, params={"margin": 16385, "dev_answered": share})
    run.cell("bert", params={})
    (caveat,) = [one for one in build_view(run.path).caveats if "before layer 1" in one]
    assert caveat.startswith("geep-zero on ag_news") and "speed=0.1, speed=0.5" in caveat and "budget=0.5" not in caveat
