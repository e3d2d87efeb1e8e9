"""Attention over packed sequences of any lengths without a padded grid: torch's FlashAttention kernel, on CUDA only.

Lengths are passed as bounds on the device; the host needs to know only the longest.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

DEVICES = ("cuda",)
HALF = (torch.bfloat16, torch.float16)
_STEP, _WIDEST = 8, 256  # head widths of the kernel: multiples of 8, at most 256


def fits(device: torch.device, dtype: torch.dtype, head_width: int, dropout: float = 0.0) -> bool:
    """Return whether the kernel can be used: half precision on CUDA (Ampere or newer), heads of up to 256, no dropout."""
    suits = dtype in HALF and head_width <= _WIDEST and not dropout
    return device.type in DEVICES and suits and _new_enough(device)


@cache
def _new_enough(device: torch.device) -> bool:
    """Return whether the device is Ampere or newer, which FlashAttention needs."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def attend(qkv: Tensor, heads: int, bounds: Tensor, longest: int, window: int = 0) -> Tensor:
    """Self-attention within every sequence: [rows, 3 D] -> [rows, D].

    Args:
        bounds: int32 [B + 1], rows at which sequences begin, and where the last one ends. Rows beyond the last bound get
            arbitrary values.
        longest: at least the tokens of the longest sequence.
        window: tokens on either side that a token attends to; 0 for all.
    """
    q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)  # [rows, H, d] each
    return _kernel(q, k, v, bounds, bounds, longest, longest, window)


def attend_first(query: Tensor, kv: Tensor, heads: int, bounds: Tensor, longest: int) -> Tensor:
    """Attend from one query per sequence to that sequence: query [B, D], kv [rows, 2 D] -> [B, D]. See :func:`attend`."""
    each = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
    return attend_some(query, kv, heads, each, bounds, 1, longest)


def attend_some(
    query: Tensor, kv: Tensor, heads: int, q_bounds: Tensor, bounds: Tensor, q_longest: int, longest: int
) -> Tensor:
    """Attend from some queries per sequence to that sequence: query [A, D], kv [rows, 2 D] -> [A, D]. See :func:`attend`.

    Args:
        q_bounds: int32 [B + 1], where the queries of each sequence begin, and their number.
        q_longest: at least the queries of any sequence.
    """
    k, v = kv.view(len(kv), 2, heads, -1).unbind(1)
    return _kernel(query.view(len(query), heads, -1), k, v, q_bounds, bounds, q_longest, longest)


def _kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_bounds: Tensor,
    k_bounds: Tensor,
    q_longest: int,
    k_longest: int,
    window: int = 0,
) -> Tensor:
    """Call the kernel at any head width: zero padding changes nothing if queries are rescaled."""
    width = q.shape[-1]
    missing = -width % _STEP
    if missing:  # TinyBERT's 312 = 12 x 26
        q = q * math.sqrt((width + missing) / width)
        q, k, v = (F.pad(part, (0, missing)) for part in (q, k, v))
    from torch.nn.attention.varlen import varlen_attn  # imports torch's compiler, which takes a second

    # Seven positional arguments: names and order of further ones differ between versions of torch.
    more: dict[str, Any] = {"window_size": (window, window)} if window else {}
    out: Tensor = varlen_attn(q, k, v, q_bounds, k_bounds, q_longest, k_longest, **more)  # type: ignore[assignment]
    return out[..., :width].reshape(len(q), -1)
