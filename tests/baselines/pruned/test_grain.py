"""GRAIN: what it learns from, when it prunes, what it returns, and what it refuses."""

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

import baselines.pruned.grain as grain_module
from baselines.early_exit.fastbert import FastBert
from baselines.pruned.grain import Grain, GrainLoss, GrainSettings, matched_places
from harness import registry
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.distillation import take_layers
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen.frozen_states import FrozenStates

Prune = Callable[..., FullDepth]
FULL = OperatingPoint("full")


def weights_of(model: MultiExitModel) -> int:
    """Return the weights of all layers."""
    return sum(
        part.weight.numel() for layer in model.encoder.layers for part in (layer.qkv, layer.up, layer.down)
    ) + sum(getattr(layer.out, "linear", layer.out).weight.numel() for layer in model.encoder.layers)


def test_it_is_registered_and_prunes(prune: Prune, trained_bert: FullDepth, signal_task: Task) -> None:
    """The small model has sizes of its own per layer, fewer weights and FLOPs than its teacher, and beats guessing by far."""
    assert isinstance(registry.get("grain"), Grain)
    fitted = prune(Grain)
    shape = fitted.model.encoder.shape
    assert len(set(shape.sizes)) > 1
    assert weights_of(fitted.model) == pytest.approx(0.4 * weights_of(trained_bert.model), rel=0.03)
    dev = signal_task.dev
    small, whole = (one.predict(dev.tokens, at=FULL) for one in (fitted, trained_bert))
    costs = [one.cost.flops(found.work, "full") for one, found in ((fitted, small), (trained_bert, whole))]
    assert costs[0] < 0.6 * costs[1]
    assert (small.logits.argmax(1) == dev.labels.numpy()).mean() > 0.6


def test_same_seed_same_model(prune: Prune) -> None:
    """The same seed gives the same units and weights, bit for bit."""
    first, again = prune(Grain), prune(Grain, temperature=8.0)
    ours = first.model.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in again.model.state_dict().items())


def test_stored_and_loaded(
    prune: Prune, tmp_path: Path, signal_task: Task, small_backbone: Backbone, unseen: Split
) -> None:
    """A loaded model has the same sizes, answers and training report."""
    fitted = prune(Grain)
    fitted.save(tmp_path)
    loaded = Grain().load(tmp_path, signal_task, small_backbone, {})
    first, second = (one.predict(unseen.tokens, at=FULL).logits for one in (fitted, loaded))
    np.testing.assert_array_equal(first, second)
    assert loaded.training == fitted.training
    assert loaded.model.encoder.shape == fitted.model.encoder.shape


@given(data=st.data())
@settings(max_examples=3)
def test_batches_equal_batch_1(
    data: st.DataObject, prune: Prune, executions: Any, same_however_run: Callable[..., None]
) -> None:
    """Answers in batches of any size and order equal those of samples run one by one."""
    same_however_run(prune(Grain), FULL, data.draw(executions), data.draw(st.permutations(range(40))))


def test_only_small_epochs_are_kept_and_all_work_is_counted(prune: Prune, trained_bert: FullDepth) -> None:
    """Epochs before the end of pruning have no dev score; teacher, student and the passes for scores are in the cost."""
    report, before = prune(Grain).training, trained_bert.training
    assert report is not None and before is not None
    assert len(report.dev_scores) == 4 and report.best_epoch is not None and report.best_epoch >= 2
    assert report.layer_passes == before.layer_passes + 96 * 5 * (1 + 5)
    assert report.flops > before.flops
    plain = prune(Grain, density=1.0, prune_from=0.0, prune_until=1e-9).training
    assert plain is not None and plain.flops < report.flops


@pytest.fixture
def loss_of(trained_bert: FullDepth, signal_task: Task) -> Callable[..., tuple[GrainLoss, Any]]:
    """Return the loss of a fresh student, and a batch."""

    def make(**change: Any) -> tuple[GrainLoss, Any]:
        torch.manual_seed(3)
        own, teacher = GrainSettings(**{"beta": 0.0, **change}), trained_bert.model
        student = MultiExitModel(take_layers(teacher.encoder, range(teacher.depth)), 3, (), teacher.head_kind)
        for parameter in student.encoder.parameters():  # so that states differ from the teacher's
            parameter.data += 0.1 * torch.randn(parameter.shape)
        frozen = FrozenStates(teacher, signal_task.train.tokens, matched_places(teacher.depth), own, name="test")
        tokens = frozen.rows.select(range(8))
        batch = tokens, Layout(tokens.lengths.numpy(), 12, "cpu"), signal_task.train.labels[:8]
        return GrainLoss(student, frozen, own, 10), batch

    return make


def test_hidden_states_change_weights_but_never_scores(loss_of: Callable[..., tuple[GrainLoss, Any]]) -> None:
    """Another weight of the hidden states gives other gradients of weights and the same scores, bit for bit."""
    found = []
    for alpha, separate in ((0.0, True), (100.0, True), (100.0, False)):
        loss, batch = loss_of(alpha_hidden=alpha, separate=separate)
        loss(*batch).backward()
        found.append((loss.scores.scores.clone(), loss.student.encoder.layers[0].up.weight.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1], found[1][1])
    assert not torch.allclose(found[1][0], found[2][0])  # without separation they do


