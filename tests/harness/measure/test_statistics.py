"""Statistics against hand-made cases, scipy, published examples and invariants."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from math import comb, log

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, norm, ttest_1samp

from harness.measure.statistics import (
    area_under_curve,
    bootstrap_difference,
    bootstrap_interval,
    faster_and_not_worse,
    holm,
    holm_testable,
    mcnemar,
    median_noise,
    paired,
    score_at_matched_cost,
    self_ratios,
    spread,
    worst_case,
)

YES, NO = True, False
counts = st.integers(0, 60)
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


def test_exact_mcnemar_known_answer() -> None:
    """One win against nine losses: two-sided p is 2 * (C(10,0) + C(10,1)) / 2**10, one-sided half of it."""
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(1, 9, "worse") == pytest.approx(11 / 1024)
    assert mcnemar(9, 1, "worse") == pytest.approx(1 - 1 / 1024)
    assert mcnemar(0, 0) == mcnemar(0, 0, "worse") == 1.0


@given(counts, counts)
def test_mcnemar_is_scipys_binomial_test(wins: int, losses: int) -> None:
    """Swapping the sides changes no two-sided p-value; both kinds are the binomial test with 1/2."""
    assert mcnemar(wins, losses) == pytest.approx(mcnemar(losses, wins))
    if wins + losses:
        assert mcnemar(wins, losses) == pytest.approx(binomtest(wins, wins + losses, 0.5).pvalue)
        less = binomtest(wins, wins + losses, 0.5, alternative="less").pvalue
        assert mcnemar(wins, losses, "worse") == pytest.approx(less)


@given(st.lists(shares, min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_order(p_values: list[float]) -> None:
    """Adjusted values are at least the raw ones, at most 1, and in the same order."""
    adjusted = holm(p_values)
    assert all(raw <= new <= 1 for raw, new in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert all(adjusted[a] <= adjusted[b] for a, b in pairwise(order))


def test_holm_known_answer() -> None:
    """Holm 1979 on three values."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_unchanged_cells_cost_nothing() -> None:
    """One cell with 15 losses among 87 without a discordant sample is tested as if it were alone."""
    p = mcnemar(0, 15, "worse")
    adjusted = holm_testable([1.0] * 87 + [p], [0] * 87 + [15], alpha=0.01)
    assert adjusted == [None] * 87 + [pytest.approx(p)]


def test_cells_that_could_be_significant_are_adjusted() -> None:
    """Three cells, two of which can reach 0.05 / 2: those two are adjusted by Holm, the third is left out."""
    found = holm_testable([mcnemar(0, 7, "worse"), mcnemar(1, 9, "worse"), 0.5], [7, 10, 1], alpha=0.05)
    assert found == [pytest.approx(2 / 2**7), pytest.approx(2 / 2**7), None]
    assert holm_testable([], [], 0.05) == []


def test_testable_cells_keep_the_level_of_false_alarms() -> None:
    """Over all outcomes of the discordant samples of four equal cells, the exact level is at most alpha."""
    alpha, discordant = 0.1, (5, 6, 4, 0)
    wrong = 0.0
    for wins in product(*(range(d + 1) for d in discordant)):
        p_values = [mcnemar(w, d - w, "worse") for w, d in zip(wins, discordant, strict=True)]
        adjusted = holm_testable(p_values, discordant, alpha)
        if any(p is not None and p <= alpha for p in adjusted):
            wrong += float(np.prod([comb(d, w) / 2.0**d for w, d in zip(wins, discordant, strict=True)]))
    assert 0 < wrong <= alpha


def test_pairs_are_matched_by_test_row() -> None:
    """Rows are paired by index, not by position, and only common rows count."""
    ours = pd.Series([YES, NO, YES], index=[0, 1, 2])
    theirs = pd.Series([NO, YES, YES, YES], index=[1, 0, 3, 2])
    result = paired([ours], [theirs])
    assert (result["wins"], result["losses"], result["pairs"], result["difference"]) == (0, 0, 3, 0.0)


def test_several_seeds_count_a_sample_once() -> None:
    """A sample that wins under both seeds is one win, not two."""
    ours, theirs = pd.Series([YES] * 4), pd.Series([NO] * 3 + [YES])
    result = paired([ours, ours], [theirs, theirs])
    assert (result["wins"], result["losses"], result["difference"]) == (3, 0, 0.75)


def test_nothing_to_pair() -> None:
    """Without a seed, or without a common row, there is no p-value."""
    assert paired([], [])["p"] is None
    assert paired([pd.Series([YES], index=[0])], [pd.Series([YES], index=[1])])["p"] is None


