"""Samples of two texts that a model reads one by one and then compares."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.tokens import TokenSet


def text_bounds(tokens: TokenSet) -> Tensor:
    """Return where the texts of pairs begin, and the end of the last one: int64 [2 B + 1].

    The first text of a sample is its first segment, with [CLS] and a [SEP]; the second text may be empty.
    """
    before = torch.cumsum(tokens.segments.long(), 0)[tokens.offsets[1:] - 1]
    second = before.diff(prepend=before.new_zeros(1))
    starts = torch.stack([tokens.offsets[:-1], tokens.offsets[1:] - second], 1).view(-1)
    return torch.cat([starts, tokens.offsets[-1:]])


def compared(vectors: Tensor) -> Tensor:
    """Return ``[u; v; |u - v|; u * v]`` of the vectors u, v of two texts: [2 B, width] -> [B, 4 width]."""
    u, v = vectors.view(-1, 2, vectors.shape[1]).unbind(1)
    return torch.cat([u, v, (u - v).abs(), u * v], 1)
