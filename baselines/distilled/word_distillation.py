"""General distillation on raw text as DistilBERT's (Sanh et al. 2019) and CompactBioBERT's (Rohanian et al., arXiv 2209.03182).

Both students are layers of the teacher with its embeddings and its masked-word head. Read in CompactBioBERT's release
(nlpie-research/Compact-Biomedical-Transformers): it starts from every second layer, 1, 3, .., 11 of 12, whose attention and
states teach it; soft words are those of masked tokens at temperature 1; positions are trained; its batches have 192 rows of 256
tokens. Our interpretation: its masked-word head starts as a copy of the teacher's, as DistilBERT's does, so that objectives can be
compared; there is no dropout in the attention that is compared; a student of M of N layers learns from the layers m N / M.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from harness.core.settings import StrictSettings
from harness.encoder.backbone import Backbone
from harness.encoder.masked_words import ABSENT, MaskedWordModel, guessing_loss
from harness.encoder.model import Encoder
from harness.pretraining.general_distillation import DistillationRows, EncoderDistillation, soft_words, some_loss
from harness.toolkit.distillation import (
    attention_kl,
    cosine_distance,
    layer_scores,
    take_layers,
    uniform_map,
)

Objective = Literal["distilbert", "compactbert"]


class DistilBertLossSettings(StrictSettings):
    """Settings of both losses. The defaults are the released run's: temperature 2, weights 5 : 2 : 1."""

    layers: int | None = Field(None, ge=1, description="layers of the student; by default half of the teacher's")
    temperature: float = Field(
        2.0, gt=0, description="temperature of the teacher's and the student's softmax in the loss"
    )
    alpha_ce: float = Field(5.0, ge=0, description="weight of the teacher's soft answers")
    alpha_cos: float = Field(1.0, ge=0, description="weight of the cosine of the last hidden states")

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        return some_loss(self)


class DistilBertGeneralSettings(DistilBertLossSettings):
    """Settings of general distillation on raw text."""

    objective: Objective = Field("distilbert", description="published recipe: loss, start and settings")
    alpha_mlm: float = Field(2.0, ge=0, description="weight of the masked words")
    soft_on: Literal["all", "masked"] = Field(
        "all", description="tokens on which the student learns the teacher's words"
    )


class CompactBertGeneralSettings(StrictSettings):
    """Settings of CompactBioBERT's general distillation on raw text. The defaults are the released run's: weights 5 : 1 : 3."""

    objective: Objective = Field("compactbert", description="published recipe: loss, start and settings")
    layers: int | None = Field(
        None, ge=1, description="layers of the student; by default the largest divisor up to half of the teacher's"
    )
    temperature: float = Field(
        1.0, gt=0, description="temperature of the teacher's and the student's softmax in the loss"
    )
    alpha_ce: float = Field(5.0, ge=0, description="weight of the teacher's soft words")
    alpha_mlm: float = Field(1.0, ge=0, description="weight of the masked words")
    alpha_layers: float = Field(3.0, ge=0, description="weight of attention and states of all layers")
    soft_on: Literal["all", "masked"] = Field(
        "masked", description="tokens on which the student learns the teacher's words"
    )

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        return some_loss(self)