def test_masks_follow_the_schedule_and_then_stay(loss_of: Callable[..., tuple[GrainLoss, Any]]) -> None:
    """Units go between the two steps; after them neither masks nor scores change."""
    loss, batch = loss_of(density=0.3, prune_from=0.2, prune_until=0.6)
    densities, scores = [], []
    for _ in range(10):
        loss(*batch)
        densities.append(loss.scores.density)
        scores.append(loss.scores.scores.clone())
    assert densities[:2] == [pytest.approx(1.0)] * 2
    assert densities[1] > densities[2] > densities[4] > densities[5]
    assert densities[5:] == [densities[5]] * 5 and densities[5] <= 0.3 + float(loss.scores.shares.max())
    assert all(torch.equal(one, scores[5]) for one in scores[5:])


@pytest.mark.parametrize(
    "config",
    [
        {"density": 0},
        {"density": 1.01},
        {"prune_until": 1.2},
        {"prune_from": 0.5, "prune_until": 0.5},
        {"beta": 1.0},
        {"structure": -0.1},
        {"temperature": 0.0},
    ],
)
def test_wrong_settings_are_refused_in_one_line(config: dict[str, Any], prune: Prune) -> None:
    """A density of 0 or above 1, a schedule longer than the training and others are refused before training."""
    with pytest.raises(ConfigError) as caught:
        prune(Grain, **config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "change", "told"),
    [
        (2, {}, "answers 2 labels, 'signal' has 3"),
        (3, {"vocab_size": 41}, "has 41 token ids, backbone small 40"),
        (3, {"gated": True}, "differs in gated"),
        (3, {"sizes": (((8,), (8,), 24),) * 5}, "is pruned already"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(
    labels: int, change: dict[str, Any], told: str, prune: Prune, small_backbone: Backbone
) -> None:
    """A teacher of other labels or another vocabulary, of another structure, or pruned, is refused in one line."""
    teacher = FullDepth(MultiExitModel(Encoder(replace(small_backbone.shape, **change)), labels, (), "linear").eval())
    with pytest.raises(ConfigError, match=told):
        prune(Grain, teacher)


def test_what_is_pruned_to_nothing_is_told(prune: Prune, capsys: pytest.CaptureFixture[str], unseen: Split) -> None:
    """With one unit left, the model still answers, and stderr names the parts that are gone."""
    fitted = prune(Grain, density=1e-6, epochs=2)
    assert weights_of(fitted.model) <= 4 * 16
    told = capsys.readouterr().err
    assert "signal grain: nothing is left of " in told and "inner units of layer 5; their bias and norm stay" in told
    found = fitted.predict(unseen.tokens, at=OperatingPoint("full", execution=Execution(compute="packed")))
    assert np.isfinite(found.logits).all()


def test_early_exits_run_on_a_pruned_body(
    prune: Prune, signal_task: Task, small_backbone: Backbone, unseen: Split
) -> None:
    """FastBERT's heads on GRAIN's body: the body is GRAIN's, exits cost what their layers cost, and samples leave early."""
    body = prune(Grain)
    own = {"distill_epochs": 8, "distill_learning_rate": 1e-2, "batch_size": 8, "speeds": [0.1, 0.3, 0.5, 0.7, 0.9]}
    heads = FastBert().fit(signal_task, small_backbone, {"bert": body}, config=own, seed=0)
    for key, value in body.model.encoder.state_dict().items():
        assert torch.equal(heads.model.encoder.state_dict()[key], value)
    every = [heads.predict(unseen.tokens, at=at) for at in heads.operating_points(signal_task.dev)]
    assert max(len(set(found.exit_layer.tolist())) for found in every) > 1
    assert all(heads.cost.knows(block) for found in every for block in found.work.blocks)
    assert every[0].work.rows("layer") != every[-1].work.rows("layer")


def test_a_resumed_training_is_the_same(prune: Prune, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A training that is killed after pruning began resumes with its masks and scores: the same model, bit for bit."""
    from harness.toolkit.resume import training_state

    monkeypatch.setattr(training_state, "EVERY", 0.0)
    monkeypatch.setattr(training_state, "_SHARE", 1e9)
    whole = prune(Grain, weight_decay=0.0)
    stop = {"after": 3}

    class Killed(Exception):
        pass

    class Counting(GrainLoss):
        def __call__(self, *args: Any) -> torch.Tensor:
            if self.step >= stop["after"] * 6:
                raise Killed
            return super().__call__(*args)

    monkeypatch.setattr(grain_module, "GrainLoss", Counting)
    with training_state.resumable(tmp_path), pytest.raises(Killed):
        prune(Grain, weight_decay=0.0)
    stop["after"] = 99
    with training_state.resumable(tmp_path):
        again = prune(Grain, weight_decay=0.0)
    ours = whole.model.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in again.model.state_dict().items())
