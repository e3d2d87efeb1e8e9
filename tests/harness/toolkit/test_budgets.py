"""Operating points chosen on dev at equal cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.toolkit.budgets import Candidate, at_budgets

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        threshold=st.floats(0, 1),
        layers=st.floats(1, 12),
        accuracy=st.floats(0, 1),
    ),
    min_size=1,
)
BUDGETS = st.lists(st.floats(0.01, 1), min_size=1, max_size=5)


@given(CANDIDATES, BUDGETS)
def test_the_choice_is_the_best_within_the_budget(candidates, budgets):
    """The choice is within the budget if any candidate is, and no other candidate within it is better."""
    for budget, chosen in zip(budgets, at_budgets(candidates, budgets, 12), strict=True):
        able = [one for one in candidates if one.layers <= 12 * budget]
        if not able:
            assert chosen.layers <= min(one.layers for one in candidates) or chosen.layers <= 12 * budget * (1 + 1e-9)
            continue
        assert chosen.layers <= 12 * budget * (1 + 1e-9)
        assert not any(
            one.accuracy > chosen.accuracy or (one.accuracy == chosen.accuracy and one.layers < chosen.layers)
            for one in able
        )


@given(CANDIDATES, st.lists(st.floats(0.01, 1), min_size=2, max_size=5).map(sorted))
def test_a_larger_budget_is_never_worse_on_dev(candidates, budgets):
    """Accuracy on dev does not fall with a larger budget."""
    chosen = at_budgets(candidates, budgets, 12)
    kept = [one.accuracy for one, budget in zip(chosen, budgets, strict=True) if one.layers <= 12 * budget]
    assert kept == sorted(kept)


def test_without_a_candidate_within_the_budget_the_cheapest_is_chosen():
    """If no candidate is within the budget, the cheapest is chosen."""
    slow = [Candidate(1, 2.0, 0.8), Candidate(2, 3.0, 0.9)]
    assert at_budgets(slow, [0.25], 4) == [slow[0]]


def test_no_candidates_are_an_error():
    """An empty list of candidates is a ValueError."""
    with pytest.raises(ValueError, match="no candidate"):
        at_budgets([], [0.5], 12)
