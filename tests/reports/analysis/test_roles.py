"""Methods are recognised by their role, not by their name."""

from __future__ import annotations

import pytest

from reports.analysis.verdicts.verdict_words import headlines
from reports.analysis.view import build_view
from reports.build import write_report
from reports.tables.catalogue import Contents

# Role -> name of a plug-in's method with that role.
NAMES = {
    "predicts-exits": "oracle-of-delphi",
    "verifies-exits": "second-opinion",
    "constant-depth": "always-four",
    "random-exits": "dice",
    "length-exits": "ruler",
    "sequential-exits": "step-by-step",
    "oracle": "geep",  # a misleading name has no effect
}
OLD_NAMES = {
    "predicts-exits": "geep",
    "verifies-exits": "geep-verified",
    "constant-depth": "control-constant",
    "random-exits": "control-random",
    "length-exits": "control-length",
    "sequential-exits": "control-sequential",
    "oracle": "oracle",
}
RIGHT = [True] * 90 + [False] * 10
LAYERS = [1, 2, 3, 4] * 25


def make(fabricate, names, roles=True):
    """Make a run with one method per role and one without a role."""
    run = fabricate()
    for role, name in {**names, None: "bert"}.items():
        kind = "bound" if role == "oracle" else "control" if role and not role.endswith("ies-exits") else "method"
        kind = "method" if role in ("predicts-exits", None) else kind
        predicts = role not in ("sequential-exits", "oracle", None)
        run.cell(
            name,
            {None: "full", "oracle": "agree"}.get(role, "speed=0.5"),
            kind=kind,
            role=role if roles else None,
            correct=RIGHT if role != "random-exits" else [False] * 40 + [True] * 60,
            layers=2.5,
            exits=LAYERS,
            predicted=[3] * 100 if predicts else [0] * 100,
        )
    return run


@pytest.mark.parametrize("roles, names", [(True, NAMES), (False, OLD_NAMES)], ids=["plug-in", "older results"])
def test_roles_decide_the_report(fabricate, roles, names):
    """A plug-in's methods with roles, and older results with known names, get controls, oracle, baseline and headline."""
    view = build_view(make(fabricate, names, roles).path)
    controls = [names[role] for role in ("constant-depth", "length-exits", "random-exits", "sequential-exits")]
    tested = {(test.method, test.control_row.method) for test in view.verdicts if test.control_row}
    assert tested == {
        *((names["predicts-exits"], control) for control in controls),
        (names["verifies-exits"], names["sequential-exits"]),
    }
    assert {row.method for row in view.predictors} == {
        names[role] for role in ("predicts-exits", "verifies-exits", "constant-depth", "random-exits", "length-exits")
    }
    assert {row.sequential_row.method for row in view.predictors} == {names["sequential-exits"]}
    assert {curve.baseline for curve in view.curves} == {names["constant-depth"]}
    lines = headlines(view.pooled, view.verdicts, view.bounds)
    assert any(f"{names['predicts-exits']}, 8 of 12 comparisons" in line and "ahead 2×" in line for line in lines)
    assert any(f"accuracy against {names['sequential-exits']}" in line for line in lines)
    text = write_report(make(fabricate, names, roles).path).read_text(encoding="utf-8")
    assert f"Score against {names['constant-depth']}, points" in text
    assert f"against the layer where {names['sequential-exits']} exits" in text


def test_a_name_alone_is_not_a_role(fabricate):
    """Methods named like the family of geep, without a role, are not predictors."""
    run = fabricate()
    run.cell("geep-like", "speed=0.5")
    run.cell("control-random", "speed=0.5", kind="control")
    view = build_view(run.path)
    assert not view.verdicts and not Contents(view).named("controls")
