"""ElasticBERT-style fine-tuning (Liu et al., NAACL 2022): all exits together, gradients in equilibrium."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import ExitGate
from harness.encoder.multi_exit import MultiExitModel
from harness.registry import register
from harness.toolkit.joint_training import JointMethod, exit_answers, exit_losses
from harness.toolkit.training import LossFn


@register
class ElasticBert(JointMethod):
    """Sum of the exits' cross-entropies under gradient equilibrium (Li et al., ICCV 2019); rule ``entropy``.

    What is done to gradients: :func:`~harness.toolkit.joint_training.exit_states`. The release compares the entropy in nats,
    which is the same rule at another threshold.

    The other half of ElasticBERT, its multi-exit *pre-training*, is the backbone's: ``fnlp/elasticbert-base``, or one made
    by ``geep-bench pretrain --multi-exit``. On any other backbone this is its fine-tuning alone.
    """

    name = "elasticbert"
    rule = "entropy"

    def objective(self, model: MultiExitModel, gate: ExitGate | None, own: Mapping[str, Any]) -> LossFn:
        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            return exit_losses(exit_answers(model, tokens, layout, equilibrium=True)[1], labels).sum()

        return loss
