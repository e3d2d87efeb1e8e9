"""Statistics of one accuracy and of curves, against hand-made cases, scipy and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, ttest_1samp

from harness.measure.statistics import (
    area_under_curve,
    bootstrap_interval,
    calibration_error,
    score_at_matched_cost,
    spread,
)

shares = st.floats(0, 1)


@settings(max_examples=100)
@given(st.lists(st.booleans(), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_holds_the_accuracy(correct: list[bool], level: float) -> None:
    """The limits enclose the accuracy, are in 0..1, and a higher level gives no narrower interval."""
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
    """With one sample, or with equal samples, both limits are the accuracy."""
    assert bootstrap_interval(np.array([value])) == (float(value), float(value))
    assert bootstrap_interval(np.full(30, value)) == (float(value), float(value))


def test_spread_agrees_with_scipy() -> None:
    """Mean, sample deviation and Student's interval equal those of scipy."""
    values = [0.81, 0.84, 0.80, 0.86]
    found = spread(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.mean, found.n) == (pytest.approx(np.mean(values)), 4)
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_one_seed_has_no_spread() -> None:
    """A single value has no deviation and no interval."""
    assert spread([0.9]) == (0.9, None, None, None, 1)


def test_area_by_hand() -> None:
    """Budgets 1 to 8, three octaves at 0, 0.5 and 0.8; dominated points and points above the bound do not count."""
    assert area_under_curve([2, 4, 5, 9], [0.5, 0.8, 0.7, 1.0], 1, 8) == pytest.approx((0 + 0.5 + 0.8) / 3)
    assert area_under_curve([0.5], [0.6], 1, 8) == pytest.approx(0.6)
    assert area_under_curve([], [], 1, 8, floor=0.25) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="low < high"):
        area_under_curve([1], [0.5], 8, 1)


costs = st.lists(st.tuples(st.floats(0.01, 10), shares), min_size=1, max_size=8)


@given(costs, st.tuples(st.floats(0.01, 10), shares), st.floats(0.1, 10))
def test_area_rises_with_points_and_ignores_units(
    points: list[tuple[float, float]], extra: tuple[float, float], unit: float
) -> None:
    """Another operating point never lowers the area, the unit of cost does not matter, and the area is between floor and best."""
    cost, accuracy = zip(*points, strict=True)
    area = area_under_curve(cost, accuracy, 0.1, 1.0)
    more = [*points, extra]
    assert area_under_curve(*zip(*more, strict=True), 0.1, 1.0) >= area - 1e-12
    assert area_under_curve([c * unit for c in cost], accuracy, 0.1 * unit, unit) == pytest.approx(area, abs=1e-6)
    assert -1e-12 <= area <= max(accuracy) + 1e-12


def test_matched_score_by_hand() -> None:
    """The baseline is interpolated between points, constant above the last one, and undefined below the first one."""
    found = score_at_matched_cost([15, 30, 5], [0.8, 0.85, 0.9], [10, 20, 20], [0.6, 0.8, 0.7])
    assert found.score == pytest.approx(((0.8 - 0.7) + (0.85 - 0.8)) / 2)
    assert (found.used, found.below) == (2, 1)
    assert score_at_matched_cost([1], [0.9], [10], [0.6]) == (None, 0, 1)


@given(costs)
def test_the_baseline_scores_zero_against_itself(points: list[tuple[float, float]]) -> None:
    """The score of a baseline against itself is 0."""
    best: dict[float, float] = {}
    for cost, accuracy in points:
        best[cost] = max(accuracy, best.get(cost, 0.0))
    assert score_at_matched_cost([*best], [*best.values()], [*best], [*best.values()]).score == pytest.approx(0)


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.9 sure and 3 of 4 right, 0.6 sure and 1 of 1 right: (4 x 0.15 + 1 x 0.4) / 5; certainty has a bin, too."""
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.6])
    correct = np.array([True, True, True, False, True])
    assert calibration_error(confidence, correct) == pytest.approx((4 * 0.15 + 0.4) / 5)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == pytest.approx(0.5)
