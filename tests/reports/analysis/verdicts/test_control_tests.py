"""Paired tests against controls, and their verdicts."""

from __future__ import annotations

import pytest

from reports.analysis.verdicts.control_tests import headlines
from reports.analysis.view import build_view

YES, NO = True, False


def verdicts(run):
    return {test.control: test for test in build_view(run.path).verdicts}


def make(fabricate, geep, control, **options):
    run = fabricate()
    run.cell("bert")
    run.cell("geep", "speed=0.5", layers=4, correct=geep)
    run.cell("control-random", "speed=0.5", kind="control", correct=control, **{"layers": 4, **options})
    return run


def test_beats_worse_and_no_better(fabricate):
    """Verdict words follow sign and significance of the paired difference."""
    high, low = [YES] * 100, [YES] * 60 + [NO] * 40
    beats = verdicts(make(fabricate, high, low))["control-random"]
    assert (beats.verdict, beats.wins, beats.losses) == ("beats", 40, 0)
    assert (beats.method, beats.point, beats.difference) == ("geep", "speed=0.5", pytest.approx(0.4))


def test_worse_than(fabricate):
    """A significant loss is called worse."""
    worse = verdicts(make(fabricate, [YES] * 60 + [NO] * 40, [YES] * 100))["control-random"]
    assert worse.verdict == "worse than"


def test_controls_run_on_the_engine_of_their_method(fabricate):
    """A control on int8 says nothing about a predictor on float."""
    high, low = [YES] * 100, [YES] * 60 + [NO] * 40
    run = make(fabricate, high, low, engine="int8")
    assert not verdicts(run)
    run.cell("geep-int8", "speed=0.5", layers=4, correct=high, engine="int8", role="predicts-exits")
    assert {test.method for test in build_view(run.path).verdicts} == {"geep-int8"}


def test_small_difference_is_no_better(fabricate):
    """A difference without significance is called "no better than", even if it is positive."""
    row = verdicts(make(fabricate, [YES] * 62 + [NO] * 38, [YES] * 60 + [NO] * 40))["control-random"]
    assert row.difference == pytest.approx(0.02)
    assert row.verdict == "no better than"


def test_a_win_with_more_layers_is_reported(fabricate):
    """Better accuracy with over 5 % more layers is reported as such, not as a plain win."""
    row = verdicts(make(fabricate, [YES] * 100, [YES] * 60 + [NO] * 40, layers=3))["control-random"]
    assert row.verdict.startswith("beats, with more layers")


def test_verified_is_compared_with_the_sequential_exit_only(fabricate):
    """Verified exits are compared with the sequential control at the base of their point, and keep up if they are close."""
    run = fabricate()
    right = [YES] * 900 + [NO] * 100
    run.cell("geep-verified", "speed=0.5/once", layers=4.0, heads=1.4, correct=[YES] * 901 + [NO] * 99)
    run.cell("control-sequential", "speed=0.5", kind="control", layers=4.1, heads=4.1, correct=right)
    run.cell("control-random", "speed=0.5", kind="control", layers=4.0, correct=right)
    view = build_view(run.path)
    (row,) = view.verdicts
    assert (row.control, row.close) == ("control-sequential", True)
    assert (row.mean_heads, row.control_row.mean_heads) == (1.4, 4.1)
    assert headlines(view.verdicts) == [
        (
            "ag_news (synthetic): geep-verified keeps up with control-sequential "
            "(at most 0.2 points less accurate and 5 % more layers) at 1 of 1 points."
        )
    ]


def test_identical_point_is_preferred_to_its_base(fabricate):
    """A control at the same point is preferred to one at the base point."""
    run = fabricate()
    run.cell("geep", "speed=0.5/shared", layers=4)
    run.cell("control-random", "speed=0.5", kind="control", layers=4)
    run.cell("control-random", "speed=0.5/shared", kind="control", layers=4)
    assert [test.control_point for test in build_view(run.path).verdicts] == ["speed=0.5/shared"]


def test_headline_without_a_beaten_control(fabricate):
    """If prediction beats no control, the headline states it."""
    run = make(fabricate, [YES] * 60 + [NO] * 40, [YES] * 60 + [NO] * 40)
    (line,) = headlines(build_view(run.path).verdicts)
    assert line == "ag_news (synthetic): geep beats none of its controls; is no better in 1 of 1 comparisons."


def test_missing_samples_cannot_be_compared(fabricate):
    """Without per-sample rows there is no verdict and no crash."""
    row = verdicts(make(fabricate, [YES] * 9, [YES] * 9, samples=False))["control-random"]
    assert row.verdict == "cannot be compared with"


def test_controls_of_another_device_are_not_used(fabricate):
    """A control measured on another device is not used."""
    run = make(fabricate, [YES] * 9, [YES] * 9, device="cuda")
    assert not build_view(run.path).verdicts


def test_third_party_methods_are_not_tested(fabricate):
    """A method without a role at the same point is not tested against controls."""
    run = fabricate()
    run.cell("my-exit", "speed=0.5")
    run.cell("control-random", "speed=0.5", kind="control")
    assert not build_view(run.path).verdicts
