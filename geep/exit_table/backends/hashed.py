"""The hash table: the kernels of ``exit_table.cu``, on a CUDA device or compiled for the host.

Tokens with ids below :data:`DENSE_IDS` are counted in a dense table, all other keys in an open-addressing table that is kept
at most half full (:data:`MAX_LOAD`). Counting never fails for lack of slots: n-grams that find no slot within :data:`PROBES`
probes are put on a late list and counted after the table has grown; the host reads three numbers per chunk to know. If there
is not enough memory to grow, the counts of that insert are undone. Freezing places common keys first, near their home slots.

Queries do not synchronise: hit counts and invalid ids stay on the device until they are requested.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from geep.exit_table.backends.interface import KeyHits
from geep.exit_table.columns import TableColumns
from geep.exit_table.keys import ID_BITS, PackedKeys, bad_id, token_key
from geep.exit_table.memory import OutOfMemory, in_a_line, memory_errors, ran_out
from geep.exit_table.rules import Rule
from harness.core.errors import ConfigError, DeviceError
from harness.kernels import Launcher, Source

DENSE_IDS = 1 << 17  # as in cpu.py: multilingual BERT fits; 12.6 MB of counts at 24 layers
FIRST_CAPACITY = 1 << 16  # slots
MAX_LOAD = 0.5  # share of slots in use: hits take 1.5 probes on average, misses 2.5 (Knuth, vol. 3, 6.4)
PROBES = 128  # at half load, searches among 10^8 keys stay below 100 (cluster lengths of linear probing)
CHUNK = 1 << 22  # tokens per launch; bounds the late list
FIRST_WAVE = 1 << 12  # keys; the most common ones get their slots first
WIDTHS = {12: 4, 28: 8, 60: 16}  # entries of a slot -> its words of 8 bytes, the key among them
EMPTY = -1
IN_REGISTERS = 4  # special ids
NO_ID = -1


def kernels(width: int) -> Source:
    """Return the source for tables of that many columns."""
    return Source.of("geep.exit_table", "exit_table.cu", WIDTH=_entries(width))


class HashedBackend:
    """Counts and rows in a hash table. The last three arguments affect speed and memory only, never answers.

    Args:
        name: as in ``ExitTable(backend=...)``.
        columns: of a row.
        ngram: longest n-gram.
        seed: of the hash.
        launcher: runs the kernels.
        max_load: largest share of used slots, above 0 and below 1, while counting and when frozen. Capacities are powers
            of two, so a table that had to grow is between half of it and all of it full.
        dense_ids: ids below are found by address; ``None``: :data:`DENSE_IDS`; 0 hashes all single tokens.
        capacity: initial slots, a power of two; ``None``: :data:`FIRST_CAPACITY`.

    Attributes:
        launcher: its device holds the table.
    """

    def __init__(
        self, name: str, columns: TableColumns, ngram: int, seed: int, launcher: Launcher, *, max_load: float = MAX_LOAD,
        dense_ids: int | None = None, capacity: int | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.launcher = launcher
        self.device = launcher.device if launcher.device.type == "cuda" else None
        self._columns = columns
        self._width = columns.width
        self._ngram = ngram
        self._seed = seed & (1 << 64) - 1
        self._words = WIDTHS[_entries(columns.width)]
        self._max_load = max_load
        self._probes = _longest_search(max_load)
        self._dense_ids = DENSE_IDS if dense_ids is None else dense_ids
        self._used = 0  # slots of the hash table with a key
        self._taken_back = False  # an insert was undone, so some of these keys may have no count
        capacity = FIRST_CAPACITY if capacity is None else capacity
        with memory_errors():
            self._keys = self._filled(capacity, EMPTY, torch.int64)
            self._counts = self._filled(capacity * columns.width, 0, torch.int32)
            self._dense = self._filled(0, 0, torch.int32)  # [ids, W], flat
            # Frozen: slots, the cumulative back-off row, the longest search.
            self._no_slots = self._filled(0, EMPTY, torch.int64)
            self._slots = self._dense_slots = self._no_slots
            self._prior = self._filled(columns.width, 0, torch.int64)
            self._trouble = self._filled(2, 0, torch.int64)
        self._longest = 0
        self._specials: dict[tuple[int, ...], tuple[int | Tensor, ...]] = {}
        self._settings: dict[Rule, Tensor] = {}

    def insert(self, packed: PackedKeys, marks: Tensor) -> None:
        with memory_errors():
            packed = packed.to(self.launcher.device)
            marks = marks.to(self.launcher.device).contiguous()
            ids, offsets = packed.ids.contiguous(), packed.offsets.contiguous()
            high, dense = self._highest(ids)
            self._grow_dense(dense + 1)
            hashed = self._ngram - (high < self._dense_ids)  # n-grams per token that may become late

            def launch(kernel: str, first: int, last: int, low: int, stop: int, *more: Tensor) -> None:
                self._run(
                    kernel, last + 1 - first, 32, ids, offsets, marks, first, last + 1, low, stop, self._ngram,
                    self._width, *self._special(packed.special), self._dense, len(self._dense) // self._width,
                    *self._table(), self._probes, *more,
                )  # fmt: skip

            low = last = 0
            try:
                while low < len(ids):
                    # A small table starts with few tokens, so that not all become late; then twice as many each time.
                    step = max(len(self._keys) // max(hashed, 1), low, 1)
                    stop = min(low + min(step, CHUNK), len(ids))
                    at = torch.tensor([low, stop - 1], device=ids.device)
                    first, end = (torch.searchsorted(offsets, at, right=True) - 1).tolist()
                    late, status = self._late_list((stop - low) * hashed), self._status()
                    launch("insert", first, end, low, stop, *late, status)
                    low, last = stop, end
                    self._settle(*late, status)
            except Exception as error:
                if low and ran_out(error):
                    try:
                        launch("take_back", 0, last, 0, low)  # allocates nothing
                    except Exception as again:
                        raise DeviceError(
                            f"exit table: {in_a_line(again)}, and the counts of this insert cannot be undone:"
                            " build the table again, with fewer samples at a time"
                        ) from again
                    self._taken_back = True
                raise

    def absorb(self, keys: np.ndarray, counts: np.ndarray) -> None:
        with memory_errors():
            device = self.launcher.device
            dense = int(np.searchsorted(keys, token_key(self._dense_ids)))
            wide = self._dense
            if dense:
                ids = torch.from_numpy(keys[:dense] - token_key(0) >> 2 * ID_BITS).to(device)
                self._grow_dense(int(ids[-1]) + 1)
                rows = torch.from_numpy(counts[:dense].view(np.int32)).to(device)
                wide = self._dense.view(-1, self._width).index_add(0, ids, rows).view(-1)  # wraps as uint32 does
            if dense < len(keys):
                new = torch.from_numpy(keys[dense:]).to(device)
                rows = torch.from_numpy(counts[dense:].view(np.int32)).to(device)
                room = self._capacity(self._used + len(new))
                self._rehash(max(room, len(self._keys)), (new, rows.reshape(-1)))
            self._dense = wide  # last, when nothing can fail any more: all is counted, or nothing

    def export(self) -> tuple[np.ndarray, np.ndarray]:
        held = self._dense, self._keys, self._counts
        try:
            return self._export(*held)
        except torch.OutOfMemoryError:  # the same on the host, slower, so that a full device loses no counts
            return self._export(*(tensor.cpu() for tensor in held))

    def _export(self, dense: Tensor, keys: Tensor, counts: Tensor) -> tuple[np.ndarray, np.ndarray]:
        dense, counts = dense.view(-1, self._width), counts.view(-1, self._width)
        ids = torch.nonzero((dense != 0).any(dim=1)).squeeze(1)
        filled = torch.nonzero(keys != EMPTY).squeeze(1)
        if self._taken_back:
            filled = filled[(counts[filled] != 0).any(dim=1)]
        keys, order = keys[filled].sort()
        # The highest bits of a key are n, then the first id: dense ids come first.
        keys = torch.cat([token_key(ids), keys])
        return keys.cpu().numpy(), torch.cat([dense[ids], counts[filled[order]]]).cpu().numpy().view(np.uint32)

    def freeze(self, prior: np.ndarray, min_count: int, smoothing: int) -> None:
        try:
            with memory_errors():
                self._freeze(prior, min_count, smoothing)
        except OutOfMemory:
            self._slots = self._dense_slots = self._no_slots  # a second attempt needs their memory
            raise

    def _freeze(self, prior: np.ndarray, min_count: int, smoothing: int) -> None:
        self._prior = torch.from_numpy(self._columns.cumulate(prior)).to(self.launcher.device)
        dense = len(self._dense) // self._width
        self._dense_slots = self._filled(dense * self._words, EMPTY, torch.int64)
        self._run(
            "freeze_dense", dense, 1, self._dense, self._totals(self._dense), dense, self._width,
            self._columns.starts, min_count, self._prior, smoothing, self._dense_slots,
        )  # fmt: skip
        totals = self._totals(self._counts)
        common = torch.nonzero(totals >= min_count).squeeze(1)  # a free slot has total 0
        order = common[torch.argsort(totals[common], descending=True)]
        capacity = self._capacity(len(order))
        self._slots = self._filled(capacity * self._words, EMPTY, torch.int64)
        status = self._status()
        begin, end = 0, FIRST_WAVE
        while begin < len(order):
            end = min(end, len(order))
            self._run(
                "freeze", end - begin, 1, order, begin, end, self._keys, self._counts, totals, self._width,
                self._columns.starts, self._prior, smoothing, self._slots, capacity - 1, self._seed,
                min(capacity, (1 << 31) - 1), status,
            )  # fmt: skip
            begin, end = end, 2 * end
        _, lost, self._longest = status.tolist()
        if lost:  # impossible: there is room for all, and searches were not limited
            raise RuntimeError(f"exit table: {lost} of {len(order)} keys found no slot when freezing: report this")
        # Keep counts for export, without free slots and keys whose counts were undone.
        filled = torch.nonzero(totals).squeeze(1)
        self._keys, self._counts = self._keys[filled], self._counts.view(-1, self._width)[filled].reshape(-1)
        self._used, self._taken_back = len(filled), False

    def sums(self, packed: PackedKeys) -> tuple[Tensor, KeyHits]:
        with memory_errors():
            sums = torch.empty(len(packed), self._width, dtype=torch.int64, device=self.launcher.device)
            tally = self._query(packed, sums, None, None)
            return sums.to(packed.ids.device), tally

    def exits(self, packed: PackedKeys, rule: Rule) -> tuple[Tensor, KeyHits]:
        with memory_errors():
            if rule not in self._settings:
                _remember(self._settings, rule, self._on_device(rule.settings))
            exits = torch.empty(len(packed), len(rule.settings), dtype=torch.int16, device=self.launcher.device)
            tally = self._query(packed, None, rule, exits)
            return exits.to(packed.ids.device), tally

    def check(self) -> None:
        worst, sample = self._trouble.tolist()
        if worst or sample:
            self._trouble = self._filled(2, 0, torch.int64)
        if worst:
            raise bad_id(worst - 1 - (1 << 32 if worst > 1 << 31 else 0))  # the kernel sees ids as uint32
        if sample:
            raise ConfigError(
                f"exit table: offsets of sample {sample - 1} do not rise or leave the ids: correct the offsets"
            )

    @property
    def layout(self) -> str:
        return "dense+hash" if self._ngram > 1 or self._used else "dense"

    @property
    def keys(self) -> int:
        dense = int((self._dense.view(-1, self._width) != 0).any(dim=1).sum())
        return dense + (int(torch.count_nonzero(self._totals(self._counts))) if self._taken_back else self._used)

    @property
    def bytes(self) -> int:
        held = (self._keys, self._counts, self._dense, self._slots, self._dense_slots)
        return sum(tensor.nbytes for tensor in held)

    @property
    def load(self) -> float:
        """Share of used slots, of the frozen table if there is one. Waits for the device."""
        keys = self._slots[:: self._words] if len(self._slots) else self._keys
        return int((keys != EMPTY).sum()) / len(keys)

    @property
    def longest_search(self) -> int:
        """Longest search of any key in the frozen table; no query probes further."""
        return self._longest

    def _query(self, packed: PackedKeys, sums: Tensor | None, rule: Rule | None, exits: Tensor | None) -> KeyHits:
        here = packed.to(self.launcher.device)
        tally = self._filled(2, 0, torch.int64)
        asked = (0, None, 0) if rule is None else (rule.code, self._settings[rule], len(rule.settings))
        self._run(
            "predict", len(here), 32, here.ids.contiguous(), here.offsets.contiguous(), len(here), len(here.ids),
            self._ngram, self._width, self._columns.num_layers, self._columns.starts, *self._special(here.special),
            self._dense_slots, len(self._dense_slots) // self._words, self._slots,
            max(len(self._slots) // self._words - 1, 0), self._seed, self._longest, self._prior, sums, *asked, exits, tally,
            self._trouble,
        )  # fmt: skip
        return KeyHits(tally[0], tally[1])

    def _on_device(self, settings: tuple[tuple[int, ...], ...]) -> Tensor:
        """Return the numbers in one row, filled on the device, because copying a list would synchronise."""
        return torch.cat(
            [self._filled(0, 0, torch.int64), *(self._filled(1, n, torch.int64) for s in settings for n in s)]
        )

    def _settle(self, late_keys: Tensor, late_marks: Tensor, status: Tensor) -> None:
        """Grow until the load is allowed and all late n-grams are counted."""
        fresh, late, _ = status.tolist()  # the only synchronisation per chunk
        self._used += fresh
        while late or self._capacity(self._used) > len(self._keys):
            # Late n-grams may be few keys repeated, or all distinct: grow a little, and repeat if needed.
            self._rehash(max(2 * len(self._keys), self._capacity(self._used + late // 8)))
            if late:
                again = self._late_list(late)
                self._run(
                    "insert_late", late, 1, late_keys, late_marks, late, self._width, *self._table(), self._probes,
                    *again, status := self._status(),
                )  # fmt: skip
                late_keys, late_marks = again
                fresh, late, _ = status.tolist()
                self._used += fresh

    def _rehash(self, capacity: int, more: tuple[Tensor, Tensor] | None = None) -> None:
        """Move all counts to a table of that capacity or a larger one, and add those of ``more``."""
        parts = [(self._keys, self._counts), *([more] if more else [])]
        while True:
            table = self._filled(capacity, EMPTY, torch.int64), self._filled(capacity * self._width, 0, torch.int32)
            status = self._status()
            for keys, counts in parts:
                self._run(
                    "absorb", len(keys), 1, keys, counts, len(keys), self._width, *table, capacity - 1, self._seed,
                    self._probes, status,
                )  # fmt: skip
            fresh, late, _ = status.tolist()
            if not late:
                self._keys, self._counts = table
                self._used = fresh
                return
            capacity *= 2  # nothing is lost: the old table still has all counts

    def _highest(self, ids: Tensor) -> tuple[int, int]:
        """Return the highest id, and the highest id of the dense table; -1 if there is none."""
        if not len(ids):
            return NO_ID, NO_ID
        # In pieces: a mask of all ids would take more memory than the ids.
        parts = [(part.max(), part.masked_fill(part >= self._dense_ids, NO_ID).max()) for part in ids.split(CHUNK)]
        high, dense = torch.stack([torch.stack(pair) for pair in parts]).amax(0).tolist()
        return high, dense

    def _capacity(self, keys: int) -> int:
        """Return the number of slots for that many keys."""
        return _power_of_two(math.ceil(keys / self._max_load))

    def _grow_dense(self, ids: int) -> None:
        have = len(self._dense) // self._width
        if ids > have:
            wide = self._filled(min(max(ids, 2 * have), self._dense_ids) * self._width, 0, torch.int32)
            wide[: len(self._dense)] = self._dense
            self._dense = wide

    def _table(self) -> tuple[Tensor, Tensor, int, int]:
        return self._keys, self._counts, len(self._keys) - 1, self._seed

    def _late_list(self, size: int) -> tuple[Tensor, Tensor]:
        return self._filled(size, None, torch.int64), self._filled(size, None, torch.int64)

    def _status(self) -> Tensor:
        """Return zeros for fresh keys, late n-grams and the longest search; see the source."""
        return self._filled(3, 0, torch.int64)

    def _totals(self, counts: Tensor) -> Tensor:
        """Return how often each key was counted, int64."""
        size = len(counts) // self._width
        totals = self._filled(size, None, torch.int64)
        once = self._columns.once
        self._run("totals", size, 1, counts, size, self._width, once.start, once.stop, totals)
        return totals

    def _special(self, special: tuple[int, ...]) -> tuple[int | Tensor | None, ...]:
        """Return special ids as kernel arguments: four numbers, then the others and their number."""
        if special not in self._specials:
            first = (*special, *[NO_ID] * IN_REGISTERS)[:IN_REGISTERS]
            rest = torch.tensor(special[IN_REGISTERS:], dtype=torch.int32, device=self.launcher.device)
            _remember(self._specials, special, (*first, rest, len(rest)))
        return self._specials[special]

    def _run(self, kernel: str, work: int, threads: int, *args: Tensor | int | None) -> None:
        """Launch a kernel that strides over ``work`` items of ``threads`` threads each."""
        if work:
            block = 128
            grid = min(-(-work * threads // block), self.launcher.blocks)
            self.launcher.launch(kernel, grid, block, *args)

    def _filled(self, size: int, value: int | None, dtype: torch.dtype) -> Tensor:
        """Allocate a flat tensor on the table's device; with ``None`` it is not initialised."""
        try:
            tensor = torch.empty(size, dtype=dtype, device=self.launcher.device)
        except RuntimeError as error:  # CUDA reports faults of earlier kernels here, too
            if not ran_out(error):
                raise
            more = f"{size * dtype.itemsize / 2**30:.2f} GiB more"
            raise OutOfMemory(f"{more} do not fit into the memory of {self.launcher.device}") from error
        return tensor if value is None else tensor.fill_(value)


def _remember(cache: dict, key: object, value: object) -> None:
    if len(cache) >= 64:
        cache.clear()
    cache[key] = value


def _entries(width: int) -> int:
    """Return the entries of a slot for rows of that width."""
    return min(entries for entries in WIDTHS if entries >= width)


def _longest_search(max_load: float) -> int:
    """Return the probes after which a key is put on the late list, as improbable as :data:`PROBES` at half load.

    Runs of used slots longer than x have a probability that falls as exp(-x (a - 1 - ln a)) at load a, the large deviations
    of the Poisson number of keys that fall into x slots.
    """
    decay, usual = (load - 1 - math.log(load) for load in (max(max_load, MAX_LOAD), MAX_LOAD))
    return math.ceil(PROBES * usual / decay)


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 1).bit_length()
