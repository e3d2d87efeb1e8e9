"""General distillation: a student learns from a pretrained teacher on raw text, in the loop that pretrains backbones.

A method defines its students by the capability :class:`harness.contracts.DistilsGenerally`; ``geep-bench distill METHOD``
trains them (:mod:`harness.pretraining.distill_command`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.core.work import Tally
from harness.encoder.backbone import Backbone
from harness.encoder.masked_words import MaskedWordModel, RowAttention, budget, masked_word_model, row_states
from harness.encoder.model import Encoder


@dataclass(frozen=True)
class DistillationRows:
    """States of student and teacher for B rows of T tokens.

    Attributes:
        states: of the student, h^0 .. h^M, each [B * T, d].
        taught: of the teacher, h^0 .. h^N, each [B * T, D], without gradient.
        attention: attention within the pieces of the rows.
        valid: indices of the tokens that are not padding, int64 [n]; ``None`` if there is no padding.
        where, labels: masked tokens, see :class:`harness.pretraining.text.masking.Masked`.
    """

    states: list[Tensor]
    taught: list[Tensor]
    attention: RowAttention
    valid: Tensor | None
    where: Tensor
    labels: Tensor

    def tokens(self, hidden: Tensor) -> Tensor:
        """Remove padding: [B * T, d] -> [n, d]."""
        return hidden if self.valid is None else hidden.index_select(0, self.valid)


class Distillation(nn.Module, ABC):
    """A student, with all other weights that are trained with it, and a frozen teacher.

    The student's segment embeddings are frozen, so that the second segment stays valid even without pairs of texts.

    Attributes:
        objective: one line for the model card.
        teacher: with its masked-word head, if it has one; not a submodule, so that it is neither trained nor saved.
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
        """The student with its masked-word head, if it has one."""
        return None

    @abstractmethod
    def loss(self, rows: DistillationRows) -> Tensor:
        """Return the loss, float32 [1]."""

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
        """Return the loss, float32 [1].

        Args:
            ids, positions, pieces, segments, where, labels: see :class:`harness.pretraining.text.batches.Batch`.
            every: not used; pretraining has it in the same place.
        """
        attention = RowAttention(ids.shape[0], ids.shape[1], pieces, ids.device)
        with torch.no_grad():
            taught = row_states(self.teacher.encoder, ids, positions, attention, segments)
        states = row_states(self.encoder, ids, positions, attention, segments)
        valid = None if pieces is None else torch.nonzero(pieces.reshape(-1) > 0).squeeze(1)
        return self.loss(DistillationRows(states, taught, attention, valid, where, labels)).reshape(1)

    def training_flops(self, *, rows: int, length: int, share: float, every: bool) -> int:
        """Return the FLOPs of one step: matrix products of the teacher's layers, and of the student's layers and masked-word head
        with their gradients."""
        tally = Tally(rows, rows * length, rows * length, rows * length**2)

        def layers(encoder: Encoder) -> int:
            return encoder.depth * encoder.cost().flops(tally, "full")

        shape = self.encoder.shape
        guesses = rows * budget(share, length) if self.words is not None else 0
        decoder = 2 * guesses * (shape.embedding or shape.width) * (shape.width + shape.vocab_size)
        return layers(self.teacher.encoder) + 3 * (layers(self.encoder) + decoder)
