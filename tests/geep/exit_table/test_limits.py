"""Too little memory and too much text: counts stay complete, and working in pieces changes no answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep.exit_table import ExitTable
from geep.exit_table.backends import cpu, hashed, selection
from geep.exit_table.keys import pack
from harness.core.errors import ConfigError, DeviceError
from harness.kernels import host

NEEDS_COMPILER = pytest.mark.skipif(host.problem() is not None, reason=str(host.problem()))
BACKENDS = ["cpu", pytest.param("host", marks=NEEDS_COMPILER)]
SAMPLE = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 1 << 18)), max_size=40)
SAMPLES = st.lists(st.tuples(SAMPLE, st.integers(0, 4)), min_size=1, max_size=12)
SMALL = {"FIRST_CAPACITY": 4, "CHUNK": 25, "DENSE_IDS": 6, "PROBES": 4}


class Memory:
    """Make a backend's allocations fail after the first ``left``."""

    def __init__(self, table: ExitTable, left: int) -> None:
        self.left, self._fill = left, table._backend._filled
        table._backend._filled = self.filled

    def filled(self, size: int, value: int | None, dtype: torch.dtype) -> torch.Tensor:
        self.left -= 1
        return self._fill(1 << 52 if self.left < 0 else size, value, dtype)  # the real error of a real allocation


def raising(error: BaseException) -> Callable[..., Any]:
    """Return a function that only raises ``error``."""

    def act(*_: object, **__: object) -> None:
        raise error

    return act


def full() -> Callable[..., Any]:
    """Simulate torch on a full device."""
    return raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"))


def made(ngram: int, backend: str, auto: bool = False) -> ExitTable:
    """Return a table of five layers; with ``auto``, its backend counts as chosen automatically."""
    table = ExitTable(5, ngram, backend)
    table._may_move = auto
    return table


def put(table: ExitTable, samples: list[tuple[list[int], int]]) -> None:
    table.insert([torch.tensor(sample) for sample, _ in samples], [exit_layer for _, exit_layer in samples])


