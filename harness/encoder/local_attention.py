"""Attention in a window around every token, on a grid: blocks of queries with the keys that any of them can see.

A layer with a window of w tokens on either side needs about ``T (2 w + B)`` query-key pairs for a text of T tokens in blocks of B
queries, instead of T^2 that are computed and masked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = 32  # queries of a block: smaller ones compute fewer pairs, but need more calls


def in_window(places: Tensor, longest: int, window: int, mask: Tensor | None = None) -> Tensor:
    """Return which of T keys lie in the window of queries at ``places`` (integers [..., Q]): bool [..., Q, T].

    Args:
        mask: bool, broadcast to that, true where keys are tokens. Padding sees itself at least, as attention over nothing is NaN.
    """
    away = places[..., None] - torch.arange(longest, device=places.device)
    inside = away.abs() <= window
    return inside if mask is None else inside & mask | (away == 0)


def blocks(longest: int, window: int) -> list[tuple[slice, slice]]:
    """Return the places of the queries of every block, and of the keys that it computes, in texts of ``longest`` tokens."""
    size = max(window, _LEAST)
    starts = range(0, longest, size)
    return [
        (slice(one, min(one + size, longest)), slice(max(0, one - window), min(one + size + window, longest)))
        for one in starts
    ]


def computed_pairs(longest: int, window: int) -> int:
    """Return the query-key pairs that :func:`attend_in_window` computes for one text."""
    return sum((q.stop - q.start) * (k.stop - k.start) for q, k in blocks(longest, window))


def attend_in_window(qkv: tuple[Tensor, ...], window: int, seen: Tensor, dropout: float = 0.0) -> Tensor:
    """Attend within a window: q, k and v [B, H, T, d] -> [B * T, H * d].

    Args:
        seen: keys that queries see, bool [B or 1, 1, T, T].
    """
    q, k, v = qkv
    parts = [
        F.scaled_dot_product_attention(
            q[:, :, rows], k[:, :, keys], v[:, :, keys], attn_mask=seen[:, :, rows, keys], dropout_p=dropout
        )
        for rows, keys in blocks(q.shape[2], window)
    ]
    return torch.cat(parts, 2).transpose(1, 2).flatten(2).flatten(0, 1)
