"""Control: exits by length alone, with GEEP's histogram."""

from __future__ import annotations

from torch import Tensor

from baselines.controls.borrowed_geep import GeepControl
from baselines.controls.random_exits import RankedExits, content_hash
from harness.contracts import Role
from harness.core.tokens import TokenSet


class LengthExits(RankedExits):
    """The longest sample has the deepest exit."""

    def rank(self, tokens: TokenSet) -> Tensor:
        return tokens.lengths * 2147483648 + content_hash(tokens)


class LengthControl(GeepControl):
    """Exits assigned by length alone, with GEEP's histogram of exits."""

    name = "control-length"
    version = 2
    role: Role = "length-exits"
    borrowed = LengthExits
