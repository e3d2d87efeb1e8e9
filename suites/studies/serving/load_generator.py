"""MLPerf LoadGen: its scenarios against a server of this process, and the latencies that it measured.

LoadGen draws samples and arrival times, and measures from the time at which a query was due until its answer, so that a late
generator counts against the server. A run of seconds is no MLPerf result, which takes at least ten minutes and a review.

Source: Reddi et al., MLPerf Inference Benchmark, ISCA 2020; https://github.com/mlcommons/inference/tree/master/loadgen.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.core.errors import ConfigError, MethodError, ResultError
from suites.studies.serving.batching import Batching
from suites.studies.serving.query_server import QueryServer, ServedQueries

Scenario = Literal["Offline", "Server", "SingleStream"]
_DETAIL = "mlperf_log_detail.txt"
_MARK = ":::MLLOG "
_LATENCIES = {"mean": "mean", **{f"p{share}": f"{share}.00_percentile" for share in (50, 90, 99)}}
_COMPLETED: dict[Scenario, str] = {
    "Offline": "result_samples_per_second",
    "Server": "result_completed_samples_per_sec",
    "SingleStream": "result_qps_with_loadgen_overhead",
}
_CAPACITY = 20_000  # queries of the test of the generator
_AT_ONCE = 1e6  # queries/s that no generator reaches
_SEED = 2_026  # of arrivals and samples, with that of the dataset's fits


def load_generator() -> Any:
    """Return the library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("mlperf_loadgen")
    except ImportError as error:
        raise ConfigError(f"load tests need MLPerf LoadGen ({error}): pip install 'geep-bench[load]'") from error


@dataclass(frozen=True)
class LoadTest:
    """One test of the load generator.

    Attributes:
        scenario: ``Offline``: all queries at once; ``SingleStream``: the next query comes with the answer to the last one;
            ``Server``: queries come at random (Poisson) at a rate.
        queries: at least this many.
        seconds: at least this long; ``Server`` only.
        rate: queries/s; ``Server`` only.
        seed: of arrivals and samples.
    """

    scenario: Scenario
    queries: int
    seconds: float = 0.0
    rate: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class LoadMeasured:
    """What the generator measured, times in seconds.

    Attributes:
        queries: that were issued and answered.
        mean, p50, p90, p99: latency from the time at which a query was due.
        completed_per_s: queries/s until the last answer.
        scheduled_per_s: queries/s that were due; 0 outside ``Server``.
        served: what the server noted.
    """

    queries: int
    mean: float
    p50: float
    p90: float
    p99: float
    completed_per_s: float
    scheduled_per_s: float
    served: ServedQueries

    @property
    def drained(self) -> float:
        """Seconds from the last arrival to the last answer."""
        return max(self.served.answered) - self.served.arrivals[-1]


def run_test(
    loadgen: Any, test: LoadTest, batching: Batching, answer: Callable[[np.ndarray], np.ndarray], samples: int
) -> LoadMeasured:
    """Run one test in this thread, with the generator in another one.

    Args:
        loadgen: the library (:func:`load_generator`).
        answer: numbers of samples (int64 [M]) -> their labels (int64 [M]).
        samples: number of samples to draw from.

    Raises:
        MethodError: a query was lost or doubled.
        ResultError: the generator failed or wrote no results.
    """

    def complete(queries: Sequence[int]) -> None:
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query, 0, 0) for query in queries])

    server = QueryServer(answer, batching, complete)
    failed: list[Exception] = []
    with tempfile.TemporaryDirectory() as folder:
        sut = loadgen.ConstructSUT(lambda found: server.issue([(one.id, one.index) for one in found]), server.flush)
        qsl = loadgen.ConstructQSL(samples, samples, lambda _: None, lambda _: None)

        def generate() -> None:
            try:
                loadgen.StartTestWithLogSettings(
                    sut, qsl, _test_settings(loadgen, test), _log_settings(loadgen, folder), f"{folder}/audit.config"
                )
            except Exception as error:  # noqa: BLE001 raised below, in the main thread
                failed.append(error)
            finally:
                server.end()

        thread = threading.Thread(target=generate, name="load generator", daemon=True)
        thread.start()
        try:
            server.serve()
        finally:
            thread.join()
            loadgen.DestroyQSL(qsl)
            loadgen.DestroySUT(sut)
        if failed:
            raise ResultError(f"the load generator failed ({failed[0]}): run the same command again") from failed[0]
        return _measured(Path(folder), test, server.served)


def _test_settings(loadgen: Any, test: LoadTest) -> Any:
    found = loadgen.TestSettings()
    found.scenario = getattr(loadgen.TestScenario, test.scenario)
    found.mode = loadgen.TestMode.PerformanceOnly
    found.min_duration_ms = round(1000 * test.seconds)
    found.min_query_count = test.queries
    for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
        setattr(found, name, _SEED + test.seed)
    if test.scenario == "Server":
        found.server_target_qps = test.rate
    else:
        found.max_query_count = test.queries
        found.offline_expected_qps = 1.0  # times the least duration, 0: no more than the queries asked for
        found.single_stream_expected_latency_ns = 1000  # queries are drawn in advance: never too few
    return found


def _log_settings(loadgen: Any, folder: str) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout, output.copy_detail_to_stdout = folder, False, False
    found = loadgen.LogSettings()
    found.log_output, found.enable_trace = output, False
    return found


def _measured(folder: Path, test: LoadTest, served: ServedQueries) -> LoadMeasured:
    facts: dict[str, Any] = {}
    for line in (folder / _DETAIL).read_text(encoding="utf-8").splitlines():
        if line.startswith(_MARK):
            one = json.loads(line.removeprefix(_MARK))
            facts[one["key"]] = one["value"]
    issued = len(served.arrivals)
    try:
        # Offline is one query with all samples.
        counted = int(facts["result_query_count"]) * (issued if test.scenario == "Offline" else 1)
        found = LoadMeasured(
            queries=issued,
            **{name: facts[f"result_{key}_latency_ns"] / 1e9 for name, key in _LATENCIES.items()},
            completed_per_s=float(facts[_COMPLETED[test.scenario]]),
            scheduled_per_s=float(facts.get("result_scheduled_samples_per_sec", 0.0)),
            served=served,
        )
    except KeyError as error:
        raise ResultError(
            f"the load generator wrote no {error}: use the pinned version of mlcommons-loadgen"
        ) from error
    if counted != issued:
        raise MethodError(f"the load generator counts {counted} answered queries, and the server {issued}")
    return found


def generator_capacity(loadgen: Any, samples: int) -> float:
    """Return the most queries/s that this machine issues and takes when answers cost nothing."""
    test = LoadTest("Server", queries=_CAPACITY, rate=_AT_ONCE)
    return run_test(loadgen, test, Batching(_CAPACITY, waits=False), np.zeros_like, samples).completed_per_s
