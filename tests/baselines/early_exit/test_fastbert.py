"""FastBERT: trained and frozen weights in step 2, exits, errors and storage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import harness.toolkit.frozen.frozen_heads as module
from baselines.early_exit.fastbert import FastBert, FastBertSettings, divergence
from baselines.full_depth.bert import Bert
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import normalised_entropy
from harness.toolkit.fitted import FullDepth, SequentialExits
from harness.toolkit.training import Recipe, TrainingReport, training_layout

Check = Callable[[SequentialExits, OperatingPoint, Execution, list[int]], None]
BRIEF: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 16, "distill_epochs": 2, "speeds": [0.2, 0.5, 0.8]}


@pytest.fixture(scope="session")
def fitted(signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth) -> SequentialExits:
    """FastBERT after two epochs of distillation."""
    return FastBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=BRIEF, seed=0)


@pytest.fixture(scope="session")
def scattered(fitted: SequentialExits, signal_task: Task, small_backbone: Backbone) -> SequentialExits:
    """The same with random heads, so that samples exit at every layer."""
    torch.manual_seed(8)
    model = MultiExitModel(small_backbone.encoder(), 3, range(4), "fastbert")
    for name, parameter in model.named_parameters():
        if not name.startswith("encoder") and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.9)
    return SequentialExits.at_speeds(model.eval(), None, (0.15, 0.45, 0.75))


def test_only_students_are_trained(fitted: SequentialExits, trained_bert: FullDepth) -> None:
    """Encoder and teacher head do not change, bit for bit; every other layer has a student."""
    own, his = fitted.model.state_dict(), trained_bert.model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in his.items())
    assert fitted.model.exits == (0, 1, 2, 3)
    assert {key.split(".")[0] for key in own.keys() - his.keys()} == {"students"}


def test_shares_no_memory_with_its_teacher(fitted: SequentialExits, trained_bert: FullDepth) -> None:
    """It works on copies: no parameter shares memory with the teacher."""
    own = {parameter.data_ptr() for parameter in fitted.model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in trained_bert.model.parameters()}


def test_every_student_approaches_the_teacher(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth
) -> None:
    """Distillation lowers KL(p_t || p_s) on train for every student."""

    def distances(config: dict[str, Any]) -> torch.Tensor:
        model = FastBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0).model
        log_p = exit_logits(model, signal_task.train.tokens, Execution()).log_softmax(-1)
        return (log_p[-1].exp() * (log_p[-1] - log_p[:-1])).sum(-1).mean(-1)

    still = distances({**BRIEF, "distill_learning_rate": 1e-12, "distill_epochs": 1})
    assert (distances({**BRIEF, "distill_epochs": 4}) < 0.9 * still).all()


def test_loss_is_the_divergence_of_every_student_from_the_teacher(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the sum over students of KL(p_t || p_s), mean over samples, for any labels."""
    seen: dict[str, Any] = {}

    def caught(model: MultiExitModel, loss: Any, split: Split, recipe: Recipe, **_: Any) -> TrainingReport:
        seen.update(model=model, loss=loss, recipe=recipe)
        return TrainingReport(0.0, 0, 0, 0)

    monkeypatch.setattr(module, "train", caught)
    FastBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config={"learning_rate": 3e-4}, seed=0)
    assert (seen["recipe"].epochs, seen["recipe"].learning_rate) == (5, pytest.approx(3e-3))
    model: MultiExitModel = seen["model"].eval()
    tokens = signal_task.train.tokens.select(range(5))
    together = seen["loss"](tokens, Layout(tokens.lengths.numpy(), None, "cpu"), torch.full((5,), -1))
    total = torch.zeros(())
    for i in range(5):
        one = tokens.select([i])
        layout = Layout(one.lengths.numpy(), 16, "cpu")
        _, *states = model.encoder.states(one, layout)
        p = model.teacher(states[-1], layout).softmax(-1)
        for exit_layer in range(4):
            q = model.student(exit_layer)(states[exit_layer], layout).softmax(-1)
            total += (p * (p / q).log()).sum() / 5
    assert together.item() == pytest.approx(total.item(), rel=1e-4)


