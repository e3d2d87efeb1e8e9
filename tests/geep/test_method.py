"""GEEP as a plug-in: rejected settings, tuning, storage, and independent answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep.exit_table import ExitTable
from geep.method import TUNING, FittedGeep, Geep
from geep.table_rows import split_off
from geep.verified_exits import GeepVerified
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import first_exit

Check = Callable[[FittedGeep, OperatingPoint, Execution, list[int]], None]


@given(data=st.data())
@settings(max_examples=40)
def test_predictions_depend_on_the_sample_alone(
    data: st.DataObject, scattered_geep: FittedGeep, executions: Any, same_however_run: Check
) -> None:
    """Student and shared answers are the same for every batch size, order, window, padding and executor."""
    at = data.draw(st.sampled_from(scattered_geep.points))
    order = data.draw(st.permutations(range(40)))
    same_however_run(scattered_geep, at, data.draw(executions), order)


@pytest.mark.parametrize("answer", ["student", "shared"])
def test_answers_come_from_the_predicted_layer(answer: str, scattered_geep: FittedGeep, unseen: Split) -> None:
    """Every sample exits at the layer that the table predicts, and an early shared answer costs one more layer."""
    at = next(point for point in scattered_geep.points if point.params["answer"] == answer)
    found = scattered_geep.predict(unseen.tokens, at=at)
    wanted = scattered_geep.tables[at.params["speed"]].predict(unseen.tokens, at.params["quantile"]).numpy()
    np.testing.assert_array_equal(found.exit_layer, wanted)
    np.testing.assert_array_equal(found.predicted_exit, wanted)
    assert len(set(wanted.tolist())) > 2
    extra = (wanted < 4).sum() if answer == "shared" else 0
    assert found.work.rows("layer") == (wanted + 1).sum() + extra
    assert found.work.rows("head") == 40


def test_every_speed_has_two_points_and_every_budget_one(trained_geep: FittedGeep, signal_task: Task) -> None:
    """Every speed has a point per kind of answer, budgets come last, and the names are known before the fit."""
    names = [point.name for point in trained_geep.operating_points(signal_task.dev)]
    at_speeds = ["speed=0.75", "speed=0.75/shared", "speed=0.85", "speed=0.85/shared"]
    assert names == [*at_speeds, "budget=0.25", "budget=0.5", "budget=0.75"]
    assert Geep().point_names({"speeds": [0.75, 0.85]}) == names
    assert Geep().point_names({"speeds": [0.75, 0.85], "budgets": [1, 0.3]}) == [*at_speeds, "budget=0.3", "budget=1"]


def test_points_at_budgets_use_them(trained_geep: FittedGeep, scattered_geep: FittedGeep, signal_task: Task) -> None:
    """A point is within its budget, or it is the cheapest pair of table and quantile and marked; students answer."""
    for fitted in (trained_geep, scattered_geep):
        points = [point.params for point in fitted.points if "budget" in point.params]
        assert [params["budget"] for params in points] == [0.25, 0.5, 0.75]
        dev = signal_task.dev.tokens
        cheapest = min(int((table.predict(dev, 5) + 1).sum()) for table in fitted.tables.values()) / 48
        for params in points:
            assert params["answer"] == "student" and params["speed"] in fitted.tables
            if "over_budget" in params:
                assert params["dev_mean_layers"] == pytest.approx(cheapest) > 5 * params["budget"]
            else:
                assert params["dev_mean_layers"] <= 5 * params["budget"] + 1e-6
        layers = [params["dev_mean_layers"] for params in points]
        assert layers == sorted(layers)


def test_tables_for_budgets_make_them_affordable(
    signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any], tmp_path: Path
) -> None:
    """At a speed at which no sample exits early its points are full depth, and those at budgets are not."""
    config = {**quick, "speeds": [0.0], "budgets": [0.5, 0.75]}
    more = Geep().fit(signal_task, small_backbone, {}, config=config, seed=0)
    assert [point.name for point in more.points] == ["speed=0", "speed=0/shared", "budget=0.5", "budget=0.75"]
    assert next(iter(more.tables)) == 0.0 and len(more.tables) > 1
    assert all(point.params["dev_mean_layers"] == 5 for point in more.points[:2])
    more.save(tmp_path)
    loaded = Geep().load(tmp_path, signal_task, small_backbone, {})
    for point in loaded.points[2:]:
        assert "over_budget" not in point.params
        layers = loaded.predict(signal_task.dev.tokens, at=point).work.rows("layer") / 48
        assert layers == pytest.approx(point.params["dev_mean_layers"]) and layers <= 5 * point.params["budget"] + 1e-9
    verified = GeepVerified().fit(
        signal_task, small_backbone, {"geep": loaded}, config={"budgets": [0.5, 0.75]}, seed=0
    )
    names = ["speed=0/once", "speed=0/steps", "budget=0.5", "budget=0.75"]
    assert [point.name for point in verified.points] == names


def test_dev_figures_equal_a_run_on_dev(trained_geep: FittedGeep, signal_task: Task) -> None:
    """Mean layers and accuracy noted while tuning equal a run of the point on dev."""
    for at in trained_geep.points:
        found = trained_geep.predict(signal_task.dev.tokens, at=at)
        assert found.work.rows("layer") / 48 == pytest.approx(at.params["dev_mean_layers"])
        right = found.logits.argmax(1) == signal_task.dev.labels.numpy()
        assert right.mean() == pytest.approx(at.params["dev_accuracy"])


def test_learns_the_task(trained_geep: FittedGeep, signal_task: Task) -> None:
    """After a short training, dev accuracy is far above that of the most frequent label."""
    commonest = signal_task.dev.labels.bincount().max().item() / 48
    best = max(point.params["dev_accuracy"] for point in trained_geep.points)
    assert best > commonest + 0.15


def test_same_seed_same_fit(
    trained_geep: FittedGeep, signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]
) -> None:
    """The same seed gives the same weights, tables and points, bit for bit; another seed does not."""
    config = {**quick, "speeds": [0.75, 0.85]}
    again, other = (Geep().fit(signal_task, small_backbone, {}, config=config, seed=seed) for seed in (0, 1))
    first = trained_geep.model.state_dict()
    assert all(torch.equal(value, first[key]) for key, value in again.model.state_dict().items())
    assert not torch.equal(other.model.state_dict()["teacher.dense.weight"], first["teacher.dense.weight"])
    assert again.points == trained_geep.points
    for speed, table in trained_geep.tables.items():
        mine = again.tables[speed].distribution(signal_task.dev.tokens)
        assert torch.equal(mine, table.distribution(signal_task.dev.tokens))


def test_round_trip(
    trained_geep: FittedGeep, signal_task: Task, small_backbone: Backbone, unseen: Split, tmp_path: Path
) -> None:
    """A loaded model has the same points and predicts the same logits and exits, and knows its held-out rows."""
    replace(trained_geep, holdout=0.25, holdout_seed=7).save(tmp_path)
    loaded = Geep().load(tmp_path, signal_task, small_backbone, {})
    assert loaded.points == trained_geep.points
    assert loaded.training == trained_geep.training
    assert (loaded.holdout, loaded.holdout_seed) == (0.25, 7)
    for at in trained_geep.points:
        first, second = (fitted.predict(unseen.tokens, at=at) for fitted in (trained_geep, loaded))
        np.testing.assert_array_equal(first.logits, second.logits)
        np.testing.assert_array_equal(first.exit_layer, second.exit_layer)


@pytest.mark.parametrize(
    "victim", ["geep.json", "model.safetensors", "model.json", "table-0.75/exit_table.safetensors"]
)
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damage_is_reported(
    victim: str, damage: str, trained_geep: FittedGeep, signal_task: Task, small_backbone: Backbone, tmp_path: Path
) -> None:
    """A missing or broken file is a one-line ResultError, so the method can be fitted again."""
    trained_geep.save(tmp_path)
    if damage == "gone":
        (tmp_path / victim).unlink()
    else:
        (tmp_path / victim).write_bytes((tmp_path / victim).read_bytes()[:-9])
    with pytest.raises(ResultError) as caught:
        Geep().load(tmp_path, signal_task, small_backbone, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"speed": [0.5]}, "speeds"),
        ({"exit": 2}, "exits"),
        ({"holdouts": 0.1}, "holdout"),
        ({"exits": 0}, "exits = 0 is not allowed: give an integer of at least 1"),
        ({"exits": 4}, "1..3"),
        ({"exits": 2.0}, "exits"),
        ({"exits": True}, "exits"),
        ({"exits": "2"}, "exits"),
        ({"speeds": []}, "from 0 to 1"),
        ({"speeds": 0.5}, "speeds = "),
        ({"speeds": "0.5"}, "speeds = "),
        ({"speeds": [0.5, 1.5]}, "from 0 to 1"),
        ({"speeds": [-0.1]}, "from 0 to 1"),
        ({"speeds": [float("nan")]}, "from 0 to 1"),
        ({"speeds": ["0.5"]}, "from 0 to 1"),
        ({"speeds": [True]}, "from 0 to 1"),
        ({"speeds": [0.5, 0.5]}, "twice"),
        ({"speeds": [0.5, 0.50000001]}, "twice"),
        ({"budgets": []}, "budgets = "),
        ({"budgets": [0.0]}, "budgets[0] = 0.0 is not allowed: give a number above 0 and up to 1"),
        ({"budgets": [1.5]}, "budgets[0] = 1.5 is not allowed"),
        ({"budgets": [0.5, 0.5]}, "twice"),
        ({"ngram": 0}, "from 1 to 3"),
        ({"ngram": 4}, "from 1 to 3"),
        ({"min_count": 0}, "min_count"),
        ({"min_count": 1.5}, "min_count"),
        ({"smoothing": -1}, "smoothing"),
        ({"smoothing": 2**40}, "smoothing"),
        ({"holdout": -0.1}, "from 0 to 0.5"),
        ({"holdout": 0.6}, "from 0 to 0.5"),
        ({"holdout": "0.1"}, "holdout"),
        ({"holdout": None}, "holdout"),
        ({"table_rows": "test"}, 'give one of "train", "holdout", "unlabelled"'),
        ({"table_rows": "holdout"}, 'table_rows = "holdout" needs a share of train: set holdout, e.g. to 0.2'),
        (
            {"table_rows": "train", "holdout": 0.2},
            'holdout = 0.2 holds rows back that table_rows = "train" does not use',
        ),
        ({"table_rows": "unlabelled", "holdout": 0.2}, 'table_rows = "unlabelled" does not use: set one of them'),
        ({"table_rows": "unlabelled"}, "dataset 'signal' has no rows without labels: set --max-train below"),
        ({"head": "none"}, "head"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_invalid_settings_are_rejected_before_training(
    config: dict[str, Any],
    text: str,
    signal_task: Task,
    small_backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An invalid setting gives one line with its name before training starts."""
    monkeypatch.setattr("geep.method.train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ConfigError) as caught:
        Geep().fit(signal_task, small_backbone, {}, config=config, seed=0)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [1, 2, 25])
