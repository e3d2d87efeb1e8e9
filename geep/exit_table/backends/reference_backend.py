"""The specification: the exit table in plain loops. Slow; other backends must equal it."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from geep.exit_table.backends.interface import Backend, KeyHits
from geep.exit_table.columns import TableColumns
from geep.exit_table.keys import PackedKeys
from geep.exit_table.rows import SCALE
from geep.exit_table.rules import UNIT, Rule


class ReferenceBackend(Backend):
    """A dictionary from key to counts."""

    name = "reference"

    def __init__(self, columns: TableColumns, ngram: int) -> None:
        self._columns = columns
        self._width = columns.width
        self._ngram = ngram
        self._counts: dict[int, np.ndarray] = {}
        self._rows: dict[int, np.ndarray] = {}
        self._prior = np.zeros(columns.width, dtype=np.int64)

    def insert(self, packed: PackedKeys, marks: Tensor) -> None:
        for keys, marked in zip(self._samples(packed), marks.tolist(), strict=True):
            for key in keys:
                row = self._counts.setdefault(key, np.zeros(self._width, dtype=np.int64))
                for column in range(self._width):
                    row[column] += marked >> column & 1

    def absorb(self, keys: np.ndarray, counts: np.ndarray) -> None:
        for key, row in zip(keys.tolist(), counts, strict=True):
            self._counts[key] = self._counts.get(key, np.zeros(self._width, dtype=np.int64)) + row.astype(np.int64)

    def export(self) -> tuple[np.ndarray, np.ndarray]:
        keys = sorted(self._counts)
        counts = np.zeros((len(keys), self._width), dtype=np.uint32)
        for row, key in enumerate(keys):
            counts[row] = self._counts[key]
        return np.array(keys, dtype=np.int64), counts

    def freeze(self, prior: np.ndarray, min_count: int, smoothing: int) -> None:
        self._prior = prior
        for key, counts in self._counts.items():
            total = int(counts[self._columns.once].sum())
            if total < min_count:
                continue
            row, seen, expected, below = [], 0, 0, 0
            for column, (count, share) in enumerate(zip(counts.tolist(), prior.tolist(), strict=True)):
                if self._columns.starts >> column & 1:
                    seen = expected = below = 0
                seen += count
                expected += share
                level = (SCALE * seen + smoothing * expected) // (total + smoothing)
                row.append(level - below)
                below = level
            self._rows[key] = np.array(row, dtype=np.int64)

    def sums(self, packed: PackedKeys) -> tuple[Tensor, KeyHits]:
        sums = np.zeros((len(packed), self._width), dtype=np.int64)
        found = 0
        for sample, keys in enumerate(self._samples(packed)):
            for key in keys:
                found += key in self._rows
                sums[sample] += self._rows.get(key, self._prior)
        return torch.from_numpy(sums).to(packed.ids.device), KeyHits(
            found, int(sums[:, self._columns.once].sum()) // SCALE
        )

    def exits(self, packed: PackedKeys, rule: Rule) -> tuple[Tensor, KeyHits]:
        sums, tally = self.sums(packed)
        layers = self._columns.num_layers
        exits = np.full((len(sums), len(rule.settings)), layers - 1, dtype=np.int16)
        for sample, row in enumerate(sums[:, :layers].tolist()):
            mass = sum(row) if rule.group == "exits" else row[-1]
            for column, setting in enumerate(rule.settings):
                if mass:
                    exits[sample, column] = ASSIGN[rule.name](row, mass, setting)
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


def _quantile(row: list[int], mass: int, setting: tuple[int, ...]) -> int:
    return next(k for k in range(len(row)) if 1000 * sum(row[: k + 1]) >= setting[0] * mass)


def _cuts(row: list[int], mass: int, setting: tuple[int, ...]) -> int:
    expected = Fraction(sum(k * part for k, part in enumerate(row)), mass)
    return sum(expected >= Fraction(cut, UNIT) for cut in setting)


def _expected(row: list[int], mass: int, setting: tuple[int, ...]) -> int:
    costs = [1 - Fraction(part, mass) + Fraction(setting[0], UNIT) * (k + 1) for k, part in enumerate(row)]
    return costs.index(min(costs))


ASSIGN = {"quantile": _quantile, "cuts": _cuts, "expected": _expected}
