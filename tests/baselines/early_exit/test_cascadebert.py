"""CascadeBERT: ranking loss, hard samples, thresholds, errors and storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import baselines.early_exit.cascadebert as module
from baselines.early_exit.cascadebert import (
    Cascade,
    CascadeBert,
    CascadeBertSettings,
    candidates,
    fitted_temperature,
    ranking_loss,
    small_layers,
    wrong,
)
from baselines.full_depth.bert import Bert
from harness.contracts import Execution, Fitted, OperatingPoint
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.execution.cascade import confidence
from harness.execution.executors import run_full
from harness.measure.resources import SavedState
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import TrainingReport

Check = Callable[[Cascade, OperatingPoint, Execution, list[int]], None]
CONFIG: dict[str, Any] = {"budgets": [0.3, 0.6, 0.9], "folds": 2}


@pytest.fixture(scope="session")
def fitted(signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, quick: Mapping[str, Any]) -> Cascade:
    """A small model of one layer before one of five."""
    config = {**quick, **CONFIG, "epochs": 2}
    return CascadeBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)


@given(data=st.data(), size=st.integers(1, 12), margin=st.floats(0, 1))
def test_ranking_loss_is_the_mean_over_pairs(data: st.DataObject, size: int, margin: float) -> None:
    """The ranking loss is max(0, margin - (easy - hard)) over pairs; 0 without pairs."""
    sure = data.draw(st.lists(st.floats(0, 1, width=32), min_size=size, max_size=size))
    hard = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    pairs = [
        max(0.0, margin - (sure[i] - sure[j])) for i in range(size) for j in range(size) if hard[j] and not hard[i]
    ]
    found = ranking_loss(torch.tensor(sure), torch.tensor(hard), margin).item()
    assert found == pytest.approx(np.mean(pairs) if pairs else 0.0, abs=1e-5)


def test_ranking_loss_pulls_confidences_apart() -> None:
    """Its gradient raises confidence of easy samples and lowers that of hard ones, up to the margin."""
    sure = torch.tensor([0.6, 0.7], requires_grad=True)
    ranking_loss(sure, torch.tensor([False, True]), 0.5).backward()
    assert sure.grad is not None
    assert sure.grad.tolist() == [-1.0, 1.0]
    assert ranking_loss(torch.tensor([0.95, 0.4]), torch.tensor([False, True]), 0.5).item() == 0


def test_published_numbers_are_the_defaults() -> None:
    """Defaults are margin 0.5, weight 0.5 and a sixth of the layers, at least one."""
    assert (CascadeBertSettings().margin, CascadeBertSettings().weight) == (0.5, 0.5)
    assert [small_layers(None, depth) for depth in (12, 24, 6, 5, 2)] == [2, 4, 1, 1, 1]


def caught_training(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect the arguments of every training run."""
    seen: list[dict[str, Any]] = []

    def caught(model: Any, loss: Any, split: Split, recipe: Any, **more: Any) -> TrainingReport:
        seen.append({"model": model.eval(), "loss": loss, "split": split, "recipe": recipe, **more})
        return TrainingReport(0.0, 1, 10, 1)

    monkeypatch.setattr(module, "train", caught)
    return seen


