"""General distillation: a student learns on raw text from a pretrained teacher, in the loop that pretrains backbones.

A method says what its students learn: it has

* ``general_distillation(teacher, *, config, dropout) -> Distillation``, which makes the student, and
* ``general_recipe``, what differs from the defaults of :class:`~harness.pretraining.recipe.PretrainRecipe`.

``geep-bench distill METHOD`` does the rest (:mod:`harness.pretraining.distill_command`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.core.work import LayerCost, Tally
from harness.encoder.backbone import Backbone
from harness.encoder.masked_words import MaskedWordModel, RowAttention, budget, masked_word_model, row_states
from harness.encoder.model import Encoder


@dataclass(frozen=True)
class DistillationRows:
    """What teacher and student made of B rows of T tokens.

    Attributes:
        states: of the student, h^0 .. h^M, each [B * T, d].
        taught: of the teacher, h^0 .. h^N, each [B * T, D], without gradient.
        attention: knows which tokens see each other.
        valid: numbers of the rows of states that are no padding, int64 [n]; ``None`` where all are.
        where, labels: masked tokens, see :class:`harness.pretraining.text.masking.Masked`.
    """

    states: list[Tensor]
    taught: list[Tensor]
    attention: RowAttention
    valid: Tensor | None
    where: Tensor
    labels: Tensor

    def tokens(self, hidden: Tensor) -> Tensor:
        """[B * T, d] -> [n, d], padding left out."""
        return hidden if self.valid is None else hidden.index_select(0, self.valid)


class Distillation(nn.Module, ABC):
    """A student, and whatever else is trained with it, beside a frozen teacher.

    The student's segments are frozen, so that the second stays where it was beside the first, whether pairs are seen or not.

    Attributes:
        objective: one line for the card.
        teacher: with its masked-word head, if it came with one; no part of this module, so that it is neither trained nor saved.
    """

    objective: str

    def __init__(self, teacher: Backbone, encoder: Encoder) -> None:
        super().__init__()
        self._teacher = [masked_word_model(teacher) or MaskedWordModel(teacher.encoder()).to(teacher.device)]
        self.teacher.eval().requires_grad_(False)
        encoder.segment.weight.requires_grad_(False)

    @property
    def teacher(self) -> MaskedWordModel:
        return self._teacher[0]

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """The student."""

    @property
    def words(self) -> MaskedWordModel | None:
        """The student with its masked-word head, where it has one."""
        return None

    @abstractmethod
    def loss(self, rows: DistillationRows) -> Tensor:
        """What is minimised, float32 [1]."""

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
        """The loss, float32 [1].

        Args:
            ids, positions, pieces, segments, where, labels: see :class:`harness.pretraining.text.batches.Batch`.
            every: of no meaning here.
        """
        attention = RowAttention(ids.shape[0], ids.shape[1], pieces, ids.device)
        with torch.no_grad():
            taught = row_states(self.teacher.encoder, ids, positions, attention, segments)
        states = row_states(self.encoder, ids, positions, attention, segments)
        valid = None if pieces is None else torch.nonzero(pieces.reshape(-1) > 0).squeeze(1)
        return self.loss(DistillationRows(states, taught, attention, valid, where, labels)).reshape(1)

    def training_flops(self, *, rows: int, length: int, share: float, every: bool) -> int:
        """FLOPs of one step: matrix products of the layers, of the teacher once and of the student with its gradients, and
        of guessing masked words where the student does."""
        tokens = rows * length
        tally = Tally(rows, tokens, tokens, rows * length**2)

        def layers(encoder: Encoder) -> int:
            shape = encoder.shape
            return shape.layers * LayerCost(shape.width, shape.intermediate).flops(tally, "full")

        width, vocab = self.encoder.shape.width, self.encoder.shape.vocab_size
        guesses = rows * budget(share, length) if self.words is not None else 0
        return layers(self.teacher.encoder) + 3 * (layers(self.encoder) + 2 * guesses * width * (width + vocab))
