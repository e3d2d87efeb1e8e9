"""Control: constant depth, with the same heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.controls.borrowed_geep import BorrowedGeep, GeepControl, mirrored
from harness.contracts import OperatingPoint, Role
from harness.core.tokens import Split, TokenSet
from harness.toolkit.fitted import AssignedExits


class ConstantDepth(BorrowedGeep, AssignedExits):
    """All samples exit at the answering layer that is nearest to GEEP's mean layers on dev."""

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        points = []
        for point in mirrored(self.geep, dev):
            mean = float(self.geep.assign(dev.tokens, at=point).float().mean())
            exit_layer = min(self.model.answers, key=lambda answer: (abs(answer - mean), answer))
            points.append(OperatingPoint(point.name, {**point.params, "exit": exit_layer}))
        return points

    def assign(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        return torch.full((len(tokens),), int(at.params["exit"]), dtype=torch.int16, device=tokens.device)


class ConstantControl(GeepControl):
    """Every sample exits at the same layer, with GEEP's heads."""

    name = "control-constant"
    role: Role = "constant-depth"
    borrowed = ConstantDepth
