"""Scores, masks and schedule of GRAIN, against values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.pruned.unit_scores import UnitScores, density_at
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.pruning.masked_pass import MaskedPasses
from harness.encoder.shape import EncoderShape

SHAPE = EncoderShape(layers=2, width=8, heads=2, intermediate=6, vocab_size=20, max_positions=8, dropout=0.0)
TOKENS = TokenSet.from_lists([[1, 5, 6], [1, 7]], [[0, 0, 0], [0, 0]], (0, 1, 2))


def model_and_gradient(scores: UnitScores) -> tuple[MultiExitModel, torch.Tensor]:
    """Return a random model after the backward pass of a loss, and the gradient of that loss in the masks."""
    torch.manual_seed(0)
    model = MultiExitModel(Encoder(SHAPE), 3).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    units = scores.masks.clone().requires_grad_()
    passes = MaskedPasses(model.encoder, scores.encoder_masks(units))
    layout = Layout(TOKENS.lengths.numpy(), None, "cpu")
    *_, hidden = model.encoder.states(TOKENS, layout)
    loss = torch.nn.functional.cross_entropy(model.teacher(hidden, layout), torch.tensor([0, 2]))
    (gradient,) = torch.autograd.grad(loss, units, retain_graph=True)
    loss.backward()
    passes.remove()
    return model, gradient


def test_gradients_in_masks_are_sums_over_weights() -> None:
    """A unit's score is |sum(dL/dW * W)|: columns of the output matrices, rows of the query matrix with their bias."""
    scores = UnitScores(SHAPE, beta=0.0, structure=0.0)
    model, gradient = model_and_gradient(scores)
    scores.learn(gradient)
    inner, query, value = scores.parts(scores.scores)
    for index in range(2):
        layer: Any = model.encoder.layers[index]
        down, out, qkv = layer.down.weight, layer.out.weight, layer.qkv
        torch.testing.assert_close(inner[index], (down.grad * down).sum(0).abs())
        torch.testing.assert_close(value[index].flatten(), (out.grad * out).sum(0).abs())
        rows = (qkv.weight.grad * qkv.weight).sum(1) + qkv.bias.grad * qkv.bias
        torch.testing.assert_close(query[index].flatten(), rows[:8].abs(), atol=1e-6, rtol=1e-4)


def test_two_units_by_hand() -> None:
    """With beta = 0 scores are the last gradients' size; values of a half empty head count tanh(0.5 / alpha) times."""
    shape = EncoderShape(layers=1, width=2, heads=1, intermediate=1, vocab_size=5)
    scores = UnitScores(shape, beta=0.0, structure=0.3)
    scores.parts(scores.masks)[2][0, 0, 1] = 0
    scores.learn(torch.tensor([-2.0, 1.0, 1.0, 3.0, 9.0]))
    inner, query, value = scores.parts(scores.scores)
    assert inner.tolist() == [[2.0]] and query.tolist() == [[[1.0, 1.0]]]
    assert value[0, 0, 0] == pytest.approx(3 * math.tanh(0.5 / 0.3)) and value[0, 0, 1] == -math.inf
    scores.beta = 0.75
    scores.learn(torch.tensor([6.0, 1.0, 1.0, 0.0, 0.0]))
    assert scores.parts(scores.scores)[0].item() == pytest.approx(0.75 * 2 + 0.25 * 6)
    assert scores.parts(scores.scores)[2][0, 0, 1] == -math.inf


@given(st.data())
@settings(max_examples=40)
def test_masks_only_shrink_to_the_density(data: st.DataObject) -> None:
    """After each step at most one unit more than the density is left, less only where queries went with their head."""
    scores = UnitScores(SHAPE, beta=data.draw(st.sampled_from([0.0, 0.9])), structure=0.3)
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    one = float(scores.shares.max())
    for density in sorted(data.draw(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6)), reverse=True):
        before = scores.masks.clone()
        scores.learn(torch.randn(len(before), generator=rng))
        scores.prune(density)
        assert (scores.masks <= before).all()
        assert scores.density <= density + one
        _, queries, values = scores.parts(scores.masks)
        with_head = SHAPE.head_width * int((values == 0).all(-1).sum())
        assert scores.density >= density - one * (1 + with_head)
        assert not queries[(values == 0).all(-1)].any()
        assert bool((scores.scores[scores.masks == 0] == -math.inf).all())


def test_the_schedule_is_cubic() -> None:
    """1 until the first step, the target from the last one on, and the cube of what remains in between."""
    assert [density_at(step, 2, 6, 0.2) for step in (1, 2, 6, 9)] == [1.0, 1.0, 0.2, 0.2]
    assert density_at(4, 2, 6, 0.2) == pytest.approx(0.2 + 0.8 * 0.5**3)
    assert density_at(1, 0, 1, 0.2) == density_at(1, 1, 1, 0.2) == 0.2
