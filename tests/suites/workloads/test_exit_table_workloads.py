"""The workloads of the exit table's benchmarks have the stated load factors and queries."""

from __future__ import annotations

import pytest
import torch

from geep.exit_table.backends.hashed import kernels
from harness.core.errors import DeviceError
from harness.kernels import cuda, host
from suites.workloads import exit_table_workloads
from suites.workloads.exit_table_alternatives import LENGTH, text
from suites.workloads.exit_table_workloads import (
    LAYERS,
    LOADS,
    LoadWorkload,
    TableKernels,
    first,
    partly_new,
    random_exits,
)

NEEDS_COMPILER = pytest.mark.skipif(host.problem() is not None, reason=str(host.problem()))


@NEEDS_COMPILER
@pytest.mark.parametrize("skew", exit_table_workloads.SKEWS)
def test_tables_have_the_requested_load(skew: str) -> None:
    """The slots are fixed, and the keys fill them to the load within one sample."""
    filling = LoadWorkload(TableKernels("host", host.launcher(kernels(LAYERS)), 6000), skew)
    sizes = []
    for load in LOADS:
        train = filling.train(load)
        table, backend = filling.counted(load, train, random_exits(len(train), "cpu"))
        assert len(backend._keys) == filling.slots
        assert load - LENGTH / filling.slots <= backend.load <= load
        counting = backend.load
        table.freeze()
        assert len(backend._slots) == filling.slots * backend._words and backend.load == counting
        sizes.append(len(train))
    assert sizes == sorted(set(sizes))


def test_four_fifths_of_queries_are_known() -> None:
    """Known samples are whole samples of the given text; the others are new."""
    seen = first(text(6400, 30_522, "uniform", seed=0), 50)
    asked = partly_new(seen, "uniform", 200)
    known = {tuple(row) for row in seen.ids.view(-1, LENGTH).tolist()}
    rows = [tuple(row) in known for row in asked.ids.view(-1, LENGTH).tolist()]
    assert len(seen) == 50 and len(asked) == 200
    assert rows == [True] * 160 + [False] * 40
    assert torch.equal(asked.offsets, torch.arange(201) * LENGTH)


def test_a_missing_kernel_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device the host takes less text; without a compiler as well, one line names both reasons."""
    monkeypatch.setattr(host, "problem", lambda: "no C++ compiler")
    monkeypatch.setattr(cuda, "problem", lambda: "no CuPy")
    with pytest.raises(DeviceError, match="no CuPy; and no C.. compiler"):
        TableKernels.here("cuda", 100)
    monkeypatch.setattr(host, "problem", lambda: None)
    monkeypatch.setattr(host, "launcher", lambda source: None)
    assert TableKernels.here("cpu", 1 << 40) == TableKernels("host", None, exit_table_workloads.HOST_TOKENS)
