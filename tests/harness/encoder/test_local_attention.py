"""Attention in windows equals masked attention, and its pairs are counted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.encoder import local_attention
from harness.encoder.layout import Layout, attend_grid
from harness.encoder.local_attention import attend_in_window, blocks, computed_pairs, in_window
from harness.encoder.shape import Reach


@given(longest=st.integers(1, 600), window=st.integers(1, 150))
def test_blocks_hold_every_query_once_and_all_that_it_sees(longest: int, window: int) -> None:
    """Queries are in one block each, beside every key in their windows; pairs are those of the blocks, and at most all."""
    found = blocks(longest, window)
    assert [row for rows, _ in found for row in range(rows.start, rows.stop)] == list(range(longest))
    for rows, keys in found:
        assert keys.start <= max(0, rows.start - window) and keys.stop >= min(longest, rows.stop + window)
    assert computed_pairs(longest, window) <= longest**2
    if longest > 6 * max(window, 32):
        assert computed_pairs(longest, window) < longest**2 * 0.6


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4), window=st.integers(1, 40), padded=st.booleans())
def test_windows_give_what_masking_gives(lengths: list[int], window: int, padded: bool) -> None:
    """Texts of any lengths, packed or padded, get the states of all pairs with a mask, and as many pairs as are counted."""
    layout = Layout(np.array(lengths), 95 if padded else None, "cpu")
    reach, heads = Reach(1e4, window), 2
    qkv = torch.randn(layout.rows, 24, generator=torch.Generator().manual_seed(1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = layout.attend(qkv, heads, reach=reach)
    assert counter.get_total_flops() == 4 * 8 * layout.tally(reach=reach).pairs
    for start, length in zip(layout.starts, lengths, strict=False):
        alone = Layout(np.array([length]), None, "cpu")
        parts = alone.grid(_turned(alone, qkv[start : start + length], heads, reach), 3, heads)
        every = attend_grid(parts, in_window(torch.arange(length)[None, None], length, window))
        torch.testing.assert_close(found[start : start + length], every, atol=1e-5, rtol=1e-4)


def _turned(layout: Layout, qkv: torch.Tensor, heads: int, reach: Reach) -> torch.Tensor:
    from harness.encoder.layout import rotated

    return rotated(qkv, layout.rotary_angles(reach.base, 8 // heads), 16)


@pytest.mark.parametrize("narrow", [lambda keys: slice(keys.start, keys.stop - 1), lambda keys: keys])
def test_a_block_that_misses_a_key_is_seen(narrow: Callable[[slice], slice], monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above finds blocks whose last key is left out."""
    right = blocks(100, 20)
    monkeypatch.setattr(local_attention, "blocks", lambda *_: [(rows, narrow(keys)) for rows, keys in right])
    parts = torch.randn(3, 1, 1, 100, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    seen = in_window(torch.arange(100)[None, None], 100, 20)
    same = torch.allclose(attend_in_window(parts, 20, seen), attend_grid(parts, seen), atol=1e-5)
    assert same == (narrow(slice(0, 5)).stop == 5)
