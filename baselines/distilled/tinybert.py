"""TinyBERT (Jiao et al. 2020, arXiv 1909.10351): thinner and shallower, taught layer by layer, then by logits.

Both stages of the paper's task distillation, on the task's train split. The paper's student first has general distillation on
raw text, and its train split is augmented (``augment``, 10 to 30 copies). Such a student is given with ``student``: a public one
(huawei-noah/TinyBERT_General_4L_312D) or one of :meth:`TinyBert.general_distillation`. Without it, embeddings start from the
teacher's, projected on the leading singular directions of the word embeddings, and layers at random: expect less than the
published figures. The head always starts at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.errors import ConfigError
from harness.core.settings import StrictSettings
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout, Scored
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.pretraining.general_distillation import Distillation, DistillationRows, EncoderDistillation
from harness.toolkit.augmentation import augment
from harness.toolkit.base_method import Teachers
from harness.toolkit.distillation import (
    fitted_teacher,
    layer_pairs,
    layer_scores,
    score_distance,
    soft_cross_entropy,
    states_and_logits,
    uniform_map,
)
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen.frozen_states import FrozenStates
from harness.toolkit.student_start import StudentMethod, StudentSettings, leading_directions
from harness.toolkit.teachers.loss_schedule import Scheduled
from harness.toolkit.training import total_cost, train

# A whole number, or a share of the teacher's width.
Width = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, le=1)]


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
    share = 312 / 768 if width is None else width
    if isinstance(share, float):
        width = teacher.heads * max(1, int(share * teacher.width / teacher.heads + 0.5))
    if not isinstance(width, int) or width > teacher.width or width % teacher.heads:
        raise ConfigError(
            f"tinybert: width {width} does not fit: choose a multiple of {teacher.heads} (the teacher's heads) "
            f"of at most {teacher.width}, or a share of that from 0.0 to 1.0"
        )
    if intermediate is None:
        intermediate = teacher.intermediate if width == teacher.width else round(width * 1200 / 312)
    taught_by = [layer - 1 for layer in uniform_map(teacher.layers, layers)[1:]]
    return replace(teacher.of_layers(taught_by), width=width, intermediate=intermediate)


@torch.no_grad()
def projected_encoder(teacher: Encoder, shape: EncoderShape) -> tuple[Encoder, Tensor]:
    """Make a student whose embedding tables are the teacher's, projected on their leading right singular directions.

    Returns:
        The student, and the orthonormal directions [teacher width, student width] (the identity at equal width).
    """
    student = Encoder(shape).to(teacher.device)
    basis = leading_directions(teacher, shape.width)
    if shape.embedding:  # embeddings of their own width stay, and the matrix behind them is projected
        for part in (*teacher.tables(), "norm"):
            getattr(student, part).load_state_dict(getattr(teacher, part).state_dict())
        student.project.weight.copy_(basis.T @ teacher.project.weight)
        student.project.bias.copy_(basis.T @ teacher.project.bias)
        return student, basis
    for part, table in teacher.tables().items():
        getattr(student, part).weight.copy_(table.weight @ basis)
    return student, basis


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


def taught_places(teacher: int, student: int) -> list[int]:
    """Return the i of the teacher's states h^i that :class:`Imitation` reads: what teaches, and the inputs of those layers."""
    teaching = uniform_map(teacher, student)
    return sorted({*teaching, *(n - 1 for n in teaching[1:])})


