"""PABEE (Zhou et al., NeurIPS 2020): all exits trained together, with larger weights for deeper ones; exit when heads agree."""

from __future__ import annotations

from torch import Tensor

from harness.toolkit.joint_training import JointMethod, JointSettings, weighted_mean


class Pabee(JointMethod):
    """Early exits trained together; a sample exits when several heads in a row agree (rule ``patience``).

    The loss is ``sum_i i CE_i / sum_i i`` over exits i = 1 .. L, so that deeper exits count more.
    Every exit has its own pooler; the released code shares BERT's pretrained one.
    """

    name = "pabee"
    rule = "patience"

    def combine(self, losses: Tensor, own: JointSettings) -> Tensor:
        return weighted_mean(losses, range(1, len(losses) + 1))
