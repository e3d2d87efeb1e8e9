"""`distilbert` and `tinybert` are presets of `distil`, with the losses that they had as files of their own, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.distilled.axes import taught_student
from baselines.distilled.distil import Distil
from baselines.distilled.distilbert import DistilBert
from baselines.distilled.tinybert import TinyBert
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit import student_start
from harness.toolkit.distillation import (
    cosine_distance,
    layer_pairs,
    layer_scores,
    score_distance,
    soft_cross_entropy,
    soft_kl,
    states_and_logits,
    uniform_map,
)
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import TrainingReport

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 12, "learning_rate": 1e-3, "precision": "float32"}
STAGES: dict[str, Any] = {**QUICK, "intermediate_epochs": 1}
AS_DISTILBERT: dict[str, Any] = {
    "alpha_logits": 5.0,
    "temperature": 2.0,
    "alpha_hard": 2.0,
    "alpha_hidden": 1.0,
    "hidden": "cos",
    "matching": "last",
}
AS_TINYBERT: dict[str, Any] = {
    "stages": 2,
    "layers": 2,
    "width": 312 / 768,
    "intermediate": 31,
    "init": "svd",
    "project": "always",
    "alpha_embeddings": 1.0,
    "alpha_hidden": 1.0,
    "alpha_attention": 1.0,
    "attention": "scores",
    "alpha_logits": 1.0,
    "logits": "ce",
    "alpha_hard": 0.0,
    "intermediate_learning_rate": 1e-3 * 5 / 3,
}


@pytest.mark.parametrize(
    ("preset", "common", "settings"),
    [(DistilBert(), QUICK, AS_DISTILBERT), (TinyBert(), STAGES, AS_TINYBERT)],
    ids=["distilbert", "tinybert"],
)
def test_distil_with_the_presets_settings_has_its_weights(
    preset: Any,
    common: dict[str, Any],
    settings: dict[str, Any],
    random_task: Task,
    tiny_backbone: Backbone,
    tuned_bert: FullDepth,
) -> None:
    """Both are trained to the same weights, bit for bit, at the same cost."""
    teachers = {"bert": tuned_bert}
    one = preset.fit(random_task, tiny_backbone, teachers, config=common, seed=3)
    other = Distil().fit(random_task, tiny_backbone, teachers, config={**common, **settings}, seed=3)
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert one.training.layer_passes == other.training.layer_passes
    assert one.training.dev_scores == other.training.dev_scores


def caught_losses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Return what is trained and its loss, stage by stage, of fits that do not train."""
    seen: list[tuple[Any, Any]] = []

    def caught(model: Any, loss_fn: Any, *_: Any, **__: Any) -> TrainingReport:
        seen.append((model.eval(), loss_fn))
        return TrainingReport(0.0, 0, 0, 0)

    for module in (student_start, taught_student):
        monkeypatch.setattr(module, "train", caught)
    return seen


def bits(loss: Tensor, model: torch.nn.Module) -> list[Tensor]:
    """Return a loss and its gradients."""
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(torch.zeros(1) if p.grad is None else p.grad.clone() for p in model.parameters())]


def assert_equal_bits(model: torch.nn.Module, loss: Tensor, as_it_was: Tensor) -> None:
    assert all(map(torch.equal, bits(loss, model), bits(as_it_was, model)))


def test_distilberts_loss_as_it_was(
    random_task: Task, tiny_backbone: Backbone, tuned_bert: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soft answers, labels and the cosine, in this order; loss and all gradients have the same bits."""
    seen = caught_losses(monkeypatch)
    config = {**QUICK, "alpha_hard": 0.7}
    DistilBert().fit(random_task, tiny_backbone, {"bert": tuned_bert}, config=config, seed=0)
    ((student, loss),) = seen
    tokens, labels = random_task.train.tokens.select(range(6)), random_task.train.labels[:6]
    layout = Layout(tokens.lengths.numpy(), 12, "cpu")
    with torch.no_grad():
        wanted, soft = states_and_logits(tuned_bert.model, tokens, layout)
    states, logits = states_and_logits(student, tokens, layout)
    total = 5.0 * soft_kl(logits, soft, 2.0)
    total = total + 0.7 * F.cross_entropy(logits.float(), labels)
    total = total + 1.0 * cosine_distance(layout.tokens(states[-1]), layout.tokens(wanted[-1]))
    assert_equal_bits(student, loss(tokens, layout, labels), total)


def test_tinyberts_losses_as_they_were(
    random_task: Task, tiny_backbone: Backbone, tuned_bert: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings, then scores and states of each layer; then soft answers and labels: all bits are the same."""
    seen = caught_losses(monkeypatch)
    config = {**STAGES, "alpha_hard": 0.7}
    TinyBert().fit(random_task, tiny_backbone, {"bert": tuned_bert}, config=config, seed=0)
    (imitation, layers), (student, answers) = seen
    tokens, labels = random_task.train.tokens.select(range(6)), random_task.train.labels[:6]
    layout = Layout(tokens.lengths.numpy(), 12, "cpu")
    teacher: MultiExitModel = tuned_bert.model
    with torch.no_grad():
        taught, soft = states_and_logits(teacher, tokens, layout)
    states, valid = list(imitation.student.states(tokens, layout)), layout.tokens
    total = F.mse_loss(imitation.embedding(valid(states[0])).float(), valid(taught[0]).float())
    for m, n in list(enumerate(uniform_map(teacher.depth, 2)))[1:]:
        with torch.no_grad():
            wanted = layer_scores(teacher.encoder, n - 1, taught, layout)
        scores = layer_scores(imitation.student, m - 1, states, layout)
        total = total + score_distance(scores, wanted, layer_pairs(teacher.encoder, n - 1, layout))
        total = total + F.mse_loss(imitation.hidden(valid(states[m])).float(), valid(taught[n]).float())
    assert_equal_bits(imitation, layers(tokens, layout, labels), total)

    _, logits = states_and_logits(student, tokens, layout)
    total = soft_cross_entropy(logits, soft, 1.0) + 0.7 * F.cross_entropy(logits.float(), labels)
    assert_equal_bits(student, answers(tokens, layout, labels), total)
