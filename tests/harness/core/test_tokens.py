"""Packed token sets."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.tokens import TokenSet

ROWS = st.lists(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 1)), min_size=1, max_size=6), max_size=8)


def unpack(tokens: TokenSet) -> list[tuple[list[int], list[int]]]:
    ends = tokens.offsets.tolist()
    return [(tokens.ids[a:b].tolist(), tokens.segments[a:b].tolist()) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def pack(rows: list) -> TokenSet:
    return TokenSet.from_lists([[t for t, _ in row] for row in rows], [[s for _, s in row] for row in rows], (1, 2))


@settings(max_examples=80)
@given(ROWS)
def test_packing_keeps_lists(rows: list) -> None:
    """Packing keeps ids, segments, lengths and their types, also without samples."""
    tokens = pack(rows)
    assert unpack(tokens) == [([t for t, _ in row], [s for _, s in row]) for row in rows]
    assert tokens.lengths.tolist() == [len(row) for row in rows]
    assert len(tokens) == len(rows)
    assert (tokens.ids.dtype, tokens.offsets.dtype, tokens.segments.dtype) == (torch.int32, torch.int64, torch.int8)


@settings(max_examples=80)
@given(ROWS.filter(bool), st.data())
def test_select_keeps_the_requested_order(rows: list, data: st.DataObject) -> None:
    """Selection takes any rows in any order, with repetition, and keeps the special ids."""
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12))
    tokens = pack(rows)
    chosen = tokens.select(torch.tensor(index, dtype=torch.int64))
    assert unpack(chosen) == [unpack(tokens)[i] for i in index]
    assert chosen.special == (1, 2)


@settings(max_examples=40)
@given(ROWS.filter(bool), st.data())
def test_selection_can_be_inverted(rows: list, data: st.DataObject) -> None:
    """A permutation and its inverse restore the samples."""
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    tokens = pack(rows)
    assert unpack(tokens.select(order).select(order.argsort())) == unpack(tokens)


def test_segments_default_to_the_first_text() -> None:
    """Without segments, all tokens are in segment 0."""
    assert TokenSet.from_lists([[1, 5], [1]]).segments.tolist() == [0, 0, 0]
