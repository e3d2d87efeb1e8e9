"""Accuracy and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from harness.measure.quality import bootstrap_interval, quality


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_holds_the_accuracy(correct: list[bool], level: float) -> None:
    """The limits lie around the accuracy, inside 0..1, and a wider level is not narrower."""
    values = np.array(correct)
    low, high = bootstrap_interval(values, level)
    assert 0 <= low <= values.mean() <= high <= 1
    wide_low, wide_high = bootstrap_interval(values, 0.999)
    assert wide_low <= low
    assert high <= wide_high


@pytest.mark.parametrize(("right", "wrong"), [(50, 50), (190, 10), (3, 37), (801, 199)])
def test_interval_agrees_with_scipys_bootstrap(right: int, wrong: int) -> None:
    """Resampling ten thousand times gives the same limits, up to two samples."""
    correct = np.array([True] * right + [False] * wrong)
    expected = bootstrap((correct,), np.mean, n_resamples=9999, method="percentile", rng=0).confidence_interval
    found = bootstrap_interval(correct)
    assert np.allclose(found, (expected.low, expected.high), atol=2 / len(correct))


@pytest.mark.parametrize("value", [True, False])
def test_interval_without_spread(value: bool) -> None:
    """One sample, or all of them alike: both limits are the accuracy."""
    assert bootstrap_interval(np.array([value])) == (float(value), float(value))
    assert bootstrap_interval(np.full(30, value)) == (float(value), float(value))


def test_quality_by_hand() -> None:
    """Five samples of three classes: accuracy 3/5, F1 2/3, 4/5 and 0."""
    found = quality(np.array([0, 0, 1, 1, 1]), np.array([0, 2, 1, 1, 0]))
    assert found.accuracy == pytest.approx(0.6)
    assert found.macro_f1 == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    assert found.n == 5
    assert found.accuracy_low <= 0.6 <= found.accuracy_high


def test_quality_of_one_row() -> None:
    """A test split of one row is a result, too."""
    found = quality(np.array([1]), np.array([1]))
    assert (found.accuracy, found.accuracy_low, found.accuracy_high, found.macro_f1, found.n) == (1, 1, 1, 1, 1)
