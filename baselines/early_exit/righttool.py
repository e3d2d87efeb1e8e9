"""The Right Tool for the Job (Schwartz et al., ACL 2020): few exits, trained together; leave by calibrated confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import ExitGate
from harness.encoder.multi_exit import MultiExitModel
from harness.registry import register
from harness.toolkit.joint_training import JointMethod, exit_answers, exit_losses
from harness.toolkit.training import LossFn

PUBLISHED = (0, 3, 5)  # of BERT-base's 12 layers, the last one apart


def early_exits(depth: int) -> list[int]:
    """Where the published exits of 12 layers lie in ``depth`` layers, halves rounded up; the last layer apart."""
    return sorted({-(-(layer + 1) * depth // 12) - 1 for layer in PUBLISHED} - {depth - 1})


@register
class RightTool(JointMethod):
    """Sum of the cross-entropies of a few exits; rule ``confidence``, a temperature per exit.

    Config: ``layers``, indices of the early exits; by default those of :func:`early_exits`.

    Not as in the released code: there a head reads a learned sum of all layers so far and the logits of the heads before
    it, which no executor could then run by itself; here it reads its own layer.
    """

    name = "righttool"
    rule = "confidence"
    settings: ClassVar[Mapping[str, Any]] = {"layers": None}

    def exits(self, depth: int, own: Mapping[str, Any]) -> Sequence[int]:
        layers = own["layers"]
        if layers is None:
            return early_exits(depth)
        fine = isinstance(layers, list | tuple) and all(
            isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < depth - 1 for layer in layers
        )
        if not fine or not layers or len(set(layers)) < len(layers):
            raise ConfigError(
                f"method '{self.name}': layers = {layers!r} makes no sense: list one or more out of 0..{depth - 2}, each once"
            )
        return sorted(layers)

    def objective(self, model: MultiExitModel, gate: ExitGate | None, own: Mapping[str, Any]) -> LossFn:
        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            return exit_losses(exit_answers(model, tokens, layout)[1], labels).sum()

        return loss