def test_loss_is_cross_entropy_and_weighted_ranking(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bert's mistakes on train as hard samples, the loss is CE + weight x ranking loss of the confidences."""
    seen = caught_training(monkeypatch)
    config = {"difficulty": "bert", "weight": 0.7, "margin": 0.4, "head": "linear"}
    CascadeBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)
    (small,) = seen
    assert (small["recipe"].epochs, small["recipe"].batch_size) == (5, 16)
    tokens, labels = signal_task.train.tokens, signal_task.train.labels
    hard = wrong(trained_bert.model, tokens, labels)
    assert 0 < hard.sum() < len(hard)
    assert small["split"].labels.tolist() == (labels + 3 * hard).tolist()
    found = small["loss"](tokens, Layout(tokens.lengths.numpy(), 16, "cpu"), small["split"].labels)
    said = torch.from_numpy(run_full(small["model"], tokens, Execution()).logits)
    expected = F.cross_entropy(said, labels) + 0.7 * ranking_loss(confidence(said), hard, 0.4)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_hard_samples_come_from_other_folds(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample is judged by a small model trained without it, with its own seed; the last model trains on all."""
    seen = caught_training(monkeypatch)
    fitted = CascadeBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config={"folds": 3}, seed=5)
    *folds, final = seen
    assert len(folds) == 3
    assert len({fold["seed"] for fold in folds} | {final["seed"]}) == 4
    rows = [tuple(signal_task.train.tokens.select([i]).ids.tolist()) for i in range(96)]
    unseen = []
    for fold in folds:
        tokens = fold["split"].tokens
        known = {tuple(tokens.select([i]).ids.tolist()) for i in range(len(tokens))}
        missing = [i for i, row in enumerate(rows) if row not in known]
        unseen += missing
        expected = wrong(
            fold["model"], signal_task.train.tokens.select(missing), signal_task.train.labels[missing]
        ).tolist()
        assert (final["split"].labels[missing] >= 3).tolist() == expected
        assert fold["evaluate"] is None
    assert sorted(unseen) == list(range(96))
    assert final["evaluate"] is not None
    assert trained_bert.training is not None
    assert fitted.training is not None
    assert fitted.training.layer_passes == trained_bert.training.layer_passes + 4 * 10


@given(data=st.data(), count=st.integers(1, 25), layers=st.integers(1, 3))
@settings(max_examples=60)
def test_candidates_equal_their_application(data: st.DataObject, count: int, layers: int) -> None:
    """Layers and accuracy of every threshold equal those of applying it; 0 and 1 are among the thresholds."""
    sure = np.array(data.draw(st.lists(st.integers(1, 20), min_size=count, max_size=count)), np.float32) / 21
    small, whole = (
        np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool) for _ in range(2)
    )
    found = candidates(sure, small, whole, layers, 12)
    assert len(found) == len(set(sure.tolist())) + 1
    for one in found:
        stops = sure > one.threshold
        assert one.layers == pytest.approx(layers + 12 * (~stops).mean())
        assert one.accuracy == pytest.approx(np.where(stops, small, whole).mean())
    assert {one.layers for one in found} >= {layers, layers + 12}


def test_points_keep_their_budgets(fitted: Cascade, signal_task: Task) -> None:
    """On dev every point is within its budget, and its stored numbers are those of a pass over dev."""
    points = fitted.operating_points(signal_task.dev)
    assert [at.name for at in points] == ["budget=0.3", "budget=0.6", "budget=0.9"] == CascadeBert().point_names(CONFIG)
    for at in points:
        found = fitted.predict(signal_task.dev.tokens, at=at)
        assert found.work.rows("layer") / 48 == pytest.approx(at.params["dev_mean_layers"])
        assert at.params["dev_mean_layers"] <= at.params["budget"] * 5
        right = (found.logits.argmax(1) == signal_task.dev.labels.numpy()).mean()
        assert right == pytest.approx(at.params["dev_accuracy"])
    assert points[-1].params["dev_accuracy"] >= points[0].params["dev_accuracy"]


def halfway(fitted: Cascade, unseen: Split) -> OperatingPoint:
    """Return a point at which about half of the samples continue, with a threshold between two confidences."""
    sure = confidence(torch.from_numpy(run_full(fitted.small, unseen.tokens, Execution()).logits)).unique()
    gaps = sure.diff()[15:25]
    between = sure[15 + int(gaps.argmax()) :][:2].mean()
    return OperatingPoint("halfway", {"threshold": float(between), "temperature": 1.0})


def test_a_cascade_answers_with_one_of_two(fitted: Cascade, unseen: Split) -> None:
    """Confident samples have the small model's answer and layers, the others the whole model's and both layers."""
    at = halfway(fitted, unseen)
    small, whole = (run_full(model, unseen.tokens, Execution()).logits for model in (fitted.small, fitted.model))
    found = fitted.predict(unseen.tokens, at=at)
    stays = confidence(torch.from_numpy(small)).numpy() <= at.params["threshold"]
    assert 0 < stays.sum() < 40
    np.testing.assert_allclose(found.logits, np.where(stays[:, None], whole, small), atol=1e-4, rtol=1e-4)
    assert found.exit_layer.tolist() == np.where(stays, 4, 0).tolist()
    assert found.work.rows("layer") == 40 + 5 * stays.sum()
    assert found.work.rows("head") == 40 + stays.sum()
    assert fitted.cost.params == sum(p.numel() for m in (fitted.small, fitted.model) for p in m.parameters())
    assert fitted.cost.depth == 5


@given(data=st.data())
@settings(max_examples=25)
def test_batches_equal_batch_1(
    data: st.DataObject, fitted: Cascade, unseen: Split, executions: Any, same_however_run: Check
) -> None:
    """Answers and exits in batches of any size, order and window equal those of samples run one by one."""
    at = data.draw(st.sampled_from([halfway(fitted, unseen), *fitted.operating_points(unseen)]))
    same_however_run(fitted, at, data.draw(executions), data.draw(st.permutations(range(40))))


def test_starts_from_the_first_layers(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small model starts from the first layers of the pretrained backbone, with its own head."""
    caught_training(monkeypatch)
    config = {"layers": 2, "weight": 0}
    small = CascadeBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0).small
    assert small.depth == 2
    for name, value in small.encoder.state_dict().items():
        assert torch.equal(value, small_backbone.state[name])
    assert not torch.equal(small.teacher.label.weight, trained_bert.model.teacher.label.weight)  # type: ignore[arg-type]


