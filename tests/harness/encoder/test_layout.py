"""Packed and padded batches give the same attention as single samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.core.errors import ConfigError
from harness.encoder.layout import Layout

HEADS, WIDTH = 2, 8
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)
PAD = st.sampled_from([None, 7, 9])


def noise(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def make(lengths: list[int], pad_to: int | None) -> Layout:
    return Layout(np.array(lengths, dtype=np.int64), pad_to, "cpu")


def valid_rows(layout: Layout) -> list[slice]:
    """Return the rows of the tokens of every sample."""
    return [slice(int(a), int(a + n)) for a, n in zip(layout.starts[:-1], layout.lengths, strict=True)]


def by_head(x: Tensor) -> Tensor:
    return x.view(len(x), HEADS, -1).transpose(0, 1)  # [H, T, d]


def naive(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return output [Tq, D] and scores [H, Tq, Tk] of one sample."""
    scores = by_head(q) @ by_head(k).transpose(1, 2) / math.sqrt(WIDTH // HEADS)
    return (scores.softmax(-1) @ by_head(v)).transpose(0, 1).reshape(len(q), -1), scores


@settings(max_examples=60)
@given(LENGTHS, PAD)
def test_attention_equals_each_sample_alone(lengths: list[int], pad_to: int | None) -> None:
    """In both layouts, a sample does not attend to its neighbours or to padding."""
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


@settings(max_examples=60)
@given(LENGTHS, PAD)
def test_attention_of_first_tokens_equals_each_sample_alone(lengths: list[int], pad_to: int | None) -> None:
    """A head that attends from [CLS] reads only its own sample."""
    layout = make(lengths, pad_to)
    query, kv = noise(layout.count, WIDTH), noise(layout.rows, 2 * WIDTH)
    out = layout.attend_first(query, kv, HEADS)
    for sample, rows in enumerate(valid_rows(layout)):
        expected, _ = naive(query[sample : sample + 1], *kv[rows].chunk(2, dim=1))
        torch.testing.assert_close(out[sample : sample + 1], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60)
@given(LENGTHS, PAD, st.data())
def test_parts_of_a_batch_have_the_requested_samples(
    lengths: list[int], pad_to: int | None, data: st.DataObject
) -> None:
    """Prefix, slice and select return the hidden states and lengths of the requested samples."""
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


def make_given(lengths: list[int], pad_to: int | None) -> Layout:
    """Return a layout with given offsets, as in batches of a pass."""
    offsets = torch.tensor([0, *np.cumsum(lengths).tolist()])
    return Layout(np.array(lengths, dtype=np.int64), pad_to, "cpu", offsets)


@settings(max_examples=80)
@given(LENGTHS, PAD, st.booleans(), st.data())
def test_parts_of_parts_are_consistent(
    lengths: list[int], pad_to: int | None, given_offsets: bool, data: st.DataObject
) -> None:
    """Rows, offsets, bounds, mask and attention are right for layouts of any origin, with given offsets or without."""
    layout = make_given(lengths, pad_to) if given_offsets else make(lengths, pad_to)
    for _ in range(data.draw(st.integers(0, 3))):
        kind = data.draw(st.sampled_from(["prefix", "slice", "select"]))
        stop = data.draw(st.integers(1, layout.count))
        start = 0 if kind == "prefix" else data.draw(st.integers(0, stop - 1))
        chosen = list(range(start, stop))
        if kind == "select":
            chosen = data.draw(st.lists(st.sampled_from(range(layout.count)), min_size=1, max_size=8))
            _, layout = layout.select(noise(layout.rows, 1), np.array(chosen))
        else:
            layout = layout.prefix(stop) if kind == "prefix" else layout.slice(noise(layout.rows, 1), start, stop)[1]
        lengths = [lengths[i] for i in chosen]
    sums = [0, *np.cumsum(lengths).tolist()]
    starts = list(range(0, len(lengths) * pad_to + 1, pad_to)) if pad_to else sums
    assert layout.lengths.tolist() == lengths
    assert layout.starts.tolist() == layout.bounds.tolist() == starts
    assert layout.offsets.tolist() == sums
    assert layout.first.tolist() == starts[:-1]
    assert (layout.rows, layout.valid) == (starts[-1], sums[-1])
    assert (layout.offsets.dtype, layout.bounds.dtype, layout.first.dtype) == (torch.int64, torch.int32, torch.int64)
    grid = np.arange(layout.longest)[None, :] < np.array(lengths)[:, None]
    assert layout.even == bool(grid.all())
    if layout.mask is None:
        assert grid.all()
    else:
        np.testing.assert_array_equal(layout.mask[:, 0, 0].numpy(), grid)
    qkv = noise(layout.rows, 3 * WIDTH)
    out = layout.attend(qkv, HEADS)
    for rows in valid_rows(layout):
        torch.testing.assert_close(out[rows], naive(*qkv[rows].chunk(3, dim=1))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given_offsets", [False, True])
@pytest.mark.parametrize("pad_to", [None, 7])
def test_prefixes_refer_to_their_batch(given_offsets: bool, pad_to: int | None) -> None:
    """The root of a prefix of a prefix is the batch; other parts are their own roots."""
    layout = (make_given if given_offsets else make)([7, 5, 5, 2, 1], pad_to)
    hidden = noise(layout.rows, 2)
    assert layout.root is layout
    four, two = layout.prefix(4), layout.prefix(4).prefix(2)
    assert four.root is two.root is layout
    assert layout.prefix(5) is layout and four.prefix(4) is four
    assert layout.prefix(4) is four, "a prefix is cached while it is in use"
    assert layout.slice(hidden, 0, 4)[1] is four
    later, chosen = layout.slice(hidden, 1, 4)[1], layout.select(hidden, np.array([0, 1]))[1]
    assert later.root is later and chosen.root is chosen
    assert later.prefix(2).root is later


@settings(max_examples=40)
@given(LENGTHS, PAD)
def test_tallies_count_rows_tokens_and_pairs(lengths: list[int], pad_to: int | None) -> None:
    """Blocks count all rows, the valid ones as tokens, and attention on its grid."""
    layout = make(lengths, pad_to)
    longest = pad_to or max(lengths)
    every, first = layout.tally(), layout.tally("first")
    assert (every.rows, every.valid) == (len(lengths), sum(lengths))
    assert every.tokens == (len(lengths) * pad_to if pad_to else sum(lengths))
    assert every.pairs == len(lengths) * longest**2
    assert first.pairs == len(lengths) * longest
    ragged, ragged_first = layout.tally(ragged=True), layout.tally("first", ragged=True)
    assert ragged.pairs == sum(length**2 for length in lengths)
    assert ragged_first.pairs == sum(lengths)
    assert (ragged.rows, ragged.tokens, ragged.valid) == (every.rows, every.tokens, every.valid)


def test_a_sample_longer_than_the_padding_is_rejected() -> None:
    """The message has both numbers."""
    with pytest.raises(ConfigError, match="12 tokens does not fit 8"):
        make([3, 12], 8)
