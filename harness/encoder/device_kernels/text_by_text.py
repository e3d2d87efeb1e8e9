"""Attention text by text as plain matrix products: on a CPU faster than torch's kernel over a padded grid, unless texts are long.

No row is gathered, nothing is padded, and there is no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

# Measured on two cores, at widths of 128, 384 and 768: below so many numbers per text, starting the products of many texts
# one by one costs more than the grid; above so many tokens, scores leave the cache, and torch's kernel never stores them.
_FEWEST, _LONGEST = 8192, 256


def fits(device: torch.device, dtype: torch.dtype, width: int, texts: int, tokens: int, longest: int) -> bool:
    """Return whether this way is used: float32 on a CPU, for texts neither tiny nor long.

    Args:
        width: of the hidden states.
        texts: of the batch, with so many tokens in all.
        longest: tokens of the longest.
    """
    large = texts == 1 or tokens * width >= _FEWEST * texts
    return device.type == "cpu" and dtype == torch.float32 and large and longest <= _LONGEST


def attend(qkv: Tensor, heads: int, starts: Sequence[int]) -> Tensor:
    """Self-attention within every text, for inference: [rows, 3 D] -> [rows, D].

    Args:
        starts: first row of every text, and the row after the last text. Rows from there on become zeros.
    """
    rows, width = len(qkv), qkv.shape[1] // 3
    scale = (width // heads) ** -0.5
    q, k, v = qkv.view(rows, 3, heads, -1).permute(1, 2, 0, 3).unbind(0)  # [H, rows, d] each
    k = k.transpose(1, 2)
    out, nothing = qkv.new_empty(rows, width), qkv.new_empty(1)
    places = out.view(rows, heads, -1).transpose(0, 1)
    for first, last in pairwise(starts):
        count = last - first
        scores = torch.baddbmm(  # scaled inside the product, [H, T, T]
            nothing, q.narrow(1, first, count), k.narrow(2, first, count), beta=0, alpha=scale
        )
        context = torch.bmm(scores.softmax(-1), v.narrow(1, first, count))  # [H, T, d]
        places.narrow(1, first, count).copy_(context)
    if starts[-1] < rows:
        out[starts[-1] :] = 0.0
    return out
