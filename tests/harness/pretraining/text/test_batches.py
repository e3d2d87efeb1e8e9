"""Order and content of batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.encoder.masked_words import ABSENT
from harness.pretraining.text.batches import Batch, Stream, ahead, held_out, places, segments
from harness.pretraining.text.shards import Shards
from harness.pretraining.text.vocabulary import CLS, PAD, SEP


def stream(data: Shards, size: int = 8, seed: int = 0) -> Stream:
    return Stream(data, size=size, share=0.15, seed=seed, device="cpu")


def same(one: Batch, other: Batch) -> bool:
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for name in ("ids", "positions", "pieces", "segments", "where", "labels")
        for a, b in [(getattr(one, name), getattr(other, name))]
    )


@pytest.mark.parametrize("size", [1, 7, 8, 64, 10_000])
def test_an_epoch_has_every_row(english: Shards, size: int) -> None:
    """An epoch has every row at least once, and repeats only rows that fill the last batch."""
    data = stream(english, size)
    order = data.order(3)
    assert order.shape == (data.per_epoch, size)
    assert set(order.reshape(-1).tolist()) == set(range(data.rows))
    assert order.size - data.rows < max(size, 2)
    if data.per_epoch > 1:
        assert not np.array_equal(order, data.order(4))


def test_batches_depend_on_seed_and_number(english: Shards) -> None:
    """A batch depends only on seed and number."""
    one, other = stream(english), stream(english)
    far = one.batch(1000)
    assert same(other.batch(1000), far) and same(one.batch(5), other.batch(5))
    assert not same(one.batch(5), one.batch(6)) and not same(one.batch(5), stream(english, seed=1).batch(5))
    # The same rows in another epoch are masked in another way.
    assert not same(one.batch(0), one.batch(one.per_epoch))


def test_most_batches_of_full_rows_need_no_mask(english: Shards) -> None:
    """Rows of one piece are in batches of their own, except the last ones of an epoch."""
    data = stream(english)
    full = sum(map(len, english.rows("full")))
    unmasked = sum(data.batch(number).pieces is None for number in range(data.per_epoch))
    assert unmasked >= full // 8 > 0


def test_positions_restart_with_every_piece() -> None:
    """Positions restart at each piece, and padding belongs to no piece."""
    ids = np.array([[CLS, 9, 9, SEP, CLS, 9, SEP, PAD]], dtype=np.uint16)
    positions, pieces = places(ids)
    assert positions[0, :7].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert pieces.tolist() == [[1, 1, 1, 1, 2, 2, 2, 0]]


def test_the_second_text_of_a_pair_has_the_second_segment() -> None:
    """Segments are those of BERT: the first [SEP] belongs to the first text; a piece of one text has one segment."""
    ids = np.array([[CLS, 9, SEP, CLS, 9, SEP, 8, SEP, CLS, 7, SEP, PAD]], dtype=np.uint16)
    assert segments(ids).tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]]
    spelt = np.array([[CLS, 9, SEP, 9, SEP, 9, SEP, PAD]], dtype=np.uint16)  # a text that contains [SEP] itself
    assert segments(spelt).tolist() == [[0, 0, 0, 1, 1, 1, 1, 0]]


def test_held_out_batches_are_fixed(english: Shards) -> None:
    """Held-out batches have every row once, up to the limit."""
    one, other = (list(held_out(english, size=4, share=0.15, device="cpu", most=10)) for _ in range(2))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert sum(len(batch.ids) for batch in one) == min(10, sum(map(len, english.rows("heldout"))))
    assert sum(int((batch.labels != ABSENT).sum()) for batch in one) > 0


def test_prepared_batches_are_in_order_and_errors_are_raised(english: Shards) -> None:
    """Batches prepared by threads are in order, and errors are raised."""
    data = stream(english)
    found = list(ahead(data.batch, 3, 30))
    assert len(found) == 27 and all(same(batch, data.batch(3 + i)) for i, batch in enumerate(found))

    def broken(number: int) -> Batch:
        raise OSError(f"batch {number}")

    with pytest.raises(OSError, match="batch 0"):
        list(ahead(broken, 0, 100))
