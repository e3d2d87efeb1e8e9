"""BERT, fine-tuned: training, errors, cost and storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import baselines.full_depth.bert as module
from baselines.full_depth.bert import Bert
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import TrainingReport

Check = Callable[[FullDepth, OperatingPoint, Execution, list[int]], None]


def test_learns_the_task(trained_bert: FullDepth, signal_task: Task, unseen: Split) -> None:
    """After a short training it is far better than the most frequent label on unseen rows; the best epoch is kept."""
    (at,) = trained_bert.operating_points(signal_task.dev)
    assert at.name == "full"
    right = trained_bert.predict(unseen.tokens, at=at).logits.argmax(1) == unseen.labels.numpy()
    assert right.mean() > unseen.labels.bincount().max().item() / 40 + 0.15
    assert trained_bert.training is not None
    scores = trained_bert.training.dev_scores
    assert trained_bert.training.best_epoch == scores.index(max(scores)) + 1
    found = trained_bert.predict(signal_task.dev.tokens, at=at).logits.argmax(1)
    assert (found == signal_task.dev.labels.numpy()).mean() == pytest.approx(max(scores))


def test_loss_is_cross_entropy_at_full_depth(
    signal_task: Task, small_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss on a packed batch is the mean of -log p(label), sample by sample, at the last layer."""
    seen: dict[str, Any] = {}

    def caught(model: Any, loss: Any, *_: Any, **__: Any) -> TrainingReport:
        seen.update(model=model.eval(), loss=loss)
        return TrainingReport(0.0, 0, 0, 0)

    monkeypatch.setattr(module, "train", caught)
    Bert().fit(signal_task, small_backbone, {}, config={}, seed=0)
    tokens, labels = signal_task.train.tokens.select(range(5)), signal_task.train.labels[:5]
    together = seen["loss"](tokens, Layout(tokens.lengths.numpy(), None, "cpu"), labels)
    apart = []
    for i in range(5):
        one = tokens.select([i])
        layout = Layout(one.lengths.numpy(), 16, "cpu")
        *_, hidden = seen["model"].encoder.states(one, layout)
        apart.append(-F.log_softmax(seen["model"].teacher(hidden, layout), -1)[0, labels[i]])
    assert together.item() == pytest.approx(torch.stack(apart).mean().item(), rel=1e-5)


def test_costs_every_layer_once(trained_bert: FullDepth, unseen: Split, quick: Mapping[str, Any]) -> None:
    """Each sample runs L layers per epoch of training, and L layers and one head for a prediction."""
    assert trained_bert.training is not None
    assert trained_bert.training.layer_passes == 5 * 96 * quick["epochs"]
    found = trained_bert.predict(unseen.tokens, at=OperatingPoint("full"))
    assert (found.work.rows("layer"), found.work.rows("head")) == (5 * 40, 40)
    assert (found.exit_layer == 4).all()


def test_the_backbone_does_not_change(signal_task: Task, small_backbone: Backbone) -> None:
    """Fine-tuning works on a copy: the backbone's weights do not change."""
    before = {key: value.clone() for key, value in small_backbone.state.items()}
    Bert().fit(signal_task, small_backbone, {}, config={"epochs": 1, "learning_rate": 0.1}, seed=0)
    assert all(torch.equal(value, before[key]) for key, value in small_backbone.state.items())


def test_same_seed_same_fit(
    trained_bert: FullDepth, signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]
) -> None:
    """The same seed gives the same weights, bit for bit; another seed does not."""
    again, other = (Bert().fit(signal_task, small_backbone, {}, config=quick, seed=seed) for seed in (0, 1))
    first = trained_bert.model.state_dict()
    assert all(torch.equal(value, first[key]) for key, value in again.model.state_dict().items())
    assert not torch.equal(other.model.state_dict()["teacher.dense.weight"], first["teacher.dense.weight"])


def test_round_trip(
    trained_bert: FullDepth, signal_task: Task, small_backbone: Backbone, unseen: Split, tmp_path: Path
) -> None:
    """A loaded model has the same logits and training report."""
    trained_bert.save(tmp_path)
    loaded = Bert().load(tmp_path, signal_task, small_backbone, {})
    first, second = (fitted.predict(unseen.tokens, at=OperatingPoint("full")) for fitted in (trained_bert, loaded))
    np.testing.assert_array_equal(first.logits, second.logits)
    assert loaded.training == trained_bert.training


@given(data=st.data())
@settings(max_examples=20)
def test_predictions_depend_on_the_sample_alone(
    data: st.DataObject, trained_bert: FullDepth, executions: Any, same_however_run: Check
) -> None:
    """Logits are the same in every batch size, order, window and padding."""
    same_however_run(trained_bert, OperatingPoint("full"), data.draw(executions), data.draw(st.permutations(range(40))))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epoch": 3}, "epochs"),
        ({"learning_rat": 1e-3}, "learning_rate"),
        ({"distill_epochs": 3}, "distill_epochs"),
        ({"head": "none"}, 'one of "fastbert", "linear"'),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": "1e-3"}, "learning_rate"),
        ({"warmup": 1.0}, "warmup"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(
    config: dict[str, Any], message: str, signal_task: Task, small_backbone: Backbone
) -> None:
    """An invalid or unknown setting is a ConfigError of one line that names it."""
    with pytest.raises(ConfigError) as caught:
        Bert().fit(signal_task, small_backbone, {}, config=config, seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
