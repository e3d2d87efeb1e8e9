"""The exit table: validation, life cycle (counting, then frozen), and the backend behind it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from geep.exit_table.backends.interface import Backend, KeyHits
from geep.exit_table.backends.selection import make_backend
from geep.exit_table.columns import TableColumns
from geep.exit_table.keys import MAX_ID, MAX_NGRAM, PackedKeys, Tokens, pack
from geep.exit_table.memory import OutOfMemory, in_a_line, ran_out
from geep.exit_table.operator import predict_exits, register_table
from geep.exit_table.rows import COUNT_LIMIT, prior_row
from geep.exit_table.rules import Quantiles, Rule
from geep.exit_table.storage import Frozen, Header, columns_header, read, write
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.core.work import Tally, record

T = TypeVar("T")


class ExitTable:
    """Counts how often each key occurred in samples that left at each exit; predicts exits from token ids alone.

    Every key of a sample (token id; with ``ngram`` 2 or 3 also bigrams and trigrams) adds its distribution over exits, or the
    distribution of all samples if the key is unknown or rare. A rule makes an exit of the sum: its q-quantile (Li et al. 2024),
    or another one of ``rules``. With other ``columns``, rows hold what these say instead. Special ids form no keys, see
    ``keys``; the arithmetic is in ``rows``.

    Args:
        columns: of the rows, W in all (:mod:`geep.exit_table.columns`); a number L, 1 to 24: ``TableColumns(exits=L)``. Exits are
            layer indices 0 .. L - 1.
        ngram: longest n-gram counted, 1 to 3.
        backend: ``"auto"`` (``"cuda"`` where CuPy and a device work, else ``"cpu"``), ``"cpu"``, ``"cuda"``, ``"host"``
            (the CUDA kernels compiled for the CPU, slow) or ``"reference"`` (slow, the specification). All give the same
            answers, on any device of the tokens. With ``"auto"``, a table that outgrows the device's memory moves to the
            CPU and warns once. Or a :class:`~geep.exit_table.backends.interface.Backend` of as many layers and n-grams.
        seed: for backends that hash; answers do not depend on it.
        special: ids of [CLS], [SEP] and [PAD], for samples given as lists; a ``TokenSet`` has its own.

    Attributes:
        num_layers: L, of exits or agreement; 0 if there are only labels.
        handle: number of this table for the operator ``torch.ops.geep.predict_exits``, see ``operator``.

    Raises:
        ConfigError: a number is out of range.
        UnknownNameError: there is no such backend.
        DeviceError: the backend cannot work on this machine. Every method raises it if memory runs out; on a device,
            earlier counts are then complete, and the call can be repeated.
    """

    def __init__(
        self,
        columns: int | TableColumns,
        ngram: int = 1,
        backend: str | Backend = "auto",
        seed: int = 0,
        special: Sequence[int] = (),
    ) -> None:
        if not 1 <= ngram <= MAX_NGRAM:
            raise ConfigError(f"exit table: ngram={ngram} is outside 1..{MAX_NGRAM}")
        if any(not 0 <= token <= MAX_ID for token in special):
            raise ConfigError(f"exit table: a special id of {tuple(special)} is outside 0..{MAX_ID}")
        self.columns = columns if isinstance(columns, TableColumns) else TableColumns(exits=int(columns))
        self.num_layers = self.columns.num_layers
        self.ngram = int(ngram)
        self.seed = int(seed)
        self.special = tuple(sorted({int(token) for token in special}))
        own = self.columns, self.ngram, self.seed
        try:
            self._backend = make_backend(backend, *own) if isinstance(backend, str) else backend
        except OutOfMemory as error:
            if backend != "auto":
                raise
            warnings.warn(_on_cpu(error), RuntimeWarning, stacklevel=2)
            self._backend = make_backend("cpu", *own)
        self._may_move = backend == "auto" and self._backend.name != "cpu"
        self._torn = False  # counting failed halfway
        self._marked = np.zeros(self.columns.width, dtype=np.int64)  # samples per column
        self._tokens = 0
        self._frozen: Frozen | None = None
        self._query = KeyHits(0, 0)  # of the last query; read in stats() only
        self.handle = register_table(self)

    def insert(self, tokens: Tokens, *observed: Tensor | np.ndarray | Sequence[int]) -> None:
        """Count samples that left at known exits. Order and batching of inserts make no difference.

        Args:
            tokens: N samples, a ``TokenSet`` or a list of 1-D integer tensors.
            observed: per group of columns what was observed of the samples: exits or labels, integers [N]; agreement with the
                last layer, bools [N, L].

        Raises:
            ConfigError: the table is frozen or would exceed 2^32 - 1 tokens, numbers of samples and observations differ, or an
                exit, a label or an id is out of range. Nothing is inserted then.
        """
        self._refuse_if_frozen("insert into")
        packed = pack(tokens, self.special)
        marks = self.columns.marks(len(packed), observed)
        size = len(packed.ids)
        self._refuse_if_full(size)
        marked = self.columns.histogram(marks)
        there = marks.to(packed.ids.device)
        self._do(lambda backend: backend.insert(packed, there), counting=True)
        self._tokens += size
        self._marked += marked

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all keys, rising (int64 [K], see ``keys``), and their counts per column (uint32 [K, W])."""
        return self._do(lambda backend: backend.export())

    def merge(self, other: ExitTable) -> None:
        """Add the counts of another table, as if its samples had been inserted here.

        Raises:
            ConfigError: the tables differ in columns, n-grams, seed or special ids, or one is frozen.
        """
        self._refuse_if_frozen("merge into")
        other._refuse_if_frozen("merge from")
        for name in ("columns", "ngram", "seed", "special"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ConfigError(f"exit table: cannot merge {name}={theirs} into {name}={ours}: build both alike")
        self._refuse_if_full(other._tokens)
        keys, counts = other.counts()
        self._do(lambda backend: backend.absorb(keys, counts), counting=True)
        self._tokens += other._tokens
        self._marked += other._marked

    def freeze(self, min_count: int = 1, smoothing: int = 8) -> None:
        """End counting and compute the rows for predictions.

        Args:
            min_count: keys seen less often take the back-off row, the distribution of all samples; at least 1.
            smoothing: pseudo-counts of the back-off row mixed into every other row; at least 0.

        Raises:
            ConfigError: the table is frozen or empty, or a number is out of range.
        """
        self._refuse_if_frozen("freeze")
        for name, value, low in (("min_count", min_count, 1), ("smoothing", smoothing, 0)):
            if int(value) != value or not low <= value < COUNT_LIMIT:
                raise ConfigError(f"exit table: {name}={value} must be a whole number from {low} to {COUNT_LIMIT - 1}")
        if not self._marked.any():
            raise ConfigError("exit table: nothing was inserted: insert samples before freeze")
        frozen = Frozen(min_count=int(min_count), smoothing=int(smoothing))
        self._do(lambda backend: self._freeze(backend, frozen))
        self._frozen = frozen

    def predict(self, tokens: Tokens, quantile: float | int) -> Tensor:
        """Return predicted exits, int16 [N] on the samples' device.

        Args:
            tokens: N samples. One without keys gets the deepest layer, L - 1.
            quantile: a float in (0, 1], rounded to per mille, or an int in per mille, 1 .. 1000. Larger is deeper.

        Raises:
            ConfigError: the table is not frozen, or an id or the quantile is out of range.
        """
        return self.quantiles(tokens, [quantile])[:, 0]

    def quantiles(self, tokens: Tokens, quantiles: Sequence[float | int]) -> Tensor:
        """Return predicted exits at Q quantiles with one look-up, int16 [N, Q]; see :meth:`predict` and :meth:`assign`."""
        return self.assign(tokens, Quantiles.of(quantiles))

    def assign(self, tokens: Tokens, rule: Rule) -> Tensor:
        """Return the exits under a rule, for all its Q settings with one look-up: int16 [N, Q] on the samples' device.

        For a ``TokenSet`` on the device of a ``"cuda"`` table, the host does not wait for the device; invalid ids are then left
        out and reported by :meth:`check`. Inside ``torch.compile`` this is one operator.

        Raises:
            ConfigError: as :meth:`predict`, or the rule reads other columns than this table has, or cut points are not L - 1.
        """
        if rule.group != self.columns.groups[0].name:
            raise ConfigError(
                f"exit table: rule '{rule.name}' reads {rule.group}, the rows hold {self.columns.groups[0].name}:"
                " build a table with such columns"
            )
        needs = rule.numbers(self.num_layers)
        if any(len(setting) != needs for setting in rule.settings):
            raise ConfigError(
                f"exit table: a setting of rule '{rule.name}' has {needs} numbers for {self.num_layers} exits"
            )
        if isinstance(tokens, TokenSet) and torch.compiler.is_compiling():
            flat = [number for setting in rule.settings for number in setting]
            return predict_exits(
                tokens.ids, tokens.offsets, list(tokens.special), rule.name, flat, len(rule.settings), self.handle
            )
        exits, self._query = self._do(lambda backend: backend.exits(self._asked(tokens), rule))
        return exits

    def distribution(self, tokens: Tokens) -> Tensor:
        """Add up the rows of each sample's keys, int64 [N, W]; each key adds exactly 2^14 over exclusive columns.

        Raises:
            ConfigError: the table is not frozen, or an id is out of range; on a device as in :meth:`quantiles`.
        """
        sums, self._query = self._do(lambda backend: backend.sums(self._asked(tokens)))
        return sums

    def hits(self) -> tuple[int, int]:
        """Return, for the last query, the keys with a row of their own and all keys. Waits for the device."""
        return int(self._query.found), int(self._query.asked)

    def check(self) -> None:
        """Wait for queries on a device and report invalid tokens. On the CPU, queries raise at once.

        Raises:
            ConfigError: an id or an offset was out of range.
        """
        self._backend.check()

    def stats(self) -> dict[str, Any]:
        """Return contents, backend and memory.

        ``query_keys`` counts the keys of the last query, ``hit_rate`` is the share of them with a row of their own (``None``
        without keys). ``tokens`` includes special ones; ``bytes`` is memory held.

        Raises:
            ConfigError: see :meth:`check`.
        """
        self.check()
        found, asked = self.hits()
        return {
            "backend": self._backend.name,
            "layout": self._backend.layout,
            "num_layers": self.num_layers,
            "ngram": self.ngram,
            "seed": self.seed,
            "keys": self._backend.keys,
            "samples": int(self._marked[self.columns.once].sum()),
            "tokens": self._tokens,
            "bytes": self._backend.bytes,
            "frozen": self._frozen is not None,
            "min_count": self._frozen.min_count if self._frozen else None,
            "smoothing": self._frozen.smoothing if self._frozen else None,
            "query_keys": asked,
            "hit_rate": found / asked if asked else None,
        }

    def save(self, folder: Path | str) -> None:
        """Write ``exit_table.json`` and ``exit_table.safetensors``; equal counts give equal bytes.

        Raises:
            ResultError: the folder cannot be written.
            ConfigError: see :meth:`check`.
        """
        self.check()
        header = Header(
            **columns_header(self.columns),
            ngram=self.ngram,
            seed=self.seed,
            special=list(self.special),
            exits=self._marked.tolist(),
            tokens=self._tokens,
            frozen=self._frozen,
        )
        write(Path(folder), header, *self.counts())

    @classmethod
    def load(cls, folder: Path | str, backend: str = "auto", **expected: int | None) -> ExitTable:
        """Read a table that :meth:`save` wrote, frozen if it was.

        Args:
            backend: may differ from the one that wrote it.
            expected: ``num_layers``, ``ngram`` or ``seed`` that the table must have; ``None`` accepts any.

        Raises:
            ResultError: a file is missing, damaged or of another version.
            ConfigError: the table differs from what is expected.
        """
        header, keys, counts = read(Path(folder))
        for name, value in expected.items():
            found = getattr(header, name)
            if value is not None and found != value:
                raise ConfigError(f"exit table in {folder} has {name}={found}, not {value}: build it again")
        table = cls(header.table_columns, header.ngram, backend, header.seed, header.special)
        table._do(lambda backend: backend.absorb(keys, counts), counting=True)
        table._tokens = header.tokens
        table._marked = np.array(header.exits, dtype=np.int64)
        if header.frozen:
            table.freeze(header.frozen.min_count, header.frozen.smoothing)
        return table

    def _do(self, act: Callable[[Backend], T], *, counting: bool = False) -> T:
        """Let the backend act; move to the CPU if its memory runs out and ``backend="auto"`` was requested.

        Args:
            act: repeated from the start after a move.
            counting: whether counts are incomplete if it fails halfway.
        """
        try:
            return self._attempt(act, counting)
        except OutOfMemory as error:
            if self._torn or not self._may_move:
                raise
            self._move_to_cpu(error)
        return self._attempt(act, counting)

    def _attempt(self, act: Callable[[Backend], T], counting: bool) -> T:
        if self._torn:
            raise ConfigError(
                "exit table: an earlier insert or merge failed, so counts are incomplete: build the table again"
            )
        self._torn = counting
        try:
            found = act(self._backend)
        except OutOfMemory:  # the backend has counted nothing
            self._torn = False
            raise
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            raise OutOfMemory(in_a_line(error), whole=not counting) from error
        self._torn = False
        return found

    def _move_to_cpu(self, error: OutOfMemory) -> None:
        self.check()
        warnings.warn(_on_cpu(error), RuntimeWarning, stacklevel=4)
        keys, counts = self._backend.export()
        self._may_move = False
        self._backend = make_backend("cpu", self.columns, self.ngram, self.seed)
        self._backend.absorb(keys, counts)
        if self._frozen is not None:
            self._freeze(self._backend, self._frozen)

    def _freeze(self, backend: Backend, frozen: Frozen) -> None:
        backend.freeze(prior_row(self._marked, self.columns), frozen.min_count, frozen.smoothing)

    def _asked(self, tokens: Tokens) -> PackedKeys:
        if self._frozen is None:
            raise ConfigError("exit table: it is still counting: call freeze before predict")
        checks = self._backend.device
        asked = pack(tokens, self.special, unread=isinstance(tokens, TokenSet) and tokens.device == checks)
        record("predict", Tally(len(asked), len(asked.ids)))
        return asked

    def _refuse_if_frozen(self, action: str) -> None:
        if self._frozen is not None:
            raise ConfigError(f"exit table: cannot {action} a frozen table: do so before freeze")

    def _refuse_if_full(self, more: int) -> None:
        if self._tokens + more >= COUNT_LIMIT:
            raise ConfigError(
                f"exit table: {self._tokens + more} tokens would pass the limit of 2^32 - 1: insert fewer samples"
            )


def _on_cpu(error: OutOfMemory) -> str:
    return f"exit table: {error.what}: the table moves to the CPU"
