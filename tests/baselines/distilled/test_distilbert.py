"""DistilBERT: loss, layer maps, copied weights and cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from baselines.distilled.distilbert import DistilBert
from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit import student_start
from harness.toolkit.distillation import cosine_distance, soft_kl, spread_layers, states_and_logits, take_layers
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import TrainingReport

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 12, "learning_rate": 1e-3, "precision": "float32"}


def fit(task: Task, backbone: Backbone, teacher: FullDepth, **config: Any) -> FullDepth:
    return DistilBert().fit(task, backbone, {"bert": teacher}, config={**QUICK, **config}, seed=0)


def test_starts_from_the_published_layers() -> None:
    """Six layers start from those of twelve that the released extraction script names."""
    assert spread_layers(12, 6) == [0, 2, 4, 7, 9, 11]


@given(st.integers(1, 48).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_spread_layers_rise_from_first_to_last(sizes: tuple[int, int]) -> None:
    """A map rises strictly, contains both ends, and its gaps differ by at most one."""
    teacher, student = sizes
    layers = spread_layers(teacher, student)
    gaps = np.diff(layers)
    assert len(layers) == student and layers[0] == 0
    if student > 1:
        assert layers[-1] == teacher - 1 and gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_soft_kl_is_the_divergence_written_out(temperature: float) -> None:
    """The soft loss equals T^2 sum p ln(p / q), sample by sample."""
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([math.exp(v / temperature) for v in values] for values in (s, t))
        q, p = [v / sum(q) for v in q], [v / sum(p) for v in p]
        total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert soft_kl(student, teacher, temperature).item() == pytest.approx(total / 5, rel=1e-5)


def test_cosine_distance_is_the_mean_over_tokens() -> None:
    """The cosine loss is 1 - cos per token: 0 for parallel vectors, 2 for opposite ones."""
    a = torch.tensor([[1.0, 2.0], [1.0, 0.0], [3.0, 1.0]])
    b = torch.tensor([[2.0, 4.0], [0.0, 5.0], [-3.0, -1.0]])
    assert cosine_distance(a, b).item() == pytest.approx((0 + 1 + 2) / 3, abs=1e-6)


def test_loss_equals_a_loop_over_single_samples(
    tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss on a packed batch is 5 soft + 2 hard + 1 cosine of every sample run alone and unpacked."""
    seen: dict[str, Any] = {}

    def caught(model: MultiExitModel, loss_fn: Any, *_: Any, **__: Any) -> TrainingReport:
        seen.update(model=model.eval(), loss=loss_fn)
        return TrainingReport(0.0, 0, 0, 0)

    monkeypatch.setattr(student_start, "train", caught)
    fit(random_task, tiny_backbone, tuned_bert)
    tokens, labels = random_task.train.tokens.select([3, 0, 8]), random_task.train.labels[[3, 0, 8]]
    together = seen["loss"](tokens, Layout(tokens.lengths.numpy(), None, "cpu"), labels)

    soft, hard, cosines = [], [], []
    for i in range(3):
        one = tokens.select([i])
        layout = Layout(one.lengths.numpy(), 12, "cpu")  # padded, and alone
        n = int(one.lengths)
        last = {}
        logits = {}
        for who, model in (("teacher", tuned_bert.model), ("student", seen["model"])):
            *_, hidden = model.encoder.states(one, layout)
            last[who], logits[who] = hidden[:n], model.teacher(hidden, layout)[0]
        p = (logits["teacher"] / 2).softmax(-1)
        soft.append(4 * (p * (p / (logits["student"] / 2).softmax(-1)).log()).sum())
        hard.append(-logits["student"].log_softmax(-1)[labels[i]])
        cosines.extend(1 - F.cosine_similarity(last["student"], last["teacher"]))
    apart = 5 * torch.stack(soft).mean() + 2 * torch.stack(hard).mean() + torch.stack(cosines).mean()
    assert together.item() == pytest.approx(apart.item(), rel=1e-4)


def test_student_of_full_depth_starts_as_its_teacher(tuned_bert: FullDepth) -> None:
    """Copying every layer copies the encoder, without shared memory."""
    encoder = tuned_bert.model.encoder
    copy = take_layers(encoder, range(6))
    assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in copy.state_dict().items())
    assert not {p.data_ptr() for p in copy.parameters()} & {p.data_ptr() for p in encoder.parameters()}


def test_student_starts_from_the_mapped_layers(tuned_bert: FullDepth) -> None:
    """Layer j of the student starts with the weights of layer map[j] of the teacher."""
    encoder = tuned_bert.model.encoder
    student = take_layers(encoder, [0, 3, 5])
    for new, old in zip(student.layers, (0, 3, 5), strict=True):
        assert torch.equal(new.up.weight, encoder.layers[old].up.weight)
    assert torch.equal(student.word.weight, encoder.word.weight)


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": "2"},
        {"layers": 7},
        {"layers": 0},
        {"layers": 2.5},
        {"layer_map": [0, 3, 6]},
        {"layer_map": [3, 1]},
        {"layer_map": []},
        {"layers": 2, "layer_map": [0, 3, 5]},
        {"alpha_ce": -1.0},
        {"alpha_ce": 0.0, "alpha_hard": 0.0, "alpha_cos": 0.0},
        {"temprature": 2.0},
        {"epochs": 0},
        {"head": "none"},
    ],
)
def test_invalid_settings_are_refused_in_one_line(
    config: dict[str, Any], tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth
) -> None:
    """An invalid setting is a ConfigError of one line."""
    with pytest.raises(ConfigError) as caught:
        fit(random_task, tiny_backbone, tuned_bert, **config)
    assert "\n" not in str(caught.value)


