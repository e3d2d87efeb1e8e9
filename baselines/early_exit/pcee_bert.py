"""PCEE-BERT (Zhang et al., Findings of NAACL 2022): exits trained together; exit after confident heads in a row."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from harness.toolkit.joint_training import JointMethod, JointSettings, weighted_mean

Scheme = Literal["asc", "desc", "uniform"]


class PceeBertSettings(JointSettings):
    """Settings of PCEE-BERT."""

    weights: Scheme = Field("asc", description="weights of the exits' losses: 1 .. A, A .. 1, or all 1")


def exit_weights(scheme: Scheme, exits: int) -> list[int]:
    """Return the weight of every exit's loss: 1 .. A, A .. 1, or all 1.

    In the released code ``desc`` gives the last exit weight 0, and the first one weight 1 in every scheme's numerator;
    neither is copied.
    """
    rising = list(range(1, exits + 1))
    return {"asc": rising, "desc": rising[::-1], "uniform": [1] * exits}[scheme]


class PceeBert(JointMethod[PceeBertSettings]):
    """Early exits trained together; a sample exits after several confident heads in a row (rule ``patience-confidence``).

    The loss is a weighted mean of the exits' cross-entropies.
    Every exit has its own pooler; the released code shares BERT's.
    """

    name = "pcee-bert"
    rule = "patience-confidence"
    settings = PceeBertSettings

    def combine(self, losses: Tensor, own: PceeBertSettings) -> Tensor:
        return weighted_mean(losses, exit_weights(own.weights, len(losses)))
