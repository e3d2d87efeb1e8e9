"""Predicted exits against their controls: exact expectations, measured controls, and the verdicts in words."""

from __future__ import annotations

import numpy as np
import pytest

from reports.analysis.view import build_view
from reports.tables.catalogue import Contents

DEPTH = 6
YES, NO = True, False


def heads(n: int, seed: int = 0) -> np.ndarray:
    """Return which layers are right, bool [n, 6]: deeper ones more often."""
    rng = np.random.default_rng(seed)
    return rng.random((n, 1)) + rng.normal(0, 0.1, (n, DEPTH)) < np.linspace(0.5, 0.9, DEPTH)


def make(fabricate, right_at, exits, *, name="a-run", **geep):
    """Return a run of a predictor with these exits, its controls and the oracle, all on one set of heads."""
    run, exits = fabricate(name), np.asarray(exits)
    n, mean = len(exits), float(np.mean(exits))
    options = {"layers": mean, "exits": exits, "predicted": exits}
    correct = right_at[np.arange(n), exits - 1]
    run.cell("geep", "speed=0.5", **{**options, "correct": correct, **geep})
    mix = {"shallow": 2, "deep": 5}
    two = np.where(np.arange(n) % 2, 2, 5)
    constant = {"layers": 3.5, "exits": two, "correct": right_at[np.arange(n), two - 1], "params": mix}
    run.cell("control-constant", "speed=0.5", kind="control", **constant)
    ranked = np.sort(exits)
    length = {**options, "exits": ranked, "correct": right_at[np.arange(n), ranked - 1]}
    run.cell("control-length", "speed=0.5", kind="control", **length)
    run.cell("control-sequential", "speed=0.5", kind="control", **{**options, "correct": correct})
    first = (right_at == right_at[:, -1:]).argmax(1) + 1
    oracle = {"layers": float(first.mean()), "exits": first, "correct": right_at[:, -1], "right_at": right_at}
    run.cell("oracle", "agree", kind="bound", **oracle)
    return run


def verdicts(run, measure="accuracy", method="geep"):
    tests = [test for test in build_view(run.path).verdicts if (test.measure, test.method) == (measure, method)]
    return {test.control: test for test in tests}


def deal(n: int, seed: int = 1) -> np.ndarray:
    """Return random exits from 2 to 5."""
    return np.random.default_rng(seed).integers(2, 6, n)


@pytest.mark.parametrize("measure", ["accuracy", "agreement"])
def test_random_exits_are_an_expectation(fabricate, measure):
    """The control's value is the row's histogram times the value of each layer, without the noise of one deal (by hand)."""
    right_at, exits = heads(300), deal(300)
    good = right_at if measure == "accuracy" else right_at == right_at[:, -1:]
    test = verdicts(make(fabricate, right_at, exits), measure)["random exits"]
    own = good[np.arange(300), exits - 1].mean()
    shares = np.bincount(exits, minlength=DEPTH + 1)[1:] / 300
    assert test.own_value == pytest.approx(own)
    assert test.control_value == pytest.approx(good.mean(0) @ shares)
    assert test.difference == pytest.approx(own - good.mean(0) @ shares)
    assert test.layer_ratio == 1.0


def test_the_hull_has_exactly_the_rows_layers(fabricate):
    """The mix of layers 2 and 5, chosen on dev, is taken at the share that gives the row's mean layers (by hand)."""
    right_at, exits = heads(300), deal(300)
    test = verdicts(make(fabricate, right_at, exits))["hull of constant depths"]
    share = (exits.mean() - 2) / 3
    assert test.control_value == pytest.approx((1 - share) * right_at[:, 1].mean() + share * right_at[:, 4].mean())
    assert test.control_layers == pytest.approx(exits.mean())


def test_layers_that_no_mix_can_have_are_said(fabricate):
    """A row that runs more layers than the deeper depth of every mix cannot be compared with the hull, which is stated."""
    run = make(fabricate, heads(60), np.full(60, 6))
    test = verdicts(run)["hull of constant depths"]
    assert (test.verdict, test.difference) == ("cannot be computed", None)
    (table,) = Contents(build_view(run.path)).named("controls")
    assert any("no measured mix of two depths can have its mean layers" in note for note in table.notes)