def same(one: ExitTable, two: ExitTable) -> None:
    """Check that counts, statistics and, if frozen, answers are equal."""
    for ours, theirs in zip(one.counts(), two.counts(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name in ("keys", "samples", "tokens"):
        assert one.stats()[name] == two.stats()[name]
    if one._frozen:
        asked = [torch.tensor([1, 2, 3, 1 << 17, 5]), torch.tensor([]), torch.arange(30)]
        assert torch.equal(one.distribution(asked), two.distribution(asked))
        assert torch.equal(one.quantiles(asked, [1, 500, 1000]), two.quantiles(asked, [1, 500, 1000]))


@NEEDS_COMPILER
@settings(max_examples=70)
@given(st.integers(1, 3), SAMPLES, SAMPLES, st.integers(0, 30), st.booleans())
def test_an_insert_without_memory_counts_nothing(
    ngram: int, before: list, more: list, left: int, merging: bool
) -> None:
    """After any failed allocation the table is unchanged, can be used, and finally gives the reference's answers."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(hashed, name, value)
        found, expected, other = made(ngram, "host"), made(ngram, "reference"), made(ngram, "reference")
        put(found, before)
        put(expected, before)
        put(other, more)
        memory = Memory(found, left)
        printed = ""
        try:
            if merging:
                found.merge(other)
            else:
                put(found, more)
        except DeviceError as error:
            printed = str(error)
        if printed:
            assert "GiB more do not fit" in printed and 'backend="cpu"; earlier counts are kept' in printed
            memory.left = 1 << 30
            same(found, expected)
            put(found, more)
        memory.left = 1 << 30
        put(expected, more)
        same(found, expected)
        memory.left = left % 5
        try:
            found.freeze(min_count=1 + left % 2)
        except DeviceError:
            memory.left = 1 << 30
            same(found, expected)
            found.freeze(min_count=1 + left % 2)
        memory.left = 1 << 30
        expected.freeze(min_count=1 + left % 2)
        same(found, expected)


@NEEDS_COMPILER
@settings(max_examples=60)
@given(st.integers(1, 3), SAMPLES, SAMPLES, st.integers(0, 12))
def test_an_automatically_placed_table_moves_to_the_cpu(ngram: int, before: list, more: list, left: int) -> None:
    """If the device's memory is full, the table moves to the CPU with one warning and gives the same answers."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(hashed, name, value)
        found, expected = made(ngram, "host", auto=True), made(ngram, "reference")
        put(found, before)
        put(expected, before)
        memory = Memory(found, left)
        with warnings.catch_warnings(record=True) as printed:
            warnings.simplefilter("always")
            put(found, more)
            found.freeze()
            found.distribution([torch.arange(9)])
        memory.left = 1 << 30
        put(expected, more)
        expected.freeze()
        assert len(printed) == (found.stats()["backend"] == "cpu")
        for warning in printed:
            assert "do not fit into the memory of cpu: the table moves to the CPU" in str(warning.message)
        same(found, expected)


@NEEDS_COMPILER
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory\nmore")]
)
def test_a_full_device_gets_no_table(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a named backend this is a one-line error; otherwise the table starts on the CPU with a warning."""
    monkeypatch.setattr(selection, "_fastest", lambda: "host")
    monkeypatch.setattr(hashed.HashedBackend, "_filled", raising(error))
    with pytest.raises(DeviceError, match="out of memory.*give fewer samples") as caught:
        ExitTable(5, backend="host")
    assert "\n" not in str(caught.value)
    with pytest.warns(RuntimeWarning, match="out of memory.*the table moves to the CPU"):
        table = ExitTable(5)
    put(table, [([1], 3)])
    assert table.stats()["backend"] == "cpu"


@NEEDS_COMPILER
@pytest.mark.parametrize("auto", [False, True])
def test_a_query_without_memory_is_an_error_or_moves_to_the_cpu(auto: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen rows do not change, so a repeated query, or one on the CPU, gives the answer."""
    table, expected = made(2, "host", auto), made(2, "reference")
    for each in (table, expected):
        put(each, [([1, 2, 3], 0), ([3, 4], 4)])
        each.freeze(min_count=1)
    asked = [torch.tensor([2, 3, 4])]
    empty = torch.empty
    for ask in (ExitTable.distribution, lambda held, tokens: held.quantiles(tokens, [300, 800])):
        fails = [True]
        monkeypatch.setattr(torch, "empty", lambda *args, f=fails, **kw: full()() if f.pop() else empty(*args, **kw))
        if auto and table.stats()["backend"] == "host":
            with pytest.warns(RuntimeWarning, match="Tried to allocate 2.00 GiB..: the table moves to the CPU"):
                assert torch.equal(ask(table, asked), ask(expected, asked))
        elif not auto:
            with pytest.raises(
                DeviceError, match="(Tried to allocate 2.00 GiB..|memory of cpu): give fewer samples at a time"
            ) as caught:
                ask(table, asked)
            assert "\n" not in str(caught.value)
        monkeypatch.setattr(torch, "empty", empty)
        assert torch.equal(ask(table, asked), ask(expected, asked))
    assert table.stats()["backend"] == ("cpu" if auto else "host")


@NEEDS_COMPILER
def test_wrong_ids_are_reported_even_if_the_table_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that the device noted for earlier queries are kept on the move to the CPU, which validates new ids."""
    table = made(1, "host", auto=True)
    put(table, [([1, 2], 1)])
    table.freeze()
    table._backend._trouble[0] = 1 + (1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(table._backend, "exits", full())
        with pytest.raises(ConfigError, match="token id 1048576"):
            table.predict([torch.tensor([1])], 0.5)


@NEEDS_COMPILER
@pytest.mark.parametrize("where", ["argsort", "nonzero"])
def test_freezing_without_memory_can_be_repeated(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A one-line error leaves counts complete and frees partial results."""
    table = made(2, "host")
    put(table, [([1, 2], 1)])
    before = table.stats()["bytes"]
    with monkeypatch.context() as patch:
        patch.setattr(torch, where, full())
        with pytest.raises(DeviceError, match="Tried to allocate 2.00 GiB..: give fewer") as caught:
            table.freeze()
    assert "\n" not in str(caught.value)
    assert table.stats()["bytes"] == before
    table.freeze()
    assert table.predict([torch.tensor([1])], 0.5).tolist() == [1]


@NEEDS_COMPILER
def test_counts_can_be_exported_from_a_full_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export sorts on the device, or on the host if memory is short, with the same result."""
    table = made(2, "host")
    put(table, [([7, 1, 2, 300], 1), ([2, 300], 0)])
    expected = table.counts()
    nonzero, fails = torch.nonzero, [True]
    monkeypatch.setattr(torch, "nonzero", lambda *args: full()() if fails and fails.pop() else nonzero(*args))
    for ours, theirs in zip(table.counts(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not fails


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 GiB"), KeyboardInterrupt(), ValueError("a bug")])
def test_incomplete_counts_are_never_used(backend: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed insert that was not undone, the table rejects everything except a rebuild."""
    table, other = made(2, backend), made(2, "reference")
    put(table, [([1], 0)])
    put(other, [([1], 0)])
    with monkeypatch.context() as patch:
        inner = "_settle" if backend == "host" else "_count"
        patch.setattr(table._backend, inner, raising(error))
        with pytest.raises(DeviceError if isinstance(error, MemoryError) else type(error)) as caught:
            put(table, [([1, 2], 0)])
    if isinstance(error, MemoryError):
        assert "memory ran out (Unable to allocate 9 GiB)" in str(caught.value)
        if backend == "host":  # it undoes what it counted
            return same(table, other)
        assert "counts are incomplete" in str(caught.value)
    for act in (table.freeze, table.counts, lambda: put(table, [([1], 0)]), lambda: other.merge(table)):
        with pytest.raises(ConfigError, match="counts are incomplete: build the table again"):
            act()
    same(other, other)


@NEEDS_COMPILER
def test_a_device_fault_is_not_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA may report a fault at any later call; the table then counts as incomplete."""
    table = made(2, "host")
    put(table, [([1, 2], 0)])
    fault = RuntimeError("CUDA error: an illegal memory access was encountered")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", raising(fault))
        with pytest.raises(RuntimeError, match="illegal memory access"):
            put(table, [([1, 2], 0)])
    with pytest.raises(ConfigError, match="counts are incomplete"):
        table.freeze()


@NEEDS_COMPILER
def test_an_insert_that_cannot_be_undone_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the undo has no memory either, the error says that the table must be rebuilt."""
    table = made(2, "host")
    backend = table._backend
    run = backend._run
    monkeypatch.setattr(backend, "_settle", full())
    monkeypatch.setattr(backend, "_run", lambda name, *args: full()() if name == "take_back" else run(name, *args))
    with pytest.raises(DeviceError, match="cannot be undone.*build the table again"):
        put(table, [([1, 2], 0)])
    with pytest.raises(ConfigError, match="counts are incomplete"):
        table.counts()


@settings(max_examples=25)
@given(st.integers(1, 3), SAMPLES, SAMPLES, st.sampled_from([1, 2, 7, 60]))
@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_equal_one_piece(backend: str, ngram: int, train: list, test: list, chunk: int) -> None:
    """Text is processed in pieces so that 2^31 tokens and more fit; counts and answers are those of one piece."""
    whole, parts = made(ngram, backend), made(ngram, backend)
    asked = [torch.tensor(sample) for sample, _ in test]
    put(whole, train)
    whole.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "CHUNK", chunk)
        patch.setattr(hashed, "CHUNK", chunk)
        put(parts, train)
        parts.freeze()
        same(parts, whole)
        found = parts.distribution(asked), parts.quantiles(asked, [1, 700, 1000]), parts.hits()
    expected = whole.distribution(asked), whole.quantiles(asked, [1, 700, 1000]), whole.hits()
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]) and found[2] == expected[2]


