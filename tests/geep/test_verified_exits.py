"""Verified exits: the simulation on dev equals a real run; budgets, modes and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep.exit_table import ExitTable
from geep.method import TUNING, FittedGeep
from geep.predictor import DevView
from geep.verified_exits import (
    EVERY,
    MODES,
    SLACK,
    FittedVerified,
    GeepVerified,
    LookChoice,
    best_within,
    choices,
    look_layers,
    look_quantiles,
    simulate,
)
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import Entropy, candidate_thresholds
from harness.execution.verified import run_verified

Check = Callable[[FittedVerified, OperatingPoint, Execution, list[int]], None]


@pytest.fixture(scope="session")
def view(scattered_geep: FittedGeep, signal_task: Task) -> DevView:
    """Return the dev observations of the scattered model."""
    model = scattered_geep.model
    logits = exit_logits(model, signal_task.dev.tokens, TUNING)
    return DevView.of(logits, signal_task.dev.labels, model.answers, model.depth)


def tuned(table: ExitTable, tokens: TokenSet, view: DevView, speed: float, mode: str) -> LookChoice:
    """Return the choice at a speed."""
    return best_within(SLACK * view.sequential_layers(speed), choices(table, tokens, view, speed, mode))


@pytest.fixture(scope="session")
def scattered_verified(scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone) -> FittedVerified:
    """Return verified exits as ``fit`` tunes them on the scattered model."""
    return GeepVerified().fit(signal_task, small_backbone, {"geep": scattered_geep}, config={}, seed=0)


@pytest.fixture(scope="session")
def restless(scattered_geep: FittedGeep) -> FittedVerified:
    """Return points at which some samples exit at every look and others continue to a later layer."""
    points = [
        OperatingPoint(
            f"looks={looks}/end={end}/threshold={threshold}",
            {"speed": 0.3, "looks": looks, "quantile": quantile, "end": end, "threshold": threshold},
        )
        for looks, quantile, end in ((1, 400, 4), (1, 150, 2), (2, 150, 4), (3, 100, 4), (3, 100, 2), (EVERY, 150, 4))
        for threshold in (0.3123, 0.5456)
    ]
    return FittedVerified(scattered_geep.model, None, points, scattered_geep.tables)


@given(data=st.data())
@settings(max_examples=40)
def test_the_simulation_equals_a_run(
    data: st.DataObject, view: DevView, scattered_geep: FittedGeep, signal_task: Task
) -> None:
    """Accuracy, layers and heads that tuning computes equal those of running the same looks."""
    looks = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    targets = np.sort(view.answers[rng.integers(0, 4, (48, looks))], axis=1).astype(np.int16)
    thresholds = candidate_thresholds(view.entropy[:-1], (0.5, 1.0), most=256)
    threshold = thresholds[data.draw(st.integers(0, len(thresholds) - 1))]
    end = data.draw(st.sampled_from(view.answers.tolist()))
    (agreement,), (accuracy,), (layers,), (heads,) = simulate(targets, view, np.array([threshold]), end)
    found = run_verified(
        scattered_geep.model,
        signal_task.dev.tokens,
        torch.from_numpy(targets),
        Execution(batch_size=data.draw(st.integers(1, 50))),
        Entropy(float(threshold)),
        end=end,
    )
    right = found.logits.argmax(1) == signal_task.dev.labels.numpy()
    full = exit_logits(scattered_geep.model, signal_task.dev.tokens, TUNING)[-1].argmax(1).numpy()
    assert agreement == pytest.approx((found.logits.argmax(1) == full).mean())
    assert accuracy == pytest.approx(right.mean())
    assert layers == pytest.approx(found.work.rows("layer") / 48) == found.exit_layer.mean() + 1
    assert heads == pytest.approx(found.work.rows("head") / 48)


def test_dev_figures_equal_a_run_on_dev(
    scattered_verified: FittedVerified, trained_geep: FittedGeep, signal_task: Task, small_backbone: Backbone
) -> None:
    """Accuracy, layers and heads noted with every tuned point equal a run on dev."""
    trained = GeepVerified().fit(signal_task, small_backbone, {"geep": trained_geep}, config={}, seed=0)
    for fitted in (scattered_verified, trained):
        for at in fitted.operating_points(signal_task.dev):
            found = fitted.predict(signal_task.dev.tokens, at=at)
            right = found.logits.argmax(1) == signal_task.dev.labels.numpy()
            assert at.params["dev_accuracy"] == pytest.approx(right.mean())
            assert at.params["dev_mean_layers"] == pytest.approx(found.work.rows("layer") / 48)
            assert at.params["dev_mean_heads"] == pytest.approx(found.work.rows("head") / 48)


@given(speed=st.floats(0, 1), mode=st.sampled_from(sorted(MODES)))
@settings(max_examples=12)
def test_tuning_keeps_to_the_budget(
    speed: float, mode: str, view: DevView, scattered_geep: FittedGeep, signal_task: Task
) -> None:
    """The chosen point takes at most the layers of the sequential exit if any choice does."""
    table, tokens = scattered_geep.tables[0.3], signal_task.dev.tokens
    budget = SLACK * view.sequential_layers(speed)
    chosen = tuned(table, tokens, view, speed, mode)
    # At threshold 1 all samples exit at the first look, which is the cheapest choice.
    cheapest = min(
        simulate(table.quantiles(tokens, [first]).numpy(), view, np.array([1.0]), 4)[2][0]
        for first in range(25, 1000, 25)
    )
    assert chosen.dev_mean_layers <= max(budget, cheapest) + 1e-9


@given(speed=st.floats(0, 1))
@settings(max_examples=12)
def test_steps_agree_at_least_as_often_as_the_sequential_exit(
    speed: float, view: DevView, scattered_geep: FittedGeep, signal_task: Task
) -> None:
    """On dev, mode ``steps`` agrees with full depth at least as often as asking every head from any first look on."""
    table, tokens = scattered_geep.tables[0.3], signal_task.dev.tokens
    chosen = tuned(table, tokens, view, speed, "steps")
    for first in range(25, 1000, 100):
        looks = look_layers(table, tokens, view.answers.tolist(), first, EVERY).numpy()
        agreement, _, layers, _ = simulate(looks, view, np.array([np.float32(speed)]), 4)
        if layers[0] <= SLACK * view.sequential_layers(speed):
            assert chosen.dev_agreement >= agreement[0] - 1e-9


def test_points_at_budgets_use_them(scattered_verified: FittedVerified, view: DevView, signal_task: Task) -> None:
    """A point is within its budget if any choice is, and within one standard error of the best of every table and mode."""
    tokens = signal_task.dev.tokens
    candidates = [
        choices(table, tokens, view, speed, mode)
        for speed, table in scattered_verified.tables.items()
        for mode in MODES
    ]
    points = [point for point in scattered_verified.points if "budget" in point.params]
    assert [point.name for point in points] == ["budget=0.25", "budget=0.5", "budget=0.75"]
    layers = [point.params["dev_mean_layers"] for point in points]
    assert layers == sorted(layers)
    for point, mean in zip(points, layers, strict=True):
        limit = 5 * point.params["budget"]
        rivals = [
            one for one in (best_within(limit, some) for some in candidates) if one.dev_mean_layers <= limit + 1e-9
        ]
        assert (mean <= limit + 1e-9) is bool(rivals) is ("over_budget" not in point.params)
        best = max((one.dev_accuracy for one in rivals), default=0.0)
        assert point.params["dev_accuracy"] >= best - np.sqrt(best * (1 - best) / 48) - 1e-6


def test_looks_at_every_exit_start_at_the_predicted_one(
    scattered_geep: FittedGeep, view: DevView, signal_task: Task
) -> None:
    """Every deeper exit follows the predicted one in order; the columns before it repeat it, so no head is asked."""
    table, tokens = scattered_geep.tables[0.3], signal_task.dev.tokens
    looks = look_layers(table, tokens, view.answers.tolist(), 300, EVERY).numpy()
    first = table.quantiles(tokens, [300]).numpy()[:, 0]
    for row, start in zip(looks, first, strict=True):
        assert sorted(set(row.tolist())) == [answer for answer in view.answers.tolist() if answer >= start]


def test_looks_after_every_layer_equal_the_sequential_exit(view: DevView) -> None:
    """With a look at every answering layer, layers and accuracy are those of the sequential exit at that threshold."""
    looks = np.tile(view.answers, (48, 1))
    for speed in (0.2, 0.4, 0.8):
        _, (accuracy,), (layers,), _ = simulate(looks, view, np.array([np.float32(speed)]), 4)
        first = np.vstack([view.entropy[:-1] <= np.float32(speed), np.ones((1, 48), bool)]).argmax(0)
        assert layers == pytest.approx(view.sequential_layers(speed))
        assert accuracy == pytest.approx(view.correct[first, np.arange(48)].mean())


@given(data=st.data())
@settings(max_examples=40)
def test_predictions_depend_on_the_sample_alone(
    data: st.DataObject,
    restless: FittedVerified,
    scattered_verified: FittedVerified,
    executions: Any,
    same_however_run: Check,
) -> None:
    """Answers and exits are the same for every batch size, order, window, padding and executor, in both modes."""
    fitted, at = data.draw(st.sampled_from([(f, point) for f in (restless, scattered_verified) for point in f.points]))
    same_however_run(fitted, at, data.draw(executions), data.draw(st.permutations(range(40))))


def test_unsure_samples_continue(restless: FittedVerified, unseen: Split) -> None:
    """Samples exit at a look only if they are sure; the others get their answer at a later look."""
    for at in restless.points:
        found = restless.predict(unseen.tokens, at=at)
        looks = restless.looks(unseen.tokens, at=at).numpy()
        assert (np.diff(looks, axis=1) >= 0).all()
        early = found.exit_layer < at.params["end"]
        assert early.any()
        assert not early.all()
        assert all(found.exit_layer[n] in looks[n] for n in np.flatnonzero(early))
        sure = Entropy(at.params["threshold"])(torch.from_numpy(found.logits)).numpy()
        assert sure[early].all()
        np.testing.assert_array_equal(found.predicted_exit, looks[:, 0])


def test_once_asks_at_most_two_heads(restless: FittedVerified, unseen: Split) -> None:
    """With one look a sample asks at most two heads, with S looks at most S + 1."""
    for at in restless.points:
        found = restless.predict(unseen.tokens, at=at)
        most = 5 if at.params["looks"] == EVERY else at.params["looks"] + 1
        assert 40 < found.work.rows("head") <= 40 * most


def test_look_quantiles_halve_the_rest() -> None:
    """Each look halves the distance to certainty; quantiles lie in 1 to 1000 and never fall."""
    assert look_quantiles(600, 3) == [600, 800, 900]
    for first in range(25, 1000, 25):
        quantiles = look_quantiles(first, 3)
        assert quantiles == sorted(quantiles)
        assert quantiles[0] >= 1
        assert quantiles[-1] <= 1000


@given(
    values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=300),
    speed=st.floats(0, 1),
)
@settings(max_examples=50)
def test_thresholds_separate_entropies(values: list[float], speed: float) -> None:
    """Thresholds rise, include the speed and 1, are few, and separate any two entropies if there are few."""
    entropy = np.array(values, dtype=np.float32)
    found = candidate_thresholds(entropy, (speed, 1.0), most=256)
    assert (np.diff(found) > 0).all()
    assert len(found) <= 258
    assert np.float32(speed) in found
    assert np.float32(1) in found
    distinct = np.unique(entropy)
    if len(distinct) <= 257:
        for low, high in zip(distinct[:-1], distinct[1:], strict=True):
            assert ((low <= found) & (found <= high)).any()


@pytest.mark.parametrize(
    "config",
    [
        {"modes": ["twice"]},
        {"modes": "once"},
        {"modes": []},
        {"modes": ["once", "once"]},
        {"modes": [["once"]]},
        {"mode": ["once"]},
        {"quantile": 500},
    ],
)
def test_invalid_settings_are_rejected_in_one_line(
    config: dict[str, Any], scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone
) -> None:
    """An unknown mode or setting is a one-line ConfigError."""
    with pytest.raises(ConfigError) as caught:
        GeepVerified().fit(signal_task, small_backbone, {"geep": scattered_geep}, config=config, seed=0)
    assert "\n" not in str(caught.value)
    assert "mode" in str(caught.value)


def test_a_geep_teacher_is_required(trained_bert: Any, signal_task: Task, small_backbone: Backbone) -> None:
    """Another method under GEEP's name is rejected in one line."""
    with pytest.raises(ConfigError, match="geep-verified needs"):
        GeepVerified().fit(signal_task, small_backbone, {"geep": trained_bert}, config={}, seed=0)


