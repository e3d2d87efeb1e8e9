"""The hash table's kernels, run on the host, equal the specification for any schedule, capacity and data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep.exit_table import ExitTable
from geep.exit_table.backends import hashed
from geep.exit_table.backends.hashed import HashedBackend
from geep.exit_table.backends.selection import _fastest
from geep.exit_table.columns import TableColumns
from geep.exit_table.keys import MAX_ID
from geep.exit_table.rules import UNIT, Cuts, Expected, Quantiles, Rule
from harness.core.errors import ConfigError, DeviceError
from harness.core.tokens import TokenSet
from harness.kernels import cuda, host

pytestmark = pytest.mark.skipif(host.problem() is not None, reason=str(host.problem()))

IDS = st.one_of(st.integers(0, 6), st.sampled_from([100, 101, 102, 5000, (1 << 17) - 1, 1 << 17, MAX_ID - 1, MAX_ID]))
SAMPLE = st.lists(IDS, max_size=40)


def observations(columns: TableColumns) -> st.SearchStrategy:
    """Draw what one sample marks in every group of columns."""
    drawn = []
    for group in columns.groups:
        size = group.columns.stop - group.columns.start
        flags = st.lists(st.booleans(), min_size=size - 1, max_size=size - 1).map(lambda some: [*some, True])
        drawn.append(st.integers(0, size - 1) if group.exclusive else flags)
    return st.tuples(*drawn)


@st.composite
def rules(draw: st.DrawFn, columns: TableColumns) -> list[Rule]:
    """Draw rules that such a table can follow."""
    layers, few = columns.num_layers, {"min_size": 1, "max_size": 5}
    if columns.agreement:
        return [Expected(tuple(draw(st.lists(st.integers(0, UNIT), **few))))]
    cut = st.one_of(
        st.integers(0, (layers - 1) * UNIT + 1), st.integers(0, 2 * layers).map(lambda half: half * UNIT // 2)
    )
    top = (layers - 1) * UNIT + 1
    cuts = st.lists(cut, min_size=layers - 1, max_size=layers - 1).map(
        lambda some: tuple(sorted(min(c, top) for c in some))
    )
    quantiles = draw(st.lists(st.integers(1, 1000), **few))
    return [Quantiles(tuple(quantiles)), Cuts(tuple(draw(st.lists(cuts, **few))))]


@st.composite
def cases(draw: st.DrawFn) -> dict:
    """Draw data, options, and how the kernels run: schedule, workers, chunks, first capacity, search bound."""
    layers = draw(st.one_of(st.integers(1, 24), st.sampled_from([12, 13, 24])))
    labels = draw(st.sampled_from([0, 0, 3, 36]))
    exits = draw(st.booleans())
    columns = TableColumns(exits=layers, labels=labels) if exits else TableColumns(agreement=layers, labels=labels)
    train = draw(st.lists(st.tuples(SAMPLE, observations(columns)), min_size=1, max_size=14))
    special = draw(
        st.sampled_from([(), (101, 102), (0, 100, 101, 102), (0, 1, 2, 3, 100, 101, 102, MAX_ID), tuple(range(11))])
    )
    return {
        "options": {"columns": columns, "ngram": draw(st.integers(1, 3)), "special": special},
        "train": [sample for sample, _ in train],
        "observed": [list(each) for each in zip(*(observed for _, observed in train), strict=True)],
        "parts": draw(st.integers(1, 3)),
        "freeze": {"min_count": draw(st.integers(1, 3)), "smoothing": draw(st.sampled_from([0, 1, 8, 2**32 - 1]))},
        "test": draw(st.lists(SAMPLE, max_size=10)),
        "rules": draw(rules(columns)),
        "launch": {
            "workers": draw(st.integers(1, 3)),
            "fuzz": draw(st.booleans()),
            "seed": draw(st.integers(0, 1 << 40)),
        },
        "patch": {
            "FIRST_CAPACITY": draw(st.sampled_from([2, 16, 1 << 12])),
            "CHUNK": draw(st.sampled_from([3, 50, 1 << 22])),
            "PROBES": draw(st.sampled_from([1, 4, 128])),
            "DENSE_IDS": draw(st.sampled_from([1, 5, 1 << 17])),
            "FIRST_WAVE": draw(st.sampled_from([1, 1 << 12])),
        },
        "layout": {
            "max_load": draw(st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9, 0.99])),
            "dense_ids": draw(st.sampled_from([None, 0])),
            "capacity": draw(st.sampled_from([None, 8])),
        },
        "seed": draw(st.integers(-5, 1 << 70)),
    }


def filled(case: dict, backend: str) -> ExitTable:
    """Return a table of that backend, filled in parts; ``hashed`` has the layout of the case."""
    columns, ngram = case["options"]["columns"], case["options"]["ngram"]
    place: str | HashedBackend = backend
    if backend == "hashed":
        launcher = host.launcher(hashed.kernels(columns.width), **case["launch"])
        place = HashedBackend("host", columns, ngram, case["seed"], launcher, **case["layout"])
    table = ExitTable(**case["options"], seed=case["seed"], backend=place)
    step = -(-len(case["train"]) // case["parts"])
    for begin in range(0, len(case["train"]), step):
        part = slice(begin, begin + step)
        table.insert(
            [torch.tensor(sample) for sample in case["train"][part]],
            *(torch.tensor(some[part]) for some in case["observed"]),
        )
    return table


@settings(max_examples=25)
@given(cases())
def test_every_schedule_and_capacity_equals_the_reference_bit_for_bit(case: dict) -> None:
    """Counts, sums, exits and statistics equal those of ``reference`` and ``cpu`` for any late n-grams, moves and load."""
    test = [torch.tensor(sample) for sample in case["test"]]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in case["patch"].items():
            patch.setattr(hashed, name, value)
        tables = [filled(case, backend) for backend in ("reference", "cpu", "hashed")]
        for _ in range(2):  # while counting, then frozen
            exports = [table._backend.export() for table in tables]
            for keys, counts in exports[1:]:
                np.testing.assert_array_equal(keys, exports[0][0])
                np.testing.assert_array_equal(counts, exports[0][1])
            if tables[0]._frozen is None:
                for table in tables:
                    table.freeze(**case["freeze"])
        sums = [table.distribution(test) for table in tables]
        for found in (sums, *([table.assign(test, rule) for table in tables] for rule in case["rules"])):
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
            assert found[0].dtype == found[2].dtype
        for name in ("keys", "samples", "tokens", "query_keys", "hit_rate"):
            assert tables[0].stats()[name] == tables[2].stats()[name]


@settings(max_examples=25)
@given(cases())
def test_common_keys_are_within_the_search_bound(case: dict) -> None:
    """The table is never fuller than allowed, and no search exceeds the bound that queries use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashed, "DENSE_IDS", 1)
        patch.setattr(hashed, "FIRST_CAPACITY", 2)
        table = filled(case, "hashed")
        backend = table._backend
        limit = case["layout"]["max_load"]
        assert backend._used <= limit * len(backend._keys)
        table.freeze(**case["freeze"])
    keys = backend._slots.view(-1, backend._words)[:, 0]
    used = int((keys != hashed.EMPTY).sum())
    assert used <= limit * len(keys)
    assert backend.load == used / len(keys)
    assert used == len(torch.unique(keys[keys != hashed.EMPTY]))
    assert backend._longest <= max(used, 0)


