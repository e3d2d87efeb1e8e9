"""The early-exit family: behaviour of all methods, and of each one."""

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

import baselines.learned_exits.consistentee as consistentee_module
import harness.toolkit.frozen.frozen_heads as deebert_module
import harness.toolkit.joint_training as joint_module
from baselines.early_exit.berxit import Berxit, gate_loss
from baselines.early_exit.deebert import DeeBert
from baselines.early_exit.elasticbert import ElasticBert
from baselines.early_exit.pabee import Pabee
from baselines.early_exit.pcee_bert import PceeBert, exit_weights
from baselines.early_exit.righttool import RightTool, early_exits
from baselines.learned_exits.consistentee import ConsistentEE
from baselines.learned_exits.palbert import Palbert
from harness import registry
from harness.contracts import BY_RULE, Execution, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder, ExitGate
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_evidence
from harness.toolkit.dev_scores import exits_score
from harness.toolkit.fitted import FullDepth
from harness.toolkit.joint_training import exit_answers, exit_losses
from harness.toolkit.rule_exits import RuleExits
from harness.toolkit.training import LossFn, Recipe, TrainingReport, parameter_groups

JOINT = [Pabee, Berxit, PceeBert, RightTool, ElasticBert, Palbert]
FAMILY = [*JOINT, DeeBert, ConsistentEE]
RULE = {
    "pabee": "patience",
    "berxit": "learned",
    "pcee-bert": "patience-confidence",
    "righttool": "confidence",
    "elasticbert": "entropy",
    "deebert": "raw-entropy",
    "palbert": "q-exit",
    "consistentee": "policy",
}
BRIEF: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "batch_size": 16, "budgets": [0.4, 0.8]}
Check = Callable[[RuleExits, OperatingPoint, Execution, list[int]], None]
Fit = Callable[..., RuleExits]


@pytest.fixture(scope="module")
def fit(signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth) -> Fit:
    """Fit a method of the family; the short fit with seed 0 is cached."""
    made: dict[str, RuleExits] = {}

    def run(method: type[Any], seed: int = 0, **change: Any) -> RuleExits:
        def anew() -> RuleExits:
            known: dict[str, Any] = {"bert": trained_bert}
            if "pabee" in method.needs:
                known["pabee"] = run(Pabee)
            teachers = {name: known[name] for name in method.needs}
            return method().fit(signal_task, small_backbone, teachers, config={**BRIEF, **change}, seed=seed)

        if seed or change:
            return anew()
        if method.name not in made:
            made[method.name] = anew()
        return made[method.name]

    return run


@pytest.fixture
def batch(signal_task: Task) -> tuple[Any, Layout, torch.Tensor]:
    tokens = signal_task.train.tokens.select(range(7))
    return tokens, Layout(tokens.lengths.numpy(), None, "cpu"), signal_task.train.labels[:7]


