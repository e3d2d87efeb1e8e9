"""Records what every executor asks a device for, on a model whose answers make samples exit at every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Literal

from harness.contracts import Execution
from harness.core.work import BlockCost, Step, Tally, recorded
from harness.encoder.model import HEADS
from harness.encoder.shape import EncoderShape
from harness.execution.run_pass import IN_FLIGHT
from suites.workloads.random_model import ExecutorWorkload

LABELS = 2  # of the random model


def narrow(shape: EncoderShape) -> EncoderShape:
    """Return a shape of the same depth that is cheap to run: counts of rows, tokens and pairs do not depend on the width."""
    return replace(shape, width=16, heads=2, intermediate=32, vocab_size=min(shape.vocab_size, 4096))


def block_costs(shape: EncoderShape, labels: int = LABELS, head: str = "fastbert") -> dict[str, BlockCost]:
    """Return the cost of every kind of block of the random model at a shape, without its weights."""
    from harness.core.work import KeyValueCost, LayerCost

    return {
        "layer": LayerCost(shape.width, shape.intermediate),
        "head": HEADS[head](shape.width, labels).cost(),
        "keys": KeyValueCost(shape.width),
    }


@contextmanager
def in_flight_as_on(kind: Literal["cpu", "cuda"]) -> Iterator[None]:
    """Let executors on the CPU keep as many batches in flight as on a device of ``kind``, so that waits come in its order."""
    IN_FLIGHT["cpu"] = IN_FLIGHT.get(kind, 1)
    try:
        yield
    finally:
        del IN_FLIGHT["cpu"]


def steps_of(workload: ExecutorWorkload, executor: str, execution: Execution) -> list[Step]:
    """Return the steps of one pass."""
    _ = workload.exits, workload.table  # made beforehand
    with recorded() as steps:
        workload.run(executor, execution)
    return steps


def to_json(steps: Sequence[Step]) -> list[list[Any]]:
    """Return steps as JSON values."""
    return [[step.what, *list(asdict(step.tally).values())[:4], step.count] for step in steps]


def from_json(rows: Sequence[Sequence[Any]]) -> list[Step]:
    """Return the steps of :func:`to_json`."""
    return [Step(what, Tally(*amounts), count) for what, *amounts, count in rows]


def launches(steps: Sequence[Step]) -> Mapping[str, float]:
    """Return counts that do not depend on a device: runs of layers and heads, tokens per layer run (rows of its matrices), waits,
    and bytes copied.
    """
    layers = [step.tally for step in steps if step.what.startswith("layer.")]
    return {
        "layers": len(layers),
        "heads": sum(step.what.startswith("head.") for step in steps),
        "rows_per_layer": sum(tally.tokens for tally in layers) / max(1, len(layers)),
        "waits": sum(step.count if step.what == "read" else step.what == "wait" for step in steps),
        "bytes_copied": sum(step.count for step in steps if step.what in ("upload", "download")),
    }
