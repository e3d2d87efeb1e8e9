"""Corrections for many tests."""

from __future__ import annotations

from itertools import pairwise, product
from math import comb
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.many_tests import holm, holm_testable, least_p
from harness.measure.paired_tests import mcnemar


def one_sided(discordant: int) -> float:
    """Return the least p-value of a one-sided test."""
    return least_p(discordant, two_sided=False)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
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
    adjusted = holm_testable([1.0] * 87 + [p], [one_sided(0)] * 87 + [one_sided(15)], alpha=0.01)
    assert adjusted == [None] * 87 + [pytest.approx(p)]


def test_cells_that_could_be_significant_are_adjusted() -> None:
    """Three cells, two of which can reach 0.05 / 2: those two are adjusted by Holm, the third is left out."""
    p_values = [mcnemar(0, 7, "worse"), mcnemar(1, 9, "worse"), 0.5]
    found = holm_testable(p_values, [one_sided(d) for d in (7, 10, 1)], alpha=0.05)
    assert found == [pytest.approx(2 / 2**7), pytest.approx(2 / 2**7), None]
    assert holm_testable([], [], 0.05) == []


@pytest.mark.parametrize("alternative", ["worse", "two-sided"])
def test_testable_cells_keep_the_level_of_false_alarms(alternative: Literal["worse", "two-sided"]) -> None:
    """Over all outcomes of the discordant samples of four equal cells, the exact level is at most alpha."""
    alpha, discordant = 0.1, (5, 6, 4, 0)
    least = [least_p(d, two_sided=alternative == "two-sided") for d in discordant]
    wrong = 0.0
    for wins in product(*(range(d + 1) for d in discordant)):
        p_values = [mcnemar(w, d - w, alternative) for w, d in zip(wins, discordant, strict=True)]
        adjusted = holm_testable(p_values, least, alpha)
        if any(p is not None and p <= alpha for p in adjusted):
            wrong += float(np.prod([comb(d, w) / 2.0**d for w, d in zip(wins, discordant, strict=True)]))
    assert 0 < wrong <= alpha


@given(st.integers(0, 3000))
def test_no_outcome_has_a_smaller_p_value_than_the_least(discordant: int) -> None:
    """The least p-value is that of the most extreme outcome."""
    assert least_p(discordant) == pytest.approx(mcnemar(0, discordant))
    assert least_p(discordant, two_sided=False) == pytest.approx(mcnemar(0, discordant, "worse"))


def test_continuous_tests_always_take_part() -> None:
    """A test without a least p-value is adjusted together with the discrete ones that can be significant."""
    found = holm_testable([0.02, mcnemar(0, 9), 1.0], [0.0, least_p(9), least_p(2)], alpha=0.05)
    assert found == [pytest.approx(0.02), pytest.approx(2 * 2 / 2**9), None]
