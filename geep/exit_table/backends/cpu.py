"""The fast CPU backend: a dense table for single tokens, sorted exact keys for n-grams and for very large ids.

Building: one scatter-add for single tokens; for n-grams one sorted run of (key, count) per column. New keys are buffered
until they outnumber the runs and then merged at once, so many small inserts cost no more than one large one: O(T log T) in
total. Twelve bytes per distinct (key, column), eight per buffered key.

Querying: one float32 matrix of rows and ``embedding_bag``, which adds some 5 * 10^8 rows a second on one core, fifty times
``index_add_`` in int64. Rows are Q14, so float32 adds 1,024 of them exactly; longer samples are added in int64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from geep.exit_table.backends.interface import Backend, KeyHits
from geep.exit_table.columns import TableColumns
from geep.exit_table.keys import ID_BITS, PackedKeys, token_key
from geep.exit_table.rows import SCALE, smoothed_rows
from geep.exit_table.rules import Rule

EXACT_IN_FLOAT32 = (1 << 24) // SCALE  # rows
DENSE_IDS = 1 << 17  # smaller ids are dense; multilingual BERT has 119,547. 25 MB of counts at 24 layers
CHUNK = 1 << 22  # tokens or rows processed at a time; bounds temporary memory
ROWS = 1 << 16  # the same for smoothing, which takes some 500 bytes per row
SMALLEST_MERGE = 1 << 20  # keys


class CpuBackend(Backend):
    """Dense and sorted counts on the CPU."""

    name = "cpu"

    def __init__(self, columns: TableColumns, ngram: int) -> None:
        self._columns = columns
        self._width = columns.width
        self._ngram = ngram
        self._dense = np.zeros((0, columns.width), dtype=np.int64)  # by token id
        self._sorted = _SortedCounts(columns.width)
        # Frozen rows: token ids 0 .. V-1, the back-off row at V, zeros for "no key here" at V + 1, then n-grams.
        self._rows = torch.zeros(0, columns.width)
        self._known = torch.zeros(0, dtype=torch.bool)  # [V + 2], ids with a row of their own
        self._keys = torch.zeros(0, dtype=torch.int64)  # of the sorted part

    def insert(self, packed: PackedKeys, marks: Tensor) -> None:
        marks = marks.cpu()
        for samples, piece in packed.to(torch.device("cpu")).pieces(CHUNK):
            words, sample = piece.words(), torch.repeat_interleave(torch.arange(len(piece)), piece.lengths)
            for some, columns in self._columns.columns_of(marks[samples]):
                column_of = torch.full((len(piece),), -1).index_copy_(0, some, columns)[sample]
                for n in range(1, self._ngram + 1):
                    at = torch.nonzero(piece.windows(n, words) & (column_of >= 0)).squeeze(1)
                    if n == 1:
                        dense = piece.ids[at] < DENSE_IDS
                        self._count(piece.ids[at[dense]], column_of[at[dense]])
                        at = at[~dense]
                    if len(at):
                        self._sorted.add(piece.keys(n, at).numpy(), column_of[at].numpy())

    def absorb(self, keys: np.ndarray, counts: np.ndarray) -> None:
        dense = int(np.searchsorted(keys, token_key(DENSE_IDS)))
        ids = keys[:dense] - token_key(0) >> 2 * ID_BITS
        if dense:
            self._grow(int(ids[-1]) + 1)
            self._dense[ids] += counts[:dense]
        self._sorted.absorb(keys[dense:], counts[dense:])

    def export(self) -> tuple[np.ndarray, np.ndarray]:
        ids = np.flatnonzero(self._dense.any(axis=1))
        keys, counts = self._sorted.export()
        # n is the highest part of a key, then the first id: dense ids come first.
        keys = np.concatenate([token_key(ids), keys])
        return keys, np.concatenate([self._dense[ids].astype(np.uint32), counts])

    def freeze(self, prior: np.ndarray, min_count: int, smoothing: int) -> None:
        used = np.flatnonzero(self._dense.any(axis=1))
        self._dense = self._dense[: used[-1] + 1 if len(used) else 0].copy()
        size = len(self._dense)
        keys, counts = self._sorted.export()
        once = self._columns.once
        common = counts[:, once].sum(axis=1, dtype=np.int64) >= min_count
        keys, counts = keys[common], counts[common]
        rows = np.empty((size + 2 + len(keys), self._width), dtype=np.float32)
        rows[: size + 1] = prior
        rows[size + 1] = 0
        ids = np.flatnonzero(self._dense[:, once].sum(axis=1) >= min_count)
        rows[ids] = smoothed_rows(self._dense[ids], prior, smoothing, self._columns)
        for begin in range(0, len(keys), ROWS):
            part = smoothed_rows(counts[begin : begin + ROWS], prior, smoothing, self._columns)
            rows[size + 2 + begin : size + 2 + begin + len(part)] = part
        known = np.zeros(size + 2, dtype=bool)
        known[ids] = True
        self._rows, self._known, self._keys = map(torch.from_numpy, (rows, known, keys))

    def sums(self, packed: PackedKeys) -> tuple[Tensor, KeyHits]:
        sums = torch.zeros(len(packed), self._width, dtype=torch.int64)
        found = 0
        for samples, piece in packed.to(torch.device("cpu")).pieces(CHUNK):
            if not len(piece.ids):
                continue
            words = piece.words()
            for n in range(1, self._ngram + 1):
                rows, hits = self._dense_rows(piece, words) if n == 1 else self._sorted_rows(piece, words, n)
                found += hits
                self._add(sums[samples], rows, piece)
        return sums.to(packed.ids.device), KeyHits(found, int(sums[:, self._columns.once].sum()) // SCALE)

    def exits(self, packed: PackedKeys, rule: Rule) -> tuple[Tensor, KeyHits]:
        sums, tally = self.sums(packed)
        return rule.assign(sums[:, : self._columns.num_layers]), tally

    @property
    def layout(self) -> str:
        return "sorted" if self._ngram > 1 or self._sorted.filled else "dense"

    @property
    def keys(self) -> int:
        return int(np.count_nonzero(self._dense.any(axis=1))) + self._sorted.distinct()

    @property
    def bytes(self) -> int:
        frozen = (self._rows, self._known, self._keys)
        return self._dense.nbytes + self._sorted.bytes + sum(tensor.nbytes for tensor in frozen)

    def _count(self, ids: Tensor, columns: Tensor) -> None:
        if len(ids):
            self._grow(int(ids.max()) + 1)
            cells = ids.to(torch.int64) * self._width + columns
            np.add.at(self._dense.reshape(-1), cells.numpy(), 1)

    def _grow(self, size: int) -> None:
        if size > len(self._dense):
            wide = np.zeros((max(size, min(2 * len(self._dense), DENSE_IDS)), self._width), dtype=np.int64)
            wide[: len(self._dense)] = self._dense
            self._dense = wide

    def _dense_rows(self, packed: PackedKeys, words: Tensor) -> tuple[Tensor, int]:
        """Return the row of every token, int32 [M], and how many have a row of their own."""
        size = len(self._known) - 2
        rows = packed.ids.clamp(max=size).masked_fill_(~words, size + 1)
        found = int(self._known[rows].sum())
        if self._sorted.filled:
            at = torch.nonzero((packed.ids >= DENSE_IDS) & words).squeeze(1)
            rows[at], more = self._search(packed.keys(1, at))
            found += more
        return rows, found

    def _sorted_rows(self, packed: PackedKeys, words: Tensor, n: int) -> tuple[Tensor, int]:
        """Return the row of the n-gram that starts at every token, int32 [M], and how many have one of their own."""
        rows = torch.full((len(packed.ids),), len(self._known) - 1, dtype=torch.int32)
        at = torch.nonzero(packed.windows(n, words)).squeeze(1)
        rows[at], found = self._search(packed.keys(n, at))
        return rows, found

    def _search(self, keys: Tensor) -> tuple[Tensor, int]:
        """Return rows of keys of the sorted part, int32 [K], and how many keys are there."""
        back_off = len(self._known) - 2
        if not len(self._keys):
            return torch.full((len(keys),), back_off, dtype=torch.int32), 0
        place = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
        hit = self._keys[place] == keys
        return torch.where(hit, place + (back_off + 2), back_off).to(torch.int32), int(hit.sum())

    def _add(self, sums: Tensor, rows: Tensor, packed: PackedKeys) -> None:
        """Add the rows of each sample to ``sums`` (int64 [N, W]), exactly."""
        if packed.longest <= EXACT_IN_FLOAT32:  # then a piece also fits 32-bit offsets
            offsets = packed.offsets.to(torch.int32)
            sums += embedding_bag(rows, self._rows, offsets, mode="sum", include_last_offset=True).to(torch.int64)
            return
        sample = torch.repeat_interleave(torch.arange(len(packed)), packed.lengths)
        for begin in range(0, len(rows), CHUNK):
            part = slice(begin, begin + CHUNK)
            sums.index_add_(0, sample[part], self._rows[rows[part]].to(torch.int64))


class _SortedCounts:
    """Counts per (key, column) as one sorted run of distinct keys per column."""

    def __init__(self, width: int) -> None:
        self._runs = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint32)) for _ in range(width)]
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(width)]
        self._new = 0  # buffered keys

    def add(self, keys: np.ndarray, columns: np.ndarray) -> None:
        order = np.argsort(columns.astype(np.uint8), kind="stable")  # a counting sort at this width
        ends = np.bincount(columns, minlength=len(self._runs)).cumsum()
        for waiting, part in zip(self._waiting, np.split(keys[order], ends[:-1]), strict=True):
            if len(part):
                waiting.append(part)
        self._new += len(keys)
        if self._new > max(SMALLEST_MERGE, sum(len(run) for run, _ in self._runs)):
            self._merge_waiting()

    def absorb(self, keys: np.ndarray, counts: np.ndarray) -> None:
        self._merge_waiting()
        for place, column in enumerate(counts.T):
            some = np.flatnonzero(column)
            self._runs[place] = _merge(self._runs[place], (keys[some], column[some]))

    def export(self) -> tuple[np.ndarray, np.ndarray]:
        self._merge_waiting()
        keys = self._distinct()
        counts = np.zeros((len(keys), len(self._runs)), dtype=np.uint32)
        for column, (run, count) in enumerate(self._runs):
            counts[np.searchsorted(keys, run), column] = count
        return keys, counts

    @property
    def filled(self) -> bool:
        """Whether there is any key."""
        return bool(self._new) or any(len(run) for run, _ in self._runs)

    def distinct(self) -> int:
        self._merge_waiting()
        return len(self._distinct())

    @property
    def bytes(self) -> int:
        return sum(run.nbytes + count.nbytes for run, count in self._runs) + 8 * self._new

    def _distinct(self) -> np.ndarray:
        # np.unique without counts uses hashing, which took a hundred times as long as this sort (NumPy 2.4).
        keys = np.sort(np.concatenate([run for run, _ in self._runs]))
        return keys[_firsts(keys)]

    def _merge_waiting(self) -> None:
        for column, parts in enumerate(self._waiting):
            if parts:
                keys, counts = np.unique(np.concatenate(parts), return_counts=True)
                self._runs[column] = _merge(self._runs[column], (keys, counts.astype(np.uint32)))
                self._waiting[column] = []
        self._new = 0


def _merge(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merge two sorted runs of distinct keys, adding the counts of common keys."""
    if not len(one[0]) or not len(two[0]):
        return one if len(one[0]) else two
    keys, counts = np.concatenate([one[0], two[0]]), np.concatenate([one[1], two[1]])
    order = np.argsort(keys, kind="stable")  # a merge: NumPy detects the two sorted runs
    keys = keys[order]
    first = _firsts(keys)
    return keys[first], np.add.reduceat(counts[order], first, dtype=np.uint32)


def _firsts(keys: np.ndarray) -> np.ndarray:
    """Return where each distinct key of a sorted array first occurs."""
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
