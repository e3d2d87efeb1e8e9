"""The order in which samples run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import ConfigError
from harness.execution.schedule import schedule

LENGTHS = st.one_of(st.integers(0, 4), st.integers(0, 512), st.integers(0, 1 << 40))
ROWS = st.lists(st.tuples(st.integers(0, 23), LENGTHS), max_size=60)


def columns(rows: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    exits = torch.tensor([exit_layer for exit_layer, _ in rows], dtype=torch.int16)
    return exits, torch.tensor([length for _, length in rows], dtype=torch.int64)


@settings(max_examples=150)
@given(ROWS, st.booleans(), st.integers(0, 70))
def test_the_order_is_a_stable_sort_within_windows(rows: list, descending: bool, window: int) -> None:
    """The order equals NumPy's lexsort by (window, exit, length), which is stable."""
    exits, lengths = columns(rows)
    sign = -1 if descending else 1
    position = np.arange(len(rows)) // (window or len(rows) or 1)
    expected = np.lexsort((sign * lengths.numpy(), sign * exits.numpy().astype(np.int64), position))
    order = schedule(exits, lengths, descending=descending, window=window)
    assert order.dtype == torch.int64
    assert order.tolist() == expected.tolist()


@settings(max_examples=60)
@given(ROWS, st.integers(1, 70))
def test_every_window_is_a_permutation_of_its_own_samples(rows: list, window: int) -> None:
    """Every sample stays in its window and occurs exactly once."""
    order = schedule(*columns(rows), window=window).tolist()
    for begin in range(0, len(rows), window):
        end = min(begin + window, len(rows))
        assert sorted(order[begin:end]) == list(range(begin, end))


def test_active_samples_are_a_prefix() -> None:
    """Samples run from deepest to shallowest, then from longest to shortest; ties keep the order of arrival."""
    exits, lengths = columns([(1, 5), (3, 2), (1, 9), (3, 2), (0, 7)])
    assert schedule(exits, lengths).tolist() == [1, 3, 2, 0, 4]
    assert schedule(exits, lengths, descending=False).tolist() == [4, 0, 2, 1, 3]


def test_many_windows_of_many_bins_are_sorted_exactly() -> None:
    """Sort keys of more than 16 bits take several passes and give the right order."""
    rng = np.random.default_rng(0)
    exits, lengths = rng.integers(0, 24, 5000).astype(np.int16), rng.integers(0, 3000, 5000)
    order = schedule(torch.from_numpy(exits), torch.from_numpy(lengths), window=2)
    expected = np.lexsort((-lengths, -exits.astype(np.int64), np.arange(5000) // 2))
    assert order.tolist() == expected.tolist()


@pytest.mark.parametrize(("exits", "lengths", "window", "word"), [
    ([1, 2], [3], 0, "must both be"),
    ([[1]], [[3]], 0, "must both be"),
    ([-1], [3], 0, "negative"),
    ([1], [-3], 0, "negative"),
    ([1], [3], -1, "window=-1"),
    ([23], [1 << 61], 0, "too large"),
])  # fmt: skip
def test_invalid_numbers_are_rejected(exits: list, lengths: list, window: int, word: str) -> None:
    """The message names the invalid number."""
    with pytest.raises(ConfigError, match=word):
        schedule(torch.tensor(exits), torch.tensor(lengths), window=window)
