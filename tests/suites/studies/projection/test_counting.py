"""Every launch, copy and wait of a pass is recorded by itself, and only inside ``recorded``."""

from __future__ import annotations

import numpy as np
import pytest

from harness.core.work import Step, Tally, Work, record, recorded
from harness.encoder.shape import KNOWN_SHAPES
from suites.studies.projection.counting import narrow
from suites.workloads.random_model import EXECUTORS, ExecutorWorkload


@pytest.fixture(scope="module")
def workload() -> ExecutorWorkload:
    """Eight layers, narrow, 30 samples."""
    shape = narrow(KNOWN_SHAPES["google/bert_uncased_L-8_H-512_A-8"])
    return ExecutorWorkload(shape, 30, "cpu", "float32")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_recorded_blocks_add_up_to_the_counted_work(workload: ExecutorWorkload, executor: str) -> None:
    """The recorded layers and heads of a pass sum to its work, and recording changes no answer."""
    execution = workload.execution(8)
    plain = workload.run(executor, execution)
    with recorded() as steps:
        found = workload.run(executor, execution)
    again = Work()
    for step in steps:
        if "." in step.what:
            again.add(step.what, step.tally)
    assert again.blocks == found.work.blocks == plain.work.blocks
    assert [tally.calls for tally in again.blocks.values()] == [tally.calls for tally in found.work.blocks.values()]
    assert np.array_equal(found.logits, plain.logits)


def test_waits_name_their_copies_and_sequential_rules_wait_most(workload: ExecutorWorkload) -> None:
    """A wait refers to an earlier download; assigned exits wait twice, the released loop per sample."""
    waits = {}
    for executor in ("ladder", "shrink", "faithful"):
        with recorded() as steps:
            workload.run(executor, workload.execution(8))
        for place, step in enumerate(steps):
            if step.what == "wait":
                assert step.count < place and steps[step.count].what == "download"
        waits[executor] = sum(step.count if step.what == "read" else step.what == "wait" for step in steps)
        decided = sum(step.tally.rows for step in steps if step.what == "decide")
    assert waits["ladder"] == 2 < waits["shrink"] < waits["faithful"] == 2 + decided


def test_nothing_is_recorded_outside_and_merged_work_is_recorded_once() -> None:
    """Outside a recording nothing is kept; merging another pass's work records nothing again."""
    assert record("upload", count=3) == -1
    with recorded() as steps:
        one, two = Work(), Work()
        one.add("layer.0", Tally(2, 10, 10, 50))
        two.merge(one)
        assert record("upload", count=3) == 1
    one.add("layer.1", Tally(1, 5, 5, 25))
    assert steps == [Step("layer.0", Tally(2, 10, 10, 50)), Step("upload", Tally(), 3)]
    assert two.blocks["layer.0"].calls == 1


def test_a_recorded_amount_does_not_change_later() -> None:
    """A step keeps the amounts of its moment, although executors may reuse a tally."""
    tally = Tally(1, 2, 2, 4)
    with recorded() as steps:
        Work().add("layer.0", tally)
        tally.add(Tally(1, 2, 2, 4))
    assert steps[0].tally == Tally(1, 2, 2, 4)
