"""LEAD: pairs of random layers, in both readings; and the options of DistilBERT and ElasticBERT that port other papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baselines.distilled.distilbert import DistilBert
from baselines.distilled.lead import Lead, drawn_layers, pair_weights, pairs_loss
from baselines.early_exit.elasticbert import ElasticBert
from harness import registry
from harness.contracts import Fitted
from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit.fitted import FittedModel, FullDepth

BRIEF: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "batch_size": 16, "precision": "float32"}


@pytest.fixture(scope="module")
def elastic(signal_task: Task, small_backbone: Backbone) -> FittedModel:
    return ElasticBert().train_weights(signal_task, small_backbone, {}, config=BRIEF, seed=0)


def test_pairs_are_weighted_without_a_gradient() -> None:
    """Weights have sum 1 and are equal for a large tau; equal layers cost nothing; the teacher's losses get no gradient."""
    losses = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
    weights = pair_weights(losses, 1.0)
    assert weights.sum().item() == pytest.approx(1) and weights[0] > weights[1] > weights[2]
    assert not weights.requires_grad
    torch.testing.assert_close(pair_weights(losses, 1e9), torch.full((3,), 1 / 3))
    logs = [torch.randn(4, 5).log_softmax(-1) for _ in range(3)]
    assert pairs_loss(logs, logs, losses, 10.0).item() == pytest.approx(0, abs=1e-6)
    ours = [torch.randn(4, 5).log_softmax(-1).requires_grad_() for _ in range(3)]
    pairs_loss(ours, logs, losses, 10.0).backward()
    assert losses.grad is None and ours[0].grad is not None


def test_layers_are_drawn_anew_and_in_order() -> None:
    """Each draw is a rising subset; a restored random state draws the same again."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    draws = [drawn_layers(3, 6) for _ in range(20)]
    assert all(one == sorted(set(one)) and len(one) == 3 for one in draws)
    assert {layer for one in draws for layer in one} == set(range(6))
    torch.set_rng_state(state)
    assert drawn_layers(3, 6) == draws[0]


@pytest.mark.parametrize("reading", ["relation", "label"])
def test_both_readings_teach(
    reading: str, signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, elastic: FittedModel
) -> None:
    """A student of half the layers beats the most common label; the teacher, its heads' answers and the steps count."""
    teacher = elastic if reading == "label" else trained_bert
    config = {**BRIEF, "epochs": 3, "reading": reading}
    made = Lead().fit(signal_task, small_backbone, {"bert": teacher}, config=config, seed=0)
    assert made.model.depth == 2 and made.model.exits == ()
    assert made.training is not None and teacher.training is not None
    answers = 96 * 5 * (2 if reading == "label" else 1)
    assert made.training.layer_passes == teacher.training.layer_passes + answers + 3 * 96 * 2
    common = signal_task.dev.labels.bincount().max() / len(signal_task.dev)
    assert max(made.training.dev_scores) > common


def test_labels_need_a_teacher_with_heads(signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth) -> None:
    """It is registered, and one line names a teacher that fits."""
    assert type(registry.get("lead")) is Lead
    with pytest.raises(ConfigError, match="needs a teacher with heads on its layers"):
        Lead().fit(signal_task, small_backbone, {"bert": trained_bert}, config={"reading": "label"}, seed=0)


@pytest.mark.parametrize("option", [{"alpha_ckd": 0.5}, {"alpha_relation": 1.0}, {"focus": 2.0}], ids=str)
def test_ported_losses_change_the_student(
    option: dict[str, float], signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth
) -> None:
    """Each option alone trains other weights than the plain loss; at 0 it trains the same ones."""

    def fit(**config: float) -> dict[str, torch.Tensor]:
        teachers: dict[str, Fitted] = {"bert": trained_bert}
        return (
            DistilBert()
            .fit(signal_task, small_backbone, teachers, config={**BRIEF, "alpha_cos": 0.0, **config}, seed=0)
            .model.state_dict()
        )

    plain, with_it, without = fit(), fit(**option), fit(**dict.fromkeys(option, 0.0))
    assert all(torch.equal(plain[name], without[name]) for name in plain)
    assert not all(torch.equal(plain[name], with_it[name]) for name in plain)


def test_exits_may_learn_from_each_other(signal_task: Task, small_backbone: Backbone, elastic: FittedModel) -> None:
    """Mutual learning trains other weights."""
    config = {**BRIEF, "mutual": 1.0}
    mutual = ElasticBert().train_weights(signal_task, small_backbone, {}, config=config, seed=0)
    assert not torch.equal(mutual.model.encoder.layers[0].qkv.weight, elastic.model.encoder.layers[0].qkv.weight)
