"""Endpoints over all sets and seeds, and what they say."""

from __future__ import annotations

import numpy as np
import pytest

from reports.analysis.verdicts.verdict_words import headlines
from reports.analysis.view import build_view
from reports.tables.catalogue import Contents

DEPTH = 6


def add(run, dataset, seed=0, *, gain=0.0, n=300, point="speed=0.5", masks=True, **cell):
    """Add a predictor that knows something (``gain``) about which samples need layer 5 instead of 2, with its controls."""
    rng = np.random.default_rng([seed, len(dataset), n])
    ease = np.random.default_rng(len(dataset)).random((n, 1))
    right_at = ease + rng.normal(0, 0.1, (n, DEPTH)) < np.linspace(0.5, 0.9, DEPTH)
    helps = ~right_at[:, 1] & right_at[:, 4]
    share = np.where(helps, 0.5 + gain, 0.5 - gain * helps.mean() / (1 - helps.mean()))
    exits = np.where(rng.random(n) < share, 5, 2)
    about = {"dataset": dataset, "seed": seed, "layers": float(exits.mean()), **cell}
    correct = right_at[np.arange(n), exits - 1]
    run.cell("geep", point, exits=exits, predicted=exits, correct=correct, **about)
    mix = {"shallow": 2, "deep": 5}
    run.cell("control-constant", point, kind="control", exits=exits, correct=correct, params=mix, **about)
    run.cell("control-sequential", point, kind="control", exits=exits, correct=correct, **about)
    stored = {"right_at": right_at} if masks else {}
    run.cell("oracle", "agree", kind="bound", exits=np.full(n, 6), correct=right_at[:, -1], **about, **stored)
    return correct, (1 - exits.mean() / 3 + 2 / 3) * right_at[:, 1] + (exits.mean() - 2) / 3 * right_at[:, 4]


def primary(run):
    (found,) = [test for test in build_view(run.path).pooled if test.primary]
    return found


def said(run):
    view = build_view(run.path)
    return headlines(view.pooled, view.verdicts, view.bounds)


def test_the_primary_endpoint_by_hand(fabricate):
    """Two sets of different size and two seeds: the mean over sets of the mean over rows and seeds of answer less hull."""
    run = fabricate()
    means = []
    for dataset, n in (("one", 300), ("three", 100)):
        sides = [add(run, dataset, seed, n=n) for seed in (0, 1)]
        means.append(np.mean([correct - hull for correct, hull in sides]))
    found = primary(run)
    assert found.difference == pytest.approx(np.mean(means))
    assert (found.measure, found.control, found.point) == ("accuracy", "hull of constant depths", "speed=0.5")
    assert (len(found.sets), found.seeds, found.pairs) == (2, (2, 2), 400)
    assert found.low < found.difference < found.high


def test_pooling_finds_what_single_sets_do_not(fabricate):
    """Four sets of 200 rows with a small gain each: none is significant alone, all together are."""
    run = fabricate()
    for name in ("a", "bb", "ccc", "dddd"):
        add(run, name, gain=0.1, n=200)
    view = build_view(run.path)
    alone = [t for t in view.verdicts if (t.measure, t.control) == ("accuracy", "hull of constant depths")]
    assert {test.verdict for test in alone} == {"no difference found"}
    assert primary(run).verdict == "ahead"
    start = "geep speed=0.5 (synthetic data), over 4 sets and 1 seed, accuracy against hull of constant depths at equal mean layers"
    assert said(run)[0].startswith(f"{start}: ahead by ")


def test_a_missing_finding_states_what_it_could_have_found(fabricate):
    """No sentence or table calls two sides equal; "no difference found" carries its interval and the detectable difference."""
    run = fabricate()
    add(run, "one")
    add(run, "three")
    found = primary(run)
    assert found.verdict == "no difference found"
    assert found.detectable == pytest.approx(2.8016 * found.se, rel=1e-3)
    assert f"could have found {100 * found.detectable:.1f} points with 80 % power" in said(run)[0]
    contents = Contents(build_view(run.path))
    texts = [
        text for table in contents.named("verdicts") + contents.named("controls") for row in table.cells for text in row
    ]
    assert not [text for text in (*texts, *said(run)) if "no better" in text or text == "equal"]


def test_budgets_come_before_speeds(fabricate):
    """A method with a point budget=0.5 is judged there; its other points are secondary."""
    run = fabricate()
    add(run, "one")
    add(run, "one", point="budget=0.5")
    assert primary(run).point == "budget=0.5"
    others = [t for t in build_view(run.path).pooled if not t.primary and t.point == "speed=0.5"]
    assert [(t.measure, t.control) for t in others] == [("accuracy", "hull of constant depths")]


def test_secondary_endpoints_are_corrected_among_themselves(fabricate):
    """Five secondary endpoints do not weaken the primary one; their p-values are adjusted together."""
    run = fabricate()
    add(run, "one")
    pooled = build_view(run.path).pooled
    first, *rest = pooled
    assert first.primary and first.p_adjusted == first.p
    assert {(t.measure, t.control) for t in rest} == {
        ("agreement", "hull of constant depths"),
        *((measure, name) for measure in ("accuracy", "agreement") for name in ("control-sequential", "random exits")),
    }
    smallest = min(rest, key=lambda test: test.p)
    assert smallest.p_adjusted == pytest.approx(min(1, 5 * smallest.p))


