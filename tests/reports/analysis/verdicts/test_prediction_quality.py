"""The quality of predicted exits, on known input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from reports.analysis.verdicts.prediction_quality import confusion_of, tau_b
from reports.analysis.view import build_view
from reports.figures.dataset_figures import draw_figures
from reports.tables.predictor_table import predictor_table

exits = st.integers(1, 5)


@given(st.lists(st.tuples(exits, exits), min_size=2, max_size=40))
def test_tau_equals_scipys(pairs):
    """Kendall's tau-b from a contingency table is tau-b of the samples themselves; constant input has none."""
    actual, predicted = np.array(pairs).T
    ours, theirs = tau_b(confusion_of(actual, predicted, 5)), kendalltau(actual, predicted).statistic
    assert (ours is None) == math.isnan(theirs)
    assert ours is None or ours == pytest.approx(theirs, abs=1e-12)


def test_confusion_counts_every_pair_once():
    """Rows are sequential exits, columns predicted ones."""
    table = confusion_of(np.array([1, 1, 3]), np.array([1, 2, 3]), 3)
    assert table.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


SEQUENTIAL = [1, 2, 3, 4]
YES, NO = True, False


def make(fabricate, **geep):
    """Four samples: predicted exits 1 2 2 6, sequential exits 1 2 3 4."""
    run = fabricate()
    run.cell("bert", correct=[YES] * 4)
    options = {"exits": [1, 2, 2, 6], "predicted": [1, 2, 2, 6], "correct": [YES, YES, NO, YES], **geep}
    run.cell("geep", "speed=0.5", layers=2.75, unseen_tokens=0.125, **options)
    run.cell(
        "control-constant", "speed=0.5", kind="control", layers=3, exits=[3] * 4, predicted=[3] * 4, correct=[YES] * 4
    )
    run.cell(
        "control-sequential", "speed=0.5", kind="control", layers=2.5, exits=SEQUENTIAL, correct=[YES, YES, YES, NO]
    )
    run.cell("oracle", "agree", kind="bound", layers=1.5, exits=[1, 1, 2, 2], correct=[YES] * 4)
    return run


def quality(run, method="geep"):
    (row,) = [row for row in build_view(run.path).predictors if row.method == method]
    return row


def test_known_answers(fabricate):
    """Hits, near misses, both kinds of error and their cost are right for four samples counted by hand."""
    row = quality(make(fabricate))
    assert (row.agreement.hit, row.agreement.within_one, row.agreement.early, row.agreement.late) == (
        0.5,
        0.75,
        0.25,
        0.25,
    )
    # Exiting early lost the third sample, exiting late won the fourth.
    assert (row.agreement.cost_early, row.agreement.cost_late, row.accuracy_vs_sequential) == (-0.25, 0.25, 0.0)
    assert row.layers_vs_sequential == pytest.approx(0.25)
    assert row.agreement.tau_b == pytest.approx(kendalltau(SEQUENTIAL, [1, 2, 2, 6]).statistic)
    assert row.unseen_tokens == 0.125


def test_constant_exits_have_no_rank_correlation(fabricate):
    """The tau of constant exits is a dash with its reason, not 0."""
    view = build_view(make(fabricate).path)
    table = predictor_table(view, view.groups[0])
    assert table is not None
    at = [column.key for column in table.columns].index("tau_b")
    taus = {row[0]: row[at] for row in table.cells}
    assert taus["control-constant"] == "—" and taus["geep"] != "—"
    assert any("nothing is ranked" in note for note in table.notes)


def test_methods_are_listed_with_their_controls(fabricate):
    """Predictors at one point are listed together, methods first; rows without predictions are not listed."""
    run = make(fabricate)
    run.cell("geep", "speed=0.1", exits=[1] * 4, predicted=[1] * 4, correct=[YES] * 4)
    run.cell("control-sequential", "speed=0.1", kind="control", exits=SEQUENTIAL, correct=[YES] * 4)
    run.cell("fastbert", "speed=0.5", exits=SEQUENTIAL, correct=[YES] * 4)
    view = build_view(run.path)
    assert [(row.method, row.point) for row in view.predictors] == [
        ("geep", "speed=0.1"),
        ("geep", "speed=0.5"),
        ("control-constant", "speed=0.5"),
    ]


