"""Packing of documents into rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harness.pretraining.text.packing import best_fit, full_pieces, shared_rows
from harness.pretraining.text.vocabulary import CLS, PAD, SEP


@given(st.lists(st.integers(1, 20), max_size=80))
def test_every_piece_is_placed_once(lengths: list[int]) -> None:
    """Every piece occurs once, no row overflows, and no two rows could be merged."""
    rows = best_fit(lengths, 20)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    sizes = [sum(lengths[piece] for piece in row) for row in rows]
    assert all(0 < size <= 20 for size in sizes)
    # At most one row is half empty: two of those would have shared a row.
    assert sum(size <= 10 for size in sizes) <= 1


@given(st.lists(st.lists(st.integers(5, 50), max_size=40), max_size=12), st.integers(8, 16))
def test_all_tokens_are_kept_except_single_ones(texts: list[list[int]], length: int) -> None:
    """Rows hold every token of every document, in order within each piece, between [CLS] and [SEP]."""
    rows, rests = [], []
    for text in texts:
        full, rest = full_pieces(np.array(text, dtype=np.uint16), length)
        rows += [row.tolist() for row in full]
        if len(rest):
            rests.append(rest)
    rows += [row.tolist() for row in shared_rows(rests, length)]
    assert all(len(row) == length for row in rows)
    found = []
    for row in rows:
        tokens = [token for token in row if token != PAD]
        assert row == tokens + [PAD] * (length - len(tokens))  # padding at the end only
        found += _pieces(tokens)
    expected = [text[start : start + length - 2] for text in texts for start in range(0, len(text), length - 2)]
    assert sorted(found) == sorted(expected)


def _pieces(tokens: list[int]) -> list[list[int]]:
    """Return the text between each [CLS] and its [SEP]."""
    starts = [place for place, token in enumerate(tokens) if token == CLS]
    pieces = [tokens[start:end] for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    assert all(piece[-1] == SEP and SEP not in piece[:-1] for piece in pieces)
    return [piece[1:-1] for piece in pieces]
