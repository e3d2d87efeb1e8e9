"""Comparison of the times of two runs, against their noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.regression.compare import Limits, compare
from harness.regression.times import LEAST_PAIRS
from harness.results.packed_run import Machine, PackedRun
from tests.harness.regression.conftest import ELSEWHERE, Maker, Runner


def test_times_of_other_machines_are_not_compared(make_cell: Maker, make_packed: Runner) -> None:
    """Times of another machine, device or executor are refused in one line; the rest is compared."""
    cells = [make_cell(round_seconds=[0.1] * 30, reference_seconds=[0.2] * 30)]
    base = make_packed(*cells)
    found = compare(base, make_packed(*cells, machines=[ELSEWHERE]))
    (line,) = [remark for remark in found.remarks if remark.startswith("times")]
    assert "cpu a CPU against another CPU, cores 2 against 8" in line
    assert found.changes[0].time is None and found.changes[0].wins == 0
    cuda = make_cell(device="cuda", dtype="bfloat16", compute="graphs", executor="ladder")
    on_gpu = compare(base, make_packed(cuda))
    assert any("device cpu against cuda" in remark for remark in on_gpu.remarks)
    assert len(on_gpu.changes) == 1 and not on_gpu.only_base
    unknown = make_packed(*cells, machines=[Machine()])
    assert any("the machine is unknown" in remark for remark in compare(unknown, unknown).remarks)


def passes(rng: np.random.Generator, seconds: float, rounds: int, noise: float = 0.01) -> list[float]:
    return [float(value) for value in seconds * np.exp(rng.normal(0, noise, rounds))]


def timed(
    make_cell: Maker, make_packed: Runner, seed: int, slow: dict[str, float], rounds: int = 3, **change: Any
) -> PackedRun:
    """``bert`` and three methods on four datasets; ``slow`` multiplies a method's seconds."""
    rng = np.random.default_rng(seed)
    return make_packed(
        *(
            make_cell(
                method=method,
                dataset=dataset,
                round_seconds=passes(rng, 0.1 * slow.get(method, 1.0), rounds),
                reference_seconds=passes(rng, 0.2, rounds),
                **change,
            )
            for dataset in ("a", "b", "c", "d")
            for method in ("bert", "geep", "fastbert", "tinybert")
        )
    )


def test_a_slow_method_is_found(make_cell: Maker, make_packed: Runner) -> None:
    """10 % more time in one method is an alarm about that method alone, 10 % less is none, and the ratio is about 1 / 1.1."""
    base = timed(make_cell, make_packed, 1, {})
    found = compare(base, timed(make_cell, make_packed, 2, {"geep": 1.1}))
    assert found.alarms and all("geep" in alarm for alarm in found.alarms)
    (geep,) = [method for method in found.methods if method.name == "geep"]
    assert geep.ratio == pytest.approx(1 / 1.1, rel=0.02)
    assert "bert" not in [method.name for method in found.methods]
    assert not compare(base, timed(make_cell, make_packed, 3, {"geep": 0.9})).alarms


def test_points_beside_shared_passes_are_no_independent_evidence(make_cell: Maker, make_packed: Runner) -> None:
    """A fast moment of shared passes shows in all points: sixteen of them prove no more than one, passes of their own do."""

    def points(seed: int, fast: float, shared: bool) -> PackedRun:
        rng = np.random.default_rng(seed)
        beside = [passes(rng, 0.2 / fast, 3, 0.05) for _ in range(16)]
        return make_packed(
            *(
                make_cell(
                    method="geep",
                    point=f"budget={number}",
                    round_seconds=passes(rng, 0.1, 3, 0.05),
                    reference_seconds=[0.19 / fast, 0.2 / fast, 0.21 / fast] if shared else beside[number],
                )
                for number in range(16)
            )
        )

    def p_value(shared: bool) -> float:
        (method,) = compare(points(0, 1.0, shared), points(1, 1.08, shared)).methods
        return method.p

    assert p_value(shared=True) > 0.05 > 0.005 > p_value(shared=False)


def test_a_slow_method_within_the_limit_gives_no_alarm(make_cell: Maker, make_packed: Runner) -> None:
    """The caller chooses the limit, however significant a slow-down is."""
    base, new = timed(make_cell, make_packed, 1, {}, 30), timed(make_cell, make_packed, 2, {"geep": 1.1}, 30)
    assert compare(base, new).alarms
    assert not compare(base, new, Limits(slower=0.15)).alarms


def test_a_stall_is_not_a_slow_down(make_cell: Maker, make_packed: Runner) -> None:
    """A machine that stalls for two passes of three changes the median but not the best pass, and is no alarm."""
    base = timed(make_cell, make_packed, 1, {})
    new = timed(make_cell, make_packed, 2, {})
    stalled = [
        cell.model_copy(
            update={"round_seconds": [1.5 * cell.round_seconds[0], 1.5 * cell.round_seconds[1], cell.round_seconds[2]]}
        )
        if cell.cell.method == "geep"
        else cell
        for cell in new.cells
    ]
    assert not compare(base, make_packed(*stalled)).alarms


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.05, 0.2]))
def test_noise_alone_gives_no_alarm(make_cell: Maker, make_packed: Runner, seed: int, noise: float) -> None:
    """With any noise, a run is not slower than an equal one, and the noise range encloses the ratio."""
    rng = np.random.default_rng(seed)

    def run() -> PackedRun:
        return make_packed(
            *(
                make_cell(
                    method=m,
                    dataset=d,
                    round_seconds=passes(rng, 1, 3, noise),
                    reference_seconds=passes(rng, 2, 3, noise),
                )
                for d in "abc"
                for m in ("bert", "geep", "fastbert")
            )
        )

    found = compare(run(), run())
    of_cells = [alarm for alarm in found.alarms if " over " not in alarm]  # one may reach the mean over its sets, too
    assert len(of_cells) <= 1
    assert all(c.time.low <= c.time.ratio <= c.time.high for c in found.changes if c.time is not None)


def test_few_passes_give_no_comparison_of_times(make_cell: Maker, make_packed: Runner) -> None:
    """With too few A/A pairs the noise is unknown: times are not compared, and the remark gives advice."""
    cell = make_cell(round_seconds=[0.1, 0.2], reference_seconds=[0.2, 0.2])
    found = compare(make_packed(cell), make_packed(cell))
    assert any(f"({LEAST_PAIRS} are needed)" in remark for remark in found.remarks)
    assert found.changes[0].time is None


def test_results_without_passes_are_refused(make_cell: Maker, make_packed: Runner) -> None:
    """Results without stored passes are compared in everything but time."""
    found = compare(make_packed(make_cell()), make_packed(make_cell()))
    assert any("single passes were not stored" in remark for remark in found.remarks)
    other = compare(make_packed(make_cell(reference=None, round_seconds=[1.0])), make_packed(make_cell()))
    assert any("no common reference" in remark for remark in other.remarks)


def test_a_slower_reference_is_reported_without_an_alarm(make_cell: Maker, make_packed: Runner) -> None:
    """If everything is 20 % slower, no ratio changes, and the reference's own seconds are reported."""
    base = timed(make_cell, make_packed, 1, {})
    slow = [
        cell.model_copy(
            update={
                "round_seconds": [1.2 * s for s in cell.round_seconds],
                "reference_seconds": [1.2 * s for s in cell.reference_seconds],
            }
        )
        for cell in base.cells
    ]
    found = compare(base, make_packed(*slow))
    assert not found.alarms
    assert any("reference itself took 20.0 % more time" in remark for remark in found.remarks)