@settings(max_examples=100)
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 40))
def test_pieces_are_small_and_cover_all_samples_in_order(lengths: list[int], limit: int) -> None:
    """Every sample is in one piece, and only a single sample may exceed the requested size."""
    rows = [torch.randint(0, 1000, (length,)) for length in lengths]
    found: list[list[int]] = []
    for samples, piece in pack(rows, (7,)).pieces(limit):
        assert samples.start == len(found) and piece.special == (7,)
        assert len(piece.ids) <= limit or len(piece) == 1
        bounds = piece.offsets.tolist()
        assert bounds[0] == 0 and bounds[-1] == len(piece.ids) and len(piece) == samples.stop - samples.start
        found += [piece.ids[low:high].tolist() for low, high in zip(bounds[:-1], bounds[1:], strict=True)]
    assert found == [row.tolist() for row in rows]


@pytest.mark.parametrize("exits", [[1 << 70], ["deep"], [[0], [1, 2]], [None]])
def test_exits_that_are_not_integers_are_one_clear_line(exits: list) -> None:
    """Numbers beyond 64 bits, text, ragged lists and None are rejected before anything is counted."""
    table = ExitTable(3)
    with pytest.raises(ConfigError, match="give integers") as caught:
        table.insert([torch.tensor([1])], exits)
    assert "\n" not in str(caught.value)
    assert table.stats()["tokens"] == 0
