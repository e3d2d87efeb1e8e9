"""Paired tests against hand-made cases, scipy, published examples and invariants."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, norm, ttest_1samp

from harness.measure.paired_tests import (
    bootstrap_difference,
    mcnemar,
    mean_difference,
    paired,
    stratified_difference,
    worst_case,
)

YES, NO = True, False


counts = st.integers(0, 60)


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


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=50))
def test_mean_difference_is_scipys_t_test(values: list[float]) -> None:
    """Mean, interval and p-value of real-valued differences are those of scipy's one-sample t-test."""
    differences = np.array(values)
    found = mean_difference(differences)
    assert found is not None and found.informative == np.count_nonzero(differences)
    if differences.std() > 1e-6:
        test = ttest_1samp(differences, 0)
        limits = test.confidence_interval(0.95)
        assert found.p == pytest.approx(test.pvalue, abs=1e-9)
        assert (found.low, found.high) == pytest.approx((limits.low, limits.high), abs=1e-9)


def test_mean_difference_without_spread() -> None:
    """No difference in any row has p = 1, and one row has no error."""
    assert mean_difference(np.zeros(9)) == (0, 0, 0, 0, 1, 0)
    assert mean_difference(np.ones(1)) is None


def test_one_stratum_is_the_paired_bootstrap() -> None:
    """With one set the interval is that of the paired bootstrap, and the standard error that of the mean."""
    rng = np.random.default_rng(2)
    new, base = rng.random(400) < 0.8, rng.random(400) < 0.7
    difference = new.astype(float) - base
    found = stratified_difference([difference], resamples=20_000)
    assert (found.low, found.high) == pytest.approx(bootstrap_difference(new, base), abs=0.003)
    assert found.mean == pytest.approx(difference.mean())
    assert found.se == pytest.approx(difference.std() / 20)
    assert found.lower == pytest.approx(found.mean - 1.645 * found.se, abs=0.003)


def test_sets_weigh_equally_whatever_their_size() -> None:
    """A set with 1,000 rows has the weight of one with 50; the variance of each counts with 1 / K^2 (by hand)."""
    rng = np.random.default_rng(3)
    large, small = rng.normal(0.1, 0.3, 1000), rng.normal(-0.1, 0.3, 50)
    found = stratified_difference([large, small])
    assert found.mean == pytest.approx((large.mean() + small.mean()) / 2)
    assert found.se == pytest.approx(np.sqrt(large.var() / 1000 + small.var() / 50) / 2)
    assert found.low < found.mean < found.high
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(found.se, rel=0.06)


def test_differences_between_sets_are_no_noise() -> None:
    """Rows are drawn inside their set: sets that are constant give an interval without width."""
    found = stratified_difference([np.full(30, 0.2), np.full(20, -0.1)])
    assert (found.low, found.high) == pytest.approx((0.05, 0.05))


def test_no_difference_in_any_row_has_p_1() -> None:
    """Equal answers on all sets: p is 1."""
    assert stratified_difference([np.zeros(30), np.zeros(20)]).p == 1.0


@given(st.lists(st.lists(st.sampled_from([-1, -0.25, 0, 0.5, 1]), min_size=5, max_size=30), min_size=1, max_size=4))
def test_p_and_interval_of_pooled_sets_agree(sets: list[list[float]]) -> None:
    """p below 5 % and an interval without 0 are the same finding, up to one resample at the edge; signs can be swapped."""
    strata = [np.array(rows) for rows in sets]
    found = stratified_difference(strata, resamples=1000)
    if found.p < 0.045:
        assert found.low > 0 or found.high < 0
    if found.low > 1e-9 or found.high < -1e-9:
        assert found.p < 0.055
    assert found.low <= found.lower <= found.high


def test_level_of_the_pooled_test_is_kept() -> None:
    """With no true difference, 400 pooled tests of skewed differences on three sets have about 5 % false findings."""
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(400):
        strata = [rng.choice([0, 0.8, -0.2], p=[0.75, 0.05, 0.2], size=n) for n in (200, 300, 100)]
        wrong += stratified_difference(strata, resamples=600).p < 0.05
    assert 6 <= wrong <= 36