def test_tables_are_at_most_half_full_by_default() -> None:
    """Only benchmarks set a load above a half."""
    backend = ExitTable(12, ngram=2, backend="host")._backend
    assert (backend._max_load, backend._probes, backend._dense_ids) == (0.5, hashed.PROBES, hashed.DENSE_IDS)


def test_long_samples_are_summed_exactly() -> None:
    """Sums above 2^32 that span several segments are exact."""
    ids = torch.tensor([5, 6] * 150_000)
    tables = [ExitTable(2, backend=backend) for backend in ("cpu", "host")]
    for table in tables:
        table.insert([torch.tensor([5, 5, 6]), torch.tensor([6])], [0, 1])
        table.freeze(smoothing=3)
    expected, found = (table.distribution([ids, ids[:7]]) for table in tables)
    assert expected.max() > 1 << 31
    assert torch.equal(expected, found)


def test_answers_do_not_depend_on_the_seed_but_slots_do() -> None:
    """A seed moves keys to other slots and changes no answer."""
    sample = torch.arange(300)
    slots, sums = [], []
    for seed in (0, 1, -1):
        table = ExitTable(3, ngram=2, backend="host", seed=seed)
        table.insert([sample, sample.flip(0)], [0, 2])
        table.freeze()
        slots.append(table._backend._slots.tolist())
        sums.append(table.distribution([sample[:50]]).tolist())
    assert sums[0] == sums[1] == sums[2]
    assert slots[0] != slots[1] != slots[2]


