"""Benchmark the executors on one random model: the same samples and exits, run in different ways.

``pytest suites/test_executors.py --benchmark-only --shape bert-base-uncased --samples 10000 --batch-size 256 --device cuda``

Time and executed layers are measured; answers do not matter, see ``suites/workloads/random_model.py``. ``ladder``, ``exact-k``
and ``verified`` know exits beforehand, ``look1`` after one head; ``shrink``, ``rebatch`` and ``faithful`` determine them layer by
layer. Every row has its launches, rows per launch, synchronisations (``waits``) and copies, see
:mod:`suites.workloads.launch_counts`. ``wall_ratio`` is the time of full depth over that of the executor, the median over rounds
that alternate both.
``roofline`` is FLOPs over time, as a fraction of the rate of a large matrix product in the same session.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from harness.core import clock
from harness.core.work import Step, recorded
from harness.encoder.backbone import default_device
from harness.execution.engine import DTYPES
from harness.measure.resources import matrix_rate
from suites.workloads.launch_counts import launch_counts
from suites.workloads.random_model import EXECUTORS, ExecutorWorkload

WINDOWS = (256, 1024, 0)


@pytest.fixture(scope="module")
def workload(request: pytest.FixtureRequest) -> ExecutorWorkload:
    """The model and samples that the command line asks for."""
    option = request.config.getoption
    device = option("--device") or default_device()
    return ExecutorWorkload(
        option("--shape"), option("--samples"), device, "bfloat16" if device == "cuda" else "float32"
    )


@pytest.fixture(scope="module")
def rate(workload: ExecutorWorkload) -> float:
    """FLOP/s of a large matrix product on this device."""
    return matrix_rate(workload.device, DTYPES[workload.dtype])


def _measure(
    benchmark: Any, request: pytest.FixtureRequest, workload: ExecutorWorkload, rate: float, executor: str, window: int
) -> None:
    option = request.config.getoption
    execution = workload.execution(option("--batch-size"), option("--compute"), window)
    phases: list[float] = []
    full: list[float] = []
    steps: list[Step] = []

    def timed(name: str) -> tuple[float, Any]:
        whole = clock.Phases(workload.device)
        with whole("pass"):
            found = workload.run(name, execution)
        return whole.seconds()["pass"], found

    def once() -> Any:
        nonlocal steps
        with recorded() as steps:
            seconds, found = timed(executor)
        phases.append(seconds)
        return found

    def full_depth() -> None:
        full.append(timed("bert")[0])

    setup = full_depth if window == 0 else None
    found = benchmark.pedantic(once, setup=setup, rounds=3, warmup_rounds=1, iterations=1)
    layers = found.work.rows("layer") / workload.samples
    # With --benchmark-disable it ran once, without a time.
    depth, seconds = workload.model.depth, math.nan if benchmark.disabled else benchmark.stats["median"]
    benchmark.extra_info.update(
        {
            "shape": workload.shape,
            "device": workload.device,
            "dtype": workload.dtype,
            "compute": "eager" if executor == "faithful" else execution.compute,
            "batch_size": execution.batch_size,
            "window": window,
            "samples": workload.samples,
            "mean_tokens": float(workload.tokens.lengths.float().mean()),
            "mean_layers": layers,
            "layer_ratio": depth / layers,
            "mean_heads": found.work.rows("head") / workload.samples,
            "samples_per_s": workload.samples / seconds,
            "device_seconds": phases[-3:],
            **launch_counts(steps),
            "wall_ratio": float(np.median(np.divide(full, phases)[-3:])) if full else None,
            "roofline": workload.model.cost().flops(found.work, "full") / seconds / rate,
            "phases": found.phases,
        }
    )
    # The timed pass must have run as many layers as its exits require.
    assert layers == pytest.approx(found.exit_layer.mean() + 1)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_executor(
    benchmark: Any, request: pytest.FixtureRequest, workload: ExecutorWorkload, rate: float, executor: str
) -> None:
    """Run all samples at once."""
    benchmark.group = f"executors, {workload.shape}, batch {request.config.getoption('--batch-size')}"
    _measure(benchmark, request, workload, rate, executor, 0)


@pytest.mark.parametrize("window", WINDOWS, ids=lambda size: f"{size or 'all'}")
@pytest.mark.parametrize("executor", ["exact-k", "ladder"])
def test_window(
    benchmark: Any, request: pytest.FixtureRequest, workload: ExecutorWorkload, rate: float, executor: str, window: int
) -> None:
    """Sort and run samples window by window."""
    benchmark.group = f"windows, {executor}, {workload.shape}"
    _measure(benchmark, request, workload, rate, executor, window)