@pytest.fixture
def objective(signal_task: Task, small_backbone: Backbone) -> Callable[..., tuple[MultiExitModel, Any, LossFn]]:
    """Return the loss of a joint method, its model (no dropout) and its gate."""

    def caught(method: type[Any], **change: Any) -> tuple[MultiExitModel, Any, LossFn]:
        seen: dict[str, Any] = {}

        def train(model: Any, loss: LossFn, *_: Any, **__: Any) -> TrainingReport:
            seen.update(parts=list(model.eval()), loss=loss)
            return TrainingReport(0.0, 0, 0, 0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(joint_module, "train", train)
            method().fit(signal_task, small_backbone, {}, config={**BRIEF, **change}, seed=0)
        return seen["parts"][0], seen["parts"][1] if len(seen["parts"]) > 1 else None, seen["loss"]

    return caught


@pytest.mark.parametrize("method", FAMILY)
def test_found_by_name_under_its_authors_rule(method: type[Any], fit: Fit) -> None:
    """The registry finds it; its points are budgets with announced names, and its rule is the paper's."""
    assert type(registry.get(method.name)) is method
    fitted = fit(method)
    assert fitted.rule == RULE[method.name]
    assert [point.name for point in fitted.points] == ["budget=0.4", "budget=0.8"] == method().point_names(BRIEF)
    assert method().point_names({}) == ["budget=0.25", "budget=0.5", "budget=0.75"]
    assert fitted.executor == BY_RULE
    assert fitted.model.head_kind == "linear"


@pytest.mark.parametrize("method", FAMILY)
@given(data=st.data())
@settings(max_examples=8)
def test_batches_equal_batch_1(
    method: type[Any], data: st.DataObject, fit: Fit, executions: Any, same_however_run: Check, unseen: Split
) -> None:
    """Answers and exits in batches of any size and order equal those of samples run one by one."""
    fitted = fit(method)
    at = data.draw(st.sampled_from(fitted.points))
    same_however_run(fitted, at, data.draw(executions), data.draw(st.permutations(range(40))))


@pytest.mark.parametrize("method", FAMILY)
def test_it_beats_guessing_on_dev(method: type[Any], fit: Fit, signal_task: Task) -> None:
    """After some epochs the larger budget beats guessing (a third) by far on dev."""
    fitted = fit(method, epochs=6)
    assert fitted.points[-1].params["dev_accuracy"] > 0.6


@pytest.mark.parametrize("method", FAMILY)
def test_same_seed_same_fit(method: type[Any], fit: Fit) -> None:
    """The same seed gives the same weights, gate and points, bit for bit; another seed does not."""
    first, again, other = fit(method), fit(method, budgets=[0.4, 0.8]), fit(method, seed=1)
    assert again.points == first.points
    for one, two in ((first.model, again.model), (first.gate, again.gate)):
        if one is not None:
            ours = one.state_dict()
            assert all(torch.equal(value, ours[key]) for key, value in two.state_dict().items())
    assert not torch.equal(other.model.student(0).label.weight, first.model.student(0).label.weight)


@pytest.mark.parametrize("method", FAMILY)
def test_round_trip(
    method: type[Any], fit: Fit, signal_task: Task, small_backbone: Backbone, unseen: Split, tmp_path: Path
) -> None:
    """A loaded model has the same points, answers and training report."""
    fitted = fit(method)
    fitted.save(tmp_path)
    loaded = method().load(tmp_path, signal_task, small_backbone, {})
    assert loaded.training == fitted.training
    assert loaded.points == fitted.points
    for at in fitted.points:
        first, second = (model.predict(unseen.tokens, at=at) for model in (fitted, loaded))
        np.testing.assert_array_equal(first.logits, second.logits)
        np.testing.assert_array_equal(first.exit_layer, second.exit_layer)


@pytest.mark.parametrize("method", FAMILY)
def test_invalid_settings_are_refused_before_training(
    method: type[Any], fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is one line that names the setting."""
    if "pabee" in method.needs:
        fit(Pabee)
    for module in (joint_module, deebert_module, consistentee_module):
        monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained"))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"budgets": 0.5}, "budgets"),
        ({"budgets": [0]}, "budgets"),
        ({"budgets": [0.5, 0.5]}, "twice"),
        ({"budget": [0.5]}, "budgets"),
        ({"epochs": 0}, "epochs"),
        ({"head": "convex"}, "head"),
    ]
    more: dict[str, list[tuple[dict[str, Any], str]]] = {
        "pcee-bert": [({"weights": wrong}, 'one of "asc", "desc", "uniform"') for wrong in ("up", 1)],
        "righttool": [({"layers": value}, "layers") for value in ([], [4], [-1], [1, 1], [True], [0.5], 2, ["0"])],
        "deebert": [({"ramp_epochs": 0}, "epochs"), ({"head": "fastbert"}, "set both alike")],
        "palbert": [({"beta": -1}, "beta"), *[({"prior": value}, "prior") for value in (0, 1, "0.1")]],
        "consistentee": [({"rollouts": 1}, "rollouts"), ({"price": -0.1}, "price"), ({"policy_epochs": 0}, "epochs")],
    }
    for change, message in [*wrong, *more.get(method.name, [])]:
        with pytest.raises(ConfigError, match=message) as caught:
            fit(method, **change)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", JOINT)
def test_one_layer_is_too_few(method: type[Any], signal_task: Task, small_backbone: Backbone) -> None:
    """A backbone of one layer is refused."""
    shape = replace(small_backbone.shape, layers=1)
    backbone = Backbone("flat", shape, Encoder(shape).state_dict(), None)
    with pytest.raises(ConfigError, match="at least 2 layers"):
        method().fit(signal_task, backbone, {}, config=BRIEF, seed=0)


@pytest.mark.parametrize("method", JOINT)
def test_joint_training_reaches_all_weights(method: type[Any], fit: Fit, small_backbone: Backbone) -> None:
    """Encoder and all heads learn; every sample passes every layer once per epoch."""
    fitted = fit(method)
    state = fitted.model.encoder.state_dict()
    assert not torch.equal(state["layers.0.up.weight"], small_backbone.state["layers.0.up.weight"])
    assert fitted.training is not None
    assert fitted.training.layer_passes == 2 * 96 * 5
    kept = fitted.training.best_epoch
    assert kept is None if method is Berxit else kept in (1, 2)


def test_dev_score_is_the_area_over_layers(fit: Fit, signal_task: Task) -> None:
    """The epoch with the largest area under accuracy over layers on dev is kept, and the accuracy of its exits is reported."""
    fitted = fit(Pabee)
    assert fitted.training is not None
    found = exits_score(fitted.model, signal_task.dev)
    assert len(found.exits) == 5
    assert max(fitted.training.dev_scores) == pytest.approx(found.score)
    assert fitted.training.exit_scores == pytest.approx(found.exits)


def test_pabee_counts_exit_i_i_times(objective: Any, batch: Any) -> None:
    """The loss is sum_i i CE_i / sum_i i."""
    model, _, loss = objective(Pabee)
    losses = exit_losses(exit_answers(model, *batch[:2])[1], batch[2])
    assert loss(*batch).item() == pytest.approx(sum((i + 1) * losses[i].item() for i in range(5)) / 15)


@pytest.mark.parametrize(
    ("scheme", "weights"), [("asc", [1, 2, 3, 4, 5]), ("desc", [5, 4, 3, 2, 1]), ("uniform", [1] * 5)]
)
def test_pcee_weights_follow_the_setting(scheme: str, weights: list[int], objective: Any, batch: Any) -> None:
    """Weights rise with depth, fall, or are equal."""
    assert exit_weights(scheme, 5) == weights
    model, _, loss = objective(PceeBert, weights=scheme)
    losses = exit_losses(exit_answers(model, *batch[:2])[1], batch[2]).tolist()
    expected = sum(w * one for w, one in zip(weights, losses, strict=True)) / sum(weights)
    assert loss(*batch).item() == pytest.approx(expected)


def test_berxit_alternates(objective: Any, batch: Any) -> None:
    """Even steps train the last exit, odd steps the sum of all; the gate's loss is added in every step."""
    model, gate, loss = objective(Berxit)
    states, logits = exit_answers(model, *batch[:2])
    losses = exit_losses(logits, batch[2])
    extra = gate_loss(gate, states, logits, batch[1], batch[2])
    found = [loss(*batch).item() - extra.item() for _ in range(4)]
    last, every = losses[-1].item(), losses.sum().item()
    assert found == pytest.approx([last, every, last, every], rel=1e-5)


def test_gate_learns_when_a_head_is_wrong(objective: Any, batch: Any) -> None:
    """The gate's loss is the squared error to 1 (wrong) or 0 (right); its gradient reaches the gate only."""
    model, gate, _ = objective(Berxit)
    states, logits = exit_answers(model, *batch[:2])
    expected = []
    for hidden, answer in zip(states, logits, strict=True):
        doubt = gate(hidden, batch[1])
        expected.append(((doubt - (answer.argmax(-1) != batch[2]).float()) ** 2).mean().item())
    found = gate_loss(gate, states, logits, batch[1], batch[2])
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)
    model.zero_grad()
    found.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert gate.wrong.weight.grad.abs().sum() > 0


def test_gate_distinguishes_right_from_wrong(fit: Fit, signal_task: Task) -> None:
    """After training with a fixed model, the gate's output is larger for wrong heads than for right ones."""
    model, gate, split = fit(Berxit).model, ExitGate(16), signal_task.train
    layout = Layout(split.tokens.lengths.numpy(), None, "cpu")
    with torch.no_grad():
        states, logits = exit_answers(model, split.tokens, layout)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        gate_loss(gate, states, logits, layout, split.labels).backward()
        optimizer.step()
    evidence, doubts = exit_evidence(model, split.tokens, Execution(), gate=gate)
    assert doubts is not None
    wrong = evidence.argmax(-1) != split.labels
    assert 0.1 < wrong.float().mean() < 0.9
    assert doubts[wrong].mean() > doubts[~wrong].mean() + 0.05


def test_righttool_sums_a_few_exits(objective: Any, batch: Any) -> None:
    """Heads are at the given layers and the last one, and their cross-entropies are added."""
    model, _, loss = objective(RightTool, layers=[2, 0])
    assert model.answers == (0, 2, 4)
    assert loss(*batch).item() == pytest.approx(exit_losses(exit_answers(model, *batch[:2])[1], batch[2]).sum().item())


@pytest.mark.parametrize(
    ("depth", "exits"), [(12, [0, 3, 5]), (24, [1, 7, 11]), (6, [0, 1, 2]), (5, [0, 1, 2]), (3, [0, 1]), (2, [0])]
)
def test_righttools_exits_follow_the_published_ones(depth: int, exits: list[int]) -> None:
    """Exits are 0, 3, 5 of 12 layers and the same fractions of other depths, each once, without the last layer."""
    assert early_exits(depth) == exits


def test_elasticbert_sums_exits_in_equilibrium(objective: Any, batch: Any) -> None:
    """The loss is the sum; the gradient of a layer is the mean over the exits above it."""
    model, _, loss = objective(ElasticBert)
    losses = exit_losses(exit_answers(model, *batch[:2])[1], batch[2])
    found = loss(*batch)
    assert found.item() == pytest.approx(losses.sum().item())
    weight = model.encoder.layers[0].up.weight
    (expected,) = torch.autograd.grad(losses.mean(), weight)
    (ours,) = torch.autograd.grad(found, weight)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)


