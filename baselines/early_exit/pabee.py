"""PABEE (Zhou et al., NeurIPS 2020): all exits trained together, with larger weights for deeper ones; exit when heads agree."""

from __future__ import annotations

from torch import Tensor

from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import ExitGate
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.joint_training import (
    JointMethod,
    JointSettings,
    exit_answers,
    exit_losses,
    weighted_mean,
)
from harness.toolkit.training import LossFn


class Pabee(JointMethod):
    """``sum_i i CE_i / sum_i i`` over exits i = 1 .. L; rule ``patience``.

    Every exit has its own pooler; the released code shares BERT's pretrained one.
    """

    name = "pabee"
    rule = "patience"

    def objective(self, model: MultiExitModel, gate: ExitGate | None, own: JointSettings) -> LossFn:
        weights = range(1, len(model.answers) + 1)

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            return weighted_mean(exit_losses(exit_answers(model, tokens, layout)[1], labels), weights)

        return loss
