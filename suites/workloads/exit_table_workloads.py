"""Workloads of the exit table's benchmarks: text, tables made from it, and hash tables at a given load factor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from geep.exit_table import ExitTable
from geep.exit_table.backends.hashed import HashedBackend, kernels
from geep.exit_table.columns import TableColumns
from geep.exit_table.keys import N_SHIFT
from harness.core.errors import DeviceError
from harness.core.tokens import TokenSet
from harness.kernels import Launcher, cuda, host
from suites.workloads import exit_table_alternatives
from suites.workloads.exit_table_alternatives import LENGTH, FrozenRows

LAYERS, VOCAB, SMOOTHING, QUANTILE = 12, 30_522, 8, 700
SKEWS = ("uniform", "zipf")
LOADS = (0.25, 0.5, 0.7, 0.9)
HOST_TOKENS = 1 << 15  # emulated kernels look up two million n-grams per second


def grams(samples: int, ngram: int) -> int:
    """Return the number of n-grams of every length up to ``ngram`` in ``samples`` samples."""
    return samples * sum(LENGTH - n + 1 for n in range(1, ngram + 1))


def first(tokens: TokenSet, samples: int) -> TokenSet:
    """Return the first ``samples`` samples."""
    size = samples * LENGTH
    return TokenSet(tokens.ids[:size], tokens.offsets[: samples + 1], tokens.segments[:size])


def partly_new(seen: TokenSet, skew: str, samples: int) -> TokenSet:
    """Return samples to query: four fifths of them drawn from ``seen``, the others new."""
    device = seen.device
    new = exit_table_alternatives.text(samples // 5 * LENGTH, VOCAB, skew, 1, device).ids.view(-1, LENGTH)[
        : samples // 5
    ]
    drawn = np.random.default_rng(3).integers(0, len(seen), samples - len(new))
    old = seen.ids.view(-1, LENGTH)[torch.from_numpy(drawn).to(device)]
    offsets = torch.arange(samples + 1, device=device) * LENGTH
    ids = torch.cat([old, new]).view(-1)
    return TokenSet(ids, offsets, torch.zeros(len(ids), dtype=torch.int8, device=device))


def random_exits(samples: int, device: torch.device | str) -> Tensor:
    """Return a random exit layer per sample, int64."""
    return torch.from_numpy(np.random.default_rng(2).integers(0, LAYERS, samples)).to(device)


@dataclass
class TableWorkload:
    """Text, exits and a frozen table on one device."""

    tokens: int
    skew: str
    ngram: int
    device: str

    @cached_property
    def train(self) -> TokenSet:
        return exit_table_alternatives.text(self.tokens, VOCAB, self.skew, 0, self.device)

    @cached_property
    def asked(self) -> TokenSet:
        return partly_new(self.train, self.skew, len(self.train))

    @cached_property
    def exits(self) -> Tensor:
        return random_exits(len(self.train), self.device)

    def counted(self) -> ExitTable:
        """Return a new table with all samples counted, not frozen."""
        table = ExitTable(LAYERS, self.ngram)
        table.insert(self.train, self.exits)
        return table

    @cached_property
    def table(self) -> ExitTable:
        table = self.counted()
        table.freeze(min_count=1, smoothing=SMOOTHING)
        return table

    @cached_property
    def rows(self) -> FrozenRows:
        return FrozenRows.of(self.table, self.exits, VOCAB, SMOOTHING, self.device)


@dataclass
class TableKernels:
    """The place where the hash table's kernels run: the device, or the host, emulated and with less text.

    Attributes:
        backend: ``"cuda"`` or ``"host"``.
        launcher: of the kernels.
        tokens: amount of text.
    """

    backend: str
    launcher: Launcher
    tokens: int

    @classmethod
    def here(cls, device: str, tokens: int) -> TableKernels:
        """Return the device if it runs the kernels, else the host.

        Raises:
            DeviceError: neither runs them; the message names both reasons.
        """
        problem = cuda.problem() if device == "cuda" else "--device cpu was asked for, or there is no device"
        if problem is None:
            return cls("cuda", cuda.launcher(kernels(LAYERS)), tokens)
        if host.problem() is not None:
            raise DeviceError(f"exit table: no kernels here: {problem}; and {host.problem()}")
        return cls("host", host.launcher(kernels(LAYERS)), min(tokens, HOST_TOKENS))

    def table(
        self, ngram: int, max_load: float = 0.5, dense_ids: int | None = None, capacity: int | None = None
    ) -> tuple[ExitTable, HashedBackend]:
        """Return an empty table and its backend with the given layout."""
        backend = HashedBackend(
            self.backend,
            TableColumns(exits=LAYERS),
            ngram,
            0,
            self.launcher,
            max_load=max_load,
            dense_ids=dense_ids,
            capacity=capacity,
        )
        return ExitTable(LAYERS, ngram, backend), backend


@dataclass
class LoadWorkload:
    """Text whose bigrams fill a hash table with a fixed number of slots to a given load factor.

    Single tokens are dense and take no slot. The number of slots is the largest power of two that all bigrams fill to the
    largest of :data:`LOADS`; for a smaller load, only the first samples are inserted.
    """

    kernels: TableKernels
    skew: str

    @cached_property
    def text(self) -> TokenSet:
        return exit_table_alternatives.text(self.kernels.tokens, VOCAB, self.skew, 0, self.kernels.launcher.device)

    @cached_property
    def distinct(self) -> Tensor:
        """The number of distinct bigrams in the first 1, 2, ... samples, int64 [N]."""
        keys, sample = exit_table_alternatives.keys_of(self.text, 2)
        pairs = keys >> N_SHIFT == 2
        unique, inverse = torch.unique(keys[pairs], return_inverse=True)
        begins = torch.full_like(unique, len(self.text)).scatter_reduce_(0, inverse, sample[pairs], "amin")
        return torch.bincount(begins, minlength=len(self.text)).cumsum(0)

    @cached_property
    def slots(self) -> int:
        return 1 << int(int(self.distinct[-1]) / max(LOADS)).bit_length() - 1

    def train(self, load: float) -> TokenSet:
        """Return the first samples, as many as fill the slots to ``load`` at most."""
        limit = torch.tensor(int(load * self.slots), device=self.distinct.device)
        return first(self.text, max(1, int(torch.searchsorted(self.distinct, limit, right=True))))

    def counted(self, load: float, train: TokenSet, exits: Tensor) -> tuple[ExitTable, HashedBackend]:
        """Return a table that has counted the samples in :attr:`slots` slots; it grows if a search takes too long."""
        table, backend = self.kernels.table(2, max_load=load, capacity=self.slots)
        table.insert(train, exits)
        return table, backend
