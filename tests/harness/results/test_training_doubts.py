"""Fits that ended too soon, and heads that collapsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.results.schema import Training
from harness.results.training_doubts import CollapsedExit, collapsed_exits, kept_the_last_epoch


def fit(**known):
    return Training(seconds=1.0, steps=10, layer_passes=100, **known)


@pytest.mark.parametrize(
    ("best", "epochs", "last"), [(5, 5, True), (4, 5, False), (None, 5, False), (5, None, False), (None, None, False)]
)
def test_the_last_allowed_epoch(best, epochs, last):
    """Only a chosen epoch that is the last allowed one counts: not one kept by rule, and not an older record."""
    assert kept_the_last_epoch(fit(best_epoch=best, epochs=epochs)) is last


def test_a_head_far_below_a_shallower_one_collapsed():
    """Each exit is compared with the best one before it; a rising curve has none."""
    assert collapsed_exits(fit(exit_scores=[0.5, 0.624, 0.6, 0.531, 0.7], dev_rows=1000)) == [
        CollapsedExit(4, 0.531, 2, 0.624)
    ]
    assert collapsed_exits(fit(exit_scores=[0.5, 0.6, 0.7], dev_rows=1000)) == []


@pytest.mark.parametrize(
    ("lower", "rows", "collapsed"),
    [(0.756, 10_000, False), (0.744, 10_000, True), (0.744, 100, False), (0.6, 100, True)],
)
def test_both_limits_count(lower, rows, collapsed):
    """More than 5 points are needed however many rows there are, and more than 2 standard errors however many points."""
    assert bool(collapsed_exits(fit(exit_scores=[0.8, lower], dev_rows=rows))) is collapsed


@given(st.lists(st.floats(0, 1), max_size=6), st.integers(0, 500))
def test_sorted_scores_never_collapse(scores, rows):
    """Where deeper heads are at least as good, none collapsed; without scores or rows nothing is said."""
    assert collapsed_exits(fit(exit_scores=sorted(scores), dev_rows=rows)) == []
    assert collapsed_exits(fit(exit_scores=scores)) == []
