"""BERxiT (Xin et al., EACL 2021): alternating training, and a gate that learns when a head is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import ExitGate, Gate
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.joint_training import JointMethod, JointSettings, exit_answers, exit_losses
from harness.toolkit.training import LossFn


def gate_loss(
    gate: ExitGate, states: Sequence[Tensor], logits: Sequence[Tensor], layout: Layout, labels: Tensor
) -> Tensor:
    """Return the squared error of the gate against 1 where a head is wrong and 0 where it is right, mean over exits and batch.

    Neither states [rows, width] nor logits [B, C] get a gradient.
    """
    doubts = torch.stack([gate(hidden.detach(), layout) for hidden in states])
    wrong = torch.stack([answer.detach().argmax(-1) != labels for answer in logits])
    return F.mse_loss(doubts, wrong.float())


@dataclass
class _InTurns:
    """The loss of one batch, which alternates from step to step (:class:`~harness.toolkit.training.CountsSteps`)."""

    model: MultiExitModel
    gate: ExitGate
    step: int = 0

    def __call__(self, tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        states, logits = exit_answers(self.model, tokens, layout)
        losses = exit_losses(logits, labels)
        ours = losses[-1] if self.step % 2 == 0 else losses.sum()
        self.step += 1
        return ours + gate_loss(self.gate, states, logits, layout, labels)


class Berxit(JointMethod):
    """Early exits trained in turns with full depth; a learned gate decides when to exit (rule ``learned``).

    Even steps (from 0) take the cross-entropy of the last exit, odd steps the sum over all exits.
    The gate ("learning to exit") is one for all exits, reads the state of [CLS], and learns in every step, without a gradient
    into the encoder. In the released code it reads each exit's pooled state, and its targets are 0.01 and 0.63, which
    changes thresholds only. The last epoch is kept, as released.
    """

    name = "berxit"
    rule = "learned"
    keeps_best = False

    def objective(self, model: MultiExitModel, gate: Gate | None, own: JointSettings) -> LossFn:
        assert isinstance(gate, ExitGate)
        return _InTurns(model, gate)
