"""ElasticBERT-style fine-tuning (Liu et al., NAACL 2022): all exits together, gradients in equilibrium."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import Gate
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.joint_training import JointMethod, JointSettings, exit_answers, exit_losses
from harness.toolkit.teachers.relations import mutual_loss
from harness.toolkit.training import LossFn


class ElasticBertSettings(JointSettings):
    """Settings of ElasticBERT."""

    mutual: float = Field(
        0.0, ge=0, description="weight of mutual learning: every exit also learns the answers of all others"
    )


class ElasticBert(JointMethod[ElasticBertSettings]):
    """Early exits trained together with balanced gradients; confident samples exit (rule ``entropy``).

    The loss is the sum of the exits' cross-entropies under gradient equilibrium (Li et al., ICCV 2019).
    The release compares the entropy in nats, which is the same rule at another threshold.

    ElasticBERT's multi-exit *pre-training* needs its backbone: ``fnlp/elasticbert-base``, or one from ``geep-bench pretrain
    --multi-exit``. On other backbones this method is its fine-tuning alone.

    ``mutual`` adds mutual learning among exits, as GAML-BERT (Zhu et al., EMNLP 2021) and LeeBERT (Zhu, ACL 2021) have it; their
    aligned gradients and learned weights are not included.
    """

    name = "elasticbert"
    settings = ElasticBertSettings
    rule = "entropy"
    equilibrium = True

    def objective(self, model: MultiExitModel, gate: Gate | None, own: ElasticBertSettings) -> LossFn:
        if not own.mutual:
            return super().objective(model, gate, own)

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            _, logits = exit_answers(model, tokens, layout, equilibrium=self.equilibrium)
            return self.combine(exit_losses(logits, labels), own) + own.mutual * mutual_loss(logits)

        return loss