def test_verified_exits_use_the_predicted_ones(fabricate):
    """The hits of a verified row are those of its predictor, not of its final exits."""
    run = make(fabricate)
    run.cell("geep-verified", "speed=0.5/once", exits=SEQUENTIAL, predicted=[1, 1, 1, 1], correct=[YES] * 4)
    row = quality(run, "geep-verified")
    assert row.agreement.hit == 0.25 and row.compared_with == "speed=0.5"


def test_seeds_are_pooled_but_ranked_separately(fabricate):
    """Counts add up over seeds; tau is the mean of the seeds' taus."""
    run = make(fabricate)
    common = {"seed": 1, "correct": [YES] * 4}
    run.cell("geep", "speed=0.5", exits=[4, 3, 2, 1], predicted=[4, 3, 2, 1], **common)
    run.cell("control-sequential", "speed=0.5", kind="control", exits=SEQUENTIAL, **common)
    row = quality(run)
    assert row.n == 8 and row.agreement.hit == 0.25
    assert row.agreement.tau_b == pytest.approx((kendalltau(SEQUENTIAL, [1, 2, 2, 6]).statistic - 1) / 2)


def test_controls_of_another_device_are_not_used(fabricate):
    """A sequential exit measured on another device is not used."""
    run = fabricate()
    run.cell("geep", "speed=0.5", predicted=[1] * 200)
    run.cell("control-sequential", "speed=0.5", kind="control", device="cuda")
    assert not build_view(run.path).predictors


def test_without_an_oracle_its_columns_are_dashes(fabricate):
    """A run without the oracle still reports predictors: agreement and the advantage over expectations are dashes."""
    run = fabricate()
    run.cell("geep", "speed=0.5", predicted=[2] * 200)
    run.cell("control-sequential", "speed=0.5", kind="control")
    view = build_view(run.path)
    table = predictor_table(view, view.groups[0])
    assert table is not None
    shown = dict(zip([column.heading for column in table.columns], table.cells[0], strict=True))
    assert shown["Agreement %"] == shown["Accuracy over: random"] == shown["Accuracy over: hull"] == "—"


def test_heat_map_has_a_panel_per_predictor(fabricate):
    """Methods and controls are drawn side by side, and shares are written where there is room."""
    view = build_view(make(fabricate).path)
    (drawing,) = [d for d in draw_figures(view, view.groups[0]) if d.role == "confusion"]
    assert "geep speed=0.5" in drawing.svg and "control-constant speed=0.5" in drawing.svg
    assert "exit at 3, predicted 2: 25.0 %" in drawing.svg
    assert "synthetic" in drawing.name and "synthetic" in drawing.title


def test_predictions_of_no_layer_are_a_column_of_their_own(fabricate):
    """A sample answered before layer 1 is predicted at 0: too early, never a hit; the map says what 0 is."""
    run = make(fabricate, exits=[0, 2, 2, 6], predicted=[-1, 2, 2, 6])
    row = quality(run)
    assert (row.agreement.first, len(row.agreement.confusion), row.agreement.confusion[1][0]) == (0, 7, 1)
    assert (row.agreement.compared, row.agreement.hit, row.agreement.early, row.agreement.late) == (4, 0.25, 0.5, 0.25)
    assert row.agreement.tau_b == pytest.approx(kendalltau(SEQUENTIAL, [0, 2, 2, 6]).statistic)
    view = build_view(run.path)
    (drawing,) = [d for d in draw_figures(view, view.groups[0]) if d.role == "confusion"]
    assert "exit at 1, predicted 0: 25.0 %" in drawing.svg and "0: answered before layer 1" in drawing.svg