def test_the_teacher_does_not_change(fitted: Cascade, trained_bert: FullDepth) -> None:
    """The whole model is the fine-tuned one itself; the small model shares no memory with it."""
    assert fitted.model is trained_bert.model
    own = {parameter.data_ptr() for parameter in fitted.small.parameters()}
    assert not own & {parameter.data_ptr() for parameter in trained_bert.model.parameters()}


def test_temperature_is_the_most_likely_one(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, quick: Mapping[str, Any]
) -> None:
    """Calibrated logits have temperature 1, three times these logits have 3, and points store the temperature."""
    logits = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * 2
    labels = torch.distributions.Categorical(logits=logits).sample()
    assert fitted_temperature(logits, labels) == pytest.approx(1, abs=0.1)
    assert fitted_temperature(3 * logits, labels) == pytest.approx(3, abs=0.3)
    config = {**quick, **CONFIG, "epochs": 1, "weight": 0, "calibrate": True}
    fitted = CascadeBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)
    temperatures = {at.params["temperature"] for at in fitted.operating_points(signal_task.dev)}
    assert len(temperatures) == 1
    assert temperatures != {1.0}


def test_same_seed_same_fit(
    fitted: Cascade, signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, quick: Mapping[str, Any]
) -> None:
    """The same seed gives the same small model and points, bit for bit."""
    config = {**quick, **CONFIG, "epochs": 2}
    again = CascadeBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)
    assert all(torch.equal(value, fitted.small.state_dict()[k]) for k, value in again.small.state_dict().items())
    assert again.points == fitted.points


def test_round_trip(
    fitted: Cascade, signal_task: Task, small_backbone: Backbone, unseen: Split, tmp_path: Path
) -> None:
    """A loaded cascade has the same models, thresholds and training report."""
    before = SavedState.of(fitted)
    fitted.save(tmp_path)
    loaded = CascadeBert().load(tmp_path, signal_task, small_backbone, {})
    assert loaded.training == fitted.training
    assert list(loaded.operating_points(unseen)) == list(fitted.operating_points(unseen))
    for at in fitted.operating_points(unseen):
        first, second = (model.predict(unseen.tokens, at=at) for model in (fitted, loaded))
        np.testing.assert_array_equal(first.logits, second.logits)
        np.testing.assert_array_equal(first.exit_layer, second.exit_layer)
    assert SavedState.of(fitted) == SavedState.of(loaded) == before
    assert before.size > 4 * fitted.cost.params


@pytest.mark.parametrize("victim", ["points.json", "training.json", "model.safetensors", "small/model.safetensors"])
def test_damage_is_a_result_error(
    victim: str, fitted: Cascade, signal_task: Task, small_backbone: Backbone, tmp_path: Path
) -> None:
    """A broken file is a ResultError, so that the method can be fitted again."""
    fitted.save(tmp_path)
    (tmp_path / victim).write_bytes(b"{")
    with pytest.raises(ResultError, match="run again"):
        CascadeBert().load(tmp_path, signal_task, small_backbone, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": 5}, "1 to 4"),
        ({"layers": 0}, "layers = 0 is not allowed: give an integer of at least 1"),
        ({"layers": 1.5}, "layers = 1.5 is not allowed"),
        ({"margin": -0.1}, "margin"),
        ({"margin": 2}, "margin"),
        ({"weight": -1}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": "0.5"}, "weight"),
        ({"difficulty": "label"}, 'one of "small", "bert"'),
        ({"folds": 1}, "folds"),
        ({"folds": 97}, "folds = 97, but there are 96 train samples"),
        ({"folds": 2.0}, "folds"),
        ({"calibrate": 1}, "calibrate"),
        ({"budgets": []}, "budgets"),
        ({"budgets": 0.5}, "list"),
        ({"budgets": [1.5]}, "budgets"),
        ({"budget": [0.5]}, "budgets"),
        ({"head": "fastbert"}, "linear"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_invalid_settings_are_refused_before_training(
    config: dict[str, Any],
    message: str,
    signal_task: Task,
    small_backbone: Backbone,
    trained_bert: FullDepth,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An invalid setting, or a head of another kind than the teacher's, is a ConfigError of one line that names it."""
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ConfigError) as caught:
        CascadeBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_deeper_full_depth_teacher_is_required(
    fitted: Cascade, signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]
) -> None:
    """A missing teacher, one of another kind, or one of a single layer is refused in one line."""
    wrong_teachers: list[dict[str, Fitted]] = [{}, {"bert": fitted}]
    for teachers in wrong_teachers:
        with pytest.raises(ConfigError, match="full-depth 'bert'"):
            CascadeBert().fit(signal_task, small_backbone, teachers, config={}, seed=0)
    shape = replace(small_backbone.shape, layers=1)
    flat = Backbone("flat", shape, Encoder(shape).state_dict(), None)
    bert = Bert().fit(signal_task, flat, {}, config={**quick, "epochs": 1}, seed=0)
    with pytest.raises(ConfigError, match="at least 2 layers"):
        CascadeBert().fit(signal_task, flat, {"bert": bert}, config={}, seed=0)