class TestDeeBert:
    """DeeBERT trains in two stages, only ramps in the second."""

    def test_only_ramps_are_trained(self, fit: Fit, trained_bert: FullDepth) -> None:
        """Encoder and last head do not change, bit for bit; every other layer has a ramp."""
        fitted = fit(DeeBert)
        own, his = fitted.model.state_dict(), trained_bert.model.state_dict()
        assert all(torch.equal(own[key], value) for key, value in his.items())
        assert fitted.model.exits == (0, 1, 2, 3)
        assert {key.split(".")[0] for key in own.keys() - his.keys()} == {"students"}

    def test_the_last_ramp_is_not_part_of_the_loss(
        self,
        signal_task: Task,
        small_backbone: Backbone,
        trained_bert: FullDepth,
        batch: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The loss is the sum of the ramps' cross-entropies; the last layer has no ramp."""
        seen: dict[str, Any] = {}

        def train(model: MultiExitModel, loss: LossFn, split: Split, recipe: Recipe, **_: Any) -> TrainingReport:
            seen.update(model=model.eval(), loss=loss, recipe=recipe)
            seen["start"] = {key: value.clone() for key, value in model.state_dict().items()}
            return TrainingReport(0.0, 0, 0, 0)

        monkeypatch.setattr(deebert_module, "train", train)
        config = {**BRIEF, "ramp_epochs": 7, "ramp_learning_rate": 0.25}
        DeeBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)
        assert (seen["recipe"].epochs, seen["recipe"].learning_rate, seen["recipe"].batch_size) == (7, 0.25, 16)
        model = seen["model"]
        _, *states = model.encoder.states(*batch[:2])
        expected = sum(F.cross_entropy(model.student(i)(states[i], batch[1]), batch[2]).item() for i in range(4))
        assert seen["loss"](*batch).item() == pytest.approx(expected, rel=1e-5)
        for i in range(4):  # ramps start from what the fine-tuned head does before its label layer
            assert torch.equal(seen["start"][f"students.{i}.dense.weight"], seen["start"]["teacher.dense.weight"])

    def test_costs_both_steps(self, fit: Fit, trained_bert: FullDepth) -> None:
        """Its cost is fine-tuning and, per sample and epoch of ramps, all layers but the last."""
        fitted = fit(DeeBert)
        assert fitted.training is not None
        assert trained_bert.training is not None
        assert fitted.training.layer_passes == trained_bert.training.layer_passes + 2 * 96 * 4
        assert fitted.training.best_epoch is None

    def test_needs_a_full_depth_teacher(self, fit: Fit, signal_task: Task, small_backbone: Backbone) -> None:
        """A teacher of another kind or of one layer is refused in one line."""
        with pytest.raises(ConfigError, match="full-depth 'bert'"):
            DeeBert().fit(signal_task, small_backbone, {"bert": fit(Pabee)}, config=BRIEF, seed=0)
        shape = replace(small_backbone.shape, layers=1)
        flat = FullDepth(MultiExitModel(Encoder(shape), 3, (), "linear").eval())
        with pytest.raises(ConfigError, match="at least 2 layers"):
            DeeBert().fit(signal_task, small_backbone, {"bert": flat}, config=BRIEF, seed=0)


def test_heads_can_be_of_the_other_kind(fit: Fit, unseen: Split) -> None:
    """``head`` replaces the linear head, as in other methods."""
    fitted = fit(Pabee, head="fastbert")
    assert fitted.model.head_kind == "fastbert"
    assert fitted.predict(unseen.tokens, at=fitted.points[0]).logits.shape == (40, 3)


def test_the_gate_learns_as_fast_as_heads(small_backbone: Backbone) -> None:
    """The gate has the heads' learning rate."""
    gate = ExitGate(16)
    groups = parameter_groups(torch.nn.ModuleList([gate]), Recipe(learning_rate=0.1, head_rate=5))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rates[id(p)] for p in gate.parameters()] == [0.5, 0.5]


def test_common_settings_of_a_profile_are_accepted(fit: Fit) -> None:
    """Common keys of a profile are accepted."""
    config: Mapping[str, Any] = {"speeds": [0.1]}
    assert fit(Pabee, **config).points == fit(Pabee).points