def test_teacher_answers_without_dropout(signal_task: Task, small_backbone: Backbone) -> None:
    """Frozen parts that run in training, in the only epoch, run without dropout, while students have it."""
    shape = replace(small_backbone.shape, dropout=0.5)
    torch.manual_seed(0)
    noisy = Backbone("noisy", shape, Encoder(shape).state_dict(), None)
    bert = FullDepth(MultiExitModel(noisy.encoder(), 3, (), "linear").eval())
    modes: list[tuple[bool, bool]] = []

    def watched(model: MultiExitModel, loss: Any, split: Split, recipe: Recipe, **_: Any) -> TrainingReport:
        model.train()
        loss(split.tokens, training_layout(split.tokens), split.labels)
        modes.append((model.encoder.layers[0].training or model.teacher.training, model.student(0).training))
        return TrainingReport(0.0, 0, 0, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", watched)
        FastBert().fit(signal_task, noisy, {"bert": bert}, config={"distill_epochs": 1}, seed=0)
    assert modes == [(False, True)]


@pytest.mark.parametrize("dropout", [False, True])
def test_teacher_can_answer_as_released(
    dropout: bool, signal_task: Task, small_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``teacher_dropout`` frozen parts run in train mode, dropout included, and still get no gradient."""
    shape = replace(small_backbone.shape, dropout=0.5)
    torch.manual_seed(0)
    noisy = Backbone("noisy", shape, Encoder(shape).state_dict(), None)
    bert = FullDepth(MultiExitModel(noisy.encoder(), 3, (), "linear").eval())
    seen: dict[str, Any] = {}

    def caught(model: MultiExitModel, loss: Any, split: Split, recipe: Recipe, **_: Any) -> TrainingReport:
        model.train()
        for student in model.students.values():
            student.dropout = 0.0
        tokens = split.tokens.select(range(6))
        losses = [loss(tokens, training_layout(tokens), split.labels[:6]) for _ in range(2)]
        losses[0].backward()
        seen.update(losses=[one.item() for one in losses], encoder=model.encoder)
        return TrainingReport(0.0, 0, 0, 0)

    monkeypatch.setattr(module, "train", caught)
    config = {"teacher_dropout": dropout, "precision": "float32"}
    FastBert().fit(signal_task, noisy, {"bert": bert}, config=config, seed=0)
    assert (seen["losses"][0] != seen["losses"][1]) == dropout
    assert all(parameter.grad is None for parameter in seen["encoder"].parameters())


def test_divergence_in_both_directions() -> None:
    """Computed by hand, once with teacher 1/2, 1/2 and student 1/4, 3/4, and once with equal answers, which halve the mean."""
    teacher = torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log()
    student = torch.tensor([[0.25, 0.75], [0.2, 0.8]]).log()
    forward = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    backward = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(student, teacher, "teacher-student").item() == pytest.approx(forward / 2, rel=1e-5)
    assert divergence(student, teacher, "student-teacher").item() == pytest.approx(backward / 2, rel=1e-5)
    assert FastBertSettings().divergence == "teacher-student"


def test_released_schedule_ends_with_the_steps_of_fine_tuning(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is scheduled over as many steps as step 1 took, or would have taken; by default over all steps."""
    horizons: list[int | None] = []

    def caught(*_: Any, horizon: int | None = None, **__: Any) -> TrainingReport:
        horizons.append(horizon)
        return TrainingReport(0.0, 0, 0, 0)

    monkeypatch.setattr(module, "train", caught)
    unknown = FullDepth(trained_bert.model)
    for bert, config in (
        (trained_bert, {}),
        (trained_bert, {"schedule": "released"}),
        (unknown, {"schedule": "released", "batch_size": 20}),
    ):
        FastBert().fit(signal_task, small_backbone, {"bert": bert}, config=config, seed=0)
    assert trained_bert.training is not None
    assert horizons == [None, trained_bert.training.steps, 5 * 3]  # 96 rows are 5 batches of 20, in 3 epochs


def test_released_schedule_changes_nothing_after_epoch_3(signal_task: Task, small_backbone: Backbone) -> None:
    """After 3 epochs of fine-tuning, epochs 4 and 5 of distillation change no weight: 5 end where 3 do."""
    recipe = {"learning_rate": 1e-3, "batch_size": 16, "epochs": 3, "weight_decay": 0.0}
    bert = Bert().fit(signal_task, small_backbone, {}, config={**recipe, "head": "linear"}, seed=0)

    def distilled(epochs: int, schedule: str) -> dict[str, torch.Tensor]:
        config = {**recipe, "distill_epochs": epochs, "schedule": schedule}
        return FastBert().fit(signal_task, small_backbone, {"bert": bert}, config=config, seed=0).model.state_dict()

    three, five, intended = distilled(3, "released"), distilled(5, "released"), distilled(5, "intended")
    assert all(torch.equal(three[key], value) for key, value in five.items())
    assert not torch.equal(intended["students.0.label.weight"], five["students.0.label.weight"])


def test_costs_both_steps(fitted: SequentialExits, trained_bert: FullDepth) -> None:
    """Its cost is fine-tuning and L layers per sample, in one pass for all epochs of distillation; the last epoch is kept."""
    assert fitted.training is not None
    assert trained_bert.training is not None
    assert fitted.training.layer_passes == trained_bert.training.layer_passes + 96 * 5
    assert fitted.training.best_epoch is None


def test_point_names_are_known_before_the_fit(fitted: SequentialExits, unseen: Split) -> None:
    """There is one point per speed, and the names are known before fitting."""
    names = [point.name for point in fitted.operating_points(unseen)]
    assert names == ["speed=0.2", "speed=0.5", "speed=0.8"] == FastBert().point_names(BRIEF)
    for wrong in (0.5, "0.5", ["0.5"], [2]):
        with pytest.raises(ConfigError, match="speeds"):
            FastBert().point_names({"speeds": wrong})


@pytest.mark.parametrize("speed", [0.15, 0.45, 0.75])
def test_exits_at_the_first_sure_layer(speed: float, scattered: SequentialExits, unseen: Split) -> None:
    """A sample exits after the first layer whose head has an entropy of at most ``speed``, with that head's logits."""
    said = exit_logits(scattered.model, unseen.tokens, Execution(batch_size=1))
    entropy = normalised_entropy(said)
    at = next(point for point in scattered.operating_points(unseen) if point.params["speed"] == speed)
    assert at.name == f"speed={speed:g}"
    found = scattered.predict(unseen.tokens, at=at)
    for n in range(40):
        layer = next((k for k in range(4) if entropy[k, n] <= speed), 4)
        assert found.exit_layer[n] == layer
        np.testing.assert_allclose(found.logits[n], said[layer, n].numpy(), atol=1e-4, rtol=1e-4)
    assert len(set(found.exit_layer.tolist())) > 1
    assert found.work.rows("head") == found.work.rows("layer") == (found.exit_layer + 1).sum()


@given(data=st.data())
@settings(max_examples=30)
def test_shrinking_batches_equal_batch_1(
    data: st.DataObject, scattered: SequentialExits, unseen: Split, executions: Any, same_however_run: Check
) -> None:
    """Answers and exits in shrinking batches of any size and order equal those of samples run one by one."""
    at = data.draw(st.sampled_from(list(scattered.operating_points(unseen))))
    same_however_run(scattered, at, data.draw(executions), data.draw(st.permutations(range(40))))


def test_same_seed_same_fit(
    fitted: SequentialExits, signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth
) -> None:
    """The same seed gives the same students, bit for bit; another seed does not."""
    again, other = (
        FastBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=BRIEF, seed=seed) for seed in (0, 1)
    )
    first = fitted.model.state_dict()
    assert all(torch.equal(value, first[key]) for key, value in again.model.state_dict().items())
    assert not torch.equal(other.model.state_dict()["students.0.dense.weight"], first["students.0.dense.weight"])


def test_round_trip(
    fitted: SequentialExits, signal_task: Task, small_backbone: Backbone, unseen: Split, tmp_path: Path
) -> None:
    """A loaded model has the same points, logits, exits and training report."""
    fitted.save(tmp_path)
    loaded = FastBert().load(tmp_path, signal_task, small_backbone, {})
    assert loaded.training == fitted.training
    assert loaded.operating_points(unseen) == fitted.operating_points(unseen)
    for at in fitted.operating_points(unseen):
        first, second = (model.predict(unseen.tokens, at=at) for model in (fitted, loaded))
        np.testing.assert_array_equal(first.logits, second.logits)
        np.testing.assert_array_equal(first.exit_layer, second.exit_layer)


@pytest.mark.parametrize("victim", ["points.json", "training.json", "model.safetensors"])
def test_damage_is_a_result_error(
    victim: str, fitted: SequentialExits, signal_task: Task, small_backbone: Backbone, tmp_path: Path
) -> None:
    """A broken file is a ResultError, so that the method can be fitted again."""
    fitted.save(tmp_path)
    (tmp_path / victim).write_bytes(b"{")
    with pytest.raises(ResultError, match="run again"):
        FastBert().load(tmp_path, signal_task, small_backbone, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"distil_epochs": 3}, "distill_epochs"),
        ({"holdout": 0.1}, "holdout"),
        ({"distill_epochs": 0}, "epochs"),
        ({"distill_epochs": 1.5}, "epochs"),
        ({"distill_learning_rate": 0}, "learning_rate"),
        ({"distill_learning_rate": "1e-3"}, "distill_learning_rate"),
        ({"speeds": [2]}, "a number from 0 to 1"),
        ({"speeds": []}, "a number from 0 to 1"),
        ({"speeds": 0.5}, "list"),
        ({"speeds": [0.1, 0.1]}, "twice"),
        ({"head": "fastbert"}, "linear"),
        ({"schedule": "published"}, "intended"),
        ({"divergence": "forward"}, "student-teacher"),
        ({"teacher_dropout": 1}, "teacher_dropout"),
        ({"teacher_dropout": "yes"}, "teacher_dropout"),
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
        FastBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_single_layer_is_rejected(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> None:
    """A teacher of one layer is refused."""
    shape = replace(small_backbone.shape, layers=1)
    backbone = Backbone("flat", shape, Encoder(shape).state_dict(), None)
    bert = Bert().fit(signal_task, backbone, {}, config={**quick, "epochs": 1}, seed=0)
    with pytest.raises(ConfigError, match="at least 2 layers"):
        FastBert().fit(signal_task, backbone, {"bert": bert}, config={}, seed=0)


def test_needs_a_full_depth_teacher(fitted: SequentialExits, signal_task: Task, small_backbone: Backbone) -> None:
    """A teacher of another kind is refused in one line."""
    with pytest.raises(ConfigError, match="full-depth 'bert'"):
        FastBert().fit(signal_task, small_backbone, {"bert": fitted}, config={}, seed=0)
