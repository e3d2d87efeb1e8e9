"""PCEE-BERT (Zhang et al., Findings of NAACL 2022): exits trained together; leave after heads in a row that are sure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import ExitGate
from harness.encoder.multi_exit import MultiExitModel
from harness.registry import register
from harness.toolkit.joint_training import JointMethod, exit_answers, exit_losses, weighted_mean
from harness.toolkit.training import LossFn

SCHEMES = ("asc", "desc", "uniform")


def exit_weights(scheme: str, exits: int) -> list[int]:
    """Weight of every exit's loss: 1 .. A, A .. 1, or all 1.

    In the released code ``desc`` gives the last exit weight 0, and the first one weight 1 in every scheme's numerator;
    neither is copied.
    """
    rising = list(range(1, exits + 1))
    return {"asc": rising, "desc": rising[::-1], "uniform": [1] * exits}[scheme]


@register
class PceeBert(JointMethod):
    """Weighted mean of the exits' cross-entropies; rule ``patience-confidence``.

    Config: ``weights``, one of :data:`SCHEMES`. Every exit has its own pooler; the released code shares BERT's.
    """

    name = "pcee-bert"
    rule = "patience-confidence"
    settings: ClassVar[Mapping[str, Any]] = {"weights": "asc"}

    def check(self, own: Mapping[str, Any]) -> None:
        if own["weights"] not in SCHEMES:
            raise ConfigError(
                f"method '{self.name}': weights = {own['weights']!r} is unknown: choose one of {', '.join(SCHEMES)}"
            )

    def objective(self, model: MultiExitModel, gate: ExitGate | None, own: Mapping[str, Any]) -> LossFn:
        weights = exit_weights(own["weights"], len(model.answers))

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            return weighted_mean(exit_losses(exit_answers(model, tokens, layout)[1], labels), weights)

        return loss
