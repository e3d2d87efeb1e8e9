"""A load generator in place of MLPerf LoadGen: the same protocol, without waiting between arrivals."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


class FakeLoadGen:
    """Issues queries in the calling thread and checks that each is answered exactly once.

    Attributes:
        p99: latency that it states, seconds, by rate; the other latencies are shares of it.
        capacity: queries/s that it states for rates it cannot reach.
        miscount: added to the number of answered queries that it states.
        fails: it raises after this many queries.
        wrong: IDs that were answered without being open.
    """

    TestScenario = SimpleNamespace(Offline="Offline", Server="Server", SingleStream="SingleStream")
    TestMode = SimpleNamespace(PerformanceOnly="performance")
    TestSettings = LogSettings = LogOutputSettings = SimpleNamespace

    def __init__(self, p99: Callable[[float], float] = lambda rate: 0.01, capacity: float = 1e5) -> None:
        self.p99, self.capacity = p99, capacity
        self.miscount, self.fails = 0, -1
        self.wrong: list[int] = []
        self.tests: list[tuple[str, float]] = []
        self._open: set[int] = set()
        self._changed = threading.Condition()
        self._next = 0

    def QuerySampleResponse(self, query: int, data: int, size: int) -> int:
        return query

    def ConstructSUT(self, issue: Any, flush: Any) -> int:
        self._issue, self._flush = issue, flush
        return 1

    def ConstructQSL(self, total: int, fitting: int, load: Any, unload: Any) -> int:
        self._samples = total
        return 2

    def DestroySUT(self, sut: int) -> None:
        del self._issue, self._flush

    def DestroyQSL(self, qsl: int) -> None:
        del self._samples

    def QuerySamplesComplete(self, queries: list[int]) -> None:
        with self._changed:
            self.wrong += [query for query in queries if query not in self._open]
            self._open.difference_update(queries)
            self._changed.notify()

    def _send(self, count: int) -> None:
        found = [SimpleNamespace(id=self._next + i, index=(self._next + i) % self._samples) for i in range(count)]
        self._next += count
        with self._changed:
            self._open.update(one.id for one in found)
        self._issue(found)

    def _wait(self) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: not self._open, timeout=60):
                raise RuntimeError(f"{len(self._open)} queries were lost")

    def StartTestWithLogSettings(self, sut: int, qsl: int, test: Any, logs: Any, audit: str) -> None:
        rate = test.server_target_qps if test.scenario == "Server" else 0.0
        self.tests.append((test.scenario, rate))
        count = max(test.min_query_count, round(rate * test.min_duration_ms / 1000))
        for number in range(1 if test.scenario == "Offline" else count):
            if number == self.fails:
                raise RuntimeError("no more queries")
            self._send(count if test.scenario == "Offline" else 1)
            if test.scenario == "SingleStream":
                self._wait()
        self._flush()
        self._wait()
        self._write(Path(logs.log_output.outdir), test.scenario, count, rate)

    def _write(self, folder: Path, scenario: str, count: int, rate: float) -> None:
        p99 = self.p99(rate)
        facts = {
            "result_query_count": (1 if scenario == "Offline" else count) + self.miscount,
            "result_mean_latency_ns": round(0.5e9 * p99),
            "result_50.00_percentile_latency_ns": round(0.4e9 * p99),
            "result_90.00_percentile_latency_ns": round(0.9e9 * p99),
            "result_99.00_percentile_latency_ns": round(1e9 * p99),
            "result_samples_per_second": 400.0,
            "result_qps_with_loadgen_overhead": 100.0,
            "result_scheduled_samples_per_sec": rate,
            "result_completed_samples_per_sec": min(rate, self.capacity),
        }
        lines = [f":::MLLOG {json.dumps({'key': key, 'value': value})}" for key, value in facts.items()]
        (folder / "mlperf_log_detail.txt").write_text("\n".join(["a line of another kind", *lines]), encoding="utf-8")


@pytest.fixture
def loadgen() -> FakeLoadGen:
    return FakeLoadGen()