def test_unsuitable_depths_are_rejected(layers: int, signal_task: Task, small_backbone: Backbone) -> None:
    """Fewer than 3 layers have no student and more than 24 no table; both are rejected before training."""
    shape = replace(small_backbone.shape, layers=layers)
    backbone = Backbone("odd", shape, Encoder(shape).state_dict(), None)
    with pytest.raises(ConfigError, match=f"3 to 24 layers, odd has {layers}"):
        Geep().fit(signal_task, backbone, {}, config={}, seed=0)


def test_fewer_exits_and_longer_keys(signal_task: Task, small_backbone: Backbone, unseen: Split) -> None:
    """With E = 1, samples exit after the first or the last layer; whole numbers are valid speeds."""
    config = {"epochs": 1, "exits": 1, "ngram": 3, "min_count": 1, "smoothing": 0, "speeds": [0, 1], "holdout": 0.25}
    fitted = Geep().fit(signal_task, small_backbone, {}, config=config, seed=3)
    assert fitted.model.answers == (0, 4)
    assert all(table.ngram == 3 for table in fitted.tables.values())
    # What runs on these weights knows which rows they have not seen.
    assert (fitted.holdout, fitted.holdout_seed) == (0.25, 3)
    for at in fitted.points:
        assert set(fitted.predict(unseen.tokens, at=at).exit_layer.tolist()) <= {0, 4}


