"""Exit rules: when is a sample sure enough to leave."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor


def normalised_entropy(logits: Tensor) -> Tensor:
    """Uncertainty in 0..1: ``-sum_c p_c ln p_c / ln C`` (FastBERT, section 3.3). [..., C] -> [...]."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])


def entropy_rule(speed: float) -> Callable[[Tensor], Tensor]:
    """FastBERT's rule: leave when the normalised entropy is at most ``speed`` (0: hardly ever, 1: at once)."""

    def leaves(logits: Tensor) -> Tensor:
        return normalised_entropy(logits) <= speed

    return leaves


def first_exit(logits: Tensor, speed: float) -> Tensor:
    """Which answer a sequential exit takes: index into the first axis, int64 [N], the last where none is sure.

    Args:
        logits: [A, N, C], answers in order of depth.
        speed: the entropy threshold.
    """
    sure = normalised_entropy(logits) <= speed
    sure[-1] = True
    return sure.int().argmax(0)
