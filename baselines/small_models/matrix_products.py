"""Products of a sequence of matrices: the whole one, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.work import Convention, Tally


def whole_product(matrices: Tensor, *, backwards: bool = False) -> Tensor:
    """Return the product of every sequence, in a balanced tree: [B, T, d, d] -> [B, d, d].

    Neighbours are multiplied in log2 T levels, each a batched product; an odd one out moves up as it is. So there are T - 1
    products, as one after another, and identities at the end of a sequence change nothing, to the last bit.

    Args:
        backwards: M_T .. M_1 instead of M_1 .. M_T.
    """
    while (count := matrices.shape[1]) > 1:
        first, second = matrices[:, : count - count % 2].unflatten(1, (-1, 2)).unbind(2)
        made = second @ first if backwards else first @ second
        matrices = torch.cat([made, matrices[:, -1:]], 1) if count % 2 else made
    return matrices[:, 0]


@dataclass(frozen=True)
class ProductCost:
    """Products of the matrices of all tokens of a text, in both directions and both conventions: 2 size^3 FLOPs each.

    Attributes:
        size: rows and columns of a matrix.
        texts: of every sample, each with one product less than it has tokens, padding included.
    """

    size: int
    texts: int = 1

    def flops(self, tally: Tally, convention: Convention) -> int:
        return 2 * 2 * self.size**3 * (tally.tokens - self.texts * int(tally.rows))
