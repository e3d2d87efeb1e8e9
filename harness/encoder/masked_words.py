"""BERT's masked language model on our encoder: transform, decoder tied to the word embeddings, bias.

Attention stays within a piece of text (see :mod:`harness.pretraining.text.packing`). If every row is one piece, fused attention
runs without a mask, else with a mask that is block-diagonal per row.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.work import Tally
from harness.encoder.backbone import Backbone
from harness.encoder.layout import attend_grid, attention_scores, split_heads
from harness.encoder.model import Encoder, init_weights, layer_norm
from harness.encoder.shape import ACTIVATIONS, Reach

ABSENT = -100  # a label that does not count


def budget(share: float, length: int) -> int:
    """Return how many tokens are masked at most in a row of ``length`` tokens."""
    return max(1, round(share * length))


class RowAttention:
    """Self-attention within the pieces of B rows of T tokens, for :class:`~harness.encoder.model.EncoderLayer`.

    Args:
        pieces: int [B, T], numbers of pieces, 0 for padding; ``None`` if every row is one piece.
        device: of the rows.
    """

    def __init__(
        self, count: int, length: int, pieces: Tensor | None, device: torch.device | str | None = None
    ) -> None:
        self.device = device
        self.count, self.length, self.pieces = count, length, pieces
        # Padding attends to padding, so no row of the mask is empty.
        self.mask = None if pieces is None else (pieces[:, None, :, None] == pieces[:, None, None, :])  # [B, 1, T, T]

    def attend(self, qkv: Tensor, heads: int, dropout: float = 0.0, reach: Reach | None = None) -> Tensor:
        """[B * T, 3 D] -> [B * T, D]."""
        assert reach is None  # encoders of BERT's structure only
        return attend_grid(split_heads(qkv, self.count, self.length, 3, heads), self.mask, dropout)

    def scores(self, query_key: Tensor, heads: int, reach: Reach | None = None) -> Tensor:
        """Return scaled attention scores before softmax, unmasked: [B * T, 2 D] -> [B, heads, T, T]; see :attr:`pairs`."""
        assert reach is None
        return attention_scores(split_heads(query_key, self.count, self.length, 2, heads))

    @property
    def pairs(self) -> Tensor:
        """True if query and key are tokens of one piece, bool [B, 1, T, T]."""
        if self.pieces is None or self.mask is None:
            return torch.ones(self.count, 1, self.length, self.length, dtype=torch.bool, device=self.device)
        return self.mask & (self.pieces > 0)[:, None, :, None]


def row_states(
    encoder: Encoder, ids: Tensor, positions: Tensor, attention: RowAttention, segments: Tensor | None = None
) -> list[Tensor]:
    """Return h^0 (embeddings) .. h^L of rows of text, each [B * T, D], from ids, positions and segments [B, T].

    Without segments all text is in the first one.
    """
    segment = encoder.only_segment()
    if segments is not None and encoder.shape.type_vocab > 1:
        table = encoder.segment.weight
        segment = torch.where((segments > 0)[..., None], table[1], table[0])
    states = [encoder.combined(encoder.word(ids), encoder.position(positions), segment).flatten(0, 1)]
    for layer in encoder.layers:
        states.append(layer(states[-1], attention))
    return states


class ScoresWords(Protocol):
    """A masked-word head; ``bias`` has a number for every word, [V]."""

    bias: nn.Parameter

    def scores(self, hidden: Tensor) -> Tensor:
        """Return vocabulary logits: [n, D] -> [n, V]."""
        ...


class MaskedWordModel(nn.Module):
    """Encoder and masked-word head."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        shape = encoder.shape
        self.encoder = encoder
        self.activation = ACTIVATIONS[shape.activation]
        narrow = shape.embedding or shape.width
        self.dense = nn.Linear(shape.width, narrow, bias=shape.biases)
        self.norm = layer_norm(shape, narrow)
        self.bias = nn.Parameter(torch.zeros(shape.vocab_size))
        init_weights(self.dense)

    def states(
        self, ids: Tensor, positions: Tensor, pieces: Tensor | None, segments: Tensor | None = None
    ) -> list[Tensor]:
        """Return hidden states after every layer, each [B * T, D], from [B, T] each."""
        attention = RowAttention(ids.shape[0], ids.shape[1], pieces)
        return row_states(self.encoder, ids, positions, attention, segments)[1:]

    def scores(self, hidden: Tensor) -> Tensor:
        """Return vocabulary logits: [n, D] -> [n, V]."""
        x = self.dense(self.encoder.final_norm(hidden))
        x = F.relu(x) if self.activation == "relu" else F.gelu(x, approximate=self.activation)
        return F.linear(self.norm(x), self.encoder.word.weight, self.bias)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        pieces: Tensor | None,
        segments: Tensor | None,
        where: Tensor,
        labels: Tensor,
        every: bool = False,
    ) -> Tensor:
        """Return the mean cross-entropy (nats) of the masked tokens, float32 [1], or [L] with a loss per layer.

        Args:
            ids, positions, pieces, segments, where, labels: see :class:`harness.pretraining.text.batches.Batch`.
            every: apply the one decoder to every layer's states, not only the last one's.
        """
        states = self.states(ids, positions, pieces, segments)
        return torch.stack(
            [guessing_loss(self, hidden, where, labels) for hidden in (states if every else states[-1:])]
        )

    def training_flops(self, *, rows: int, length: int, share: float, every: bool) -> int:
        """Return the FLOPs of one training step on ``rows`` rows: matrix products of forward and backward (twice as much)."""
        shape, tokens, guesses = self.encoder.shape, rows * length, rows * budget(share, length)
        layers = shape.layers * self.encoder.cost().flops(Tally(rows, tokens, tokens, rows * length**2), "full")
        decoder = 2 * guesses * (shape.embedding or shape.width) * (shape.width + shape.vocab_size)
        return 3 * (layers + decoder * (shape.layers if every else 1))


def guessing_loss(model: ScoresWords, hidden: Tensor, where: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy (nats) of masked tokens, from hidden states [n, D]; 0 without masked tokens."""
    # If nothing is masked, the sum is 0 and so is the loss.
    count = (labels != ABSENT).sum().clamp(min=1)
    logits = model.scores(hidden.index_select(0, where))
    return F.cross_entropy(logits.float(), labels, ignore_index=ABSENT, reduction="sum") / count


def masked_word_model(backbone: Backbone) -> MaskedWordModel | None:
    """Return a copy of a backbone with its masked-word head, on its device; ``None`` if it has none."""
    if backbone.head is None:
        return None
    model = MaskedWordModel(backbone.encoder())
    model.load_state_dict({**model.state_dict(), **backbone.head})
    return model.to(backbone.device)
