"""A thin encoder and its classifier heads, one code for training and inference.

Equal to the encoders of ``transformers`` layer by layer (tested), with Q, K and V in one matrix product. It is BERT's, and whatever
differs in other families is data in :class:`~harness.encoder.shape.EncoderShape`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.tokens import TokenSet
from harness.core.work import BlockCost, FastBertHeadCost, GateCost, LayerCost, LinearHeadCost, ProjectionCost
from harness.encoder.device_kernels.packed_linear import activate, activated, outputs_of, plus
from harness.encoder.layout import Attention, Layout, Scored, SelfAttention
from harness.encoder.pruning.spread_heads import linear, projections
from harness.encoder.shape import ACTIVATIONS, EncoderShape, layer_cost


def layer_norm(shape: EncoderShape, width: int) -> nn.LayerNorm:
    """Return a norm of the encoder's kind."""
    return nn.LayerNorm(width, eps=shape.norm_eps, bias=shape.biases)


PROJECTION = "projection"  # kind of block: embeddings to the width of the layers


class EncoderLayer(nn.Module):
    """One Transformer layer over ``[rows, width]``: post-norm as BERT's, or pre-norm.

    Attributes:
        norm_attention: after attention; if ``norm_first``, before it.
        norm_output: after the inner layer; if ``norm_first``, before it.
    """

    def __init__(self, shape: EncoderShape, index: int = 0) -> None:
        super().__init__()
        width, size = shape.width, shape.size(index)
        self.heads, self.attention, self.reach = size.heads, size.attention, shape.reach(index)
        self.dropout = shape.dropout
        self.activation = ACTIVATIONS[shape.activation]
        self.norm_first, self.gated = shape.norm_first, shape.gated
        self.qkv, self.out = projections(width, size, bias=shape.biases)
        self.norm_attention = nn.Identity() if shape.bare_start and index == 0 else layer_norm(shape, width)
        self.up = linear(width, (1 + shape.gated) * size.intermediate, bias=shape.biases)
        self.down = linear(size.intermediate, width, bias=shape.biases)
        self.norm_output = layer_norm(shape, width)
        self.cost = layer_cost(shape, index)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def forward(self, hidden: Tensor, layout: SelfAttention) -> Tensor:
        """[rows, width] -> [rows, width]."""
        return self.after_attention(hidden, self.run_attention(hidden, layout))

    def attention_input(self, hidden: Tensor) -> Tensor:
        """Return the input of attention, normalised in a pre-norm layer: [rows, width] -> [rows, width]."""
        return self.norm_attention(hidden) if self.norm_first else hidden

    def run_attention(self, hidden: Tensor, layout: SelfAttention) -> Tensor:
        """Run attention: [rows, width] -> [rows, width of all heads]."""
        if not self.heads:
            return hidden.new_empty(len(hidden), 0)
        dropout = self.dropout if self.training else 0.0
        return layout.attend(self.qkv(self.attention_input(hidden)), self.heads, dropout, self.reach)

    def after_attention(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Run everything after attention, row by row: hidden, and context [rows, width of all heads] -> [rows, width]."""
        hidden = plus(self.out, context, hidden, self._drop)
        hidden = hidden if self.norm_first else self.norm_attention(hidden)
        read = self.norm_output(hidden) if self.norm_first else hidden
        if self.gated:
            inner, gate = self.up(read).chunk(2, -1)
            inner = activate(inner, self.activation) * gate
        else:
            inner = activated(self.up, read, self.activation)
        new = plus(self.down, inner, hidden, self._drop)
        return new if self.norm_first else self.norm_output(new)

    def scores(self, hidden: Tensor, layout: Scored) -> Tensor:
        """Return this layer's attention scores before softmax on its input: [rows, width] -> [B, heads, T, T].

        For attention distillation. Projects query and key again, so that :meth:`forward` need not keep them.
        """
        wanted = slice(2 * self.attention)
        return layout.scores(outputs_of(self.qkv, self.attention_input(hidden), wanted), self.heads, self.reach)


class LayerStack(nn.ModuleList):
    """The layers of an encoder in the order in which they run. If all share weights, one layer is repeated."""

    repeats = 1

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__(EncoderLayer(shape, index) for index in range(shape.blocks))
        self.repeats = shape.layers // shape.blocks

    def _run(self) -> list[Any]:
        return list(self._modules.values()) * self.repeats

    def __len__(self) -> int:
        return len(self._modules) * self.repeats

    def __iter__(self) -> Iterator[Any]:
        return iter(self._run())

    def __getitem__(self, index: Any) -> Any:
        return self._run()[index]


class Encoder(nn.Module):
    """Embeddings and layers; the caller decides which layers run on which rows.

    Attributes:
        position: position embeddings; ``None`` with rotary positions.
        segment: segment embeddings; ``None`` if the encoder has none.
        project: brings embeddings to the width of the layers; :class:`~torch.nn.Identity` if they have it.
        final_norm: what readers of states apply if layers have pre-norm; else :class:`~torch.nn.Identity`.
    """

    position: nn.Embedding
    segment: nn.Embedding
    project: Any

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        narrow = shape.embedding or shape.width
        self.word = nn.Embedding(shape.vocab_size, narrow)
        self.register_module("position", None if shape.rotary else nn.Embedding(shape.max_positions, narrow))
        self.register_module("segment", nn.Embedding(shape.type_vocab, narrow) if shape.type_vocab else None)
        self.norm = layer_norm(shape, narrow)
        self.project = nn.Linear(narrow, shape.width) if shape.embedding else nn.Identity()
        self.layers = LayerStack(shape)
        self.final_norm = layer_norm(shape, shape.width) if shape.norm_first else nn.Identity()
        self.apply(init_weights)

    @property
    def depth(self) -> int:
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        return self.word.weight.device

    def tables(self) -> dict[str, nn.Embedding]:
        """Return the existing embedding tables by name."""
        every = {"word": self.word, "position": self.position, "segment": self.segment}
        return {name: table for name, table in every.items() if table is not None}

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
        return self.combined(
            self.word(ids),
            None if self.position is None else self.position(position),
            self.segment(segments.int()) if self.shape.type_vocab > 1 else self.only_segment(),
        )

    def only_segment(self) -> Tensor | None:
        """Return the embedding of the first segment; ``None`` if there are no segments.

        With a single one, as in DistilBERT, the second text of a pair uses it, too.
        """
        return None if self.segment is None else self.segment.weight[0]

    def combined(self, word: Tensor, position: Tensor | None, segment: Tensor | None) -> Tensor:
        """Return h^0 from the vectors of words, positions and segments: [..., width]."""
        hidden = word if position is None else word + position
        hidden = self.norm(hidden if segment is None else hidden + segment)
        found: Tensor = self.project(F.dropout(hidden, self.shape.dropout, self.training))
        return found

    def states(self, tokens: TokenSet, layout: Layout, upto: int | None = None) -> Iterator[Tensor]:
        """Yield h^0 (embeddings), h^1, ..., h^upto (default: all layers), each [rows, width]."""
        hidden = self.embed(tokens, layout)
        yield hidden
        for layer in self.layers[:upto]:
            hidden = layer(hidden, layout)
            yield hidden

    def cost(self) -> LayerCost:
        """Cost of one layer; of the first one if they differ."""
        return layer_cost(self.shape)


def embedding_costs(shape: EncoderShape) -> dict[str, BlockCost]:
    """Return the cost of the matrix behind the embeddings, by its kind of block, if there is one."""
    return {PROJECTION: ProjectionCost(shape.embedding, shape.width)} if shape.embedding else {}


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
        self.norm: nn.Module = nn.Identity()  # of the states; see MultiExitModel
        init_head(self, width)

    def forward(self, hidden: Tensor, layout: Attention) -> Tensor:
        """[rows, width] -> logits [B, labels]."""
        x = torch.tanh(self.narrow(self.norm(hidden)))
        query = self.query(x.index_select(0, layout.first))
        context = layout.attend_first(query, self.key_value(x), 2, self.dropout if self.training else 0.0)
        return self.label(torch.tanh(self.dense(self.out(context))))

    def cost(self) -> BlockCost:
        return FastBertHeadCost(self.width, self.inner, self.labels)


class LinearHead(nn.Module):
    """BERT's own classifier: tanh layer and label layer on [CLS]."""

    head_width = 0  # no attention

    def __init__(self, width: int, labels: int, inner: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        self.width, self.labels, self.inner, self.dropout = width, labels, inner or width, dropout
        self.dense = nn.Linear(width, self.inner)
        self.label = nn.Linear(self.inner, labels)
        self.norm: nn.Module = nn.Identity()
        init_head(self, width)

    def forward(self, hidden: Tensor, layout: Attention) -> Tensor:
        """[rows, width] -> logits [B, labels]."""
        x = torch.tanh(self.dense(self.norm(hidden.index_select(0, layout.first))))
        return self.label(F.dropout(x, self.dropout, self.training))

    def cost(self) -> BlockCost:
        return LinearHeadCost(self.width, self.labels, self.inner)


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
