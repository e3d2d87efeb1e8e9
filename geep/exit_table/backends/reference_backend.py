"""The specification: the exit table in plain loops. Slow; other backends must equal it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from geep.exit_table.backends.interface import Backend, KeyHits
from geep.exit_table.keys import PackedKeys
from geep.exit_table.rows import SCALE


class ReferenceBackend(Backend):
    """A dictionary from key to counts."""

    name = "reference"

    def __init__(self, num_layers: int, ngram: int) -> None:
        self._layers = num_layers
        self._ngram = ngram
        self._counts: dict[int, np.ndarray] = {}
        self._rows: dict[int, np.ndarray] = {}
        self._prior = np.zeros(num_layers, dtype=np.int64)

    def insert(self, packed: PackedKeys, exits: Tensor) -> None:
        for keys, exit_layer in zip(self._samples(packed), exits.tolist(), strict=True):
            for key in keys:
                self._counts.setdefault(key, np.zeros(self._layers, dtype=np.int64))[exit_layer] += 1

    def absorb(self, keys: np.ndarray, counts: np.ndarray) -> None:
        for key, row in zip(keys.tolist(), counts, strict=True):
            self._counts[key] = self._counts.get(key, np.zeros(self._layers, dtype=np.int64)) + row.astype(np.int64)

    def export(self) -> tuple[np.ndarray, np.ndarray]:
        keys = sorted(self._counts)
        counts = np.zeros((len(keys), self._layers), dtype=np.uint32)
        for row, key in enumerate(keys):
            counts[row] = self._counts[key]
        return np.array(keys, dtype=np.int64), counts

    def freeze(self, prior: np.ndarray, min_count: int, smoothing: int) -> None:
        self._prior = prior
        for key, counts in self._counts.items():
            total = int(counts.sum())
            if total < min_count:
                continue
            row, seen, expected, below = [], 0, 0, 0
            for count, share in zip(counts.tolist(), prior.tolist(), strict=True):
                seen += count
                expected += share
                level = (SCALE * seen + smoothing * expected) // (total + smoothing)
                row.append(level - below)
                below = level
            self._rows[key] = np.array(row, dtype=np.int64)

    def sums(self, packed: PackedKeys) -> tuple[Tensor, KeyHits]:
        sums = np.zeros((len(packed), self._layers), dtype=np.int64)
        found = 0
        for sample, keys in enumerate(self._samples(packed)):
            for key in keys:
                found += key in self._rows
                sums[sample] += self._rows.get(key, self._prior)
        return torch.from_numpy(sums).to(packed.ids.device), KeyHits(found, int(sums.sum()) // SCALE)

    def exits(self, packed: PackedKeys, per_mille: list[int]) -> tuple[Tensor, KeyHits]:
        sums, tally = self.sums(packed)
        exits = np.full((len(sums), len(per_mille)), self._layers - 1, dtype=np.int16)
        for sample, row in enumerate(sums.tolist()):
            for column, q in enumerate(per_mille):
                cumulative, total = 0, sum(row)
                for exit_layer, mass in enumerate(row):
                    cumulative += mass
                    if total and cumulative * 1000 >= total * q:
                        exits[sample, column] = exit_layer
                        break
        return torch.from_numpy(exits).to(sums.device), tally

    @property
    def layout(self) -> str:
        return "sorted"

    @property
    def keys(self) -> int:
        return len(self._counts)

    @property
    def bytes(self) -> int:
        return sum(8 + row.nbytes for table in (self._counts, self._rows) for row in table.values())

    def _samples(self, packed: PackedKeys) -> Iterator[list[int]]:
        """Yield the keys of every sample."""
        ids, offsets = packed.ids.tolist(), packed.offsets.tolist()
        for start, end in zip(offsets[:-1], offsets[1:], strict=True):
            keys = []
            for n in range(1, self._ngram + 1):
                for at in range(start, end - n + 1):
                    gram = ids[at : at + n]
                    if not set(gram) & set(packed.special):
                        t0, t1, t2 = gram + [0] * (3 - n)
                        keys.append(n << 60 | t0 << 40 | t1 << 20 | t2)
            yield keys