def informed(right_at: np.ndarray, gain: float, seed: int = 2) -> np.ndarray:
    """Return exits 2 or 5, half each on average, deeper with more probability where depth helps."""
    rng = np.random.default_rng(seed)
    helps = ~right_at[:, 1] & right_at[:, 4]
    share = np.where(helps, 0.5 + gain, 0.5 - gain * helps.mean() / (1 - helps.mean()))
    return np.where(rng.random(len(right_at)) < share, 5, 2)


def test_exits_that_know_something_are_ahead(fabricate):
    """If the samples that need depth get it, the row is ahead of random exits and of the hull, by both measures."""
    right_at = heads(600)
    run = make(fabricate, right_at, informed(right_at, 0.45))
    for measure in ("accuracy", "agreement"):
        found = verdicts(run, measure)
        assert [found[name].verdict for name in ("random exits", "hull of constant depths")] == ["ahead", "ahead"]
    assert verdicts(run)["random exits"].low > 0


def test_exits_that_know_the_wrong_thing_are_behind(fabricate):
    """If the samples that need depth are cut short, the row is behind."""
    right_at = heads(600)
    assert verdicts(make(fabricate, right_at, informed(right_at, -0.45)))["random exits"].verdict == "behind"


def test_no_difference_found_states_what_could_have_been_found(fabricate):
    """Random exits are not different from random exits; the stated difference is about 2.8 standard errors or more."""
    test = verdicts(make(fabricate, heads(600), deal(600)))["random exits"]
    assert test.verdict == "no difference found"
    assert test.detectable > 2.8 * test.se > 0


def test_few_differing_rows_are_no_test(fabricate):
    """If fewer than ten rows differ from the expectation, there is no p-value, but what could have been found is stated."""
    right_at = np.ones((400, DEPTH), dtype=bool)
    right_at[:5, :3] = False
    test = verdicts(make(fabricate, right_at, deal(400)))["random exits"]
    assert (test.p, test.p_holm, test.verdict) == (None, None, "no difference found")
    assert 0.01 < test.detectable < 0.04


def test_a_constant_prediction_has_the_same_answers_as_random_exits(fabricate):
    """Predictions that collapse to one depth are the same assignment as any deal of it, and the verdict says no more."""
    test = verdicts(make(fabricate, heads(200), np.full(200, 3)))["random exits"]
    assert (test.verdict, test.wins, test.losses) == ("same answers on all rows", 0, 0)


def test_answers_of_other_heads_have_no_expectation(fabricate):
    """A row that does not answer with the oracle's heads is not compared with random exits of these heads."""
    right_at, exits = heads(200), deal(200)
    run = make(fabricate, right_at, exits)
    run.cell("geep", "speed=0.5/shared", layers=float(exits.mean()) + 1, exits=exits, correct=~right_at[:, 0])
    tests = [test for test in build_view(run.path).verdicts if test.variant and test.measure == "accuracy"]
    found = {test.control: test for test in tests}
    assert found["random exits"].reason == "its answers are not those of the exit heads"
    assert found["hull of constant depths"].difference is not None
    assert found["control-length at speed=0.5"].verdict == "layers not equal"


def test_controls_of_other_weights_are_not_used(fabricate):
    """A second model with its own oracle and control: each method meets those on its own weights."""
    first, second, exits = heads(300), heads(300, seed=7), deal(300)
    run = make(fabricate, first, exits)
    options = {"layers": float(exits.mean()), "exits": exits, "correct": second[np.arange(300), exits - 1]}
    run.cell("wide", "speed=0.5", role="predicts-exits", **options)
    run.cell("wide-length", "speed=0.5", kind="control", role="length-exits", **options)
    bound = {"exits": np.full(300, 6), "correct": second[:, -1], "right_at": second}
    run.cell("wide-oracle", "agree", kind="bound", role="oracle", **bound)
    assert set(verdicts(run, method="wide")) == {"random exits", "hull of constant depths", "wide-length"}
    expected = second.mean(0) @ (np.bincount(exits, minlength=DEPTH + 1)[1:] / 300)
    assert verdicts(run, method="wide")["random exits"].control_value == pytest.approx(expected)
    assert "wide-length" not in verdicts(run)