def test_modes_can_be_chosen(
    scattered_geep: FittedGeep, scattered_verified: FittedVerified, signal_task: Task, small_backbone: Backbone
) -> None:
    """A single mode gives its points unchanged; training keys of a profile are accepted."""
    config = {"modes": ["steps"], "epochs": 3, "head": "linear"}
    fitted = GeepVerified().fit(signal_task, small_backbone, {"geep": scattered_geep}, config=config, seed=7)
    at_speeds = [point for point in scattered_verified.points if point.name.endswith("/steps")]
    assert fitted.points[:2] == at_speeds
    names = ["speed=0.3/steps", "speed=0.6/steps", "budget=0.25", "budget=0.5", "budget=0.75"]
    assert [point.name for point in fitted.points] == names
    assert all(point.params["mode"] == "steps" for point in fitted.points)
    for settings_given, model in ((config, fitted), ({}, scattered_verified)):
        names = GeepVerified().point_names({**settings_given, "speeds": [0.3, 0.6]})
        assert names == [point.name for point in model.points]


def test_round_trip(
    scattered_geep: FittedGeep,
    scattered_verified: FittedVerified,
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
    tmp_path: Path,
) -> None:
    """Loaded with its GEEP, it has the same points and predictions, and it stores no weights."""
    scattered_verified.save(tmp_path)
    assert [path.name for path in tmp_path.glob("*.*")] == ["verified.json"]
    loaded = GeepVerified().load(tmp_path, signal_task, small_backbone, {"geep": scattered_geep})
    assert loaded.points == scattered_verified.points
    for at in loaded.points:
        first, second = (fitted.predict(unseen.tokens, at=at) for fitted in (scattered_verified, loaded))
        np.testing.assert_array_equal(first.logits, second.logits)


def test_damage_is_reported(
    scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone, tmp_path: Path
) -> None:
    """A missing or broken file is a ResultError."""
    for content in (None, "{", "[1]"):
        if content is not None:
            (tmp_path / "verified.json").write_text(content, encoding="utf-8")
        with pytest.raises(ResultError, match="run again"):
            GeepVerified().load(tmp_path, signal_task, small_backbone, {"geep": scattered_geep})


@pytest.mark.parametrize("looks", [1, 3, EVERY])
def test_looks_need_no_synchronisation(
    looks: int, scattered_geep: FittedGeep, unseen: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the table's query, tensors without values are enough to compute looks."""
    monkeypatch.setattr(
        ExitTable,
        "quantiles",
        lambda self, tokens, asked: torch.empty(len(tokens), len(asked), dtype=torch.int16, device="meta"),
    )
    table = next(iter(scattered_geep.tables.values()))
    found = look_layers(table, unseen.tokens.to("meta"), scattered_geep.model.answers, 400, looks)
    assert found.shape == (40, looks or len(scattered_geep.model.answers))
