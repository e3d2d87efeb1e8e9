"""One look as a method: figures on dev equal a run, at most two heads a sample, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep.method import TUNING, FittedGeep
from geep.one_look import PRICES, FittedLook, GeepLook, PricedLayers, nearest
from geep.predictor import DevView
from geep.table_rows import split_off
from harness.contracts import CountsKeyHits, Execution, OperatingPoint, UsesUnlabelled
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.execution.executors import exit_logits
from harness.toolkit.fitted import FullDepth

Check = Callable[[FittedLook, OperatingPoint, Execution, list[int]], None]
CONFIG = {"speeds": [0.3, 0.9], "bins": 4, "buckets": 2}


@pytest.fixture(scope="session")
def looked(scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone) -> FittedLook:
    """Return one look on the scattered model, as ``fit`` tunes it."""
    return GeepLook().fit(signal_task, small_backbone, {"geep": scattered_geep}, config=CONFIG, seed=0)


@pytest.fixture(scope="session")
def later(scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone) -> FittedLook:
    """Return a look after the second layer."""
    return GeepLook().fit(signal_task, small_backbone, {"geep": scattered_geep}, config={**CONFIG, "look": 2}, seed=0)


def test_dev_figures_equal_a_run_on_dev(looked: FittedLook, later: FittedLook, signal_task: Task) -> None:
    """Accuracy, agreement and layers noted with every point are those of a run on dev."""
    for fitted in (looked, later):
        full = exit_logits(fitted.model, signal_task.dev.tokens, TUNING)[-1].argmax(1).numpy()
        for at in fitted.operating_points(signal_task.dev):
            found = fitted.predict(signal_task.dev.tokens, at=at)
            said = found.logits.argmax(1)
            assert at.params["dev_accuracy"] == pytest.approx((said == signal_task.dev.labels.numpy()).mean())
            assert at.params["dev_agreement"] == pytest.approx((said == full).mean())
            assert at.params["dev_mean_layers"] == pytest.approx(found.work.rows("layer") / 48)


def test_at_a_speed_it_runs_the_layers_of_the_sequential_exit(looked: FittedLook, signal_task: Task) -> None:
    """No other price comes nearer to the mean layers on dev of the sequential exit at that speed."""
    model, dev = looked.model, signal_task.dev
    logits = exit_logits(model, dev.tokens, TUNING)
    view = DevView.of(logits, dev.labels, model.answers, model.depth)
    table = looked.table
    assert [point.name for point in looked.points[:2]] == ["speed=0.3", "speed=0.9"]
    for point in looked.points[:2]:
        wanted = view.sequential_layers(point.params["speed"])
        gap = abs(point.params["dev_mean_layers"] - wanted)
        layers = table.exits(logits[0], dev.tokens.lengths, PRICES).double().mean(0) + 1
        assert gap == pytest.approx(float((layers - wanted).abs().min()))


@given(data=st.data())
@settings(max_examples=15)
def test_predictions_depend_on_the_sample_alone(
    data: st.DataObject, looked: FittedLook, later: FittedLook, executions: Any, same_however_run: Check
) -> None:
    """Answers and exits are the same for every batch size, order, window and padding."""
    fitted, at = data.draw(st.sampled_from([(f, point) for f in (looked, later) for point in f.points]))
    same_however_run(fitted, at, data.draw(executions), data.draw(st.permutations(range(40))))


def test_a_sample_asks_at_most_two_heads(looked: FittedLook, later: FittedLook, unseen: Split) -> None:
    """Every sample asks the head at the look, and one more only if its exit is deeper; some do and some do not."""
    for fitted in (looked, later):
        look, deeper = fitted.table.look, []
        for at in fitted.points:
            found = fitted.predict(unseen.tokens, at=at)
            deeper.append(int((found.exit_layer > look).sum()))
            assert found.exit_layer.min() >= look
            assert found.work.rows("head") == 40 + deeper[-1]
            assert found.work.rows("layer") == (found.exit_layer + 1).sum()
        assert any(0 < count < 40 for count in deeper)


def test_key_hits_count_what_the_table_has_seen(looked: FittedLook, unseen: Split, signal_task: Task) -> None:
    """A sample has three keys; rows that filled the table have all of theirs, whatever the batches."""
    assert isinstance(looked, CountsKeyHits)
    at = looked.points[0]
    assert looked.key_hits(signal_task.train.tokens, at=at) == (3 * 96, 3 * 96)
    found, asked = looked.key_hits(unseen.tokens, at=replace(at, execution=Execution(window=7)))
    assert asked == 120
    assert 40 < found <= 120


def test_it_borrows_all_weights(
    looked: FittedLook,
    scattered_geep: FittedGeep,
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
    tmp_path: Path,
) -> None:
    """It trains nothing and stores no weights; loaded with its GEEP it predicts the same."""
    assert looked.model is scattered_geep.model
    assert looked.training is None
    looked.save(tmp_path)
    assert not list(tmp_path.rglob("model*"))
    again = GeepLook().load(tmp_path, signal_task, small_backbone, {"geep": scattered_geep})
    assert again.points == looked.points
    for at in again.points:
        first, second = (fitted.predict(unseen.tokens, at=at) for fitted in (looked, again))
        np.testing.assert_array_equal(first.logits, second.logits)
        np.testing.assert_array_equal(first.exit_layer, second.exit_layer)


@pytest.mark.parametrize("spoil", ["points.json", "table/look.json", "table/exit_table.json"])
def test_damage_is_reported(
    spoil: str,
    looked: FittedLook,
    scattered_geep: FittedGeep,
    signal_task: Task,
    small_backbone: Backbone,
    tmp_path: Path,
) -> None:
    """A missing, broken or other file is a ResultError."""
    looked.save(tmp_path)
    for content in ("{", "[1]", None):
        if content is None:
            (tmp_path / spoil).unlink()
        else:
            (tmp_path / spoil).write_text(content, encoding="utf-8")
        with pytest.raises(ResultError):
            GeepLook().load(tmp_path, signal_task, small_backbone, {"geep": scattered_geep})


def rows_seen(monkeypatch: pytest.MonkeyPatch, task: Task, backbone: Backbone, geep: FittedGeep, **config: Any) -> int:
    """Return how many rows filled the table."""
    counted: list[int] = []
    before = exit_logits

    def count(model: Any, tokens: Any, execution: Any) -> Any:
        counted.append(len(tokens))
        return before(model, tokens, execution)

    monkeypatch.setattr("geep.one_look.exit_logits", count)
    GeepLook().fit(task, backbone, {"geep": geep}, config={**CONFIG, **config}, seed=0)
    assert counted[1:] == [48]
    return counted[0]


def test_rows_that_training_does_not_see_fill_the_table(
    monkeypatch: pytest.MonkeyPatch,
    scattered_geep: FittedGeep,
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
) -> None:
    """Rows without labels if there are any, held-out rows if a share is set, else all of train; at most as many as set."""
    more = replace(signal_task, read_unlabelled=lambda: unseen.tokens)
    given = (small_backbone, scattered_geep)
    assert rows_seen(monkeypatch, signal_task, *given) == 96
    assert rows_seen(monkeypatch, more, *given) == 40
    assert rows_seen(monkeypatch, more, *given, table_rows="train") == 96
    held_back = replace(scattered_geep, holdout=0.25)
    assert rows_seen(monkeypatch, more, small_backbone, held_back) == 24
    assert rows_seen(monkeypatch, more, small_backbone, held_back, table_rows="unlabelled") == 40
    assert rows_seen(monkeypatch, more, *given, most_rows=7) == 7
    with pytest.raises(ConfigError, match="no rows without labels"):
        rows_seen(monkeypatch, signal_task, *given, table_rows="unlabelled")
    method = GeepLook()
    assert isinstance(method, UsesUnlabelled)
    uses = [{}, {"table_rows": "unlabelled"}, {"table_rows": "train"}, {"table_rows": "holdout"}]
    assert [method.uses_unlabelled(config) for config in uses] == [True, True, False, False]


def test_held_out_rows_are_those_that_the_weights_have_not_seen(
    monkeypatch: pytest.MonkeyPatch, scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone
) -> None:
    """A variant with its own seed kept other rows from training than the seed of this method would choose."""
    seen: list[TokenSet] = []
    before = exit_logits

    def watch(model: Any, tokens: TokenSet, execution: Any) -> Any:
        seen.append(tokens)
        return before(model, tokens, execution)

    monkeypatch.setattr("geep.one_look.exit_logits", watch)
    held_back = replace(scattered_geep, holdout=0.25, holdout_seed=100)
    GeepLook().fit(signal_task, small_backbone, {"geep": held_back}, config=CONFIG, seed=0)
    assert torch.equal(seen[0].ids, split_off(signal_task.train, 0.25, 100)[1].tokens.ids)
    assert not torch.equal(seen[0].ids, split_off(signal_task.train, 0.25, 0)[1].tokens.ids)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"look": 4}, r"look = 4 is after a layer without an exit: choose one of \[1, 2, 3\]"),
        ({"look": 5}, "look = 5 is after a layer without an exit"),
        ({"look": 0}, "look"),
        ({"bins": 0}, "bins"),
        ({"buckets": "many"}, "buckets"),
        ({"table_rows": "test"}, "table_rows"),
        ({"table_rows": "holdout"}, "have seen all of train: set holdout of 'geep'"),
        ({"holdout": 0.2}, "holdout"),
        ({"quantile": 500}, "quantile"),
    ],
)
def test_invalid_settings_are_rejected_in_one_line(
    config: dict[str, Any], words: str, scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone
) -> None:
    """An unknown or impossible setting is a one-line ConfigError that names it."""
    with pytest.raises(ConfigError, match=words) as caught:
        GeepLook().fit(signal_task, small_backbone, {"geep": scattered_geep}, config=config, seed=0)
    assert "\n" not in str(caught.value)


def test_early_exits_are_required(trained_bert: FullDepth, signal_task: Task, small_backbone: Backbone) -> None:
    """Weights without early exits, and no weights at all, are rejected in one line."""
    with pytest.raises(ConfigError, match="without an exit"):
        GeepLook().fit(signal_task, small_backbone, {"geep": trained_bert}, config={}, seed=0)
    with pytest.raises(ConfigError, match="geep-look1 needs"):
        GeepLook().fit(signal_task, small_backbone, {}, config={}, seed=0)


def test_speeds_that_no_sample_meets_run_to_the_end(
    scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone
) -> None:
    """At speed 0 the sequential exit runs all layers, and so does one look, nearly; at speed 1 all samples stop at the look."""
    config = {**CONFIG, "speeds": [0, 1], "budgets": [0.01, 1]}
    fitted = GeepLook().fit(signal_task, small_backbone, {"geep": scattered_geep}, config=config, seed=0)
    deep, shallow, cheapest, whole = fitted.points
    assert [point.name for point in fitted.points] == GeepLook().point_names(config)
    assert deep.params["dev_mean_layers"] > 4
    assert shallow.params["dev_mean_layers"] == 1
    assert cheapest.params["over_budget"]
    assert whole.params["dev_mean_layers"] <= 5


def test_the_nearest_layers_are_chosen() -> None:
    """Of two equally near candidates, the one that agrees more often is taken."""
    candidates = [
        PricedLayers(price, layers, 0.5, agrees) for price, layers, agrees in ((1, 4, 0.9), (2, 2, 0.7), (3, 2, 0.8))
    ]
    assert nearest(3.0, candidates).threshold == 1
    assert nearest(2.9, candidates).threshold == 3
    assert nearest(0.0, candidates).threshold == 3


def test_exits_are_those_of_the_table(looked: FittedLook, unseen: Split) -> None:
    """Exits of a pass are those that the table gives for the logits at the look."""
    logits = exit_logits(looked.model, unseen.tokens, Execution(batch_size=1))
    for at in looked.points:
        found = looked.predict(unseen.tokens, at=at)
        exits = looked.table.exits(logits[0], unseen.tokens.lengths, (at.params["price"],))
        assert torch.equal(torch.from_numpy(found.exit_layer), exits[:, 0])