def test_no_sample_exits_early_at_speed_zero(signal_task: Task, small_backbone: Backbone, unseen: Split) -> None:
    """If no training sample was sure, every prediction is full depth at no extra cost."""
    fitted = Geep().fit(signal_task, small_backbone, {}, config={"epochs": 1, "speeds": [0.0]}, seed=0)
    for at in fitted.points[:2]:  # those at speeds
        found = fitted.predict(unseen.tokens, at=at)
        assert (found.exit_layer == 4).all()
        assert found.work.rows("layer") == 5 * 40


@given(holdout=st.floats(0.01, 0.5), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_holdout_splits_the_rows(holdout: float, seed: int, signal_task: Task) -> None:
    """Training and observed rows are disjoint, together all of train, and have the requested shares."""
    learn, watch = split_off(signal_task.train, holdout, seed)
    rows = [
        tuple(part.tokens.select([i]).ids.tolist() + [int(part.labels[i])])
        for part in (learn, watch)
        for i in range(len(part))
    ]
    train = [tuple(signal_task.train.tokens.select([i]).ids.tolist()) for i in range(96)]
    assert sorted(row[:-1] for row in rows) == sorted(train)
    assert len(watch) == max(1, round(holdout * 96))
    assert torch.equal(split_off(signal_task.train, holdout, seed)[1].tokens.ids, watch.tokens.ids)


@pytest.mark.parametrize("config", [{"holdout": 0.25}, {"table_rows": "holdout", "holdout": 0.25}])
def test_a_holdout_needs_no_other_setting(
    config: dict[str, Any], signal_task: Task, small_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share alone means that tables are filled from it; training sees the other rows."""
    trained = []
    monkeypatch.setattr("geep.method.train", lambda model, loss, rows, *_, **__: trained.append(rows))
    fitted = Geep().fit(signal_task, small_backbone, {}, config={**config, "speeds": [0.9]}, seed=0)
    (rows,) = trained
    assert len(rows) == 72
    assert fitted.tables[0.9].stats()["samples"] == 24


def test_tables_of_unlabelled_rows(
    trained_geep: FittedGeep, signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any], unseen: Split
) -> None:
    """Training is that on all of train; a table counts the exits of the trained model on the rows without labels only."""
    task = replace(signal_task, read_unlabelled=lambda: unseen.tokens)
    config = {**quick, "speeds": [0.85], "table_rows": "unlabelled", "min_count": 1, "smoothing": 0}
    assert Geep().uses_unlabelled(config) and not Geep().uses_unlabelled({"table_rows": "train"})
    fitted = Geep().fit(task, small_backbone, {}, config=config, seed=0)
    first = trained_geep.model.state_dict()
    assert all(torch.equal(value, first[key]) for key, value in fitted.model.state_dict().items())
    exits = torch.tensor(fitted.model.answers)[first_exit(exit_logits(fitted.model, unseen.tokens, TUNING), 0.85)]
    by_hand = ExitTable(fitted.model.depth)
    by_hand.insert(unseen.tokens, exits)
    for mine, wanted in zip(fitted.tables[0.85].counts(), by_hand.counts(), strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_without_holdout_training_rows_are_observed(signal_task: Task) -> None:
    """With a holdout of 0, both parts are the whole of train, as in the paper."""
    learn, watch = split_off(signal_task.train, 0.0, 3)
    assert learn is watch is signal_task.train


def test_holdout_needs_two_rows(signal_task: Task) -> None:
    """A single row cannot be split."""
    one = Split(signal_task.train.tokens.select([0]), signal_task.train.labels[:1])
    with pytest.raises(ConfigError, match="leaves none of 1 rows to train on: set it to 0"):
        split_off(one, 0.5, 0)


def test_tables_of_another_model_are_rejected(
    trained_geep: FittedGeep, signal_task: Task, small_backbone: Backbone, tmp_path: Path
) -> None:
    """Exits of a deeper model exceed the last layer; the message names the number that differs."""
    trained_geep.save(tmp_path)
    deeper = ExitTable(9)
    deeper.insert([torch.tensor([1])], [8])
    deeper.save(tmp_path / "table-0.75")
    with pytest.raises(ResultError, match="table-0.75 has num_layers=9, not 5"):
        Geep().load(tmp_path, signal_task, small_backbone, {})


def test_files_contain_no_pickle(trained_geep: FittedGeep, tmp_path: Path) -> None:
    """All files are JSON or safetensors."""
    trained_geep.save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def test_known_keys_are_counted(scattered_geep: FittedGeep, unseen: Split) -> None:
    """Hits are n-grams without special ids that have their own row."""
    at = scattered_geep.points[0]
    table = scattered_geep.tables[at.params["speed"]]
    found, asked = scattered_geep.key_hits(unseen.tokens, at=at)
    keys, counts = table.counts()
    often = counts.sum(1) >= table.stats()["min_count"]
    known = {int(key) for key in keys[often]}
    grams = []
    for sample in range(len(unseen)):
        ids = unseen.tokens.ids[unseen.tokens.offsets[sample] : unseen.tokens.offsets[sample + 1]].tolist()
        for n in range(1, table.ngram + 1):
            for window in zip(*(ids[start:] for start in range(n)), strict=False):
                if not set(window) & set(unseen.tokens.special):
                    grams.append((n << 60) + sum(word << 20 * (2 - place) for place, word in enumerate(window)))
    assert asked == len(grams)
    assert found == sum(gram in known for gram in grams)
    assert found > 0
