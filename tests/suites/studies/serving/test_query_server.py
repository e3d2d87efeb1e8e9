"""Queries of a load generator: each is answered once, whatever goes wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core import clock
from harness.core.errors import MethodError, ResultError
from suites.studies.serving.batching import Batching
from suites.studies.serving.load_generator import LoadMeasured, LoadTest, generator_capacity, run_test
from suites.studies.serving.load_study import keeps_up
from suites.studies.serving.query_server import QueryServer, ServedQueries


@given(size=st.integers(1, 9), waits=st.booleans(), waiting=st.integers(0, 30), last=st.booleans())
def test_a_call_takes_what_its_rule_says(size: int, waits: bool, waiting: int, last: bool) -> None:
    """A window waits until it is full or nothing more comes; the other rule takes what is there; neither more than its size."""
    taken = Batching(size, waits).take(waiting, last)
    assert taken == (0 if waits and not last and waiting < size else min(size, waiting))


@pytest.mark.parametrize("scenario", ["Offline", "Server", "SingleStream"])
@pytest.mark.parametrize(("size", "waits"), [(1, False), (7, False), (7, True)])
def test_every_query_is_answered_once(loadgen: Any, scenario: Any, size: int, waits: bool) -> None:
    """No query is lost or doubled, in any scenario; a last window that is not full is answered, too."""
    rule = Batching(1 if scenario == "SingleStream" else size, waits)
    found = run_test(loadgen, LoadTest(scenario, 40, rate=100.0), rule, lambda samples: samples % 3, samples=12)
    served = found.served
    assert loadgen.wrong == [] and found.queries == len(served.answered) == 40
    assert served.samples == [number % 12 for number in range(40)]
    assert served.labels == [number % 12 % 3 for number in range(40)]
    assert sum(count for _, _, count in served.calls) == 40
    assert (np.array(served.answered) >= served.arrivals).all()
    if waits and scenario != "SingleStream":
        assert [count for _, _, count in served.calls] == [7, 7, 7, 7, 7, 5]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_a_call_that_fails_loses_no_query(loadgen: Any, error: BaseException) -> None:
    """The generator gets all queries back and comes to its end, then the error is raised."""

    def fails(samples: np.ndarray) -> np.ndarray:
        if 9 in samples:
            raise error
        return samples

    with pytest.raises(type(error)):
        run_test(loadgen, LoadTest("Server", 40, rate=100.0), Batching(4, waits=False), fails, samples=12)
    assert loadgen.wrong == []


def test_a_generator_that_fails_or_miscounts_is_told(loadgen: Any) -> None:
    """Its error is one line; a count of answers that differs from the server's is an error, too."""
    loadgen.fails = 5
    with pytest.raises(ResultError, match="no more queries"):
        run_test(loadgen, LoadTest("Server", 40, rate=1.0), Batching(4, waits=False), np.zeros_like, samples=3)
    loadgen.fails, loadgen.miscount = -1, -1
    with pytest.raises(MethodError, match="counts 39 answered queries, and the server 40"):
        run_test(loadgen, LoadTest("Server", 40, rate=1.0), Batching(4, waits=False), np.zeros_like, samples=3)


def serve(queries: list[tuple[int, int]], rule: Batching, answer: Any = np.zeros_like) -> QueryServer:
    """Serve queries that all came before."""
    server = QueryServer(answer, rule, lambda _: None)
    server.issue(queries)
    server.flush()
    server.end()
    server.serve()
    return server


def test_queries_that_are_issued_twice_or_never_answered_are_told() -> None:
    """Two open queries with one ID are an error, and so is a query that is left when the generator has ended."""
    with pytest.raises(MethodError, match="issued query 7 twice"):
        serve([(7, 0), (7, 1)], Batching(4, waits=False))

    class Forgets(Batching):
        def take(self, waiting: int, last: bool) -> int:
            return 0 if waiting < 3 else 1

    with pytest.raises(MethodError, match="2 queries of the load generator were never answered"):
        serve([(1, 0), (2, 1), (3, 2)], Forgets(4, waits=False))


def test_a_query_cannot_be_answered_twice() -> None:
    """A server that takes a query a second time raises, and answers it no second time."""
    told: list[int] = []
    server = QueryServer(np.zeros_like, Batching(2, waits=False), told.extend)
    server.issue([(1, 0), (2, 0)])
    server._waiting.append(server._waiting[0])  # planted
    server.flush()
    server.end()
    with pytest.raises(MethodError, match="query 1 of the load generator would be answered twice"):
        server.serve()
    assert told == [1, 2]


def test_latencies_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query's latency runs from its issue to the end of its call."""
    ticks = iter(range(100))
    monkeypatch.setattr(clock, "now", lambda: float(next(ticks)))
    served = serve([(1, 0), (2, 0), (3, 0)], Batching(2, waits=False)).served
    assert served.calls == [(1.0, 2.0, 2), (3.0, 4.0, 1)]
    assert served.latencies.tolist() == [2.0, 2.0, 4.0]


@settings(max_examples=30)
@given(after=st.floats(0, 3), call=st.floats(0.001, 1))
def test_a_queue_that_takes_long_to_empty_has_grown(after: float, call: float) -> None:
    """A server keeps up if its queue is empty within a tenth of the test, or two calls, after the last arrival."""
    served = ServedQueries([0.0, 10.0], [call, 10.0 + after], [0, 0], [0, 0], [(0.0, call, 1), (10.0, 10.0 + call, 1)])
    found = LoadMeasured(2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, served)
    assert keeps_up(found) == (found.drained <= max(1.0, 2 * max(end - begin for begin, end, _ in served.calls)))


def test_the_generators_capacity_is_measured_without_a_model(loadgen: Any) -> None:
    """It is what the generator states for a rate that it cannot reach."""
    assert generator_capacity(loadgen, samples=5) == loadgen.capacity
    assert loadgen.tests == [("Server", 1e6)] and loadgen.wrong == []


@pytest.mark.parametrize("scenario", ["Offline", "Server", "SingleStream"])
def test_the_real_generator_counts_as_the_server_does(scenario: Any) -> None:
    """MLPerf LoadGen issues as many queries as asked for, draws from all samples, and its latencies are not below the server's."""
    real = pytest.importorskip("mlperf_loadgen")
    test = LoadTest(scenario, 60, rate=2000.0)
    found = run_test(real, test, Batching(8, waits=scenario == "Server"), lambda samples: samples, samples=5)
    assert found.queries >= 60 and found.served.labels == found.served.samples
    assert set(found.served.samples) == set(range(5))
    assert found.completed_per_s > 0 and found.p99 >= found.p50 > 0