def test_a_misspelt_setting_gets_a_suggestion(
    tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth
) -> None:
    """An unknown key is refused with the nearest known one."""
    with pytest.raises(ConfigError, match="did you mean temperature"):
        fit(random_task, tiny_backbone, tuned_bert, temprature=3)


def test_a_missing_teacher_is_refused(tiny_backbone: Backbone, random_task: Task) -> None:
    """Without a fitted BERT the error names the missing teacher."""
    with pytest.raises(ConfigError, match="'bert'"):
        DistilBert().fit(random_task, tiny_backbone, {}, config=QUICK, seed=0)


def test_costs_student_and_teacher_layers(tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth) -> None:
    """Every sample passes 3 student layers per epoch and 6 teacher layers once; choosing the epoch on dev is not counted."""
    fitted = fit(random_task, tiny_backbone, tuned_bert, epochs=2)
    assert fitted.training is not None
    assert fitted.training.layer_passes == 24 * (2 * 3 + 6)
    assert fitted.training.steps == 2 * 2
    assert len(fitted.training.dev_scores) == 2
    assert fitted.cost.depth == 3


def test_the_teachers_cost_is_added(tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth) -> None:
    """The cost of a student includes the training of its teacher."""
    tuned_bert.training = TrainingReport(seconds=1.0, steps=10, layer_passes=1000, sample_passes=100)
    fitted = fit(random_task, tiny_backbone, tuned_bert)
    assert fitted.training is not None
    assert fitted.training.layer_passes == 1000 + 24 * 9
    assert fitted.training.steps == 12


def test_the_teacher_does_not_change(tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth) -> None:
    """Distillation changes every weight matrix of the student and none of the teacher, which stays in eval mode."""
    before = {k: v.clone() for k, v in tuned_bert.model.state_dict().items()}
    fitted = fit(random_task, tiny_backbone, tuned_bert)
    assert all(torch.equal(v, before[k]) for k, v in tuned_bert.model.state_dict().items())
    assert not tuned_bert.model.training
    assert all(p.grad is None for p in tuned_bert.model.parameters())
    start = take_layers(tuned_bert.model.encoder, [0, 3, 5])
    for new, old in zip(fitted.model.encoder.layers, start.layers, strict=True):
        assert not torch.equal(new.qkv.weight, old.qkv.weight)
    assert not torch.equal(fitted.model.teacher.label.weight, tuned_bert.model.teacher.label.weight)


def test_learns_to_answer_like_its_teacher(
    tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth, like_teacher: Callable[[FullDepth], Task]
) -> None:
    """Distilled on a tiny task, the student is closer to its teacher on train than it started."""
    tokens = random_task.train.tokens
    layout = Layout(tokens.lengths.numpy(), None, "cpu")
    task = like_teacher(tuned_bert)

    def distance(fitted: FullDepth) -> float:
        with torch.no_grad():
            (_, own), (_, his) = (states_and_logits(m.model, tokens, layout) for m in (fitted, tuned_bert))
            return soft_kl(own, his, 2.0).item()

    start = fit(task, tiny_backbone, tuned_bert, learning_rate=1e-9)
    end = fit(task, tiny_backbone, tuned_bert, learning_rate=5e-3, epochs=60, batch_size=24, alpha_hard=0.0)
    assert distance(end) < 0.7 * distance(start)


def test_another_kind_of_head(tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth) -> None:
    """A student may have another kind of head than its teacher."""
    assert fit(random_task, tiny_backbone, tuned_bert, head="linear").model.head_kind == "linear"


def test_round_trip(tmp_path: Path, tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth) -> None:
    """A loaded student has the same logits and training report."""
    fitted = fit(random_task, tiny_backbone, tuned_bert, layer_map=[1, 4])
    fitted.save(tmp_path)
    loaded = DistilBert().load(tmp_path, random_task, tiny_backbone, {"bert": tuned_bert})
    (at,) = fitted.operating_points(random_task.dev)
    first, second = (model.predict(random_task.dev.tokens, at=at) for model in (fitted, loaded))
    assert at.name == "full"
    np.testing.assert_array_equal(first.logits, second.logits)
    assert (first.exit_layer == 1).all()
    assert loaded.training == fitted.training


def test_same_seed_same_student(tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth) -> None:
    """Two runs with one seed give the same weights, bit for bit."""
    first, second = (fit(random_task, tiny_backbone, tuned_bert).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
