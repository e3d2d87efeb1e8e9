"""PALBERT's loss equals values computed by hand, and trains gate and exits together."""

from __future__ import annotations

import math

import pytest
import torch

from baselines.learned_exits.palbert import geometric, halting, ponder_loss
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import HaltingGate
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.joint_training import exit_answers, log_leaving, sample_losses


def test_the_prior_is_geometric() -> None:
    """With 1/4 for each of three exits: 1/4, 3/16, and the rest, 9/16."""
    torch.testing.assert_close(geometric(0.25, 3), torch.tensor([0.25, 0.1875, 0.5625]))
    assert geometric(0.1, 12).sum().item() == pytest.approx(1)


def test_the_last_exit_takes_what_is_left() -> None:
    """Leaving with 1/2, then with 1/2 of the rest, leaves 1/4 for the last exit; extreme logits give no NaN."""
    p = log_leaving([torch.zeros(2), torch.tensor([0.0, 200.0])]).exp()
    torch.testing.assert_close(p, torch.tensor([[0.5, 0.5], [0.25, 0.5], [0.25, 0.0]]))
    assert torch.isfinite(log_leaving([torch.tensor([-900.0, 900.0])] * 3)).all()


def test_the_loss_of_three_exits() -> None:
    """sum p CE = .5 x 1 + .25 x 2 + .25 x 4 = 2; the divergence from the prior is .25 ln .5 + .1875 ln .75 + .5625 ln 2.25."""
    log_p = torch.tensor([0.5, 0.25, 0.25]).log()[:, None]
    losses = torch.tensor([[1.0], [2.0], [4.0]])
    divergence = 0.25 * math.log(0.5) + 0.1875 * math.log(0.75) + 0.5625 * math.log(2.25)
    for beta in (0.0, 0.5):
        found = ponder_loss(losses, log_p, geometric(0.25, 3), beta)
        assert found.item() == pytest.approx(2 + beta * divergence)
    own = geometric(0.25, 3)
    assert ponder_loss(losses, own.log()[:, None], own, 1.0).item() == pytest.approx((own @ losses[:, 0]).item())


def test_the_gate_sees_two_states(signal_task: Task, small_backbone: Backbone) -> None:
    """Every exit halts by its state of [CLS] and the one before, zeros at first; the loss trains gate, heads and encoder."""
    torch.manual_seed(1)
    model = MultiExitModel(small_backbone.encoder(), 3, range(4), "linear").eval()
    gate = HaltingGate(16).eval()
    tokens = signal_task.train.tokens.select(range(6))
    layout = Layout(tokens.lengths.numpy(), None, "cpu")
    states, logits = exit_answers(model, tokens, layout)
    log_p = halting(gate, states, layout)
    going_on, before = torch.ones(6), torch.zeros(6, 16)
    for place in range(4):
        state = states[place][layout.first]
        halt = gate.logit(state, before).sigmoid()
        torch.testing.assert_close(log_p[place].exp(), going_on * halt)
        going_on, before = going_on * (1 - halt), state
    torch.testing.assert_close(log_p[4].exp(), going_on)
    ponder_loss(sample_losses(logits, signal_task.train.labels[:6]), log_p, geometric(0.1, 5), 0.5).backward()
    for part in (
        gate.deep[0].weight,
        gate.halt.weight,
        model.student(0).label.weight,
        model.encoder.layers[0].up.weight,
    ):
        assert part.grad is not None and part.grad.abs().sum() > 0
