"""TinyBERT (Jiao et al. 2020, arXiv 1909.10351): thinner and shallower, taught layer by layer, then by logits.

Both stages of the paper's task distillation, on the task's train split. The paper's student comes out of general distillation
on raw text beforehand, and its train split is augmented (``augment``, 10 to 30 copies). Give such a student with
``student``: a public one (huawei-noah/TinyBERT_General_4L_312D) or one of :meth:`TinyBert.general_distillation`. Without,
embeddings start from the teacher's, projected on the leading singular directions of the word embeddings, and layers at
random: expect less than the published figures. The head always starts at random.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contracts import Fitted, Kind
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout, Scored
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.pretraining.general_distillation import Distillation, DistillationRows
from harness.registry import register
from harness.toolkit import augmentation
from harness.toolkit.distillation import (
    checked_temperature,
    fitted_teacher,
    layer_scores,
    score_distance,
    soft_cross_entropy,
    states_and_logits,
    uniform_map,
)
from harness.toolkit.fitted import FullDepth, load_model
from harness.toolkit.student_start import load_student, student_identity
from harness.toolkit.training import Recipe, dev_accuracies, own_settings, train

DEFAULTS: dict[str, Any] = {
    "layers": None,  # a third of the teacher's, as 4 of 12: the largest divisor of its depth up to that
    "width": None,  # a number, or a share of the teacher's such as 1.0, rounded to a multiple of its heads; 312 / 768
    "intermediate": None,  # 1200 / 312 of the width; the teacher's own at its width
    "student": {},  # a folder or hub id to start from instead, or one per language: {en = "...", zh = "..."}
    "temperature": 1.0,
    "alpha_hard": 0.0,  # weight of cross-entropy on labels beside the soft one in stage 2; none as released
    "labels_only": False,  # the same student trained on labels alone, as long as stage 2: what distillation is worth
    "intermediate_epochs": 10,
    "intermediate_learning_rate": None,  # 5/3 of learning_rate, as 5e-5 : 3e-5 in the paper
    **augmentation.SETTINGS,
}
GENERAL: dict[str, Any] = {"layers": None, "width": None, "intermediate": None}


def student_shape(
    teacher: EncoderShape, layers: int | None, width: float | None, intermediate: int | None
) -> EncoderShape:
    """Dimensions of the student; a width that is no whole number is a share of the teacher's.

    It keeps the teacher's heads, so that attention can be compared head by head.
    For BERT-base: 4 layers, width 312, 12 heads, intermediate 1200, TinyBERT-4's; 6 layers of width 768 are TinyBERT-6's,
    with 3072 inside.

    Raises:
        ConfigError: layers that do not divide the teacher's, or a width that its heads do not divide or beyond its own.
    """
    if layers is None:
        layers = max(m for m in range(1, max(1, teacher.layers // 3) + 1) if teacher.layers % m == 0)
    uniform_map(teacher.layers, layers)
    share = 312 / 768 if width is None else width
    if isinstance(share, float) and 0 < share <= 1:
        width = teacher.heads * max(1, int(share * teacher.width / teacher.heads + 0.5))
    if not isinstance(width, int) or not 0 < width <= teacher.width or width % teacher.heads:
        raise ConfigError(
            f"tinybert: width {width} does not fit: choose a multiple of {teacher.heads} (the teacher's heads) "
            f"of at most {teacher.width}, or a share of that from 0.0 to 1.0"
        )
    if intermediate is None:
        intermediate = teacher.intermediate if width == teacher.width else round(width * 1200 / 312)
    if not isinstance(intermediate, int) or intermediate < 1:
        raise ConfigError(f"tinybert: intermediate {intermediate} makes no sense: choose at least 1")
    return replace(teacher, layers=layers, width=width, intermediate=intermediate)


@torch.no_grad()
def leading_directions(teacher: Encoder, width: int) -> Tensor:
    """Orthonormal directions [teacher width, width] that keep most of the word embeddings; the identity at equal width."""
    word = teacher.word.weight.double().cpu()
    if width == teacher.shape.width:
        basis = torch.eye(width)
    else:
        basis = torch.linalg.eigh(word.T @ word).eigenvectors.flip(1)[:, :width].float()
    return basis.to(teacher.device)


@torch.no_grad()
def projected_encoder(teacher: Encoder, shape: EncoderShape) -> tuple[Encoder, Tensor]:
    """A student whose embedding tables are the teacher's on their leading right singular directions.

    Returns:
        The student, and the orthonormal directions [teacher width, student width] (the identity at equal width).
    """
    student = Encoder(shape).to(teacher.device)
    basis = leading_directions(teacher, shape.width)
    for part in ("word", "position", "segment"):
        getattr(student, part).weight.copy_(getattr(teacher, part).weight @ basis)
    return student, basis


def checked_student(given: Backbone, teacher: EncoderShape) -> None:
    """Complain about a student whose layers and heads cannot be compared with the teacher's.

    Raises:
        ConfigError: its layers do not divide the teacher's, or it has another number of heads.
    """
    uniform_map(teacher.layers, given.shape.layers)
    if given.shape.heads != teacher.heads:
        raise ConfigError(
            f"tinybert: student '{given.name}' has {given.shape.heads} attention heads, its teacher {teacher.heads}, and "
            "attention is compared head by head: choose a student with as many"
        )


class Imitation(nn.Module):
    """Stage 1: embeddings, hidden states and attention scores of ``g(m) = m N / M`` (equations 7 to 9, equal weights).

    ``W_e`` and ``W_h`` apart, as in the paper; the released code shares one matrix. Both start from the directions on
    which the embeddings were projected, scaled back to the teacher's length.
    """

    def __init__(self, student: Encoder, teacher: Encoder, basis: Tensor) -> None:
        super().__init__()
        self.student = student
        self.taught_by = uniform_map(teacher.depth, student.depth)
        self._teacher = [teacher]  # in a list, so that it is no part of this module and never trained
        wide, narrow = basis.shape
        self.embedding = nn.Linear(narrow, wide, bias=False)
        self.hidden = nn.Linear(narrow, wide, bias=False)
        for projection in (self.embedding, self.hidden):
            projection.weight.data.copy_(basis * (wide / narrow) ** 0.5)
        self.to(basis.device)

    def loss(self, tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        """Sum over the embeddings and every student layer; means over tokens, or over pairs of tokens."""
        with torch.no_grad():
            taught = list(self._teacher[0].states(tokens, layout))
        return self.distance(list(self.student.states(tokens, layout)), taught, layout, layout.tokens)

    def distance(
        self, states: list[Tensor], taught: list[Tensor], layout: Scored, valid: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """How far the student's states h^0 .. h^M [rows, width] are from the teacher's h^0 .. h^N.

        Args:
            valid: takes the rows that count out of states; pairs of tokens are the layout's.
        """
        teacher = self._teacher[0]
        total = F.mse_loss(self.embedding(valid(states[0])).float(), valid(taught[0]).float())
        for m in range(1, len(states)):
            n = self.taught_by[m]
            with torch.no_grad():
                wanted = layer_scores(teacher, n - 1, taught, layout)
            scores = layer_scores(self.student, m - 1, states, layout)
            total = total + score_distance(scores, wanted, layout.pairs)
            total = total + F.mse_loss(self.hidden(valid(states[m])).float(), valid(taught[n]).float())
        return total


class GeneralImitation(Distillation):
    """The paper's general distillation: :class:`Imitation` of a teacher that was never fine-tuned, on raw text.

    As in the released code the text has its masks. There the student starts from nothing; here its embeddings are the
    teacher's, projected, as without general distillation.
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


