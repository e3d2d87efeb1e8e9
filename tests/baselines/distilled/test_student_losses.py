"""Which losses a student learns from, on which data, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from baselines.distilled.axes import taught_student
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit import student_start
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import TrainingReport
from tests.baselines.distilled.conftest import METHODS, QUICK, fit, untouched


def test_a_narrower_student_learns_without_the_cosine(
    backbone: Backbone, random_task: Task, teacher: FullDepth, student: Callable[..., str]
) -> None:
    """With alpha_cos = 0 the student may be narrower than the teacher."""
    fitted = fit("distilbert", random_task, backbone, teacher, student=student(width=8), alpha_cos=0)
    assert fitted.model.encoder.shape.width == 8


class _Deaf(torch.nn.Module):
    """A teacher that must not be called."""

    def forward(self, *_: Any) -> Any:
        raise AssertionError("the teacher was asked")


EPOCHS = {"distilbert": 1, "tinybert": 3}  # of all stages


LABELS = {"distilbert": {"alpha_ce": 0, "alpha_cos": 0}, "tinybert": {"labels_only": True}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given_student", [False, True])
def test_labels_alone_use_the_same_student_and_no_teacher(
    method: str,
    given_student: bool,
    backbone: Backbone,
    random_task: Task,
    teacher: FullDepth,
    student: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The start is the same, the teacher is never run, and if it gave no weights its cost is not included."""
    config = {"student": student()} if given_student else {}
    with monkeypatch.context() as patch:
        seen = untouched(patch)
        for extra in ({}, LABELS[method]):
            fit(method, random_task, backbone, teacher, **config, **extra)
        full, alone = seen[-2].state_dict(), seen[-1].state_dict()
    assert full.keys() == alone.keys() and all(torch.equal(full[name], alone[name]) for name in full)
    for layer in range(6):
        teacher.model.encoder.layers[layer] = _Deaf() if given_student else teacher.model.encoder.layers[layer]
    if not given_student:  # its layers are copied, so they must exist
        monkeypatch.setattr(teacher.model, "teacher", teacher.model.teacher)
        monkeypatch.setattr(teacher.model.encoder, "states", _Deaf().forward)
    fitted = fit(method, random_task, backbone, teacher, **config, **LABELS[method])
    assert fitted.training is not None
    depth = fitted.cost.depth
    assert fitted.training.layer_passes == EPOCHS[method] * 24 * depth + (0 if given_student else 1000)
    assert fitted.training.sample_passes == EPOCHS[method] * 24 + (0 if given_student else 100)


def test_layers_may_come_from_the_backbone(
    backbone: Backbone, random_task: Task, teacher: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With start = backbone, evenly spread layers and embeddings are the pretrained backbone's, and the head is new."""
    untouched(monkeypatch)
    model = fit("distilbert", random_task, backbone, teacher, start="backbone").model
    for new, old in enumerate((0, 3, 5)):
        assert torch.equal(model.encoder.layers[new].up.weight, backbone.state[f"layers.{old}.up.weight"])
    assert torch.equal(model.encoder.word.weight, backbone.state["word.weight"])
    assert not torch.equal(model.teacher.label.weight, teacher.model.teacher.label.weight)


@pytest.mark.parametrize(
    ("config", "counted"), [({"start": "backbone"}, True), ({"start": "backbone", **LABELS["distilbert"]}, False)]
)
def test_an_unused_teacher_costs_nothing(
    config: dict[str, Any], counted: bool, backbone: Backbone, random_task: Task, teacher: FullDepth
) -> None:
    """If the teacher gives neither weights nor answers, its training is not part of the student's cost."""
    fitted = fit("distilbert", random_task, backbone, teacher, **config)
    assert fitted.training is not None
    assert fitted.training.layer_passes == 24 * 3 + (1000 + 24 * 6 if counted else 0)


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_any_fraction_of_the_teacher(layers: int, backbone: Backbone, random_task: Task, teacher: FullDepth) -> None:
    """The student may have one layer, half of them, or all."""
    assert fit("distilbert", random_task, backbone, teacher, layers=layers).cost.depth == layers


@pytest.mark.parametrize("method", METHODS)
def test_augmented_text_is_counted(method: str, backbone: Backbone, random_task: Task, teacher: FullDepth) -> None:
    """With two copies every epoch of every stage and the teacher's pass have three times as many samples; dev does not change."""
    fitted = fit(method, random_task, backbone, teacher, augment=2)
    assert fitted.training is not None
    stages = 1 if method == "distilbert" else 3
    depth = fitted.cost.depth
    assert fitted.training.layer_passes == 1000 + 3 * 24 * (stages * depth + 6)
    assert fitted.training.sample_passes == 100 + stages * 3 * 24


def test_hard_labels_are_added_to_the_soft_ones(
    backbone: Backbone, random_task: Task, teacher: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With alpha_hard = 0.7 the prediction loss is the soft cross-entropy plus 0.7 times that of the labels."""
    from harness.encoder.layout import Layout

    losses: list[Any] = []

    def caught(model: Any, loss_fn: Any, *_: Any, **__: Any) -> TrainingReport:
        model.eval()
        losses.append((model, loss_fn))
        return TrainingReport(0.0, 0, 0, 0)

    for module in (student_start, taught_student):
        monkeypatch.setattr(module, "train", caught)
    tokens, labels = random_task.train.tokens.select(range(5)), random_task.train.labels[:5]
    layout = Layout(tokens.lengths.numpy(), None, "cpu")
    values = []
    for config in ({}, {"alpha_hard": 0.7}, {"labels_only": True}):
        fit("tinybert", random_task, backbone, teacher, **config)
        values.append(losses[-1][1](tokens, layout, labels).item())
    *_, last = losses[-1][0].encoder.states(tokens, layout)
    logits = losses[-1][0].teacher(last, layout)
    picked = [-logits[i].log_softmax(-1)[labels[i]].item() for i in range(5)]
    assert values[2] == pytest.approx(sum(picked) / 5, rel=1e-5)
    assert values[1] == pytest.approx(values[0] + 0.7 * values[2], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("augment", [0, 1])
def test_labels_alone_get_the_steps_of_the_method(
    method: str, augment: int, random_task: Task, teacher: FullDepth, backbone: Backbone
) -> None:
    """The student on labels alone takes as many steps as the whole method: all stages, augmented copies included."""
    config = {"augment": augment}
    teacher.training = None
    both = fit(method, random_task, backbone, teacher, **config).training
    alone = fit(method, random_task, backbone, teacher, **config, **LABELS[method]).training
    assert both is not None and alone is not None
    steps = EPOCHS[method] * math.ceil(len(random_task.train) * (1 + augment) / QUICK["batch_size"])
    assert alone.steps == both.steps == steps