def test_where_nearly_all_is_right_the_most_alike_weights_count(fabricate):
    """Answers of two models are 99 % alike there, so each method meets the oracle and controls that are most alike."""
    first, second = np.ones((2, 600, DEPTH), dtype=bool)
    first[:3], second[3:6, 1:4] = False, False
    exits = deal(600)
    run = make(fabricate, first, exits)
    options = {"layers": float(exits.mean()), "exits": exits, "correct": second[np.arange(600), exits - 1]}
    run.cell("wide", "speed=0.5", role="predicts-exits", **options)
    run.cell("wide-length", "speed=0.5", kind="control", role="length-exits", **options)
    bound = {"exits": np.full(600, 6), "correct": second[:, -1], "right_at": second}
    run.cell("wide-oracle", "agree", kind="bound", role="oracle", **bound)
    for method, right_at, control in (("geep", first, "control-length"), ("wide", second, "wide-length")):
        found = verdicts(run, method=method)
        expected = right_at.mean(0) @ (np.bincount(exits, minlength=DEPTH + 1)[1:] / 600)
        assert found["random exits"].control_value == pytest.approx(expected)
        assert {name for name in found if name.endswith("length")} == {control}


@pytest.mark.parametrize(
    ("n", "losses", "wins", "verdict"), [(1000, 21, 19, "not shown to keep up"), (4000, 6, 4, "keeps up")]
)
def test_keeping_up_is_a_bound(fabricate, n, losses, wins, verdict):
    """Two rows less of 1,000 prove nothing against a margin of 0.5 points if 40 rows differ; of 4,000 with 10 they do."""
    right_at = heads(n)
    exits = np.full(n, 4)
    exits[np.flatnonzero(right_at[:, 3] & ~right_at[:, 2])[:losses]] = 3
    exits[np.flatnonzero(~right_at[:, 3] & right_at[:, 4])[:wins]] = 5
    run = make(fabricate, right_at, exits)
    options = {"layers": 4.0, "exits": np.full(n, 4), "correct": right_at[:, 3]}
    run.cell("control-sequential", "speed=0.5", kind="control", **options)
    test = verdicts(run)["control-sequential"]
    assert (test.losses, test.wins, test.verdict) == (losses, wins, verdict)
    assert (test.worst > -0.005) == (verdict == "keeps up")


@pytest.mark.parametrize(
    ("layers", "sequential", "length"), [(3.5, True, True), (4.5, True, False), (3.0, False, False)]
)
def test_layers_have_to_be_equal(fabricate, layers, sequential, length):
    """Against the sequential exit fewer layers than the control's are fair, more are not; against length neither is."""
    right_at, exits = heads(200), np.tile([2, 5], 100)
    run = make(fabricate, right_at, exits)
    for role in ("sequential", "length"):
        control = {"layers": layers, "exits": exits, "correct": right_at[np.arange(200), exits - 1]}
        run.cell(f"control-{role}", "speed=0.5", kind="control", **control)
    found = verdicts(run)
    assert found["control-sequential"].equal_layers == sequential
    assert found["control-length"].equal_layers == length
    assert (found["control-length"].verdict == "layers not equal") != length


def old(fabricate, geep, control, **options):
    """Return a run as older versions measured it, without answers of single heads."""
    run = fabricate()
    run.cell("bert")
    run.cell("geep", "speed=0.5", layers=4, correct=geep)
    run.cell("control-random", "speed=0.5", kind="control", correct=control, **{"layers": 4, **options})
    return run


@pytest.mark.parametrize(
    ("geep", "control", "verdict"),
    [
        ([YES] * 100, [YES] * 60 + [NO] * 40, "ahead"),
        ([YES] * 60 + [NO] * 40, [YES] * 100, "behind"),
        ([YES] * 62 + [NO] * 38, [YES] * 60 + [NO] * 40, "no difference found"),
        ([YES] * 62 + [NO] * 38, [YES] * 62 + [NO] * 38, "same answers on all rows"),
    ],
)
def test_measured_controls_of_older_runs(fabricate, geep, control, verdict):
    """Without answers of single heads the measured control is tested exactly; verdict words follow sign and significance."""
    test = verdicts(old(fabricate, geep, control))["control-random"]
    assert test.verdict == verdict
    assert test.difference == pytest.approx((sum(geep) - sum(control)) / 100)


