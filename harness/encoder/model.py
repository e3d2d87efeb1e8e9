"""A thin BERT encoder and its classifier heads, one code for training and inference.

Equal to ``transformers.BertModel`` layer by layer (tested), with Q, K and V in one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.tokens import TokenSet
from harness.core.work import BlockCost, FastBertHeadCost, GateCost, LayerCost, LinearHeadCost
from harness.encoder.device_kernels.packed_linear import activated, plus
from harness.encoder.layout import Attention, Layout, Scored, SelfAttention
from harness.encoder.shape import ACTIVATIONS, EncoderShape


class EncoderLayer(nn.Module):
    """One post-norm Transformer layer over ``[rows, width]``."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.activation = ACTIVATIONS[shape.activation]
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_attention = nn.LayerNorm(width, eps=shape.norm_eps)
        self.up = nn.Linear(width, shape.intermediate)
        self.down = nn.Linear(shape.intermediate, width)
        self.norm_output = nn.LayerNorm(width, eps=shape.norm_eps)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def forward(self, hidden: Tensor, layout: SelfAttention) -> Tensor:
        """[rows, width] -> [rows, width]."""
        context = layout.attend(self.qkv(hidden), self.heads, self.dropout if self.training else 0.0)
        return self.close(hidden, context)

    def close(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Run everything after attention, row by row: hidden and context [rows, width] -> [rows, width]."""
        hidden = self.norm_attention(plus(self.out, context, hidden, self._drop))
        inner = activated(self.up, hidden, self.activation)
        return self.norm_output(plus(self.down, inner, hidden, self._drop))

    def scores(self, hidden: Tensor, layout: Scored) -> Tensor:
        """Return this layer's attention scores before softmax on its input: [rows, width] -> [B, heads, T, T].

        For attention distillation. Projects query and key again, so that :meth:`forward` need not keep them.
        """
        wanted = 2 * self.out.in_features
        return layout.scores(F.linear(hidden, self.qkv.weight[:wanted], self.qkv.bias[:wanted]), self.heads)


class Encoder(nn.Module):
    """Embeddings and layers; the caller decides which layers run on which rows."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.word = nn.Embedding(shape.vocab_size, shape.width)
        self.position = nn.Embedding(shape.max_positions, shape.width)
        self.segment = nn.Embedding(shape.type_vocab, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.apply(init_weights)

    @property
    def depth(self) -> int:
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        return self.word.weight.device

    def embed(self, tokens: TokenSet, layout: Layout, positions: Tensor | None = None) -> Tensor:
        """Return embeddings of a batch laid out as in ``layout``: [rows, width].

        Positions count from 0 in every sample. Padding rows hold token 0; attention ignores them.

        Args:
            positions: of every token in its sample, if known already.
        """
        ids, segments = tokens.ids, tokens.segments
        if positions is None:
            rows = torch.arange(layout.valid, device=ids.device)
            positions = rows - torch.repeat_interleave(tokens.offsets[:-1], tokens.lengths, output_size=layout.valid)
        position = positions
        if layout.pad_to:
            target = position + torch.repeat_interleave(layout.first, tokens.lengths, output_size=layout.valid)
            ids = ids.new_zeros(layout.rows).index_copy_(0, target, ids)
            segments = segments.new_zeros(layout.rows).index_copy_(0, target, segments)
            position = position.new_zeros(layout.rows).index_copy_(0, target, position)
        # With a single segment, as in DistilBERT, the second text of a pair uses it, too.
        segment = self.segment(segments.int()) if self.shape.type_vocab > 1 else self.segment.weight[0]
        hidden = self.word(ids) + self.position(position) + segment
        hidden = self.norm(hidden)
        return F.dropout(hidden, self.shape.dropout, self.training)

    def states(self, tokens: TokenSet, layout: Layout, upto: int | None = None) -> Iterator[Tensor]:
        """Yield h^0 (embeddings), h^1, ..., h^upto (default: all layers), each [rows, width]."""
        hidden = self.embed(tokens, layout)
        yield hidden
        for layer in self.layers[:upto]:
            hidden = layer(hidden, layout)
            yield hidden

    def cost(self) -> LayerCost:
        """Cost of one layer."""
        return LayerCost(self.shape.width, self.shape.intermediate)


def init_head(head: nn.Module, width: int) -> None:
    """Initialise as BERT does at width 768; narrower heads get larger weights, which keeps the signal's scale."""
    scale = max(1.0, math.sqrt(768 / width))
    head.apply(init_weights)
    for module in head.modules():
        if isinstance(module, nn.Linear):
            with torch.no_grad():
                module.weight.mul_(scale)


class FastBertHead(nn.Module):
    """FastBERT's classifier (figure 1 of the paper, and the GEEP release), with its mask.

    ``width -> inner`` with tanh on all tokens, self-attention with two heads, then a tanh layer and a label layer on [CLS].
    Only [CLS] is read after the attention, so only its query is computed: the same logits for less work.
    """

    def __init__(self, width: int, labels: int, inner: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        # 128 as published for width 768; smaller for narrower encoders, so that heads stay cheaper than layers. Even,
        # for the two attention heads.
        self.inner = inner or max(2, min(128, width // 4 * 2))
        self.head_width = self.inner // 2  # of one attention head
        self.width, self.labels, self.dropout = width, labels, dropout
        self.narrow = nn.Linear(width, self.inner)
        self.query = nn.Linear(self.inner, self.inner)
        self.key_value = nn.Linear(self.inner, 2 * self.inner)
        self.out = nn.Linear(self.inner, self.inner)
        self.dense = nn.Linear(self.inner, self.inner)
        self.label = nn.Linear(self.inner, labels)
        init_head(self, width)

    def forward(self, hidden: Tensor, layout: Attention) -> Tensor:
        """[rows, width] -> logits [B, labels]."""
        x = torch.tanh(self.narrow(hidden))
        query = self.query(x.index_select(0, layout.first))
        context = layout.attend_first(query, self.key_value(x), 2, self.dropout if self.training else 0.0)
        return self.label(torch.tanh(self.dense(self.out(context))))

    def cost(self) -> BlockCost:
        return FastBertHeadCost(self.width, self.inner, self.labels)


class LinearHead(nn.Module):
    """BERT's own classifier: tanh layer and label layer on [CLS]."""

    head_width = 0  # no attention

    def __init__(self, width: int, labels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.width, self.labels, self.dropout = width, labels, dropout
        self.dense = nn.Linear(width, width)
        self.label = nn.Linear(width, labels)
        init_head(self, width)

    def forward(self, hidden: Tensor, layout: Attention) -> Tensor:
        """[rows, width] -> logits [B, labels]."""
        x = torch.tanh(self.dense(hidden.index_select(0, layout.first)))
        return self.label(F.dropout(x, self.dropout, self.training))

    def cost(self) -> BlockCost:
        return LinearHeadCost(self.width, self.labels)


class Gate(nn.Module):
    """What an exit rule reads from the state of [CLS], beside the answer of a head.

    Attributes:
        size: numbers per sample.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = self.size = width

    @classmethod
    def beside(cls, width: int, exits: int) -> Self:
        """Make a new gate for a model with so many early exits."""
        return cls(width)

    def forward(self, hidden: Tensor, layout: Attention) -> Tensor:
        """[rows, width] -> float32 [B], or [B, size] if that is not 1.

        By default the state of [CLS], for a rule that runs the gate's networks itself.
        """
        return hidden.index_select(0, layout.first).float()

    def cost(self) -> GateCost:
        """Cost per sample and exit, the networks that the rule runs included."""
        raise NotImplementedError


class ExitGate(Gate):
    """BERxiT's learning-to-exit module (EACL 2021): the probability that a head is wrong, from [CLS]; one for all exits."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.size = 1
        self.wrong = nn.Linear(width, 1)
        init_head(self, width)

    def forward(self, hidden: Tensor, layout: Attention) -> Tensor:
        """[rows, width] -> float32 [B], in 0..1; computed in the dtype of its own weights."""
        first = hidden.index_select(0, layout.first).to(self.wrong.weight.dtype)
        return torch.sigmoid(self.wrong(first)).squeeze(-1).float()

    def cost(self) -> GateCost:
        return GateCost(self.width)


class ExitPolicy(Gate):
    """ConsistentEE's policy (AAAI 2024): the probability of leaving; a network with 32 hidden units for every early exit."""

    inner = 32

    def __init__(self, width: int, exits: int) -> None:
        super().__init__(width)
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, self.inner), nn.GELU(), nn.Linear(self.inner, 1)) for _ in range(exits)
        )
        init_head(self, width)

    @classmethod
    def beside(cls, width: int, exits: int) -> Self:
        return cls(width, exits)

    def logit(self, place: int, state: Tensor) -> Tensor:
        """Return the logit of leaving at an early exit: states of [CLS] [B, width] -> [B]."""
        found: Tensor = self.networks[place](state)
        return found.squeeze(-1)

    def cost(self) -> GateCost:
        return GateCost(self.width * self.inner + self.inner)


class HaltingGate(Gate):
    """PALBERT's Lambda layers (NeurIPS 2022): the probability of halting now, from the states of [CLS] here and at the exit before.

    Three layers with tanh at twice the width, then one number; one for all exits. The first exit has zeros before it.
    """

    layers = 3

    def __init__(self, width: int, dropout: float = 0.1) -> None:
        super().__init__(width)
        self.dropout = dropout
        self.deep = nn.ModuleList(nn.Linear(2 * width, 2 * width) for _ in range(self.layers))
        self.halt = nn.Linear(2 * width, 1)
        init_head(self, width)

    def logit(self, state: Tensor, before: Tensor) -> Tensor:
        """Return the logit of halting: states of [CLS] [B, width] each -> [B]."""
        x = F.dropout(torch.cat([state, before], -1), self.dropout, self.training)
        for layer in self.deep:
            x = torch.tanh(layer(x))
        found: Tensor = self.halt(x)
        return found.squeeze(-1)

    def cost(self) -> GateCost:
        return GateCost(self.layers * (2 * self.width) ** 2 + 2 * self.width)


HEADS: dict[str, type[FastBertHead] | type[LinearHead]] = {"fastbert": FastBertHead, "linear": LinearHead}


def init_weights(module: nn.Module) -> None:
    """Initialise as BERT does: normal with standard deviation 0.02, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def parameters_of(*modules: nn.Module) -> int:
    """Return the number of parameters of these modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
