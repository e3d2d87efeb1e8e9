"""Curves in one number: cases with known answers."""

from __future__ import annotations

import pytest

from reports.analysis.curves import Curve
from reports.analysis.view import build_view
from reports.tables.catalogue import Contents

FULL = 2_000_000.0


def curve_run(fabricate, control=True):
    run = fabricate()
    run.cell("bert", accuracy=0.95)
    run.cell("geep", "speed=0.5", flops=FULL / 2, accuracy=0.9)
    run.cell("geep", "speed=0.8", flops=FULL / 4, accuracy=0.8)
    run.cell("oracle", "agree", kind="bound", flops=FULL / 100, accuracy=0.99)
    if control:
        run.cell("control-constant", "speed=0.5", kind="control", flops=FULL, accuracy=0.9)
        run.cell("control-constant", "speed=0.8", kind="control", flops=FULL / 4, accuracy=0.7)
    return run


def curves(run) -> dict[tuple[str, str], Curve]:
    return {(curve.method, curve.variant): curve for curve in build_view(run.path).curves}


def test_area_and_score_by_hand(fabricate):
    """Budgets run from 1/4 to 1: on a log scale, half of them give 0.8, half 0.9; the baseline is a line from 0.7 to 0.9."""
    found = curves(curve_run(fabricate))
    geep = found["geep", ""]
    assert (geep.points, geep.cost_low, geep.budget_high) == (2, FULL / 4, FULL)
    assert geep.area == pytest.approx((0.8 + 0.9) / 2)
    assert geep.score == pytest.approx(((0.8 - 0.7) + (0.9 - (0.7 + 0.2 / 3))) / 2)
    assert found["control-constant", ""].area == pytest.approx(0.7)
    assert found["control-constant", ""].score == pytest.approx(0)
    assert found["bert", ""].score == pytest.approx(0.05)
    assert ("oracle", "") not in found


def test_points_without_area_or_score(fabricate):
    """The most expensive point alone has no area, a run without constant depth no score; cheaper points are not scored."""
    (table,) = Contents(build_view(curve_run(fabricate, control=False).path)).named("curves")
    (bert,) = [cells for row, cells in zip(table.rows, table.cells, strict=True) if row.method == "bert"]
    assert bert[-3] == "—"
    assert {row.score for row in table.rows} == {None}
    assert any("no control of constant depth under the same conditions" in note for note in table.notes)
    run = curve_run(fabricate)
    run.cell("geep", "speed=0.9", flops=FULL / 8, accuracy=0.7)
    (table,) = Contents(build_view(run.path)).named("curves")
    assert [cells[-1] for row, cells in zip(table.rows, table.cells, strict=True) if row.method == "geep"] == ["2 of 3"]


def test_variants_and_devices_have_separate_curves(fabricate):
    """Points of another variant or device are separate curves with their own budgets."""
    run = curve_run(fabricate)
    run.cell("geep", "speed=0.5/shared", flops=FULL / 3, accuracy=0.85)
    run.cell("geep", "speed=0.5", flops=FULL / 50, accuracy=0.9, device="cuda")
    geep = {(one.variant, one.device): one for one in build_view(run.path).curves if one.method == "geep"}
    assert geep["", "cpu"].points == 2 and geep["shared", "cpu"].points == 1
    assert geep["", "cpu"].budget_low == FULL / 4
    assert geep["", "cuda"].points == 1