def test_bootstrapped_difference_agrees_with_scipy() -> None:
    """With one seed the interval equals scipy's paired percentile bootstrap, within half a sample in 200."""
    rng = np.random.default_rng(5)
    new, base = rng.random(200) < 0.8, rng.random(200) < 0.7
    difference = new.astype(int) - base.astype(int)
    expected = bootstrap((difference,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
    assert np.allclose(bootstrap_difference(new, base), (expected.low, expected.high), atol=0.006)


def test_more_seeds_are_not_more_samples() -> None:
    """The same answers under four seeds give the same interval as one seed."""
    rng = np.random.default_rng(6)
    new, base = rng.random(150) < 0.8, rng.random(150) < 0.7
    assert bootstrap_difference(np.stack([new] * 4), np.stack([base] * 4)) == pytest.approx(
        bootstrap_difference(new, base)
    )
    with pytest.raises(ValueError, match="not paired"):
        bootstrap_difference(new, base[1:])


def test_worst_case_known_answer() -> None:
    """The airway study of Fagerland, Lydersen & Laake 2014 (1 against 7 of 21): Tango's interval is -0.517 to -0.026."""
    assert worst_case(1, 7, 21, alpha=0.025) == pytest.approx(-0.517, abs=5e-4)
    assert -worst_case(7, 1, 21, alpha=0.025) == pytest.approx(-0.026, abs=5e-4)


@given(st.integers(1, 200), st.floats(0.01, 0.2))
def test_worst_case_without_discordant_samples(n: int, alpha: float) -> None:
    """Without discordant samples the bound is -z^2 / (n + z^2), computed by hand."""
    z = norm.ppf(1 - alpha)
    assert worst_case(0, 0, n, alpha) == pytest.approx(-(z**2) / (n + z**2), abs=1e-9)


@given(counts, counts, st.integers(0, 300))
def test_worst_case_is_below_the_observed_difference_and_falls_with_losses(
    wins: int, losses: int, agreeing: int
) -> None:
    """The bound lies in [-1, observed], and another loss in place of an agreement never raises it."""
    n = wins + losses + agreeing + 1
    bound = worst_case(wins, losses, n)
    assert -1 <= bound <= (wins - losses) / n + 1e-9
    assert worst_case(wins, losses + 1, n) <= bound + 1e-9


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


def test_self_ratios_by_hand() -> None:
    """Successive passes of one series are pairs; passes of different series are not."""
    assert self_ratios([[1.0, 2.0, 1.0], [5.0], [], [3.0, 9.0]]) == pytest.approx([log(2), -log(2), log(3)])
    assert len(self_ratios([])) == 0


def test_noise_of_a_median_equals_theory() -> None:
    """The median of three normal values has 0.6698 times their deviation, symmetrically."""
    pairs = np.random.default_rng(0).normal(0, 0.05, 5000)
    noise = median_noise(pairs, 3)
    assert noise.std() == pytest.approx(0.6698 * 0.05, rel=0.03)
    assert abs(noise.mean()) < 5e-4


def test_stalls_widen_the_noise() -> None:
    """If one pair in ten is doubled, the tails of the median of three show it."""
    calm = np.full(100, 0.01)
    stalling = np.concatenate([calm[:90], np.full(10, log(2))])
    assert np.quantile(median_noise(calm, 3), 0.99) == pytest.approx(0.01)
    assert np.quantile(median_noise(stalling, 3), 0.995) == pytest.approx(log(2))


@pytest.mark.parametrize(
    ("losses", "ratios", "expected"),
    [
        (0, (2.0, 2.1, 1.9), (True, True)),
        (40, (2.0, 2.1, 1.9), (False, True)),
        (0, (1.01, 1.0, 1.02), (True, False)),
        (40, (1.01, 1.0, 1.02), (False, False)),
    ],
)
def test_faster_and_not_worse(losses: int, ratios: Sequence[float], expected: tuple[bool, bool]) -> None:
    """Both tests use their lower bounds."""
    pairs = np.random.default_rng(0).normal(0, 0.05, 200)
    found = faster_and_not_worse(10, losses, 2000, ratios, pairs, margin=0.01)
    assert (found.not_worse, found.faster) == expected
    assert found.lowest_speedup < np.median(ratios)


def test_few_samples_are_not_enough() -> None:
    """With full agreement, 200 samples cannot exclude a loss of one point, but 300 can."""
    pairs = np.full(50, 0.01)
    assert not faster_and_not_worse(0, 0, 200, [2.0], pairs, margin=0.01).not_worse
    assert faster_and_not_worse(0, 0, 300, [2.0], pairs, margin=0.01).not_worse
