"""Benchmark the exit table and the schedule against implementations with torch alone.

``pytest suites/test_exit_table.py --benchmark-only --tokens 1000000 --device cuda``. On CUDA, device events measure the time as
well (``device_seconds`` in ``extra_info``, one per round). ``per_second`` is the rate of what ``counted`` names; ``roofline`` is
the least number of bytes that the operation must move (``least_bytes``) over time, as a fraction of the copy bandwidth
measured in the same session.

Benchmarks of the hash table itself (load factor, single tokens by hash) run the kernels on the device, or emulated on the host
with at most 2^15 tokens, which tests that they work and says nothing about speed. An alternative that runs out of memory is
skipped. For more than 10^8 tokens use ``suites.studies.exit_table_load``, which keeps no text in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geep.exit_table import ExitTable
from harness.core import clock
from harness.core.errors import DeviceError
from harness.encoder.backbone import default_device
from harness.execution.schedule import schedule, schedule_on_device
from suites.workloads import exit_table_alternatives
from suites.workloads.exit_table_alternatives import LENGTH
from suites.workloads.exit_table_workloads import (
    LAYERS,
    LOADS,
    QUANTILE,
    SKEWS,
    SMOOTHING,
    LoadWorkload,
    TableKernels,
    TableWorkload,
    grams,
    partly_new,
)
from suites.workloads.exit_table_workloads import random_exits as exits_for

ROW_BYTES = 32  # a frozen slot: key and twelve entries
ROUNDS, WARM_UP = 5, 2

# Implementations, and the n-gram lengths that they support.
PREDICT: dict[str, tuple[Callable[[TableWorkload], Tensor], tuple[int, ...]]] = {
    "table": (lambda w: w.table.predict(w.asked, QUANTILE), (1, 2)),
    "gather_sum": (lambda w: exit_table_alternatives.gather_and_sum(w.asked, w.rows, QUANTILE), (1,)),
    "embedding_bag": (lambda w: exit_table_alternatives.bag_of_rows(w.asked, w.rows, QUANTILE), (1,)),
    "searchsorted": (lambda w: exit_table_alternatives.search_sorted(w.asked, w.rows, QUANTILE, w.ngram), (1, 2)),
    "hashing_trick": (lambda w: exit_table_alternatives.hashing_trick(w.asked, w.rows, QUANTILE, w.ngram), (1, 2)),
}


def _device(config: pytest.Config) -> str:
    return config.getoption("--device") or default_device()


@pytest.fixture(scope="module", params=[(skew, n) for skew in SKEWS for n in (1, 2)], ids=lambda p: f"{p[0]}-{p[1]}")
def workload(request: pytest.FixtureRequest) -> TableWorkload:
    """Text and table, by skew and n-gram length."""
    skew, ngram = request.param
    return TableWorkload(request.config.getoption("--tokens"), skew, ngram, _device(request.config))


@pytest.fixture(scope="module")
def kernels(request: pytest.FixtureRequest) -> TableKernels:
    """The place where the hash table's kernels run."""
    try:
        return TableKernels.here(_device(request.config), request.config.getoption("--tokens"))
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=SKEWS)
def filling(request: pytest.FixtureRequest, kernels: TableKernels) -> LoadWorkload:
    """Text that fills hash tables."""
    return LoadWorkload(kernels, request.param)


