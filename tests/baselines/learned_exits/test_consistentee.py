"""ConsistentEE: hardness, reward and gradient equal values computed by hand; stages train what they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import baselines.learned_exits.consistentee as module
from baselines.early_exit.pabee import Pabee
from baselines.full_depth.bert import Bert
from baselines.learned_exits.consistentee import ConsistentEE, memorised_place, policy_losses
from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.execution.executors import exit_logits
from harness.toolkit.joint_training import log_leaving
from harness.toolkit.rule_exits import RuleExits
from harness.toolkit.training import LossFn, Recipe, TrainingReport

BRIEF: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "batch_size": 16, "budgets": [0.5]}


@pytest.fixture(scope="module")
def pabee(signal_task: Task, small_backbone: Backbone) -> RuleExits:
    return Pabee().fit(signal_task, small_backbone, {}, config=BRIEF, seed=0)


def test_a_sample_is_memorised_where_heads_become_right_for_good() -> None:
    """Right from the first, second or third head on; right at first only; wrong everywhere."""
    right = torch.tensor([[1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]).bool()
    assert memorised_place(right).tolist() == [0, 1, 2, 2, 2, 2]


def test_the_policy_follows_the_gradient_of_the_expected_reward() -> None:
    """Rewards are -1 - (1 - 1/2) 1/2 and 0 - (1 - 1/2) 1 for an easy sample, -1 and 0 for a hard one.

    With a probability of 1/2, the gradient of the expected reward by the logit is 1/4 of their difference: -.1875 and -.25.
    """
    torch.manual_seed(0)
    logit = torch.zeros(2, requires_grad=True)
    losses = torch.tensor([[1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    policy, taken = policy_losses(
        losses, log_leaving([logit]), torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), 1.0, 40_000
    )
    policy.backward()
    assert logit.grad is not None
    torch.testing.assert_close(2 * logit.grad, torch.tensor([0.1875, 0.25]), atol=0.01, rtol=0)
    assert losses.grad is None  # rewards are no loss
    assert taken.item() == pytest.approx(0.5, abs=0.01)
    taken.backward()
    torch.testing.assert_close(losses.grad, torch.full((2, 2), 0.25), atol=0.01, rtol=0)


def test_the_policy_learns_where_a_head_is_right() -> None:
    """Of two samples, one only the first head gets right, and one only the last."""
    torch.manual_seed(0)
    logits = torch.zeros(2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    losses = torch.tensor([[0.0, 2.0], [2.0, 2.0], [2.0, 0.0]])
    for _ in range(150):
        optimizer.zero_grad()
        found, _ = policy_losses(
            losses, log_leaving(list(logits)), torch.tensor([2, 2]), torch.tensor([1.0, 2.0, 3.0]), 0.2, 8
        )
        found.backward()
        optimizer.step()
    p = log_leaving(list(logits)).exp()
    assert p[0, 0] > 0.8 and p[2, 1] > 0.8


def test_the_policy_is_trained_before_all_together(
    pabee: RuleExits, signal_task: Task, small_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the policy alone, then all; both start from copies of pabee's weights, and labels say how hard a sample is."""
    stages: list[dict[str, Any]] = []

    def train(parts: nn.ModuleList, loss: LossFn, split: Split, recipe: Recipe, **_: Any) -> TrainingReport:
        trained = {name.split(".")[0] for name, p in parts.named_parameters() if p.requires_grad}
        stages.append({"trained": trained, "split": split, "recipe": recipe, "model": parts[0]})
        return TrainingReport(float(len(stages)), 1, 1, 1)  # stages of unlike times are not the same one

    monkeypatch.setattr(module, "train", train)
    config = {**BRIEF, "policy_epochs": 7, "head_rate": 3, "patience": 2}
    weights = ConsistentEE().train_weights(signal_task, small_backbone, {"pabee": pabee}, config=config, seed=0)
    alone, together = stages
    assert (alone["trained"], together["trained"]) == ({"1"}, {"0", "1"})
    assert (alone["recipe"].epochs, alone["recipe"].learning_rate, alone["recipe"].head_rate) == (7, 5e-2, 1)
    assert (together["recipe"].epochs, together["recipe"].learning_rate) == (2, 5e-3)
    ours, theirs = together["model"].state_dict(), pabee.model.state_dict()
    assert all(torch.equal(ours[key], value) and ours[key] is not value for key, value in theirs.items())
    train_rows, marked = signal_task.train, alone["split"].labels
    assert (marked % 3).tolist() == train_rows.labels.tolist()
    right = exit_logits(pabee.model, train_rows.tokens, Execution()).argmax(-1) == train_rows.labels
    assert (marked // 3).tolist() == memorised_place(right).tolist()
    assert len(set((marked // 3).tolist())) > 2
    assert weights.training is not None and pabee.training is not None
    assert weights.training.steps == pabee.training.steps + 2


def test_unsuitable_weights_are_refused(pabee: RuleExits, signal_task: Task, small_backbone: Backbone) -> None:
    """No weights, weights without early exits, and another kind of head are refused in one line."""
    bert = Bert().fit(signal_task, small_backbone, {}, config={"epochs": 1, "head": "linear"}, seed=0)
    for teachers, change, message in (
        ({}, {}, "teacher 'pabee'"),
        ({"pabee": bert}, {}, "early exits"),
        ({"pabee": pabee}, {"head": "fastbert"}, "set both alike"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            ConsistentEE().fit(signal_task, small_backbone, teachers, config={**BRIEF, **change}, seed=0)
        assert "\n" not in str(caught.value)