class WordDistillation(EncoderDistillation):
    """The paper's loss on raw text.

    ``alpha_ce T^2 KL(teacher_T || student_T) + alpha_mlm CE(masked words) + alpha_cos (1 - cos(last hidden states))``, each a
    mean over tokens without padding (CE: over masked ones). The student starts from the given layers of the teacher, its
    embeddings and its masked-word head, or a fresh head if the teacher has none.

    Args:
        weights: alpha_ce, alpha_mlm, alpha_cos.
        masked_only: soft words of masked tokens only.
    """

    def __init__(
        self,
        teacher: Backbone,
        layers: Sequence[int],
        weights: tuple[float, ...],
        temperature: float,
        masked_only: bool,
        dropout: float,
    ) -> None:
        encoder = take_layers(teacher.encoder(), layers, dropout)
        super().__init__(teacher, encoder)
        self.student = MaskedWordModel(encoder).to(encoder.device)
        if teacher.head is not None:
            self.student.load_state_dict({**self.student.state_dict(), **teacher.head})
        encoder.position.weight.requires_grad_(False)
        self.weights, self.temperature, self.masked_only = weights, temperature, masked_only
        self.objective = "{:g} x soft words + {:g} x masked words + {:g} x cosine of the last states".format(*weights)
        self.objective += f", temperature {temperature:g}"

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    @property
    def words(self) -> MaskedWordModel:
        return self.student

    def _words(self, rows: DistillationRows) -> Tensor:
        """Return the weighted losses of soft and of masked words."""
        soft, masked = self.weights[:2]
        last, taught = rows.states[-1], rows.taught[-1]
        total = last.new_zeros((), dtype=torch.float32)
        if soft:
            # Fewer tokens may be masked than there are places: the rest have number 0 and no weight.
            chosen = rows.where[rows.labels != ABSENT] if self.masked_only else None
            mine, his = (rows.tokens(h) if chosen is None else h.index_select(0, chosen) for h in (last, taught))
            if len(mine):
                total = total + soft * soft_words(self.student, self.teacher, mine, his, self.temperature)
        if masked:
            total = total + masked * guessing_loss(self.student, last, rows.where, rows.labels)
        return total

    def loss(self, rows: DistillationRows) -> Tensor:
        total, cosine = self._words(rows), self.weights[2]
        if cosine:
            total = total + cosine * cosine_distance(rows.tokens(rows.states[-1]), rows.tokens(rows.taught[-1]))
        return total


class CompactDistillation(WordDistillation):
    """CompactBioBERT's loss on raw text.

    ``alpha_ce T^2 KL(words) + alpha_mlm CE(masked words) + alpha_layers sum_m (KL(attention_m) + 1 - cos(h^m))``: layer m learns
    from layer g(m) = m N / M, from which it starts.

    Args:
        weights: alpha_ce, alpha_mlm, alpha_layers.
    """

    recipe: ClassVar[Mapping[str, Any]] = {"weight_decay": 1e-4, "clip": 1.0}

    def __init__(
        self,
        teacher: Backbone,
        layers: int,
        weights: tuple[float, ...],
        temperature: float,
        masked_only: bool,
        dropout: float,
    ) -> None:
        taught_by = uniform_map(teacher.shape.layers, layers)
        super().__init__(teacher, [n - 1 for n in taught_by[1:]], weights, temperature, masked_only, dropout)
        self.taught_by = taught_by
        self.encoder.position.weight.requires_grad_(True)
        words = "{:g} x soft words + {:g} x masked words + {:g} x (attention + cosine of states)".format(*weights)
        self.objective = f"{words} of all layers, temperature {temperature:g}"

    def loss(self, rows: DistillationRows) -> Tensor:
        total, layers = self._words(rows), self.weights[2]
        for m in range(1, len(self.taught_by) if layers else 1):
            n = self.taught_by[m]
            with torch.no_grad():
                wanted = layer_scores(self.teacher.encoder, n - 1, rows.taught, rows.attention)
            scores = layer_scores(self.encoder, m - 1, rows.states, rows.attention)
            total = total + layers * attention_kl(scores, wanted, rows.attention.pairs)
            total = total + layers * cosine_distance(rows.tokens(rows.states[m]), rows.tokens(rows.taught[n]))
        return total


def compact_distillation(teacher: Backbone, own: CompactBertGeneralSettings, dropout: float) -> CompactDistillation:
    """Make a student with CompactBioBERT's objective.

    Raises:
        ConfigError: its layers do not divide the teacher's.
    """
    depth = teacher.shape.layers
    layers = own.layers or max(m for m in range(1, max(1, depth // 2) + 1) if depth % m == 0)
    weights = own.alpha_ce, own.alpha_mlm, own.alpha_layers
    return CompactDistillation(teacher, layers, weights, own.temperature, own.soft_on == "masked", dropout)
