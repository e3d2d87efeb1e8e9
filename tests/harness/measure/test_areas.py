"""Weights of operating points in an area, and ranks with intervals, against direct computation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.areas import area_weights, average_ranks, budget_weights, not_separated, pooled_ranks, ranks_of

layers = st.lists(st.floats(0.1, 12), min_size=1, max_size=6, unique=True)


def test_a_worked_example() -> None:
    """Points at 2 and 6 layers, budgets 3 to 9: half of the range is on the line between them, half beyond the last point."""
    weights, guess = area_weights([2, 6], 3, 9)
    # From 3 to 6 the share of the deeper point rises from 1/4 to 1: 5/8 on average.
    assert weights == pytest.approx([0.5 * 3 / 8, 0.5 * 5 / 8 + 0.5])
    assert guess == 0


def test_budgets_below_the_cheapest_point_buy_guesses() -> None:
    """A single point at 8 layers, budgets 0 to 8: half of the samples are guessed on average."""
    weights, guess = area_weights([8], 0, 8)
    assert weights == pytest.approx([0.5])
    assert guess == pytest.approx(0.5)


@given(layers, st.floats(0, 6), st.floats(0.5, 6), st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_weights_give_the_integral_in_any_order(
    places: list[float], low: float, width: float, values: list[float]
) -> None:
    """The weighted accuracies are the mean of the curve, computed on a fine grid, whatever the order of the points."""
    high = low + width
    accuracy = values[: len(places)]
    weights, guess = area_weights(places, low, high)
    assert weights.sum() + guess == pytest.approx(1)
    assert (weights >= -1e-12).all()
    by_depth = np.argsort(places)
    x, y = np.array(places)[by_depth], np.array(accuracy)[by_depth]
    grid = np.linspace(low, high, 4001)
    direct = np.interp(grid, [0, *x], [0.3, *y]).mean()
    assert weights @ accuracy + 0.3 * guess == pytest.approx(direct, abs=2e-3)
    shuffled = np.random.default_rng(len(places)).permutation(len(places))
    again, _ = area_weights(np.array(places)[shuffled].tolist(), low, high)
    assert again == pytest.approx(weights[shuffled])


def test_points_of_equal_layers_count_alike() -> None:
    """Two points at the same layers share the weight of one."""
    weights, guess = area_weights([3, 3, 6], 2, 8)
    alone, same_guess = area_weights([3, 6], 2, 8)
    assert weights == pytest.approx([alone[0] / 2, alone[0] / 2, alone[1]])
    assert guess == same_guess


def test_answers_without_any_layer_replace_guesses() -> None:
    """A point at 0 layers stands where guesses would."""
    weights, guess = area_weights([0, 4], 0, 4)
    assert (weights.tolist(), guess) == ([0.5, 0.5], 0.0)


def test_a_clear_order_has_narrow_ranks_and_equals_share_a_rank() -> None:
    """Three methods 10 points apart keep their ranks in every resample; a copy has the rank of its original."""
    rng = np.random.default_rng(0)
    strata = []
    for _ in range(2):
        base = (rng.random((3, 500)) < np.array([[0.6], [0.7], [0.8]])).astype(float)
        strata.append(np.vstack([base, base[2:]]))
    found = pooled_ranks(strata)
    assert found.rank.tolist() == [4, 3, 1, 1]
    assert found.rank_low.tolist() == [4, 3, 1, 1]
    assert found.rank_high.tolist() == [4, 3, 1, 1]
    assert ((found.low < found.mean) & (found.mean < found.high)).all()


def test_methods_without_a_difference_are_not_separated() -> None:
    """Independent methods of the same quality can have any rank."""
    strata = [(np.random.default_rng(1).random((3, 300)) < 0.7).astype(float)]
    found = pooled_ranks(strata)
    assert found.rank_low.min() == 1
    assert found.rank_high.max() == 3
    assert (found.rank_high > found.rank_low).all()


def test_sets_weigh_the_same() -> None:
    """A method that wins on the small set by more than it loses on the large one is ranked first."""
    small, large = np.array([[1.0] * 10, [0.0] * 10]), np.array([[0.0] * 1000, [0.9] * 1000])
    assert pooled_ranks([small, large]).rank.tolist() == [1, 2]


def test_ranks_ignore_rounding() -> None:
    """Sums in floating point that should be equal share a rank."""
    assert ranks_of(np.array([[0.1 + 0.2, 0.3, 0.2]])).tolist() == [[1, 1, 3]]


def test_one_budget_by_hand() -> None:
    """Between two points a mix; above the dearest that point; below the cheapest a mix of it and of guesses."""
    costs = [0.2, 0.6]
    for budget, expected, guess in ((0.3, [0.75, 0.25], 0), (0.9, [0, 1], 0), (0.1, [0.5, 0], 0.5)):
        weights, guessed = budget_weights(costs, budget)
        assert weights == pytest.approx(expected)
        assert guessed == pytest.approx(guess)


@given(layers, st.floats(0.1, 11))
def test_a_narrow_range_of_budgets_is_one_budget(places: list[float], budget: float) -> None:
    """The weights at a budget are the limit of the area's."""
    weights, guess = budget_weights(places, budget)
    assert weights.sum() + guess == pytest.approx(1)
    nearly, about = area_weights(places, budget - 1e-7, budget + 1e-7)
    assert weights == pytest.approx(nearly, abs=1e-4)
    assert guess == pytest.approx(about, abs=1e-4)


def test_average_ranks_by_hand() -> None:
    """Three methods on four sets: ranks, Friedman's statistic by its formula, Nemenyi's difference by the table of q at 5 %."""
    found = average_ranks(np.array([[0.9, 0.8, 0.7, 0.6], [0.8, 0.9, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4]]))
    assert found.ranks.tolist() == [[1, 2, 1, 1], [2, 1, 2, 2], [3, 3, 3, 3]]
    assert found.average.tolist() == [1.25, 1.75, 3]
    assert found.statistic == pytest.approx(12 * 4 / (3 * 4) * (1.25**2 + 1.75**2 + 3**2 - 3 * 4**2 / 4))
    assert found.p == pytest.approx(np.exp(-found.statistic / 2)), "chi-square with two degrees of freedom"
    assert found.critical_difference == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 4)), abs=2e-3)


def test_the_critical_difference_of_ten_methods() -> None:
    """With ten methods on twelve sets: q is 3.164 (Demsar 2006, table 5), so ranks must differ by 3.9."""
    found = average_ranks(np.random.default_rng(0).random((10, 12)))
    assert found.critical_difference == pytest.approx(3.164 * np.sqrt(10 * 11 / (6 * 12)), abs=2e-3)
    assert found.p > 0.01


def test_methods_that_are_alike_are_not_told_apart() -> None:
    """Equal values share the mean rank, and p is 1."""
    found = average_ranks(np.full((3, 5), 0.7))
    assert found.average.tolist() == [2, 2, 2]
    assert found.p == 1


def test_groups_that_are_not_separated_are_the_largest_ones() -> None:
    """A group inside another one is not shown, and neither is a method alone."""
    assert not_separated([1.0, 1.5, 2.0, 4.0], 1.2) == [(0, 2)]
    assert not_separated([1.0, 2.0, 3.0], 1.5) == [(0, 1), (1, 2)]
    assert not_separated([1.0, 4.0], 1.0) == []
