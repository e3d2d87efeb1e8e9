"""Attention over packed sequences of any lengths, without a padded grid: torch's FlashAttention kernel, on CUDA only.

Lengths reach the kernel as bounds on the device, so that nothing about them has to be known on the host but the longest.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

DEVICES = ("cuda",)
HALF = (torch.bfloat16, torch.float16)


def fits(device: torch.device, dtype: torch.dtype, head_width: int, dropout: float = 0.0) -> bool:
    """Whether the kernel can be used: half precision on CUDA, heads of a multiple of 8 up to 256, no dropout."""
    suits = dtype in HALF and head_width % 8 == 0 and head_width <= 256 and not dropout
    return device.type in DEVICES and suits and _new_enough(device)


@cache
def _new_enough(device: torch.device) -> bool:
    """FlashAttention needs Ampere."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def attend(qkv: Tensor, heads: int, bounds: Tensor, longest: int) -> Tensor:
    """Self-attention within every sequence: [rows, 3 D] -> [rows, D].

    Args:
        bounds: int32 [B + 1], rows at which sequences begin, and where the last one ends; may stop short of the rows,
            whose values are then arbitrary.
        longest: at least the tokens of the longest sequence.
    """
    q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)  # [rows, H, d] each
    # Seven positional arguments: names and order of the others differ between versions of torch.
    return varlen_attn(q, k, v, bounds, bounds, longest, longest).reshape(len(qkv), -1)  # type: ignore[union-attr]


def attend_first(query: Tensor, kv: Tensor, heads: int, bounds: Tensor, longest: int) -> Tensor:
    """One query per sequence over that sequence: query [B, D], kv [rows, 2 D] -> [B, D]. See :func:`attend`."""
    q = query.view(len(query), heads, -1)
    k, v = kv.view(len(kv), 2, heads, -1).unbind(1)
    each = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
    return varlen_attn(q, k, v, each, bounds, 1, longest).reshape(len(query), -1)  # type: ignore[union-attr]
