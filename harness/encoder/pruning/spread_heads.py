"""Projections of attention whose heads have sizes of their own: products over what is left, on a grid of equal heads for attention.

Products run on exact sizes. Attention sees heads of one width, that of the layer's widest one, so that one call runs all of them:
missing dimensions are zeros, which add nothing.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from harness.encoder.device_kernels.packed_linear import outputs_of
from harness.encoder.shape import LayerSize


def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """Return a linear layer, without a warning if it has no inputs or no outputs."""
    with warnings.catch_warnings(action="ignore") if 0 in (inputs, outputs) else nullcontext():
        return nn.Linear(inputs, outputs, bias=bias)


def projections(width: int, size: LayerSize, bias: bool) -> tuple[Any, Any]:
    """Return the projections before and after the attention of a layer: queries, keys and values of all heads; and the result."""
    if size.even:
        return linear(width, 3 * size.attention, bias), linear(size.attention, width, bias)
    columns = places_of((size.queries, size.queries, size.values), size.head_width)
    results = places_of((size.values,), size.head_width)
    spread = SpreadLinear(linear(width, len(columns), bias), columns, 3 * size.attention)
    return spread, GatheredLinear(linear(len(results), width, bias), results)


def places_of(parts: Sequence[Sequence[int]], width: int) -> list[int]:
    """Return the columns that dimensions take in ``[parts, heads, width]``, given the dimensions of every head, part by part."""
    starts = (start * width for start in range(sum(map(len, parts))))
    sizes = (size for heads in parts for size in heads)
    return [start + place for start, size in zip(starts, sizes, strict=True) for place in range(size)]


class SpreadLinear(nn.Module):
    """``x W^T + b``, whose outputs go to some columns of a wider result; the others are 0: [rows, in] -> [rows, columns]."""

    places: Tensor

    def __init__(self, linear: nn.Linear, places: Sequence[int], columns: int) -> None:
        super().__init__()
        self.linear, self.columns, self._places = linear, columns, list(places)
        self.register_buffer("places", torch.tensor(self._places, dtype=torch.int64), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Weights of the products, [outputs, in]."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return _spread(self.linear(x), self.places, self.columns)

    def part(self, outputs: slice) -> Callable[[Tensor], Tensor]:
        """Return the function of some columns."""
        first, last = outputs.start or 0, self.columns if outputs.stop is None else outputs.stop
        inside = slice(bisect_left(self._places, first), bisect_left(self._places, last))
        places = self.places[inside] - first
        return lambda x: _spread(outputs_of(self.linear, x, inside), places, last - first)


def _spread(x: Tensor, places: Tensor, columns: int) -> Tensor:
    return x.new_zeros(len(x), columns).index_copy_(1, places, x)


class GatheredLinear(nn.Module):
    """``x W^T + b`` over some columns of x: [rows, columns] -> [rows, out]."""

    places: Tensor

    def __init__(self, linear: nn.Linear, places: Sequence[int]) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("places", torch.tensor(list(places), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(x.index_select(1, self.places))
        return found
