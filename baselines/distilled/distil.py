"""`distil`: knowledge, layer matching, initialisation, shape and stages of distillation as free choices, each by itself.

The axes are those of the unified framework of Lu et al. 2022 (arXiv 2206.14366): ``L = sum_k alpha_k sum_(i,j) D_k(i, j)``, over
kinds of knowledge k and matched layers (i, j). No code is published. `distilbert` and `tinybert` are presets of the same code.
Which forms each axis has here, and what is our interpretation, is in docs/explanation/teachers.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from baselines.distilled.axes.initialisation import Width, check_unpruned, projected_encoder, width_of
from baselines.distilled.axes.knowledge import Knowledge
from baselines.distilled.axes.taught_student import Stage, Start, TaughtStudent
from harness.core.errors import ConfigError
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.toolkit.distillation import Unlabelled, spread_layers, take_layers
from harness.toolkit.student_start import StudentSettings

Init = Literal["every-k-th", "first-k", "random", "svd", "folder"]
ANSWERS = ("alpha_logits", "alpha_hard", "alpha_ckd", "alpha_relation")  # of the last stage
STATES = ("alpha_embeddings", "alpha_hidden", "alpha_attention", "alpha_token_relations")


class DistilSettings(Knowledge, StudentSettings):
    """Settings of `distil`. With two stages, embeddings and layers are the first one, all else the second."""

    alpha_logits: float = Field(1.0, ge=0, description="weight of the teacher's answers")
    alpha_hard: float = Field(1.0, ge=0, description="weight of the labels")
    alpha_hidden: float = Field(1.0, ge=0, description="weight of the hidden states of matched layers")
    layers: int | None = Field(None, ge=1, description="layers of the student; by default half of the teacher's")
    width: Width | None = Field(None, description="a number, or a share of the teacher's; by default the teacher's")
    heads: int | None = Field(None, ge=1, description="attention heads; by default the teacher's")
    intermediate: int | None = Field(None, ge=1, description="inner width; by default in proportion to the width")
    init: Init | None = Field(
        None,
        description="every-k-th, first-k: layers of the teacher; svd: its embeddings, projected to the student's width, and random "
        "layers; random: nothing of the teacher; folder: `student`; by default folder if there is a student, else every-k-th at "
        "the teacher's width and svd below it",
    )
    stages: int = Field(1, ge=1, le=2, description="2: first layers and embeddings, then answers and labels")
    intermediate_epochs: int | None = Field(None, ge=1, description="epochs of the first of two; by default epochs")
    intermediate_learning_rate: float | None = Field(None, gt=0, description="its rate; by default learning_rate")
    unlabelled: Unlabelled = Field(
        "no", description="whether the teacher also answers rows without labels; auto: if there are any"
    )

    @model_validator(mode="after")
    def _one_plan(self) -> Self:
        given = self.model_fields_set
        if not self.answers and not self.scheduled:
            raise ValueError(
                "alpha_logits and alpha_hard are 0, so that nothing trains the head: give one a value above 0"
            )
        if self.stages == 2 and not any(getattr(self, key) for key in STATES):
            raise ValueError(f"stages = 2 has nothing to teach first: give one of {', '.join(STATES)} a value above 0")
        for key in ("intermediate_epochs", "intermediate_learning_rate"):
            if key in given and self.stages == 1:
                raise ValueError(f"{key} has no effect with stages = 1: leave it out, or set stages = 2")
        if self.focus and self.logits != "kl":
            raise ValueError(f'focus weighs the soft answers of logits = "kl", not of "{self.logits}": leave one out')
        if self.init == "folder" and not self.student:
            raise ValueError('init = "folder" needs a folder: set student')
        if self.student and self.init not in (None, "folder"):
            raise ValueError(f'init = "{self.init}" and student both say where the student starts: leave one out')
        return self

    def replaces(self, name: str) -> bool:
        """Return whether a schedule replaces a setting: not those of the first of two stages."""
        return super().replaces(name) and not (self.stages == 2 and name in STATES)


class Distil(TaughtStudent[DistilSettings]):
    """A student of any shape, taught by any of a teacher's answers, embeddings, states, attention and relations of tokens."""

    name = "distil"
    settings = DistilSettings
    version = 1
    weights_version = 1
    shaping = ("layers", "width", "heads", "intermediate")

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the teacher answers rows without labels, too."""
        return config.get("unlabelled", "no") != "no"

    def unlabelled_rows(self, own: DistilSettings) -> Unlabelled:
        return own.unlabelled

    def stages(self, own: DistilSettings) -> tuple[Stage[DistilSettings], ...]:
        """Return all of the settings as one stage, or those of layers and those of answers as two."""
        if own.stages == 1:
            return (Stage(own, own),)
        layers = own.changed(**dict.fromkeys((*ANSWERS, "focus"), 0.0))
        first = own.changed(epochs=own.intermediate_epochs, learning_rate=own.intermediate_learning_rate)
        answers = own.changed(**dict.fromkeys(STATES, 0.0))
        return Stage(layers, first, " layers"), Stage(answers, own, " prediction")

    def start(self, own: DistilSettings, teacher: MultiExitModel, given: Backbone | None, backbone: Backbone) -> Start:
        wide = teacher.encoder.shape
        if given is not None:
            self._check(own, given.shape, wide)
            return Start(given.encoder())
        layers = spread_layers(wide.layers, own.layers or max(1, wide.layers // 2))
        chosen = list(range(len(layers))) if own.init == "first-k" else layers
        shape = self.shape(own, wide, chosen)
        self._check(own, shape, wide)
        init = own.init or ("every-k-th" if shape.width == wide.width else "svd")
        if init == "random":
            return Start(Encoder(shape).to(teacher.encoder.device))
        if init == "svd":
            if shape.width == wide.width:
                raise ConfigError(
                    f'{self.name}: init = "svd" projects embeddings to a smaller width, and the student is as wide as its teacher '
                    f'({wide.width}): set width, or init = "every-k-th", "first-k" or "random"'
                )
            encoder, basis = projected_encoder(teacher.encoder, shape)
            return Start(encoder, taken=True, basis=basis)
        if shape != wide.of_layers(chosen):
            raise ConfigError(
                f'{self.name}: init = "{init}" copies layers, and those of the student (width {shape.width}, {shape.heads} heads, '
                f"inner width {shape.intermediate}) have another shape than the teacher's ({wide.width}, {wide.heads}, "
                f'{wide.intermediate}): leave width, heads and intermediate out, or set init = "svd" or "random"'
            )
        return Start(take_layers(teacher.encoder, chosen), taken=True, with_head=True)

    def shape(self, own: DistilSettings, teacher: EncoderShape, layers: Sequence[int]) -> EncoderShape:
        """Return the dimensions of a new student in the place of some of the teacher's layers.

        Raises:
            ConfigError: a larger width than the teacher's, or one that its heads do not divide; a pruned teacher's.
        """
        chosen = teacher.of_layers(layers)
        if (own.width, own.heads, own.intermediate) == (None, None, None):
            return chosen
        check_unpruned(self.name, teacher)
        heads = own.heads or teacher.heads
        width = width_of(self.name, teacher.width if own.width is None else own.width, teacher, heads)
        intermediate = own.intermediate or max(1, round(width * teacher.intermediate / teacher.width))
        return replace(chosen, width=width, heads=heads, intermediate=intermediate)

    def _check(self, own: DistilSettings, student: EncoderShape, teacher: EncoderShape) -> None:
        """Check that what is compared can be; raises :class:`ConfigError`."""
        if own.alpha_attention or own.alpha_token_relations:
            check_unpruned(self.name, teacher)
        if own.alpha_attention and student.heads != teacher.heads:
            raise ConfigError(
                f"{self.name}: the student has {student.heads} attention heads, its teacher {teacher.heads}, and attention is "
                "compared head by head: give it as many, or use alpha_token_relations, which has heads of its own (relation_heads)"
            )
        heads = own.relation_heads or teacher.heads
        if own.alpha_token_relations and (student.width % heads or teacher.width % heads):
            raise ConfigError(
                f"{self.name}: {heads} relation heads do not divide the widths {student.width} and {teacher.width} of student and "
                "teacher: set relation_heads to a divisor of both"
            )
        if own.alpha_ckd and not own.scheduled and student.width != teacher.width:
            raise ConfigError(
                f"{self.name}: alpha_ckd compares states of one width, and the student is {student.width} wide, its teacher "
                f"{teacher.width}: leave it out"
            )