class Imitation(nn.Module):
    """Stage 1: embeddings, hidden states and attention scores of ``g(m) = m N / M`` (equations 7 to 9, equal weights).

    ``W_e`` and ``W_h`` are two matrices, as in the paper; the released code shares one. Both start from the directions of
    the embeddings' projection, scaled to the teacher's length.

    Args:
        frozen: the teacher's states at :func:`taught_places`; by default the teacher runs for every batch.
    """

    def __init__(self, student: Encoder, teacher: Encoder, basis: Tensor, frozen: FrozenStates | None = None) -> None:
        super().__init__()
        self.student, self._frozen = student, frozen
        self.taught_by = uniform_map(teacher.depth, student.depth)
        self._teacher = [teacher]  # in a list, so that it is not a submodule and never trained
        wide, narrow = basis.shape
        self.embedding = nn.Linear(narrow, wide, bias=False)
        self.hidden = nn.Linear(narrow, wide, bias=False)
        for projection in (self.embedding, self.hidden):
            projection.weight.data.copy_(basis * (wide / narrow) ** 0.5)
        self.to(basis.device)

    def loss(self, tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        """Return the sum over embeddings and student layers; each term is a mean over tokens, or over pairs of tokens."""
        taught: Mapping[int, Tensor]
        if self._frozen is not None:
            taught = self._frozen(tokens, layout).states
        else:
            with torch.no_grad():
                taught = dict(enumerate(self._teacher[0].states(tokens, layout)))
        return self.distance(list(self.student.states(tokens, layout)), taught, layout, layout.tokens)

    def distance(
        self,
        states: list[Tensor],
        taught: Mapping[int, Tensor] | Sequence[Tensor],
        layout: Scored,
        valid: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the distance of the student's states h^0 .. h^M [rows, width] from the teacher's h^0 .. h^N.

        Args:
            taught: with the teacher's states at :func:`taught_places` at least.
            valid: selects the rows of states that are tokens; the layout has the pairs of tokens.
        """
        teacher = self._teacher[0]
        total = F.mse_loss(self.embedding(valid(states[0])).float(), valid(taught[0]).float())
        for m in range(1, len(states)):
            n = self.taught_by[m]
            with torch.no_grad():
                wanted = layer_scores(teacher, n - 1, taught, layout)
            scores = layer_scores(self.student, m - 1, states, layout)
            total = total + score_distance(scores, wanted, layer_pairs(teacher, n - 1, layout))
            total = total + F.mse_loss(self.hidden(valid(states[m])).float(), valid(taught[n]).float())
        return total


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
        return self.imitation.student

    def loss(self, rows: DistillationRows) -> Tensor:
        return self.imitation.distance(rows.states, rows.taught, rows.attention, rows.tokens)


class TinyBert(StudentMethod[TinyBertSettings]):
    """A shallower and narrower student imitates the teacher's embeddings, states and attention, then its answers.

    Stage 1 is :class:`Imitation`; stage 2 minimises the soft cross-entropy against the teacher and keeps the best dev epoch,
    without labels unless ``alpha_hard`` is set. With ``labels_only`` there is no stage 1 and no teacher: the student learns labels
    for the epochs of both stages, so that a comparison with it shows what the teacher is worth, not more steps. The head is by
    default of the teacher's kind. Both stages decay the learning rate; the released code keeps stage 1's constant. A ``schedule``
    replaces the loss of stage 2.
    """

    name = "tinybert"
    settings = TinyBertSettings
    version = 3
    shaping = ("layers", "width", "intermediate")

    def learn(self, own: TinyBertSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FullDepth:
        tuned = fitted_teacher(teachers)
        teacher, hard = tuned.model, own.alpha_hard
        wide = teacher.encoder.shape
        if wide.sizes:
            raise ConfigError(
                f"{self.name}: attention is compared head by head, and its teacher is pruned, with other heads in each layer: name "
                "an unpruned teacher"
            )
        given = self.pretrained(own, wide, backbone, task)

        torch.manual_seed(seed)
        if given is None:
            encoder, basis = projected_encoder(
                teacher.encoder, student_shape(wide, own.layers, own.width, own.intermediate)
            )
        else:
            check_student(given, wide)
            encoder = given.encoder()
        student = MultiExitModel(encoder, task.num_labels, (), own.head or teacher.head_kind)

        name = f"{task.name} {self.name}"
        split, made = augment(task.train, backbone, own.augmentation, seed=seed, name=name)
        places = [] if own.labels_only else taught_places(teacher.depth, encoder.depth)
        frozen = FrozenStates(teacher, split.tokens, places, own, name=name)
        rows = Split(frozen.rows, split.labels)
        stored = stage_1 = None
        if not own.labels_only:
            stored = frozen.store()
            if given is not None:
                basis = leading_directions(teacher.encoder, given.shape.width)
            imitation = Imitation(encoder, teacher.encoder, basis, frozen)
            rate = own.intermediate_learning_rate or own.learning_rate * 5 / 3
            recipe = own.changed(epochs=own.intermediate_epochs, learning_rate=rate)
            stage_1 = train(
                imitation, imitation.loss, rows, recipe, seed=seed, name=f"{name} layers", teachers=[teacher]
            )

        def answers(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            if own.labels_only:
                return F.cross_entropy(states_and_logits(student, tokens, layout)[1].float(), labels)
            soft = frozen(tokens, layout, places=()).answers
            _, logits = states_and_logits(student, tokens, layout)
            loss = soft_cross_entropy(logits, soft, own.temperature)
            return loss + hard * F.cross_entropy(logits.float(), labels) if hard else loss

        def at(tokens: TokenSet, layout: Layout, labels: Tensor, time: float) -> Tensor:
            soft = frozen(tokens, layout, places=()).answers
            return own.changing_loss(states_and_logits(student, tokens, layout)[1], soft, labels, time)

        last = own.changed(epochs=own.epochs + own.intermediate_epochs) if own.labels_only else own
        predicted = Scheduled(at, len(rows), last) if own.scheduled else answers
        stage_2 = self.train_student(student, predicted, rows, last, task, seed, tuned, " prediction")
        # The teacher is part of the cost of a student that uses it.
        teaching = None if own.labels_only and given is not None else tuned.training
        return FullDepth(student, total_cost(teaching, made, stored, stage_1, stage_2))

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
