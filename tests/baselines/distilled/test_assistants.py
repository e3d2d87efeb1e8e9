"""Teaching assistants: weights of an ensemble, and the student that it teaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.distilled.assistants import Assistants, AssistedStudent
from baselines.distilled.distilbert import DistilBert
from harness import registry
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.toolkit.distillation import soft_kl
from harness.toolkit.fitted import FullDepth
from harness.toolkit.teachers.ensemble import (
    best_member,
    cross_entropy_of,
    evolved_weights,
    label_probabilities,
    mixed_logits,
)

BRIEF: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "batch_size": 16, "precision": "float32"}


@pytest.fixture(scope="module")
def assistants(signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth) -> dict[str, FullDepth]:
    """Three and two layers, distilled from bert."""
    made = {}
    for layers in (2, 3):
        config = {**BRIEF, "layers": layers, "epochs": layers}
        made[f"a{layers}"] = DistilBert().fit(
            signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0
        )
    return made


def fit(
    task: Task, backbone: Backbone, bert: FullDepth, assistants: Mapping[str, FullDepth], **config: Any
) -> AssistedStudent:
    teachers = {"bert": bert, **assistants}
    return Assistants().fit(task, backbone, teachers, config={**BRIEF, **config}, seed=0)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_evolved_weights_are_at_least_as_good_as_any_member(seed: int, count: int) -> None:
    """They are in 0..1, have sum 1, depend on the seed only, and lose nothing against the best member."""
    draw = np.random.default_rng(seed)
    right = draw.uniform(0.05, 1, (count, 40))
    weights = evolved_weights(right, seed, generations=30)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    assert (weights == evolved_weights(right, seed, generations=30)).all()
    best = np.eye(count)[best_member(right)]
    assert cross_entropy_of(weights, right) <= cross_entropy_of(best, right) + 1e-12


def test_an_assistant_of_random_answers_gets_no_weight() -> None:
    """Two good members share nearly all of the weight."""
    torch.manual_seed(0)
    labels = torch.randint(3, (200,))
    logits = torch.randn(3, 200, 3)
    for member in (0, 2):
        logits[member, torch.arange(200), labels] += 3
    right = label_probabilities(logits, labels)
    weights = evolved_weights(right, 0)
    assert weights[1] < 0.05 and min(weights[0], weights[2]) > 0.1


def test_mixed_logits_stand_for_the_mean_of_softened_answers() -> None:
    """At the temperature of the loss, their softmax is the weighted mean; one member alone keeps its logits."""
    logits, weights = torch.randn(3, 5, 4), np.array([0.5, 0.2, 0.3])
    mixed = mixed_logits(logits, weights, 4.0)
    expected = torch.einsum("k,knc->nc", torch.tensor(weights).float(), (logits / 4).softmax(-1))
    torch.testing.assert_close((mixed / 4).softmax(-1), expected)
    assert soft_kl(mixed, mixed_logits(logits, weights, 4.0), 4.0).item() == pytest.approx(0, abs=1e-6)
    assert mixed_logits(logits, np.array([0.0, 1.0, 0.0]), 4.0) is not logits
    assert torch.equal(mixed_logits(logits, np.array([0.0, 1.0, 0.0]), 4.0), logits[1])


def test_without_assistants_it_is_plain_distillation(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth
) -> None:
    """With weights = "none", bert teaches: weights of the student equal DistilBERT's without cosine, bit for bit."""
    ours = fit(signal_task, small_backbone, trained_bert, {}, weights="none", layers=2, alpha=0.75)
    plain = {"layers": 2, "alpha_ce": 0.75, "alpha_hard": 0.25, "alpha_cos": 0.0, "temperature": 4.0}
    theirs = DistilBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config={**BRIEF, **plain}, seed=0)
    weights = theirs.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in ours.model.state_dict().items())
    assert ours.weights == {"bert": 1.0}
    assert ours.training is not None and theirs.training is not None
    assert ours.training.layer_passes == theirs.training.layer_passes


def test_weights_of_every_kind(
    signal_task: Task,
    small_backbone: Backbone,
    trained_bert: FullDepth,
    assistants: dict[str, FullDepth],
    tmp_path: Path,
) -> None:
    """Uniform, the best one alone, and evolved ones; they are stored and are parameters of the operating point."""
    assert registry.get("assistants").needs == ("bert", "distilbert")
    made = {
        kind: fit(signal_task, small_backbone, trained_bert, assistants, weights=kind)
        for kind in ("uniform", "best", "evolved")
    }
    assert made["uniform"].weights == {"a2": 0.5, "a3": 0.5}
    assert sorted(made["best"].weights.values()) == [0.0, 1.0]
    assert sum(made["evolved"].weights.values()) == pytest.approx(1)
    one = made["evolved"]
    one.save(tmp_path)
    loaded = AssistedStudent.load(tmp_path, "cpu")
    assert loaded.weights == one.weights
    (at,) = loaded.operating_points(signal_task.dev)
    assert dict(at.params) == {f"weight of {name}": value for name, value in one.weights.items()}
    assert one.model.depth == 1  # a third of five layers


def test_the_training_of_assistants_counts_and_bert_once(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, assistants: dict[str, FullDepth]
) -> None:
    """Layer passes: bert, both assistants without bert, their answers on train and dev, and the student's steps."""
    made = fit(signal_task, small_backbone, trained_bert, assistants)
    reports = [one.training for one in (trained_bert, *assistants.values(), made)]
    bert, first, second, whole = (report.layer_passes for report in reports if report is not None)
    answers = (96 + 48) * (2 + 3)
    steps = 2 * 96 * 1
    assert whole == bert + (first - bert) + (second - bert) + answers + steps
    assert made.training is not None and made.training.flops > 0


def test_weights_need_dev_rows_and_assistants(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, assistants: dict[str, FullDepth]
) -> None:
    """Without either, one line says what to do."""
    none = replace(signal_task, dev=Split(signal_task.dev.tokens.select([]), signal_task.dev.labels[:0]))
    with pytest.raises(ConfigError, match='weights = "evolved" are chosen on dev, and there are no dev rows'):
        fit(none, small_backbone, trained_bert, assistants)
    with pytest.raises(ConfigError, match='weights = "uniform" without assistants'):
        fit(signal_task, small_backbone, trained_bert, {}, weights="uniform")