def test_a_sample_longer_than_a_chunk_keeps_its_ngrams(monkeypatch: pytest.MonkeyPatch) -> None:
    """N-grams across the border of two chunks are counted once."""
    monkeypatch.setattr(hashed, "CHUNK", 2)
    found, expected = (ExitTable(2, ngram=3, backend=backend) for backend in ("host", "reference"))
    for table in (found, expected):
        table.insert([torch.arange(9), torch.tensor([]), torch.arange(4)], [0, 1, 1])
    for ours, theirs in zip(found._backend.export(), expected._backend.export(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def on_device(table: ExitTable) -> ExitTable:
    """Return a table whose host acts as a device with unchecked tokens."""
    table._backend.device = torch.device("cpu")
    return table


@pytest.mark.parametrize(("ids", "offsets", "word"), [
    ([5, 1 << 20, 6], [0, 3], "token id 1048576"),
    ([5, -1, 6], [0, 3], "token id -1 "),
    ([5, -(1 << 31), 6], [0, 3], "token id -2147483648"),
    ([5, 6, 7], [0, 4], "sample 0"),
    ([5, 6, 7], [-1, 2], "sample 0"),
    ([5, 6, 7], [0, 3, 2], "sample 1"),
])  # fmt: skip
def test_wrong_tokens_on_a_device_are_reported_later(ids: list, offsets: list, word: str) -> None:
    """The query ignores wrong tokens and reads nothing outside; the next check() raises, once."""
    table = ExitTable(2, ngram=2, backend="host")
    table.insert([torch.tensor([5, 6])], [0])
    table.freeze()
    on_device(table)
    ids, offsets = torch.tensor(ids, dtype=torch.int32), torch.tensor(offsets)
    tokens = TokenSet(ids, offsets, torch.zeros(len(ids), dtype=torch.int8))
    assert table.predict(tokens, 0.5).shape == (len(offsets) - 1,)
    with pytest.raises(ConfigError, match=word):
        table.stats()
    table.check()
    if word.startswith("token"):  # an id out of range separates words like a special id
        assert (
            table.distribution(tokens).tolist()
            == table.distribution([torch.tensor([5]), torch.tensor([6])]).sum(0, keepdim=True).tolist()
        )


def test_lists_are_validated_immediately() -> None:
    """Only TokenSets of int32 are validated by the kernels."""
    table = ExitTable(2, backend="host")
    table.insert([torch.tensor([5])], [0])
    table.freeze()
    on_device(table)
    with pytest.raises(ConfigError, match="id 1048576"):
        table.predict([torch.tensor([1 << 20])], 0.5)
    wide = TokenSet(torch.tensor([(1 << 32) + 5]), torch.tensor([0, 1]), torch.zeros(1))
    with pytest.raises(ConfigError, match="id 4294967301"):
        table.predict(wide, 0.5)


def test_a_table_from_inference_mode_can_be_used_outside() -> None:
    """The table changes no inference tensor in place."""
    with torch.inference_mode():
        table, other = (ExitTable(2, ngram=2, backend="host") for _ in range(2))
        for each in (table, other):
            each.insert([torch.tensor([1, 2])], [0])
    table.insert([torch.tensor([1, 3])], [1])
    table.merge(other)
    table.freeze()
    table.check()
    assert table.counts()[1].tolist() == [[2, 1], [2, 0], [0, 1], [2, 0], [0, 1]]


def test_the_operator_passes_torch_s_own_checks() -> None:
    """The operator's schema, fake and functionality agree on any backend."""
    for backend in ("cpu", "host"):
        table = ExitTable(3, ngram=2, backend=backend)
        table.insert([torch.tensor([1, 2, 3])], [1])
        table.freeze()
        ids, offsets = torch.tensor([1, 2, 9], dtype=torch.int32), torch.tensor([0, 2, 3])
        torch.library.opcheck(
            torch.ops.geep.predict_exits.default,
            arguments := (ids, offsets, [9], "quantile", [300, 700], 2, table.handle),
        )
        found = torch.ops.geep.predict_exits(*arguments)
        assert torch.equal(found, table.quantiles(TokenSet(ids, offsets, torch.zeros(3), (9,)), [300, 700]))
    with pytest.raises(ConfigError, match="no table 0"):
        torch.ops.geep.predict_exits(ids, offsets, [], "quantile", [1], 1, 0)


def test_torch_compile_sees_prediction_as_one_operator() -> None:
    """A compiled function that predicts has no graph break and gives the table's answers."""
    table = ExitTable(3, ngram=2, backend="host")
    table.insert([torch.tensor([1, 2, 3]), torch.tensor([4, 4])], [1, 0])
    table.freeze()

    def deeper(ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return table.predict(TokenSet(ids, offsets, torch.zeros_like(ids), (9,)), 500) + 1

    given = torch.tensor([1, 2, 9, 4], dtype=torch.int32), torch.tensor([0, 3, 4])
    compiled = torch.compile(deeper, backend="eager", fullgraph=True)
    assert compiled(*given).tolist() == deeper(*given).tolist()


def test_a_device_without_cupy_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` falls back to the CPU with one warning that gives the reason; without a device there is no warning."""
    monkeypatch.setattr(cuda, "problem", lambda: "CuPy cannot be imported: pip install it")
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=available: answer)
        _fastest.cache_clear()
        if available:
            with pytest.warns(RuntimeWarning, match="kept on the CPU: CuPy cannot be imported"):
                assert ExitTable(2).stats()["backend"] == "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ExitTable(2).stats()["backend"] == "cpu"
    _fastest.cache_clear()
    with pytest.raises(DeviceError, match="pip install"):
        ExitTable(2, backend="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(cuda.problem() is not None, reason=str(cuda.problem()))
def test_a_query_on_the_device_does_not_synchronise() -> None:
    """After the first call, predict has no synchronisation and gives the CPU's answers."""
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 5000, (40,), generator=rng, dtype=torch.int32).tolist() for _ in range(500)]
    tokens = TokenSet.from_lists(rows, special=(0, 1, 2))
    tables = [ExitTable(12, ngram=2, backend=backend) for backend in ("cuda", "cpu")]
    for table in tables:
        table.insert(tokens, torch.arange(500) % 12)
        table.freeze()
    there = tokens.to("cuda")
    rule = Cuts((tuple(5 * UNIT + UNIT // 4 + k * UNIT // 32 for k in range(11)),))
    tables[0].quantiles(there, [500, 900])
    tables[0].assign(there, rule)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, cut = tables[0].quantiles(there, [500, 900]), tables[0].assign(there, rule)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), tables[1].quantiles(tokens, [500, 900]))
    assert torch.equal(cut.cpu(), tables[1].assign(tokens, rule))
    assert torch.equal(tables[0].distribution(there).cpu(), tables[1].distribution(tokens))