@register
class TinyBert:
    """A shallower and narrower student imitates the teacher's embeddings, states and attention, then its answers.

    Stage 1 :class:`Imitation`; stage 2 soft cross-entropy against the teacher, best epoch on dev, no gold labels unless
    ``alpha_hard`` says so. With ``labels_only`` there is no stage 1 and no teacher: cross-entropy on labels.

    Config: :data:`DEFAULTS`, the keys of :class:`~harness.toolkit.training.Recipe` (``epochs`` and ``learning_rate`` are stage
    2's; 3 and 3e-5 as published), and ``head`` (default: the teacher's kind). Both stages decay the learning rate; the
    released code keeps stage 1's constant.
    """

    name = "tinybert"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("bert",)
    version = 2

    def named_content(self, config: Mapping[str, Any]) -> str | None:
        """Content of the student that is named, if one is."""
        return student_identity(config)

    def uses_word_head(self, config: Mapping[str, Any]) -> bool:
        """Return whether words are replaced by what the masked-word head predicts (``augment``)."""
        return bool(config.get("augment"))

    def fit(
        self,
        task: Task,
        backbone: Backbone,
        teachers: Mapping[str, Fitted],
        *,
        config: Mapping[str, Any],
        seed: int,
    ) -> FullDepth:
        """Two stages of task distillation.

        Raises:
            ConfigError: a setting that makes no sense or that nobody reads, or a student that does not go with the teacher.
        """
        own = own_settings(self.name, config, DEFAULTS)
        temperature = checked_temperature(self.name, own["temperature"])
        labels_only, hard = own["labels_only"], own["alpha_hard"]
        if not isinstance(labels_only, bool) or not isinstance(hard, int | float) or not 0 <= hard < math.inf:
            raise ConfigError(
                f"tinybert: labels_only = {labels_only}, alpha_hard = {hard} make no sense: choose true or false, and a "
                "weight of at least 0"
            )
        if labels_only and hard:
            raise ConfigError("tinybert: labels_only has no other loss to weigh alpha_hard against: leave one out")
        how = augmentation.Augmentation.of(self.name, own)
        second = Recipe.of(config, learning_rate=3e-5)
        rate = own["intermediate_learning_rate"]
        first = replace(
            second,
            epochs=own["intermediate_epochs"],
            learning_rate=second.learning_rate * 5 / 3 if rate is None else rate,
        )
        tuned = fitted_teacher(teachers)
        teacher = tuned.model
        wide = teacher.encoder.shape
        given = load_student(self.name, own, ("layers", "width", "intermediate"), wide, backbone, task)

        torch.manual_seed(seed)
        if given is None:
            shape = student_shape(wide, own["layers"], own["width"], own["intermediate"])
            encoder, basis = projected_encoder(teacher.encoder, shape)
        else:
            checked_student(given, wide)
            encoder = given.encoder()
        student = MultiExitModel(encoder, task.num_labels, (), config.get("head", teacher.head_kind))

        told = f"{task.name} {self.name}"
        split, made = augmentation.augment(task.train, backbone, how, seed=seed, name=told)
        stages = [] if made is None else [made]
        if tuned.training is not None and not (labels_only and given is not None):
            stages.insert(0, tuned.training)  # the teacher is part of what a student costs
        if not labels_only:
            if given is not None:
                basis = leading_directions(teacher.encoder, given.shape.width)
            imitation = Imitation(encoder, teacher.encoder, basis)
            stages.append(
                train(imitation, imitation.loss, split, first, seed=seed, name=f"{told} layers", teachers=[teacher])
            )

        def answers(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            if labels_only:
                return F.cross_entropy(states_and_logits(student, tokens, layout)[1].float(), labels)
            with torch.no_grad():
                _, soft = states_and_logits(teacher, tokens, layout)
            _, logits = states_and_logits(student, tokens, layout)
            loss = soft_cross_entropy(logits, soft, temperature)
            return loss + hard * F.cross_entropy(logits.float(), labels) if hard else loss

        last = train(
            student,
            answers,
            split,
            second,
            seed=seed,
            name=f"{told} prediction",
            evaluate=lambda: dev_accuracies(student, task.dev)[-1],
            teachers=[teacher],
        )
        return FullDepth(student, reduce(operator.add, [*stages, last]))

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> FullDepth:
        """What ``save`` wrote."""
        return FullDepth(*load_model(folder, backbone.device))

    # Defaults of the released script.
    general_recipe: Mapping[str, Any] = {
        "learning_rate": 5e-5,
        "warmup": 0.1,
        "weight_decay": 1e-4,
        "dropout": 0.1,
    }

    def general_distillation(self, teacher: Backbone, *, config: Mapping[str, Any], dropout: float) -> Distillation:
        """The paper's first step, on raw text; see :class:`GeneralImitation`.

        Raises:
            ConfigError: a setting that makes no sense, or layers, width and heads that do not go with the teacher's.
        """
        own = own_settings(self.name, config, GENERAL)
        shape = student_shape(teacher.shape, own["layers"], own["width"], own["intermediate"])
        return GeneralImitation(teacher, replace(shape, dropout=dropout))
