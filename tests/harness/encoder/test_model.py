"""The encoder equals transformers' BertModel, layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from harness.core.tokens import TokenSet
from harness.encoder.checkpoint import from_hf
from harness.encoder.families.bert_family import BERT
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder, FastBertHead, LinearHead
from harness.encoder.shape import EncoderShape

LENGTHS = [5, 1, 16, 9, 16, 2]
# layers, width, heads, intermediate, type_vocab, norm_eps
SHAPES = [(3, 16, 4, 20, 2, 1e-12), (1, 24, 1, 7, 3, 1e-5), (5, 12, 6, 48, 2, 1e-3)]


def both(sizes: tuple, activation: str) -> tuple[BertModel, Encoder]:
    """Return a BertModel with random weights and our encoder with the same weights."""
    layers, width, heads, intermediate, kinds, eps = sizes
    shape = EncoderShape(layers, width, heads, intermediate, 50, 16, kinds, eps, activation)
    torch.manual_seed(0)
    theirs = BertModel(BertConfig(**BERT.config(shape), attn_implementation="eager"), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0, 0.3)
    ours = Encoder(shape)
    ours.load_state_dict(from_hf(theirs.state_dict(), shape))
    return theirs, ours.eval()


@pytest.mark.parametrize("pad_to", [None, 16])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("sizes", SHAPES)
def test_hidden_states_equal_those_of_transformers(
    sizes: tuple, activation: str, pad_to: int | None, make_tokens: Callable[..., TokenSet]
) -> None:
    """Embeddings and every layer equal BertModel for every token, packed or padded."""
    theirs, ours = both(sizes, activation)
    tokens = make_tokens(LENGTHS)
    grid = np.arange(16)[None, :] < np.array(LENGTHS)[:, None]
    ids, kinds = torch.zeros(2, len(LENGTHS), 16, dtype=torch.int64).unbind(0)
    ids[torch.from_numpy(grid)] = tokens.ids.long()
    kinds[torch.from_numpy(grid)] = tokens.segments.long()
    layout = Layout(np.array(LENGTHS), pad_to, "cpu")
    with torch.no_grad():
        expected = theirs(
            ids, attention_mask=torch.from_numpy(grid).long(), token_type_ids=kinds, output_hidden_states=True
        ).hidden_states
        states = list(ours.states(tokens, layout))
    assert len(states) == len(expected) == sizes[0] + 1
    for state, reference in zip(states, expected, strict=True):
        rows = state[torch.from_numpy(grid.reshape(-1))] if pad_to else state
        torch.testing.assert_close(rows, reference[torch.from_numpy(grid)], rtol=1e-4, atol=1e-4)


def test_upto_limits_the_layers(tokens: TokenSet, tiny_shape: EncoderShape) -> None:
    """Exactly ``upto`` layers run."""
    layout = Layout(tokens.lengths.numpy(), None, "cpu")
    encoder = Encoder(tiny_shape).eval()
    assert [len(list(encoder.states(tokens, layout, upto))) for upto in (0, 2, None)] == [1, 3, 5]


@pytest.mark.parametrize("head", [FastBertHead, LinearHead])
def test_heads_read_one_sample_at_a_time(head: type, make_tokens: Callable[..., TokenSet]) -> None:
    """A head gives a sample the same logits alone, packed among others, and padded."""
    torch.manual_seed(1)
    classifier = head(12, 3).eval()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.normal_(0.0, 0.5)
    lengths = np.array([4, 1, 6])
    packed, padded = Layout(lengths, None, "cpu"), Layout(lengths, 8, "cpu")
    hidden = torch.randn(11, 12)
    grid = 7 * torch.ones(24, 12)  # values in padding rows must have no effect
    grid[torch.from_numpy(np.flatnonzero((np.arange(8) < lengths[:, None]).reshape(-1)))] = hidden
    with torch.no_grad():
        together = classifier(hidden, packed)
        alone = torch.cat([classifier(*packed.slice(hidden, i, i + 1)) for i in range(3)])
        torch.testing.assert_close(alone, together)
        torch.testing.assert_close(classifier(grid, padded), together)
    assert together.shape == (3, 3)


@pytest.mark.parametrize(("width", "inner"), [(768, 128), (256, 128), (64, 32), (18, 8), (4, 2)])
def test_inner_width_of_the_fastbert_head(width: int, inner: int) -> None:
    """The width is 128 as published, smaller for narrow encoders, and always even."""
    assert FastBertHead(width, 2).inner == inner


def test_dropout_only_in_training(tokens: TokenSet, tiny_shape: EncoderShape) -> None:
    """In eval mode two passes are equal; in training mode they are not."""
    torch.manual_seed(0)
    encoder, layout = Encoder(tiny_shape), Layout(tokens.lengths.numpy(), None, "cpu")

    def last() -> torch.Tensor:
        return list(encoder.states(tokens, layout))[-1]

    encoder.eval()
    assert torch.equal(last(), last())
    encoder.train()
    assert not torch.equal(last(), last())