def test_a_test_that_could_never_be_significant_takes_no_part(fabricate):
    """Three discordant rows cannot reach 5 %: no adjusted p, and the difference that could have been found is 8 points."""
    test = verdicts(old(fabricate, [YES] * 100, [YES] * 97 + [NO] * 3))["control-random"]
    assert (test.p, test.p_holm, test.verdict) == (0.25, None, "no difference found")
    assert 0.06 < test.detectable < 0.1


def test_controls_run_on_the_engine_of_their_method(fabricate):
    """A control on int8 says nothing about a predictor on float."""
    run = old(fabricate, [YES] * 9, [YES] * 9, engine="int8")
    assert not build_view(run.path).verdicts
    run.cell("geep-int8", "speed=0.5", layers=4, correct=[YES] * 9, engine="int8", role="predicts-exits")
    assert {test.method for test in build_view(run.path).verdicts} == {"geep-int8"}


def test_agreement_without_an_oracle_is_said(fabricate):
    """Older runs without an oracle have accuracy only, and the reason for the other."""
    test = verdicts(old(fabricate, [YES] * 50, [YES] * 50), "agreement")["control-random"]
    assert test.verdict == "cannot be computed" and "no oracle" in test.reason


def test_verified_exits_meet_no_control_of_the_prediction(fabricate):
    """Measured, they are compared with the sequential exit at the base of their point only; expectations apply as well."""
    right_at, exits = heads(200), deal(200)
    run = make(fabricate, right_at, exits)
    correct = right_at[np.arange(200), exits - 1]
    run.cell("geep-verified", "speed=0.5/once", layers=float(exits.mean()), exits=exits, correct=correct)
    assert set(verdicts(run, method="geep-verified")) == {
        "random exits",
        "hull of constant depths",
        "control-sequential at speed=0.5",
    }


def test_identical_point_is_preferred_to_its_base(fabricate):
    """A control at the same point is preferred to one at the base point."""
    run = fabricate()
    run.cell("geep", "speed=0.5/shared", layers=4)
    run.cell("control-random", "speed=0.5", kind="control", layers=4)
    run.cell("control-random", "speed=0.5/shared", kind="control", layers=4)
    assert {test.control for test in build_view(run.path).verdicts if not test.expected} == {"control-random"}


def test_missing_samples_cannot_be_compared(fabricate):
    """Without per-sample rows there is no verdict and no crash."""
    test = verdicts(old(fabricate, [YES] * 9, [YES] * 9, samples=False))["control-random"]
    assert test.verdict == "cannot be computed"


def test_controls_of_another_device_are_not_used(fabricate):
    """A control measured on another device is not used."""
    assert not build_view(old(fabricate, [YES] * 9, [YES] * 9, device="cuda").path).verdicts


def test_third_party_methods_are_not_tested(fabricate):
    """A method without a role at the same point is not tested against controls."""
    run = fabricate()
    run.cell("my-exit", "speed=0.5")
    run.cell("control-random", "speed=0.5", kind="control")
    assert not build_view(run.path).verdicts


@pytest.mark.parametrize("stored", [True, False])
def test_exits_before_layer_1_are_dealt_too(fabricate, stored):
    """Random exits deal the answers before layer 1 as well (by hand); if these are not stored, nothing is computed."""
    right_at, exits = heads(300), deal(300) - 2  # 0 to 3
    right_before = np.random.default_rng(4).random(300) < 0.6
    columns = np.column_stack([right_before, right_at])
    options = {"right_at": right_at, "right_before": right_before} if stored else {}
    run = make(fabricate, right_at, np.maximum(exits, 1))
    correct = columns[np.arange(300), exits]
    predicted = np.where(exits, exits, -1)
    run.cell("geep", "speed=0.5", layers=exits.mean(), exits=exits, predicted=predicted, correct=correct, **options)
    test = verdicts(run)["random exits"]
    if not stored:
        assert (test.verdict, test.reason) == ("cannot be computed", "no oracle was measured on its weights")
        return
    shares = np.bincount(exits, minlength=DEPTH + 1) / 300
    assert test.own_value == pytest.approx(correct.mean())
    assert test.control_value == pytest.approx(columns.mean(0) @ shares)
