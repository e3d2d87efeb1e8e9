"""What the exit table's microbenchmarks are about: text, tables made of it, and hash tables filled to a given share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from geep.exit_table import ExitTable
from geep.exit_table.backends.hashed import HashedBackend, kernels
from geep.exit_table.keys import N_SHIFT
from harness.core.errors import DeviceError
from harness.core.tokens import TokenSet
from harness.kernels import Launcher, cuda, host
from suites.workloads import exit_table_alternatives
from suites.workloads.exit_table_alternatives import LENGTH, FrozenRows

LAYERS, VOCAB, SMOOTHING, QUANTILE = 12, 30_522, 8, 700
SKEWS = ("uniform", "zipf")
LOADS = (0.25, 0.5, 0.7, 0.9)
HOST_TOKENS = 1 << 15  # emulated kernels look up two million n-grams a second


def grams(samples: int, ngram: int) -> int:
    """N-grams of every length up to ``ngram`` in so many samples."""
    return samples * sum(LENGTH - n + 1 for n in range(1, ngram + 1))


def first(tokens: TokenSet, samples: int) -> TokenSet:
    """The first so many samples."""
    size = samples * LENGTH
    return TokenSet(tokens.ids[:size], tokens.offsets[: samples + 1], tokens.segments[:size])


def partly_new(seen: TokenSet, skew: str, samples: int) -> TokenSet:
    """Samples to ask about: four fifths of them drawn from ``seen``, the others new."""
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
    """Layers that samples left at, int64."""
    return torch.from_numpy(np.random.default_rng(2).integers(0, LAYERS, samples)).to(device)


@dataclass
class TableWorkload:
    """Text, exits and a frozen table, on a device."""

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
        """A new table that has counted everything and is not frozen."""
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

    @property
    def grams(self) -> int:
        return grams(len(self.train), self.ngram)


@dataclass
class TableKernels:
    """Where the hash table's kernels run: on the device, or emulated, with less text.

    Attributes:
        backend: ``"cuda"`` or ``"host"``.
        launcher: of the kernels.
        tokens: how much text to take.
    """

    backend: str
    launcher: Launcher
    tokens: int

    @classmethod
    def here(cls, device: str, tokens: int) -> TableKernels:
        """On the device if it is one, else on the host.

        Raises:
            DeviceError: the kernels run on neither; says why.
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
        """An empty table and its backend, which is laid out as told."""
        backend = HashedBackend(
            self.backend, LAYERS, ngram, 0, self.launcher, max_load=max_load, dense_ids=dense_ids, capacity=capacity
        )
        return ExitTable(LAYERS, ngram, backend), backend


@dataclass
class LoadWorkload:
    """Text whose bigrams fill a hash table of always the same number of slots to a given share.

    Single tokens are dense and take no slot. The number of slots is the largest power of two that the bigrams of all the
    text fill to the largest of :data:`LOADS`; for a smaller share, only the first samples are inserted. Queries are always
    as many: four fifths of their samples are among the inserted ones.
    """

    kernels: TableKernels
    skew: str

    @cached_property
    def text(self) -> TokenSet:
        return exit_table_alternatives.text(self.kernels.tokens, VOCAB, self.skew, 0, self.kernels.launcher.device)

    @cached_property
    def distinct(self) -> Tensor:
        """Distinct bigrams of the first 1, 2, ... samples, int64 [N]."""
        keys, sample = exit_table_alternatives.keys_of(self.text, 2)
        pairs = keys >> N_SHIFT == 2
        unique, inverse = torch.unique(keys[pairs], return_inverse=True)
        begins = torch.full_like(unique, len(self.text)).scatter_reduce_(0, inverse, sample[pairs], "amin")
        return torch.bincount(begins, minlength=len(self.text)).cumsum(0)

    @cached_property
    def slots(self) -> int:
        return 1 << int(int(self.distinct[-1]) / max(LOADS)).bit_length() - 1

    def train(self, load: float) -> TokenSet:
        """As many samples as fill the slots to that share, at most."""
        limit = torch.tensor(int(load * self.slots), device=self.distinct.device)
        return first(self.text, max(1, int(torch.searchsorted(self.distinct, limit, right=True))))

    def counted(self, load: float, train: TokenSet, exits: Tensor) -> tuple[ExitTable, HashedBackend]:
        """A table that has counted them in exactly :attr:`slots` slots, unless some found none in a reasonable time."""
        table, backend = self.kernels.table(2, max_load=load, capacity=self.slots)
        table.insert(train, exits)
        return table, backend
