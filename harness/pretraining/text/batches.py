"""Batches that are determined by a seed and a number, so that a run can resume exactly at any step.

Every epoch visits all rows in a new order. Rows with one piece and rows with several are in separate batches (except the last
ones of an epoch), because the former need no attention mask.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from harness.encoder import transfer
from harness.pretraining.text.masking import mask
from harness.pretraining.text.shards import Shards
from harness.pretraining.text.vocabulary import Specials

_OWN = Specials()
_AHEAD, _WORKERS = 8, 2
# Streams of random numbers.
_ORDER, _MASKS, _HELD_OUT = range(3)


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens on a device.

    Attributes:
        ids: int32 [B, T], masked.
        positions: int64 [B, T], within the piece.
        pieces: int32 [B, T], number of the piece from 1, 0 for padding; ``None`` if every row is one piece.
        segments: int64 [B, T], 1 for the second text of a pair; ``None`` without pairs.
        where, labels: int64 [B * P], see :class:`harness.pretraining.text.masking.Masked`.
        tokens: number of tokens without padding.
    """

    ids: Tensor
    positions: Tensor
    pieces: Tensor | None
    segments: Tensor | None
    where: Tensor
    labels: Tensor
    tokens: int

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
        """Arguments of a model's ``forward``, in order."""
        return self.ids, self.positions, self.pieces, self.segments, self.where, self.labels


def places(ids: np.ndarray, special: Specials = _OWN) -> tuple[np.ndarray, np.ndarray]:
    """Return positions within pieces (int64 [B, T]) and piece numbers (int32 [B, T], padding 0) of rows of ids."""
    begins = ids == special.cls
    here = np.arange(ids.shape[1])
    last = np.maximum.accumulate(np.where(begins, here, 0), axis=1)
    pieces = np.cumsum(begins, axis=1, dtype=np.int32)
    pieces[ids == special.pad] = 0
    return here - last, pieces


def segments(ids: np.ndarray, special: Specials = _OWN) -> np.ndarray:
    """Return segments of rows of ids, int64 [B, T]: 1 for the second text of a piece (after its first [SEP]), else 0."""
    ends = ids == special.sep
    before = np.cumsum(ends, axis=1) - ends  # [SEP]s in the row so far
    at_start = np.maximum.accumulate(np.where(ids == special.cls, before, 0), axis=1)
    return np.where(ids == special.pad, 0, np.minimum(before - at_start, 1)).astype(np.int64)


def make(
    ids: np.ndarray,
    kinds: np.ndarray,
    share: float,
    generator: np.random.Generator,
    device: torch.device,
    special: Specials = _OWN,
    paired: bool = False,
) -> Batch:
    """Mask rows of ids [B, T] and copy them to ``device``; ``paired``: some rows have pairs."""
    positions, pieces = places(ids, special)
    masked = mask(ids, kinds, share, generator, special.mask)

    def there(values: np.ndarray) -> Tensor:
        return transfer.upload(values, device)

    return Batch(
        there(masked.ids.astype(np.int32)),
        there(positions),
        None if (pieces == 1).all() else there(pieces),
        there(segments(ids, special)) if paired else None,
        there(masked.where),
        there(masked.labels),
        int((pieces > 0).sum()),
    )


class Stream:
    """Training batches, by number.

    Args:
        size: rows per batch.
        share: of tokens that are masked.

    Attributes:
        length: tokens per row.
        rows: per epoch.
        per_epoch: batches per epoch; the last one is filled with other rows of the epoch.
    """

    def __init__(self, shards: Shards, *, size: int, share: float, seed: int, device: torch.device | str) -> None:
        self.kinds, self.size, self.share, self.seed = shards.kinds, size, share, seed
        self.special, self.paired = shards.special, shards.paired
        self.device = torch.device(device)
        self._full, self._parts = shards.rows("full"), shards.rows("full", "shared")
        self._full_rows = sum(map(len, self._full))
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.length, self.rows = shards.length, int(self._starts[-1])
        self.per_epoch = math.ceil(self.rows / size)
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        """Return the rows of every batch of an epoch, int64 [batches, size]."""
        generator = np.random.default_rng([self.seed, _ORDER, epoch])
        full = generator.permutation(self._full_rows)
        shared = self._full_rows + generator.permutation(self.rows - self._full_rows)
        whole = [part[: len(part) // self.size * self.size] for part in (full, shared)]
        rest = np.concatenate([full[len(whole[0]) :], shared[len(whole[1]) :]])
        generator.shuffle(rest)
        everything = np.concatenate([*whole, rest])
        missing = -len(everything) % self.size
        everything = np.concatenate([everything, np.resize(generator.permutation(self.rows), missing)])
        batches = everything.reshape(-1, self.size)
        generator.shuffle(batches)
        return batches

    def _rows(self, index: np.ndarray) -> np.ndarray:
        part = np.searchsorted(self._starts, index, side="right") - 1
        found = np.empty((len(index), self.length), dtype=self._parts[0].dtype)
        for number in np.unique(part):
            mine = part == number
            found[mine] = self._parts[number][index[mine] - self._starts[number]]
        return found

    def batch(self, number: int) -> Batch:
        """Return the batch with this number (from 0); it is the same for every call."""
        epoch, place = divmod(number, self.per_epoch)
        ids = self._rows(self.order(epoch)[place])
        generator = np.random.default_rng([self.seed, _MASKS, number])
        return make(ids, self.kinds, self.share, generator, self.device, self.special, self.paired)


def held_out(shards: Shards, *, size: int, share: float, device: torch.device | str, most: int) -> Iterator[Batch]:
    """Yield batches of at most ``most`` held-out rows, with the same masks for every model."""
    rows = np.concatenate(shards.rows("heldout"))
    rows = rows[np.random.default_rng(_HELD_OUT).permutation(len(rows))[:most]]
    for start in range(0, len(rows), size):
        generator = np.random.default_rng([_HELD_OUT, start])
        part = rows[start : start + size]
        yield make(part, shards.kinds, share, generator, torch.device(device), shards.special, shards.paired)


def ahead(make_one: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Yield batches ``start`` .. ``stop - 1`` in order; other threads prepare the next ones."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for number in range(start, stop):
                waiting.append(pool.submit(make_one, number))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
