"""ElasticBERT-style fine-tuning (Liu et al., NAACL 2022): all exits together, gradients in equilibrium."""

from __future__ import annotations

from harness.toolkit.joint_training import JointMethod


class ElasticBert(JointMethod):
    """Early exits trained together with balanced gradients; confident samples exit (rule ``entropy``).

    The loss is the sum of the exits' cross-entropies under gradient equilibrium (Li et al., ICCV 2019).
    The release compares the entropy in nats, which is the same rule at another threshold.

    ElasticBERT's multi-exit *pre-training* needs its backbone: ``fnlp/elasticbert-base``, or one from ``geep-bench pretrain
    --multi-exit``. On other backbones this method is its fine-tuning alone.
    """

    name = "elasticbert"
    rule = "entropy"
    equilibrium = True
