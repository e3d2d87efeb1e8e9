"""Products of a sequence of matrices: the whole one, those up to every place, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.work import Convention, Tally

Join = Callable[[Tensor, Tensor], Tensor]


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


def up_to_each(values: Tensor, begins: Tensor, join: Join) -> Tensor:
    """Return what joins the values of a piece up to every place, in 2 log2 T batched steps: [B, T, ..] -> [B, T, ..].

    Args:
        values: e.g. matrices [B, T, d, d] to multiply, or vectors [B, T, d] to add.
        begins: bool [B, T], true where a new piece begins, which joins nothing before.
        join: of two values, associative, e.g. ``torch.matmul``.
    """
    count = values.shape[1]
    if count == 1:
        return values

    def joined(first: Tensor, second: Tensor, anew: Tensor) -> Tensor:
        return torch.where(anew.unflatten(1, (-1, *(1 for _ in values.shape[2:]))), second, join(first, second))

    even = count - count % 2
    first, second = values[:, :even].unflatten(1, (-1, 2)).unbind(2)
    one, other = begins[:, :even].unflatten(1, (-1, 2)).unbind(2)
    odd_places = up_to_each(joined(first, second, other), one | other, join)
    later = values[:, 2::2]
    after = joined(odd_places[:, : later.shape[1]], later, begins[:, 2::2])
    even_places = torch.cat([values[:, :1], after], 1)
    both = torch.stack([even_places[:, : even // 2], odd_places], 2).flatten(1, 2)
    return torch.cat([both, even_places[:, even // 2 :]], 1)


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
