"""Control: random exits with GEEP's histogram."""

from __future__ import annotations

from torch import Tensor

from baselines.controls.borrowed_geep import GeepControl
from baselines.controls.ranked_exits import RankedExits, content_hash
from harness.contracts import Role
from harness.core.tokens import TokenSet


class RandomExits(RankedExits):
    """Exits by chance. The order is a hash of the content, so that a sample has the same exit in any order."""

    def rank(self, tokens: TokenSet) -> Tensor:
        return content_hash(tokens)


class RandomControl(GeepControl):
    """Random exits with GEEP's histogram."""

    name = "control-random"
    version = 2
    role: Role = "random-exits"
    borrowed = RandomExits
