"""TinyBERT (Jiao et al. 2020, arXiv 1909.10351): thinner and shallower, taught layer by layer, then by logits.

Both stages of the paper's task distillation, on the task's train split. The paper's student first has general distillation on
raw text, and its train split is augmented (``augment``, 10 to 30 copies). Such a student is given with ``student``: a public one
(huawei-noah/TinyBERT_General_4L_312D) or one of :meth:`TinyBert.general_distillation`. Without it, embeddings start from the
teacher's, projected on the leading singular directions of the word embeddings, and layers at random: expect less than the
published figures. The head always starts at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from pydantic import Field, model_validator
from torch import Tensor

from baselines.distilled.axes.initialisation import Width, check_unpruned, projected_encoder, width_of
from baselines.distilled.axes.knowledge import Knowledge, Teaching
from baselines.distilled.axes.layer_matching import matched_layers
from baselines.distilled.axes.taught_student import Stage, Start, TaughtStudent
from harness.core.errors import ConfigError
from harness.core.settings import StrictSettings
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.pretraining.general_distillation import Distillation, DistillationRows, EncoderDistillation
from harness.toolkit.distillation import uniform_map
from harness.toolkit.student_start import StudentSettings


class TinyBertGeneralSettings(StrictSettings):
    """Shape of the student. The defaults are TinyBERT-4's shares of BERT-base: 4 of 12 layers, width 312 of 768."""

    layers: int | None = Field(
        None, ge=1, description="layers of the student; by default the largest divisor up to a third of the teacher's"
    )
    width: Width | None = Field(
        None, description="width of the student: a number, or a share of the teacher's such as 1.0"
    )
    intermediate: int | None = Field(None, ge=1, description="inner width; by default 1200 / 312 of the width")


class TinyBertSettings(StudentSettings, TinyBertGeneralSettings):
    """Settings of TinyBERT. ``epochs`` and ``learning_rate`` are stage 2's."""

    learning_rate: float = Field(3e-5, gt=0, description="peak learning rate of stage 2")
    alpha_hard: float = Field(0.0, ge=0, description="weight of the labels in stage 2, beside the soft answers")
    labels_only: bool = Field(False, description="true: no stage 1 and no teacher; as many steps as both stages")
    intermediate_epochs: int = Field(10, ge=1, description="epochs of stage 1")
    intermediate_learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of stage 1; by default 5/3 of learning_rate"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.labels_only and self.alpha_hard:
            raise ValueError("labels_only has no other loss to weigh alpha_hard against: leave one out")
        return self


