"""Attention text by text computes what attention over a padded grid computes, and no pair of tokens more than there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from harness.contracts import Execution
from harness.core.tokens import TokenSet
from harness.encoder.device_kernels import text_by_text
from harness.encoder.device_kernels.packed_linear import can_pack
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import run_assigned, run_full
from harness.execution.exit_rules import Entropy
from harness.execution.sequential import run_sequential

packs = pytest.mark.skipif(not can_pack(torch.float32), reason="this build of torch has no packed weights")


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    heads=st.integers(1, 4),
    size=st.integers(1, 9),
    beyond=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_attention_text_by_text_equals_attention_on_a_grid(
    lengths: list[int], heads: int, size: int, beyond: int, seed: int
) -> None:
    """For any lengths and heads; rows beyond the texts, which may hold anything, become zeros."""
    torch.manual_seed(seed)
    layout = Layout(np.array(lengths), None, "cpu")
    qkv = torch.randn(layout.rows + beyond, 3 * heads * size)
    qkv[layout.rows :] = torch.nan
    expected = layout.attend(qkv[: layout.rows].clone(), heads)
    with torch.inference_mode():
        found = text_by_text.attend(qkv, heads, layout.first_rows)
    torch.testing.assert_close(found[: layout.rows], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[layout.rows :], torch.zeros(beyond, heads * size))


def test_it_is_used_for_texts_neither_tiny_nor_long() -> None:
    """A text alone may be tiny; half precision and other devices have kernels of their own."""

    def fits(texts: int, tokens: int, longest: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> bool:
        return text_by_text.fits(torch.device(device), dtype, 384, texts, tokens, longest)

    assert fits(1, 2, 2) and fits(2, 100, 60) and not fits(2, 20, 10)
    assert fits(1, 256, 256) and not fits(2, 300, 257)
    assert not fits(2, 100, 60, torch.bfloat16) and not fits(2, 100, 60, device="meta")


@packs
@pytest.mark.parametrize("batch_size", [1, 5])
def test_packed_layers_attend_text_by_text(
    tiny_model: MultiExitModel, tokens: TokenSet, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are those of plain layers, and the pairs that are counted are those that torch computes."""
    monkeypatch.setattr(text_by_text, "_FEWEST", 0)
    ours, plain = Execution(batch_size=batch_size, compute="packed"), Execution(batch_size=batch_size)
    exits = torch.arange(len(tokens), dtype=torch.int16) % tiny_model.depth
    for run in (
        lambda how: run_full(tiny_model, tokens, how),
        lambda how: run_assigned(tiny_model, tokens, exits, how),
        lambda how: run_sequential(tiny_model, tokens, how, Entropy(0.9)),
    ):
        with FlopCounterMode(display=False) as counter:
            found = run(ours)
        expected = run(plain)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
        assert np.array_equal(found.exit_layer, expected.exit_layer)
        layers = [tally for name, tally in found.work.blocks.items() if name.startswith("layer.")]
        counts = counter.get_flop_counts()["Global"]
        products = counts[torch.ops.aten.bmm] + counts[torch.ops.aten.baddbmm]
        assert products == 4 * tiny_model.encoder.shape.width * sum(tally.pairs for tally in layers)
