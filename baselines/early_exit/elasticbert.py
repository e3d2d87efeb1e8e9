"""ElasticBERT-style fine-tuning (Liu et al., NAACL 2022): all exits together, gradients in equilibrium."""

from __future__ import annotations

from torch import Tensor

from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import ExitGate
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.joint_training import JointMethod, JointSettings, exit_answers, exit_losses
from harness.toolkit.training import LossFn


class ElasticBert(JointMethod):
    """Sum of the exits' cross-entropies under gradient equilibrium (Li et al., ICCV 2019); rule ``entropy``.

    See :func:`~harness.toolkit.joint_training.exit_states` for the gradients. The release compares the entropy in nats,
    which is the same rule at another threshold.

    ElasticBERT's multi-exit *pre-training* needs its backbone: ``fnlp/elasticbert-base``, or one from ``geep-bench pretrain
    --multi-exit``. On other backbones this method is its fine-tuning alone.
    """

    name = "elasticbert"
    rule = "entropy"

    def objective(self, model: MultiExitModel, gate: ExitGate | None, own: JointSettings) -> LossFn:
        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            return exit_losses(exit_answers(model, tokens, layout, equilibrium=True)[1], labels).sum()

        return loss