def student_shape(
    teacher: EncoderShape, layers: int | None, width: float | None, intermediate: int | None
) -> EncoderShape:
    """Return the dimensions of the student. A width that is a float is a share of the teacher's.

    It has as many heads as the teacher, so that attention can be compared head by head. For BERT-base: 4 layers, width
    312, 12 heads, intermediate 1200, TinyBERT-4's; with 6 layers of width 768 the intermediate width is TinyBERT-6's 3072.

    Raises:
        ConfigError: layers that do not divide the teacher's, or a width that its heads do not divide or above its own.
    """
    if layers is None:
        layers = max(m for m in range(1, max(1, teacher.layers // 3) + 1) if teacher.layers % m == 0)
    uniform_map(teacher.layers, layers)
    width = width_of("tinybert", 312 / 768 if width is None else width, teacher, teacher.heads)
    if intermediate is None:
        intermediate = teacher.intermediate if width == teacher.width else round(width * 1200 / 312)
    taught_by = [layer - 1 for layer in uniform_map(teacher.layers, layers)[1:]]
    return replace(teacher.of_layers(taught_by), width=width, intermediate=intermediate)


def check_student(given: Backbone, teacher: EncoderShape) -> None:
    """Check that layers and heads of a student can be compared with the teacher's.

    Raises:
        ConfigError: its layers do not divide the teacher's, or it has another number of heads.
    """
    uniform_map(teacher.layers, given.shape.layers)
    if given.shape.heads != teacher.heads:
        raise ConfigError(
            f"tinybert: student '{given.name}' has {given.shape.heads} attention heads, its teacher {teacher.heads}, and "
            "attention is compared head by head: choose a student with as many"
        )


# Stage 1: embeddings, hidden states and attention scores of g(m) = m N / M (equations 7 to 9, equal weights).
LAYERS = Knowledge(
    alpha_embeddings=1.0,
    alpha_hidden=1.0,
    alpha_attention=1.0,
    attention="scores",
    matching="uniform",
    project="always",
)


class Imitation(Teaching):
    """Stage 1. ``W_e`` and ``W_h`` are two matrices, as in the paper; the released code shares one."""

    def __init__(self, student: Encoder, teacher: Encoder, basis: Tensor) -> None:
        super().__init__(student, teacher, LAYERS, matched_layers("uniform", teacher.depth, student.depth), basis)


class GeneralImitation(EncoderDistillation):
    """The paper's general distillation: :class:`Imitation` of a teacher that was never fine-tuned, on raw text.

    As in the released code, the text is masked. There the student starts at random; here its embeddings are the teacher's,
    projected, as without general distillation.
    """

    objective = "embeddings + hidden states + attention scores of evenly spread layers, equal weights"

    def __init__(self, teacher: Backbone, shape: EncoderShape) -> None:
        wide = teacher.encoder().eval().requires_grad_(False)
        student, basis = projected_encoder(wide, shape)
        super().__init__(teacher, student)
        self.imitation = Imitation(student, wide, basis)

    @property
    def encoder(self) -> Encoder:
        return self.imitation.encoder

    def loss(self, rows: DistillationRows) -> Tensor:
        return self.imitation.distance(rows.states, rows.taught, rows.attention, rows.tokens)


class TinyBert(TaughtStudent[TinyBertSettings]):
    """A shallower and narrower student imitates the teacher's embeddings, states and attention, then its answers.

    Stage 1 is :data:`LAYERS`; stage 2 minimises the soft cross-entropy against the teacher and keeps the best dev epoch,
    without labels unless ``alpha_hard`` is set. With ``labels_only`` there is no stage 1 and no teacher: the student learns labels
    for the epochs of both stages, so that a comparison with it shows what the teacher is worth, not more steps. The head is by
    default of the teacher's kind. Both stages decay the learning rate; the released code keeps stage 1's constant. A ``schedule``
    replaces the loss of stage 2.
    """

    name = "tinybert"
    settings = TinyBertSettings
    version = 3
    shaping = ("layers", "width", "intermediate")

    def stages(self, own: TinyBertSettings) -> tuple[Stage[TinyBertSettings], ...]:
        """Return layers and answers, or labels alone for as many epochs."""
        if own.labels_only:
            both = own.changed(epochs=own.epochs + own.intermediate_epochs)
            return (Stage(Knowledge(alpha_hard=1.0), both, " prediction"),)
        rate = own.intermediate_learning_rate or own.learning_rate * 5 / 3
        first = own.changed(epochs=own.intermediate_epochs, learning_rate=rate)
        answers = Knowledge(alpha_logits=1.0, logits="ce", temperature=own.temperature, alpha_hard=own.alpha_hard)
        return Stage(LAYERS, first, " layers"), Stage(answers, own, " prediction")

    def start(
        self, own: TinyBertSettings, teacher: MultiExitModel, given: Backbone | None, backbone: Backbone
    ) -> Start:
        wide = teacher.encoder.shape
        check_unpruned(self.name, wide)
        if given is not None:
            check_student(given, wide)
            return Start(given.encoder())
        shape = student_shape(wide, own.layers, own.width, own.intermediate)
        encoder, basis = projected_encoder(teacher.encoder, shape)
        return Start(encoder, taken=True, basis=basis)

    # Defaults of the released script.
    general_recipe: Mapping[str, Any] = {"learning_rate": 5e-5, "warmup": 0.1, "weight_decay": 1e-4, "dropout": 0.1}

    def general_distillation(self, teacher: Backbone, *, config: Mapping[str, Any], dropout: float) -> Distillation:
        """Make a student for the paper's first step, on raw text; see :class:`GeneralImitation`.

        Raises:
            ConfigError: a setting is wrong, or layers, width and heads do not fit the teacher's.
        """
        own = TinyBertGeneralSettings.read(config, f"method '{self.name}'")
        shape = student_shape(teacher.shape, own.layers, own.width, own.intermediate)
        return GeneralImitation(teacher, replace(shape, dropout=dropout))