@cache
def bandwidth(device: str) -> float:
    """Return the bytes per second of a plain copy on this device, reads and writes counted."""
    source = torch.ones((1 << 30 if device == "cuda" else 1 << 27) // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(7):
        phases = clock.Phases(device)
        with phases("run"):
            target.copy_(source)
        clock.synchronise(device)
        seconds.append(phases.seconds()["run"])
    return 2 * source.nbytes / sorted(seconds)[3]


@dataclass(frozen=True)
class RoundCost:
    """The work of one round: ``count`` of ``counted``, with at least ``least_bytes`` moved."""

    counted: str
    count: int
    least_bytes: int


def query_cost(samples: int, ngram: int) -> RoundCost:
    """Every id and every n-gram's row is read, an exit is written."""
    lookups = grams(samples, ngram)
    return RoundCost("n-grams looked up", lookups, 4 * samples * LENGTH + ROW_BYTES * lookups + 2 * samples)


def insert_cost(samples: int, ngram: int) -> RoundCost:
    """Every id is read, every n-gram's count is read and written."""
    inserts = grams(samples, ngram)
    return RoundCost("n-grams inserted", inserts, 4 * samples * LENGTH + 8 * inserts)


def _measure(
    benchmark: Any,
    run: Callable[..., Any],
    cost: RoundCost,
    tokens: int,
    device: str,
    backend: str | None,
    prepare: Callable[[], Any] | None = None,
) -> Any:
    """Time ``run`` and return its result.

    Args:
        backend: of the timed table; ``None`` for an alternative.
        prepare: makes the argument of ``run`` before every round, untimed.
    """
    seconds = []

    def once(*given: Any) -> Any:
        phases = clock.Phases(device)
        with phases("run"):
            found = run(*given)
        clock.synchronise(device)
        seconds.append(phases.seconds()["run"])
        return found

    setup: Callable[[], Any] | None = (lambda: ((prepare(),), {})) if prepare else None
    try:
        found = benchmark.pedantic(once, setup=setup, rounds=ROUNDS, warmup_rounds=WARM_UP, iterations=1)
    except torch.OutOfMemoryError:
        if backend is not None:
            raise
        pytest.skip(f"{tokens} tokens need more memory than {device} has")
    if benchmark.disabled:  # it ran once, to check the result
        return found
    measured = seconds[WARM_UP:]
    median = float(np.median(measured))
    rates = {"per_second": cost.count / median, "roofline": cost.least_bytes / median / bandwidth(device)}
    where = {"device": device, "backend": backend, "tokens": tokens, "device_seconds": measured}
    benchmark.extra_info.update({**where, **asdict(cost), **rates})
    return found


@pytest.mark.parametrize("name", PREDICT)
def test_predict(benchmark: Any, workload: TableWorkload, name: str) -> None:
    """Ids on the device -> exits on the device."""
    run, ngrams = PREDICT[name]
    if workload.ngram not in ngrams:
        pytest.skip(f"{name} finds rows by token id and has none for n-grams")
    benchmark.group = f"predict, {workload.ngram}-grams, {workload.skew}"
    expected = PREDICT["table"][0](workload)
    assert len(workload.rows.keys)  # cached before the clock starts
    cost, backend = query_cost(len(workload.asked), workload.ngram), workload.table.stats()["backend"]
    own = backend if name == "table" else None
    found = _measure(benchmark, lambda: run(workload), cost, workload.tokens, workload.device, own)
    agreement = float((found == expected).float().mean())
    benchmark.extra_info["agreement"] = agreement
    assert agreement == 1 or name == "hashing_trick"  # keys that collide share a row


@pytest.mark.parametrize("name", ["table", "unique_bincount"])
def test_insert(benchmark: Any, workload: TableWorkload, name: str) -> None:
    """Count all n-grams into an empty table."""
    benchmark.group = f"insert, {workload.ngram}-grams, {workload.skew}"
    stats = workload.table.stats()

    def ours() -> int:
        return int(workload.counted().stats()["keys"])

    def theirs() -> int:
        return len(exit_table_alternatives.count_by_sorting(workload.train, workload.exits, LAYERS, workload.ngram)[0])

    run, own = (ours, stats["backend"]) if name == "table" else (theirs, None)
    cost = insert_cost(len(workload.train), workload.ngram)
    assert _measure(benchmark, run, cost, workload.tokens, workload.device, own) == stats["keys"]


def test_freeze(benchmark: Any, workload: TableWorkload) -> None:
    """Turn counts into rows."""
    benchmark.group = f"freeze, {workload.ngram}-grams, {workload.skew}"
    stats = workload.table.stats()
    cost = RoundCost(
        "keys frozen", stats["keys"], stats["keys"] * (8 + 4 * LAYERS + ROW_BYTES)
    )  # reads counts, writes rows
    where = workload.tokens, workload.device, stats["backend"]
    _measure(benchmark, lambda table: table.freeze(1, SMOOTHING), cost, *where, prepare=workload.counted)


@pytest.mark.parametrize("name", ["schedule", "torch_sort"])
@pytest.mark.parametrize("skew", SKEWS)
def test_sort(request: pytest.FixtureRequest, benchmark: Any, skew: str, name: str) -> None:
    """Exits and lengths on the device -> order on the device. With skew, most samples are short and exit early."""
    device, tokens = _device(request.config), request.config.getoption("--tokens")
    benchmark.group = f"sort by exit and length, {skew}"
    size = max(1000, tokens // LENGTH)
    rng = np.random.default_rng(3)
    if skew == "uniform":
        drawn = rng.integers(0, LAYERS, size), rng.integers(1, 129, size)
    else:
        drawn = np.minimum(rng.zipf(1.5, size) - 1, LAYERS - 1), np.minimum(rng.zipf(1.2, size), 128)
    exits = torch.from_numpy(drawn[0].astype(np.int16)).to(device)
    lengths = torch.from_numpy(drawn[1]).to(device)

    def ours() -> Tensor:
        if device == "cuda":
            return schedule_on_device(exits, lengths, depth=LAYERS, max_length=128)
        return schedule(exits, lengths)

    def theirs() -> Tensor:
        return torch.sort(-(exits.to(torch.int64) * 129 + lengths), stable=True).indices

    run, own = (ours, device) if name == "schedule" else (theirs, None)
    cost = RoundCost("samples sorted", size, 18 * size)  # reads an exit and a length, writes a place
    assert torch.equal(_measure(benchmark, run, cost, tokens, device, own), theirs())


@pytest.mark.parametrize("load", LOADS)
def test_predict_by_load(benchmark: Any, filling: LoadWorkload, load: float) -> None:
    """Query hash tables of one size at several load factors, which lengthen the search."""
    benchmark.group = f"predict by load factor, 2-grams, {filling.skew}"
    train, device = filling.train(load), filling.text.device
    exits = exits_for(len(train), device)
    table, backend = filling.counted(load, train, exits)
    table.freeze(1, SMOOTHING)
    asked = partly_new(train, filling.skew, len(filling.text))
    where = filling.kernels.tokens, device.type, backend.name
    found = _measure(benchmark, lambda: table.predict(asked, QUANTILE), query_cost(len(asked), 2), *where)
    facts = {"load": backend.load, "slots": filling.slots, "longest_search": backend.longest_search}
    benchmark.extra_info.update({**facts, "hit_rate": table.stats()["hit_rate"]})
    few = partly_new(train, filling.skew, 10)
    usual = ExitTable(LAYERS, 2)
    usual.insert(train, exits)
    usual.freeze(1, SMOOTHING)
    assert len(found) == len(asked) and torch.equal(table.predict(few, QUANTILE), usual.predict(few, QUANTILE))


@pytest.mark.parametrize("load", LOADS)
def test_insert_by_load(benchmark: Any, filling: LoadWorkload, load: float) -> None:
    """Fill an empty hash table of one size up to several load factors."""
    benchmark.group = f"insert by load factor, 2-grams, {filling.skew}"
    train, device = filling.train(load), filling.text.device
    exits, cost = exits_for(len(train), device), insert_cost(len(train), 2)
    where = len(train) * LENGTH, device.type, filling.kernels.backend
    table, backend = _measure(benchmark, lambda: filling.counted(load, train, exits), cost, *where)
    benchmark.extra_info.update({"load": backend.load, "slots": filling.slots})
    assert int(table.counts()[1].sum(dtype=np.int64)) == cost.count


@pytest.mark.parametrize("name", ["dense", "hash"])
def test_single_tokens(benchmark: Any, filling: LoadWorkload, name: str) -> None:
    """Find single tokens by address, as by default, or by hash with the same kernels: the use of the dense table."""
    benchmark.group = f"single tokens, dense or by hash, {filling.skew}"
    table, backend = filling.kernels.table(1, dense_ids=None if name == "dense" else 0)
    table.insert(filling.text, exits_for(len(filling.text), filling.text.device))
    table.freeze(1, SMOOTHING)
    asked = partly_new(filling.text, filling.skew, len(filling.text))
    where = filling.kernels.tokens, filling.text.device.type, backend.name
    _measure(benchmark, lambda: table.predict(asked, QUANTILE), query_cost(len(asked), 1), *where)
    assert table.stats()["layout"] == ("dense" if name == "dense" else "dense+hash")
