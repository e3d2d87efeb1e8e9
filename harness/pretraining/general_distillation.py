"""General distillation: a student learns from a pretrained teacher on raw text, in the loop that pretrains backbones.

A method defines its students by the capability :class:`harness.contracts.DistilsGenerally`; ``geep-bench distill METHOD``
trains them (:mod:`harness.pretraining.distill_command`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.core.errors import ConfigError
from harness.core.settings import StrictSettings
from harness.core.work import Tally
from harness.encoder.backbone import Backbone
from harness.encoder.masked_words import (
    MaskedWordModel,
    RowAttention,
    ScoresWords,
    budget,
    masked_word_model,
    row_states,
)
from harness.encoder.model import Encoder
from harness.toolkit.distillation import soft_kl

S = TypeVar("S", bound=StrictSettings)
_TOGETHER = 2**27  # scores of soft words that are computed at a time, to limit memory


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

    Attributes:
        objective: one line for the model card.
        recipe: values that differ from the method's own recipe, for one of several objectives.
        teacher: with its masked-word head, if it has one; not a submodule, so that it is neither trained nor saved.
    """

    objective: str
    recipe: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, teacher: Backbone) -> None:
        super().__init__()
        self._teacher = [masked_word_model(teacher) or MaskedWordModel(teacher.encoder()).to(teacher.device)]
        self.teacher.eval().requires_grad_(False)

    @property
    def teacher(self) -> MaskedWordModel:
        return self._teacher[0]

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return the student's dimensions, for the plan of a run and the model card (JSON)."""

    @property
    @abstractmethod
    def size(self) -> str:
        """The student's dimensions for the terminal, e.g. ``"6 x 384"``."""

    @abstractmethod
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

    @abstractmethod
    def training_flops(self, *, rows: int, length: int, share: float, every: bool) -> int:
        """Return the FLOPs of one step: matrix products of the teacher, and of the student with their gradients."""


class TableDistillation(Distillation):
    """A student that is no encoder, such as tables of a model without Transformer layers; it writes itself."""

    @property
    @abstractmethod
    def student(self) -> nn.Module:
        """What is kept after training."""

    @abstractmethod
    def save(self, folder: Path) -> list[str]:
        """Write the student into a folder; return the names of its files of weights."""


class EncoderDistillation(Distillation):
    """A student that is an encoder.

    Its segment embeddings are frozen, so that the second segment stays valid even without pairs of texts.
    """

    def __init__(self, teacher: Backbone, encoder: Encoder) -> None:
        super().__init__(teacher)
        encoder.segment.weight.requires_grad_(False)

    def facts(self) -> dict[str, Any]:
        return self.encoder.shape.to_dict()

    @property
    def size(self) -> str:
        return f"{self.encoder.shape.layers} x {self.encoder.shape.width}"

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
        attention = RowAttention(ids.shape[0], ids.shape[1], pieces, ids.device)
        with torch.no_grad():
            taught = row_states(self.teacher.encoder, ids, positions, attention, segments)
        states = row_states(self.encoder, ids, positions, attention, segments)
        valid = None if pieces is None else torch.nonzero(pieces.reshape(-1) > 0).squeeze(1)
        return self.loss(DistillationRows(states, taught, attention, valid, where, labels)).reshape(1)

    def training_flops(self, *, rows: int, length: int, share: float, every: bool) -> int:
        """Return the FLOPs of one step: the teacher's layers, and the student's layers and masked-word head with gradients."""
        tally = Tally(rows, rows * length, rows * length, rows * length**2)

        def layers(encoder: Encoder) -> int:
            return encoder.depth * encoder.cost().flops(tally, "full")

        shape = self.encoder.shape
        guesses = rows * budget(share, length) if self.words is not None else 0
        decoder = 2 * guesses * (shape.embedding or shape.width) * (shape.width + shape.vocab_size)
        return layers(self.teacher.encoder) + 3 * (layers(self.encoder) + decoder)


def soft_words(
    student: ScoresWords, teacher: ScoresWords, states: Tensor, taught: Tensor, temperature: float
) -> Tensor:
    """Return ``T^2 KL(teacher_T || student_T)`` of words, mean over tokens, in parts: all scores at once may not fit in memory.

    Scores are recomputed for the gradient.

    Args:
        states: of the student, [n, d].
        taught: of the teacher, [n, D].
    """

    def part(own: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            soft = teacher.scores(wanted)
        return soft_kl(student.scores(own), soft, temperature) * len(own)

    size = max(1, _TOGETHER // len(student.bias))
    parts = zip(states.split(size), taught.split(size), strict=True)
    sums = [checkpoint(part, *both, use_reentrant=False, preserve_rng_state=False) for both in parts]
    return torch.stack(sums).sum() / max(1, len(states))


def some_loss(settings: S) -> S:
    """Return settings that leave a loss; raises ``ValueError`` if all of them that begin with ``alpha_`` are 0."""
    weights = {name: value for name, value in settings if name.startswith("alpha_")}
    if not any(weights.values()):
        raise ValueError(f"{', '.join(weights)} are all 0: give one a value above 0")
    return settings


def check_soft_words(method: str, teacher: Backbone, weight: float) -> None:
    """Check that a teacher has soft words, if they have a weight in the loss.

    Raises:
        ConfigError: it has no masked-word head.
    """
    if weight and teacher.head is None:
        raise ConfigError(
            f"{method}: '{teacher.name}' has no masked-word head, and so no soft answers to learn: use "
            "--alpha-ce 0 (a fresh head then learns masked words), or choose a teacher with such a head"
        )
