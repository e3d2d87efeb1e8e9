"""Expectations of exits by chance, against permutations and invariants."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.expected_exits import (
    expected_at_random,
    expected_at_two_depths,
    first_layer,
    share_of_deeper,
    spread_at_random,
    unpack_layers,
)

DEPTH = 5
masks = st.lists(st.integers(0, 2**DEPTH - 1), min_size=1, max_size=30)


def unpacked(values: list[int]) -> np.ndarray:
    return unpack_layers(np.array(values, dtype=np.int64), DEPTH)


@given(st.lists(st.integers(0, 2**62 - 1), max_size=5))
def test_bits_are_layers(values: list[int]) -> None:
    """Column i is bit i, up to the 62nd."""
    found = unpack_layers(np.array(values, dtype=np.int64), 62)
    assert [sum(int(bit) << i for i, bit in enumerate(row)) for row in found] == values


def test_random_exits_are_the_mean_over_deals() -> None:
    """Dealing the exits 20,000 times gives the expectation of every sample."""
    rng = np.random.default_rng(0)
    right = rng.random((6, 3)) < 0.5
    exits = np.array([1, 1, 2, 3, 3, 3])
    dealt = np.stack([right[np.arange(6), rng.permutation(exits) - 1] for _ in range(20_000)])
    assert expected_at_random(right, [2, 1, 3]) == pytest.approx(dealt.mean(0), abs=0.015)


@given(masks, st.lists(st.integers(0, 9), min_size=DEPTH, max_size=DEPTH).filter(any))
def test_expectations_lie_between_the_best_and_the_worst_layer(values: list[int], histogram: list[int]) -> None:
    """The mean accuracy is the histogram times the accuracy of each layer, and no sample leaves 0..1."""
    right = unpacked(values)
    found = expected_at_random(right, histogram)
    assert ((found >= 0) & (found <= 1 + 1e-12)).all()
    assert found.mean() == pytest.approx(np.average(right.mean(0), weights=histogram))


@given(masks, st.integers(1, DEPTH), st.integers(1, DEPTH), st.floats(0, 1))
def test_a_mix_is_random_exits_at_two_depths(values: list[int], shallow: int, deep: int, share: float) -> None:
    """A two-depth mix has the expectation of random exits with that histogram, and the share gives its mean layers."""
    right = unpacked(values)
    weights = np.zeros(DEPTH)
    weights[shallow - 1] += 1 - share
    weights[deep - 1] += share
    assert expected_at_two_depths(right, shallow, deep, share) == pytest.approx(right @ weights)
    mean = (1 - share) * shallow + share * deep
    if shallow < deep:
        assert share_of_deeper(mean, shallow, deep) == pytest.approx(share, abs=1e-9)


def test_no_share_reaches_layers_outside_the_two_depths() -> None:
    """Mean layers outside the two depths have no share, except within the tolerance, where the line is extended."""
    assert share_of_deeper(1.9, 2, 4) is None and share_of_deeper(4.1, 2, 4) is None
    assert share_of_deeper(4.1, 2, 4, beyond=0.05) == pytest.approx(1.05)
    assert share_of_deeper(1.95, 2, 4, beyond=0.05) == pytest.approx(-0.025)
    assert share_of_deeper(4.3, 2, 4, beyond=0.05) is None


def test_first_right_layer() -> None:
    """The first set bit counts; samples that no layer gets right run to full depth."""
    assert first_layer(unpacked([0b00110, 0b10000, 0])).tolist() == [2, 5, 5]


@given(st.lists(st.integers(0, 2**3 - 1), min_size=1, max_size=5), st.data())
def test_the_spread_is_that_of_all_permutations(values: list[int], data: st.DataObject) -> None:
    """The standard deviation equals that over every way to deal the exits."""
    right = unpack_layers(np.array(values, dtype=np.int64), 3)
    exits = data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values)))
    means = [right[np.arange(len(values)), list(dealt)].mean() for dealt in itertools.permutations(exits)]
    found = spread_at_random(right, np.bincount(exits, minlength=3).tolist())
    assert found == pytest.approx(np.std(means), abs=1e-9)
