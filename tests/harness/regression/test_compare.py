"""Comparison of accuracy and counts of two runs with fabricated cells."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from harness.regression.compare import Limits, compare
from harness.results.packed_run import PackedCell
from tests.harness.regression.conftest import ELSEWHERE, Maker, Runner, alarmed, bind, worse


def test_a_run_is_no_worse_than_itself(make_cell: Maker, make_packed: Runner) -> None:
    """Equal runs have no change, no alarm and no possible significance."""
    run = make_packed(make_cell(), make_cell(method="bert"))
    found = compare(run, run)
    assert not found.alarms and not found.only_base and not found.only_new
    assert not any(change.moved for change in found.changes)
    assert all(change.p_adjusted is None and (change.wins, change.losses) == (0, 0) for change in found.changes)


@pytest.mark.parametrize(
    ("lost", "won", "alarm"),
    [(12, 0, True), (6, 0, False), (40, 38, False), (0, 30, False), (36, 12, True), (30, 20, False)],
    ids=["clear", "too few to tell", "chance", "better", "discordant but clear", "discordant"],
)
def test_accuracy_needs_significance(make_cell: Maker, make_packed: Runner, lost: int, won: int, alarm: bool) -> None:
    """Losses among 400 samples are an alarm unless wins outweigh them."""
    found = compare(make_packed(make_cell()), make_packed(make_cell(worse(lost, won))))
    assert bool(found.alarms) == alarm
    assert found.changes[0].difference == pytest.approx((won - lost) / 400)
    assert (found.changes[0].wins, found.changes[0].losses) == (won, lost)
    low, high = found.changes[0].interval or (1, -1)
    assert low <= found.changes[0].difference <= high


def test_accuracy_needs_more_than_the_margin(make_cell: Maker, make_packed: Runner) -> None:
    """A significant loss of 3 points is no alarm with a margin of 4; between machines the wider margin applies."""
    base, new = make_packed(make_cell()), make_packed(make_cell(worse(12)))
    assert "accuracy down by 3.00 points" in alarmed(compare(base, new))
    assert not compare(base, new, Limits(margin=0.04)).alarms
    abroad = make_packed(make_cell(worse(12)), machines=[ELSEWHERE])
    assert not compare(base, abroad).alarms
    assert "accuracy down" in alarmed(compare(base, make_packed(make_cell(worse(16)), machines=[ELSEWHERE])))


def test_many_cells_are_adjusted_only_if_they_changed(make_cell: Maker, make_packed: Runner) -> None:
    """Eight lost samples are an alarm among 87 unchanged cells, but not among 87 that changed as much by chance."""
    others = [f"m{number}" for number in range(87)]
    base = make_packed(make_cell(), *(make_cell(method=name) for name in others))
    still = make_packed(make_cell(worse(8)), *(make_cell(method=name) for name in others))
    moving = make_packed(make_cell(worse(8)), *(make_cell(worse(8, 8), method=name) for name in others))
    assert len(compare(base, still).alarms) == 1
    assert not compare(base, moving).alarms


def test_seeds_are_one_cell(make_cell: Maker, make_packed: Runner) -> None:
    """Two seeds are averaged, a sample counts once, and a seed of only one run is unmatched."""
    base = make_packed(*(make_cell(seed=seed) for seed in (0, 1, 2)))
    new = make_packed(make_cell(worse(12), seed=0), make_cell(worse(12), seed=1))
    found = compare(base, new)
    assert [change.seeds for change in found.changes] == [(0, 1)]
    assert (found.changes[0].losses, found.changes[0].difference) == (12, pytest.approx(-0.03))
    assert [cell.seed for cell in found.only_base] == [2]


@pytest.mark.parametrize("field", ["flops_full", "flops_linear", "mean_layers"])
def test_counts_must_not_rise_on_one_machine(make_cell: Maker, make_packed: Runner, field: str) -> None:
    """Any rise of a count is an alarm; a fall and rounding by JSON are not."""
    base = make_packed(make_cell(**{field: 3.0}))
    assert "up by 0.1 %" in alarmed(compare(base, make_packed(make_cell(**{field: 3.003}))))
    fallen = compare(base, make_packed(make_cell(**{field: 2.9})))
    assert not fallen.alarms and fallen.changes[0].moved
    assert not compare(base, make_packed(make_cell(**{field: 3.0 * (1 + 1e-15)}))).alarms


def test_counts_may_vary_between_machines(make_cell: Maker, make_packed: Runner) -> None:
    """Tuned exits may change by 30 %; a constant depth may change by one layer if it is tuned, else not at all."""

    def found(new: PackedCell, **old: Any) -> str:
        return alarmed(compare(make_packed(make_cell(**old)), make_packed(new, machines=[ELSEWHERE])))

    assert found(make_cell(mean_layers=3.8)) == ""
    assert "more than the 30 % that another fit is allowed" in found(make_cell(mean_layers=4.0))
    second, third = {"exits": [0, 400, 0, 0]}, {"exits": [0, 0, 400, 0]}
    assert found(make_cell(**second), **second) == ""
    assert "FLOPs (all) up" in found(make_cell(**second, flops_full=1.2e6), **second)
    assert found(make_cell(**third, mean_layers=3.0), **second, mean_layers=2.0) == ""


def sketch(confidence: float, layers: int = 3) -> dict[str, Any]:
    """Fields of a cell whose samples all have this confidence and exit after this layer."""
    packed = [np.full(64, confidence, dtype="<f4"), np.full(64, layers, dtype=np.uint8)]
    return dict(zip(("sketch", "sketch_exits"), (base64.b64encode(a.tobytes()).decode() for a in packed), strict=True))


def test_the_same_fit_has_the_same_cost_everywhere(make_cell: Maker, make_packed: Runner) -> None:
    """With equal confidences on another machine any rise is an alarm; other confidences on one machine allow for retraining."""
    base = make_packed(make_cell(**sketch(0.7)))
    dearer = make_cell(mean_layers=3.1, **sketch(0.7 + 1e-6))
    assert "layers up by 3.33 %" in alarmed(compare(base, make_packed(dearer, machines=[ELSEWHERE])))
    refitted = compare(base, make_packed(make_cell(mean_layers=3.1, **sketch(0.8))))
    assert not refitted.alarms and refitted.changes[0].same_fit is False
    assert any("1 cells have, or may have, other weights" in remark for remark in refitted.remarks)
    assert compare(base, make_packed(make_cell(mean_layers=4.0, **sketch(0.8)))).alarms


def test_different_exits_everywhere_do_not_excuse_a_rise(make_cell: Maker, make_packed: Runner) -> None:
    """If no sample exits at the same layer, the fit is unknown, and on one machine a rise is an alarm."""
    found = compare(
        make_packed(make_cell(**sketch(0.7))), make_packed(make_cell(mean_layers=3.5, **sketch(0.9, layers=4)))
    )
    assert found.changes[0].same_fit is None
    assert "layers up" in alarmed(found)


def test_cuda_is_not_reproducible(make_cell: Maker, make_packed: Runner) -> None:
    """Retraining on one GPU gives other weights: counts and accuracy have the limits of different machines."""
    base, new = make_packed(make_cell(device="cuda")), make_packed(make_cell(worse(12), device="cuda", mean_layers=3.5))
    assert not compare(base, new).alarms
    assert len(compare(make_packed(make_cell()), make_packed(make_cell(worse(12), mean_layers=3.5))).alarms) == 2


def test_counts_and_times_of_zero_are_reported(make_cell: Maker, make_packed: Runner) -> None:
    """A method without FLOPs in base, and passes with a time of 0, are reported without a division by 0."""
    nothing = {"flops_full": 0.0, "mean_layers": 0.0, "exits": [400]}
    found = compare(make_packed(make_cell(**nothing)), make_packed(make_cell(exits=[400]), machines=[ELSEWHERE]))
    assert "FLOPs (all) up from 0" in alarmed(found)
    still = make_packed(make_cell(round_seconds=[0.0], reference_seconds=[0.1]))
    assert any("have a time of 0" in remark for remark in compare(still, still).remarks)


def test_without_rows_accuracy_is_compared_by_the_margin(make_cell: Maker, make_packed: Runner) -> None:
    """Answers that only base has are a gap; if base has none, a loss above the margin is an alarm, although it is not tested."""
    bare = {"bits": None, "rows": None}
    lost = compare(make_packed(make_cell()), make_packed(make_cell(**bare)))
    assert lost.changes[0].wins is None
    assert "no per-sample rows, so accuracy is not tested" in alarmed(lost)
    published = make_packed(make_cell(**bare))
    assert not compare(published, make_packed(make_cell(worse(2)))).alarms
    found = compare(published, make_packed(make_cell(worse(40))))
    assert "accuracy down by 10.00 points, not tested" in alarmed(found)
    assert any("not tested" in remark for remark in found.remarks)


def test_a_new_failure_is_a_regression(make_cell: Maker, make_packed: Runner) -> None:
    """A failed method is an alarm if it was measured in base."""
    cell = make_cell()
    base = make_packed(cell, make_cell(method="bert"))
    fit = cell.cell.model_copy(update={"point": "fit"})
    assert "geep fit, seed 0: failed" in alarmed(compare(base, make_packed(make_cell(method="bert"), failed=[fit])))
    new = cell.cell.model_copy(update={"method": "new"})
    assert not compare(base, make_packed(cell, make_cell(method="bert"), failed=[new])).alarms


def test_cells_of_several_commits_are_reported(make_cell: Maker, make_packed: Runner) -> None:
    """A run with cells of several versions of the code is reported."""
    found = compare(make_packed(make_cell()), make_packed(make_cell(), commits=["a", "b"]))
    assert any("several versions of the code (a, b)" in remark for remark in found.remarks)


def test_other_numbers_of_tokens_are_reported(make_cell: Maker, make_packed: Runner) -> None:
    """Another number of tokens of the same rows comes from the tokenizer; it is reported, because it changes FLOPs."""
    base, new = (make_packed(make_cell(binding=0, tokens=n), bindings=[bind()]) for n in (4000, 5000))
    found = compare(base, new)
    assert any("other numbers of tokens" in remark for remark in found.remarks)
