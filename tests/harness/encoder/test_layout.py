"""Packed and padded batches: the same attention as sample by sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.encoder.layout import Layout
from harness.errors import ConfigError

HEADS, WIDTH = 2, 8
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)
PAD = st.sampled_from([None, 7, 9])


def noise(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def make(lengths: list[int], pad_to: int | None) -> Layout:
    return Layout(np.array(lengths, dtype=np.int64), pad_to, "cpu")


def valid_rows(layout: Layout) -> list[slice]:
    """Rows of the tokens of every sample."""
    return [slice(int(a), int(a + n)) for a, n in zip(layout.starts[:-1], layout.lengths, strict=True)]


def by_head(x: Tensor) -> Tensor:
    return x.view(len(x), HEADS, -1).transpose(0, 1)  # [H, T, d]


def naive(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output [Tq, D] and scores [H, Tq, Tk] of one sample."""
    scores = by_head(q) @ by_head(k).transpose(1, 2) / math.sqrt(WIDTH // HEADS)
    return (scores.softmax(-1) @ by_head(v)).transpose(0, 1).reshape(len(q), -1), scores


@settings(max_examples=60, deadline=None)
@given(LENGTHS, PAD)
def test_attention_is_that_of_each_sample_alone(lengths: list[int], pad_to: int | None) -> None:
    """Neighbours and padding do not leak into a sample, in either layout."""
    layout = make(lengths, pad_to)
    qkv = noise(layout.rows, 3 * WIDTH)
    out = layout.attend(qkv, HEADS)
    scores = layout.scores(qkv[:, : 2 * WIDTH], HEADS)
    assert out.shape == (layout.rows, WIDTH)
    for sample, rows in enumerate(valid_rows(layout)):
        n = lengths[sample]
        expected, expected_scores = naive(*qkv[rows].chunk(3, dim=1))
        torch.testing.assert_close(out[rows], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scores[sample, :, :n, :n], expected_scores, rtol=1e-4, atol=1e-5)
        pairs = layout.pairs[sample, 0]
        assert bool(pairs[:n, :n].all())
        assert int(pairs.sum()) == n * n


@settings(max_examples=60, deadline=None)
@given(LENGTHS, PAD)
def test_attention_of_first_tokens_is_that_of_each_sample_alone(lengths: list[int], pad_to: int | None) -> None:
    """A head that looks from [CLS] sees its own sample only."""
    layout = make(lengths, pad_to)
    query, kv = noise(layout.count, WIDTH), noise(layout.rows, 2 * WIDTH)
    out = layout.attend_first(query, kv, HEADS)
    for sample, rows in enumerate(valid_rows(layout)):
        expected, _ = naive(query[sample : sample + 1], *kv[rows].chunk(2, dim=1))
        torch.testing.assert_close(out[sample : sample + 1], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, PAD, st.data())
def test_parts_of_a_batch_are_those_samples(lengths: list[int], pad_to: int | None, data: st.DataObject) -> None:
    """Prefix, slice and select hand out the hidden states and the lengths of the samples asked for."""
    layout = make(lengths, pad_to)
    hidden = noise(layout.rows, 3)
    bounds = np.append(layout.starts, layout.rows)
    stop = data.draw(st.integers(1, layout.count))
    start = data.draw(st.integers(0, stop - 1))
    chosen = np.array(data.draw(st.lists(st.integers(0, layout.count - 1), max_size=8)), dtype=np.int64)

    prefix = layout.prefix(stop)
    assert prefix.lengths.tolist() == lengths[:stop]
    assert prefix.rows == layout.starts[stop]
    part, part_layout = layout.slice(hidden, start, stop)
    assert torch.equal(part, hidden[bounds[start] : bounds[stop]])
    assert part_layout.lengths.tolist() == lengths[start:stop]
    assert part.data_ptr() == hidden[bounds[start] :].data_ptr()  # a view, nothing is copied
    picked, picked_layout = layout.select(hidden, chosen)
    assert torch.equal(picked, torch.cat([hidden[:0], *(hidden[bounds[i] : bounds[i + 1]] for i in chosen)]))
    assert picked_layout.lengths.tolist() == [lengths[i] for i in chosen]
    assert picked_layout.rows == len(picked)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, PAD)
def test_tallies_count_rows_tokens_and_pairs(lengths: list[int], pad_to: int | None) -> None:
    """A block runs over all rows, of which the valid ones are tokens; attention runs on a grid."""
    layout = make(lengths, pad_to)
    longest = pad_to or max(lengths)
    every, first = layout.tally(), layout.tally("first")
    assert (every.rows, every.valid) == (len(lengths), sum(lengths))
    assert every.tokens == (len(lengths) * pad_to if pad_to else sum(lengths))
    assert every.pairs == len(lengths) * longest**2
    assert first.pairs == len(lengths) * longest


def test_a_sample_longer_than_the_padding_is_refused() -> None:
    """The message gives both numbers."""
    with pytest.raises(ConfigError, match="12 tokens does not fit 8"):
        make([3, 12], 8)
