"""Scores on dev without running a frozen encoder again."""

from __future__ import annotations

import pytest
import torch

from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.run_pass import Pass
from harness.toolkit.dev_scores import EVALUATION
from harness.toolkit.frozen import frozen_exits
from harness.toolkit.frozen.frozen_exits import FrozenExits


@pytest.mark.parametrize("head", ["fastbert", "linear"])
def test_answers_have_the_bits_of_a_pass(
    head: str, small_backbone: Backbone, signal_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the early heads have become, every answer is that of a whole pass, bit for bit; layers run in the first call."""
    torch.manual_seed(0)
    model = MultiExitModel(small_backbone.encoder(), 3, [0, 2, 3], head).eval()
    tokens = signal_task.train.tokens  # two batches
    frozen = FrozenExits(model, tokens, EVALUATION)
    ran: list[int] = []
    layer = Pass.layer
    monkeypatch.setattr(Pass, "layer", lambda run, index, *args: (ran.append(index), layer(run, index, *args))[1])
    for call in range(3):
        found = frozen()
        assert ran == ([*range(5), *range(5)] if call == 0 else [])
        assert torch.equal(found, exit_logits(model, tokens, EVALUATION))
        ran.clear()
        for parameter in model.students.parameters():
            torch.nn.init.normal_(parameter, std=0.5)


def test_without_room_all_layers_run(
    small_backbone: Backbone, signal_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are those of a pass."""
    model = MultiExitModel(small_backbone.encoder(), 3, range(4), "linear").eval()
    monkeypatch.setattr(frozen_exits, "room_for", lambda *_: None)
    frozen = FrozenExits(model, signal_task.dev.tokens, EVALUATION)
    for _ in range(2):
        assert torch.equal(frozen(), exit_logits(model, signal_task.dev.tokens, EVALUATION))
