"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108), distilled on the task, on raw text, or both.

The paper distils during pretraining on raw text: :meth:`DistilBert.general_distillation` makes such a student. It (or a public
one, ``student = "distilbert-base-uncased"``) is then fine-tuned, from the teacher or from labels alone. Without a pretrained
student, the teacher is the fine-tuned BERT and the text is the task's train split, as in FastBERT's DistilBERT rows; a loss on
labels then replaces masked language modelling, and embeddings, alternate layers and the head are copies of the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from baselines.distilled.axes.knowledge import Knowledge, SampleLosses
from baselines.distilled.axes.taught_student import Stage, Start, TaughtStudent
from baselines.distilled.word_distillation import (
    CompactBertGeneralSettings,
    DistilBertGeneralSettings,
    DistilBertLossSettings,
    WordDistillation,
    compact_distillation,
)
from harness.core.errors import ConfigError
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.pretraining.general_distillation import Distillation, check_soft_words
from harness.toolkit.distillation import Unlabelled, spread_layers, take_layers
from harness.toolkit.method_settings import Layers
from harness.toolkit.student_start import StudentSettings


class DistilBertSettings(SampleLosses, DistilBertLossSettings, StudentSettings):
    """Settings of DistilBERT on a task."""

    alpha_hard: float = Field(2.0, ge=0, description="weight of the labels; of masked words in the released run")
    layer_map: Layers | None = Field(None, description="teacher layers to start from, rising; by default evenly spread")
    start: Literal["teacher", "backbone"] = Field("teacher", description="model whose layers are copied")
    unlabelled: Unlabelled = Field(
        "no", description="whether the teacher also answers rows without labels; auto: if there are any"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.layer_map is not None:
            if self.layers not in (None, len(self.layer_map)):
                raise ValueError(
                    f"layer_map has {len(self.layer_map)} entries, layers = {self.layers}: make them equal"
                )
            if sorted(set(self.layer_map)) != list(self.layer_map):
                raise ValueError(f"layer_map = {list(self.layer_map)} does not rise: give each layer once, in order")
        return self


def starting_layers(depth: int, layers: int | None, layer_map: Sequence[int] | None = None) -> list[int]:
    """Return the teacher layers to copy.

    Raises:
        ConfigError: more layers than the teacher has.
    """
    if layer_map is None:
        return spread_layers(depth, layers or max(1, depth // 2))
    if layer_map[-1] >= depth:
        raise ConfigError(
            f"distilbert: layer_map = {list(layer_map)} does not fit {depth} layers: give indices in 0..{depth - 1}"
        )
    return list(layer_map)


class DistilBert(TaughtStudent[DistilBertSettings]):
    """A student of half the layers, taken from the fine-tuned teacher, learns its answers, its states and the labels.

    ``alpha_ce T^2 KL(teacher_T || student_T) + alpha_hard CE(labels) + alpha_cos (1 - cos(last hidden states))``. With
    ``alpha_ce = alpha_cos = 0`` it learns from labels alone, and the teacher is not run. The head is by default of the
    teacher's kind, and starts from the teacher's if the layers do. The best dev epoch is kept. A ``schedule`` replaces the loss.
    """

    name = "distilbert"
    settings = DistilBertSettings
    shaping = ("layers", "layer_map")

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the teacher answers rows without labels, too."""
        return config.get("unlabelled", "no") != "no"

    def unlabelled_rows(self, own: DistilBertSettings) -> Unlabelled:
        return own.unlabelled

    def stages(self, own: DistilBertSettings) -> tuple[Stage[DistilBertSettings], ...]:
        """Return one stage: the last states are compared, and not projected, since the student is as wide."""
        taught = Knowledge(
            alpha_logits=own.alpha_ce,
            temperature=own.temperature,
            focus=own.focus,
            alpha_hard=own.alpha_hard,
            alpha_hidden=own.alpha_cos,
            hidden="cos",
            matching="last",
            alpha_ckd=own.alpha_ckd,
            alpha_relation=own.alpha_relation,
        )
        return (Stage(taught, own),)

    def start(
        self, own: DistilBertSettings, teacher: MultiExitModel, given: Backbone | None, backbone: Backbone
    ) -> Start:
        if given is None:
            chosen = starting_layers(teacher.depth, own.layers, own.layer_map)
            copied = own.start == "teacher"
            encoder = take_layers(teacher.encoder if copied else backbone.encoder(), chosen)
            return Start(encoder, taken=copied, with_head=copied)
        if own.start != "teacher":
            raise ConfigError("distilbert: start and student both say where layers come from: leave one out")
        compared = [key for key in ("alpha_cos", "alpha_ckd") if getattr(own, key) and not own.scheduled]
        if compared and given.shape.width != teacher.encoder.shape.width:
            raise ConfigError(
                f"distilbert: student '{given.name}' is {given.shape.width} wide, its teacher "
                f"{teacher.encoder.shape.width}, and these losses compare their states: set "
                f"{' and '.join(f'{key} = 0' for key in compared)}, or choose a student of equal width"
            )
        return Start(given.encoder())

    # Of the released reference run. Its masking prefers rare words, ours takes whole words; its position embeddings are
    # frozen, and so are ours (harness.pretraining.general_distillation).
    general_recipe: Mapping[str, Any] = {
        "learning_rate": 5e-4,
        "warmup": 0.05,
        "weight_decay": 0.0,
        "clip": 5.0,
        "dropout": 0.1,
    }

    def general_distillation(self, teacher: Backbone, *, config: Mapping[str, Any], dropout: float) -> Distillation:
        """Make a student that learns on raw text: soft words, masked words and cosine, or as CompactBioBERT.

        Raises:
            ConfigError: a setting is wrong, or the teacher has no masked-word head.
        """
        where = f"method '{self.name}'"
        if config.get("objective") == "compactbert":
            compact = CompactBertGeneralSettings.read(config, where)
            check_soft_words(self.name, teacher, compact.alpha_ce)
            return compact_distillation(teacher, compact, dropout)
        own = DistilBertGeneralSettings.read(config, where)
        check_soft_words(self.name, teacher, own.alpha_ce)
        chosen = starting_layers(teacher.shape.layers, own.layers)
        weights = own.alpha_ce, own.alpha_mlm, own.alpha_cos
        return WordDistillation(teacher, chosen, weights, own.temperature, own.soft_on == "masked", dropout)
