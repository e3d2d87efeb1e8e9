"""Operating points chosen on dev at equal cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.toolkit.budgets import Candidate, at_budgets, points_at_budgets

ROWS = 20
# Few values, so that ties are common; accuracies are those of whole numbers of dev rows.
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        threshold=st.floats(0, 1),
        layers=st.sampled_from([1.0, 2.5, 3.0, 6.0, 9.0]) | st.floats(1, 12),
        accuracy=st.integers(0, ROWS).map(lambda right: right / ROWS),
    ),
    min_size=1,
)
BUDGETS = st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0]) | st.floats(0.01, 1), min_size=2, max_size=5).map(sorted)


def affordable(candidates: Sequence[Candidate], budget: float) -> list[Candidate]:
    return [one for one in candidates if one.layers <= 12 * budget]


@given(CANDIDATES, BUDGETS)
def test_a_point_is_within_its_budget_if_any_candidate_is(candidates: list[Candidate], budgets: list[float]) -> None:
    """Only if no candidate is within a budget, the choice is above it, and then it is the cheapest of all."""
    for budget, chosen in zip(budgets, at_budgets(candidates, budgets, 12, ROWS), strict=True):
        if chosen.layers > 12 * budget * (1 + 1e-9):
            assert not affordable(candidates, budget)
            assert chosen.layers == min(one.layers for one in candidates)


@given(CANDIDATES, BUDGETS)
def test_a_point_uses_its_budget(candidates: list[Candidate], budgets: list[float]) -> None:
    """The choice is within one standard error of the best, and no other such candidate is deeper, or as deep and better."""
    for budget, chosen in zip(budgets, at_budgets(candidates, budgets, 12, ROWS), strict=True):
        able = affordable(candidates, budget)
        if not able:
            continue
        best = max(one.accuracy for one in able)
        lowest = best - math.sqrt(best * (1 - best) / ROWS)
        assert chosen.accuracy >= lowest - 1e-6
        good = [one for one in able if one.accuracy >= lowest + 1e-6 or one.accuracy == best]
        assert not any((one.layers, one.accuracy) > (chosen.layers, chosen.accuracy) for one in good)


@given(CANDIDATES, BUDGETS)
def test_a_larger_budget_never_buys_fewer_layers(candidates: list[Candidate], budgets: list[float]) -> None:
    """Layers do not fall with a larger budget."""
    layers = [one.layers for one in at_budgets(candidates, budgets, 12, ROWS)]
    assert layers == sorted(layers)


@given(CANDIDATES, BUDGETS, st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_candidates(candidates, budgets, random) -> None:
    """The same candidates in another order give points of the same cost and accuracy."""
    shuffled = random.sample(candidates, len(candidates))
    first, second = (at_budgets(some, budgets, 12, ROWS) for some in (candidates, shuffled))
    assert first == second


def test_one_dev_row_more_does_not_spend_less_of_the_budget() -> None:
    """A candidate of one layer that is right on a row more does not win against one that uses its budget."""
    cheap, deep, wrong = Candidate(0.9, 1.0, 0.81), Candidate(0.5, 5.9, 0.80), Candidate(0.4, 6.0, 0.70)
    assert at_budgets([cheap, deep, wrong], [0.5], 12, 100) == [deep]
    # With so many rows the difference is more than one standard error.
    assert at_budgets([cheap, deep, wrong], [0.5], 12, 10_000) == [cheap]


def test_without_a_candidate_within_the_budget_the_cheapest_is_chosen_and_marked() -> None:
    """If no candidate is within the budget, the point is the cheapest one and says that it is over its budget."""
    slow = [Candidate(1, 2.0, 0.8), Candidate(2, 3.0, 0.9)]
    tight, wide = points_at_budgets(slow, [0.25, 0.75], 4, ROWS, lambda one: {"threshold": one.threshold})
    assert tight.params["threshold"] == 1 and tight.params["over_budget"] is True
    assert wide.params["threshold"] == 2 and "over_budget" not in wide.params


def test_no_candidates_are_an_error() -> None:
    """An empty list of candidates is a ValueError."""
    with pytest.raises(ValueError, match="no candidate"):
        at_budgets([], [0.5], 12, ROWS)