def test_keeping_up_over_sets_is_a_bound(fabricate):
    """The same answers on 2 x 400 rows keep up, on 2 x 100 they prove nothing; the statement names its margin."""
    for n, verdict in ((400, "keeps up"), (100, "not shown to keep up")):
        run = fabricate(f"run-{n}")
        add(run, "one", n=n)
        add(run, "three", n=n)
        (found,) = [t for t in build_view(run.path).pooled if t.asks_to_keep_up and t.measure == "accuracy"]
        assert found.verdict == verdict
        assert (
            found.worst == pytest.approx(-(1.645**2) / (2 * n + 1.645**2), rel=1e-3)
            and found.detectable == -found.worst
        )
        if verdict == "keeps up":
            start = "accuracy against control-sequential: keeps up (less than 0.5 points lost"
            assert any(start in line for line in said(run))


def test_methods_that_look_first_are_judged_at_every_speed(fabricate):
    """Against the sequential exit at that speed, with the bound of the loss; not at budgets, and not where it runs more layers."""
    run = fabricate()
    for name in ("one", "three"):
        add(run, name, n=600)
        for point, lost, extra in (
            ("speed=0.5", 0, 1.0),
            ("speed=0.1", 30, 1.0),
            ("speed=0.9", 0, 1.06),
            ("budget=0.75", 0, 1.0),
        ):
            correct = np.arange(600) % 2 == 0
            exits = np.full(600, 3)
            run.cell(
                "control-sequential", point, kind="control", exits=exits, correct=correct, dataset=name, layers=3.0
            )
            mine = correct & (np.arange(600) >= lost)
            about = {"exits": exits, "predicted": exits, "layers": 3.0 * extra, "role": "verifies-exits"}
            run.cell("look", point, correct=mine, dataset=name, **about)
    found = [
        test
        for test in build_view(run.path).pooled
        if test.method == "look" and test.asks_to_keep_up and test.measure == "accuracy"
    ]
    assert {test.point: (test.verdict, len(test.sets)) for test in found} == {
        "speed=0.5": ("keeps up", 2),
        "speed=0.1": ("behind", 2),
    }
    (line,) = [
        line for line in said(run) if line.startswith("look, accuracy against control-sequential at no more layers: ")
    ]
    assert "speed=0.1: −2.5 points, with 95 % confidence above −3.2: behind by 2.5 points" in line
    beside = [line for line in said(run) if line.startswith("Beside it, look")]
    assert ["less than 0.3 points lost" in one for one in beside] == [True]


def test_real_and_synthetic_sets_are_apart(fabricate):
    """Synthetic and real sets are never pooled."""
    run = fabricate()
    add(run, "one")
    add(run, "three", synthetic=False)
    found = [test for test in build_view(run.path).pooled if test.primary]
    assert [(test.data, len(test.sets)) for test in found] == [("real", 1), ("synthetic", 1)]
    assert {table.name for table in Contents(build_view(run.path)).named("verdicts")} == {
        "verdicts",
        "verdicts-synthetic",
    }


def test_older_runs_say_what_cannot_be_computed(fabricate):
    """Without answers of single heads there is no primary endpoint; the report says why and counts what was compared."""
    run = fabricate()
    add(run, "one", masks=False)
    found = primary(run)
    assert (found.verdict, found.difference) == ("cannot be computed", None)
    lines = said(run)
    assert lines[0].endswith("or its per-sample rows are missing): measure again.")
    assert "comparisons with controls could be made" in lines[-1]
    (table,) = Contents(build_view(run.path)).named("verdicts")
    assert table.cells[0][-1] == "cannot be computed"
    assert not Contents(build_view(run.path)).named("bounds")


def test_a_set_that_cannot_be_pooled_is_named(fabricate):
    """One set of two without answers of single heads: the other is judged, and the missing one named."""
    run = fabricate()
    add(run, "one")
    add(run, "three", masks=False)
    found = primary(run)
    assert (len(found.sets), list(found.missing)) == (1, ["three (synthetic)"])
    assert "over 1 set of 2" in said(run)[0]
    (table,) = Contents(build_view(run.path)).named("verdicts")
    assert any(
        note.startswith("Not pooled, because the oracle has no answers of single layers") for note in table.notes
    )


def test_bounds_by_hand(fabricate):
    """First agreement has the accuracy of full depth; first correct counts samples that any layer gets right."""
    right_at = np.array([[0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0] * 6, [1] * 6], dtype=bool)
    run = fabricate()
    run.cell("oracle", "agree", kind="bound", exits=[4, 3, 1, 1], correct=right_at[:, -1], right_at=right_at)
    (found,) = build_view(run.path).bounds
    assert (found.full, found.any_right, found.first) == (0.5, 0.75, 0.5)
    assert found.agreeing_layers == pytest.approx((4 + 3 + 1 + 1) / 4)
    assert found.right_layers == pytest.approx((4 + 1 + 6 + 1) / 4)
    assert any("worth less than 2 points over the first head" in line for line in said(run))
    (table,) = Contents(build_view(run.path)).named("bounds")
    assert table.cells[0] == ["ag_news (synthetic)", "50.0", "0.0", "50.0", "2.25", "75.0", "3.00"]
