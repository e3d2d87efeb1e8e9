"""TinyBERT (Jiao et al. 2020, arXiv 1909.10351): thinner and shallower, taught layer by layer, then by logits.

Both stages of the paper's task distillation, on the task's train split, without its data augmentation. The paper's
student comes out of general distillation on raw text beforehand; this one does not, and that is its honest limit. Its
embeddings start from the teacher's, projected on the leading singular directions of the word embeddings; its layers
and head start at random. Expect less than the published figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contracts import Fitted, Kind, Task, TokenSet
from harness.distillation import (
    fitted_teacher,
    layer_scores,
    score_distance,
    soft_cross_entropy,
    states_and_logits,
    uniform_map,
)
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.errors import ConfigError
from harness.fitted import FullDepth, load_model
from harness.registry import register
from harness.training import Recipe, dev_accuracies, own_settings, train

DEFAULTS: dict[str, Any] = {
    "layers": None,  # a third of the teacher's, as 4 of 12: the largest divisor of its depth up to that
    "width": None,  # 312 / 768 of the teacher's, rounded to a multiple of its heads
    "intermediate": None,  # 1200 / 312 of the width
    "temperature": 1.0,
    "intermediate_epochs": 10,
    "intermediate_learning_rate": None,  # 5/3 of learning_rate, as 5e-5 : 3e-5 in the paper
}


def student_shape(
    teacher: EncoderShape, layers: int | None, width: int | None, intermediate: int | None
) -> EncoderShape:
    """Dimensions of the student; it keeps the teacher's heads, so that attention can be compared head by head.

    For BERT-base: 4 layers, width 312, 12 heads, intermediate 1200, TinyBERT-4's.

    Raises:
        ConfigError: layers that do not divide the teacher's, or a width that its heads do not divide or beyond its own.
    """
    if layers is None:
        layers = max(m for m in range(1, max(1, teacher.layers // 3) + 1) if teacher.layers % m == 0)
    uniform_map(teacher.layers, layers)
    if width is None:
        width = teacher.heads * max(1, int(312 * teacher.width / 768 / teacher.heads + 0.5))
    if not isinstance(width, int) or not 0 < width <= teacher.width or width % teacher.heads:
        raise ConfigError(
            f"tinybert: width {width} does not fit: choose a multiple of {teacher.heads} (the teacher's heads) "
            f"of at most {teacher.width}"
        )
    intermediate = round(width * 1200 / 312) if intermediate is None else intermediate
    if not isinstance(intermediate, int) or intermediate < 1:
        raise ConfigError(f"tinybert: intermediate {intermediate} makes no sense: choose at least 1")
    return replace(teacher, layers=layers, width=width, intermediate=intermediate)


@torch.no_grad()
def projected_encoder(teacher: Encoder, shape: EncoderShape) -> tuple[Encoder, Tensor]:
    """A student whose embedding tables are the teacher's on their leading right singular directions.

    Returns:
        The student, and the orthonormal directions [teacher width, student width] (the identity at equal width).
    """
    student = Encoder(shape).to(teacher.device)
    word = teacher.word.weight.double().cpu()
    if shape.width == teacher.shape.width:
        basis = torch.eye(shape.width)
    else:
        basis = torch.linalg.eigh(word.T @ word).eigenvectors.flip(1)[:, : shape.width].float()
    basis = basis.to(teacher.device)
    for part in ("word", "position", "segment"):
        getattr(student, part).weight.copy_(getattr(teacher, part).weight @ basis)
    return student, basis


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
        teacher = self._teacher[0]
        with torch.no_grad():
            taught = list(teacher.states(tokens, layout))
        states = list(self.student.states(tokens, layout))
        total = F.mse_loss(self.embedding(states[0]).float(), taught[0].float())
        for m in range(1, len(states)):
            n = self.taught_by[m]
            with torch.no_grad():
                wanted = layer_scores(teacher, n - 1, taught, layout)
            scores = layer_scores(self.student, m - 1, states, layout)
            total = total + score_distance(scores, wanted, layout.pairs)
            total = total + F.mse_loss(self.hidden(states[m]).float(), taught[n].float())
        return total


@register
class TinyBert:
    """A shallower and narrower student imitates the teacher's embeddings, states and attention, then its answers.

    Stage 1 :class:`Imitation`; stage 2 soft cross-entropy against the teacher, best epoch on dev, no gold labels.

    Config: :data:`DEFAULTS`, the keys of :class:`~harness.training.Recipe` (``epochs`` and ``learning_rate`` are stage
    2's; 3 and 3e-5 as published), and ``head`` (default: the teacher's kind). Both stages decay the learning rate; the
    released code keeps stage 1's constant.
    """

    name = "tinybert"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("bert",)
    version = 1

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
            ConfigError: a setting that makes no sense or that nobody reads.
        """
        own = own_settings(self.name, config, DEFAULTS)
        temperature = own["temperature"]
        if not temperature > 0:
            raise ConfigError(f"tinybert: temperature {temperature} makes no sense: choose one above 0")
        second = Recipe.of(config, learning_rate=3e-5)
        rate = own["intermediate_learning_rate"]
        first = replace(
            second,
            epochs=own["intermediate_epochs"],
            learning_rate=second.learning_rate * 5 / 3 if rate is None else rate,
        )
        tuned = fitted_teacher(teachers)
        teacher = tuned.model
        shape = student_shape(teacher.encoder.shape, own["layers"], own["width"], own["intermediate"])

        torch.manual_seed(seed)
        encoder, basis = projected_encoder(teacher.encoder, shape)
        student = MultiExitModel(encoder, task.num_labels, (), config.get("head", teacher.head_kind))

        imitation = Imitation(encoder, teacher.encoder, basis)
        told = f"{task.name} {self.name}"
        report = train(
            imitation, imitation.loss, task.train, first, seed=seed, name=f"{told} layers", teachers=[teacher]
        )

        def predict_like_teacher(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            with torch.no_grad():
                _, soft = states_and_logits(teacher, tokens, layout)
            _, logits = states_and_logits(student, tokens, layout)
            return soft_cross_entropy(logits, soft, temperature)

        report += train(
            student,
            predict_like_teacher,
            task.train,
            second,
            seed=seed,
            name=f"{told} prediction",
            evaluate=lambda: dev_accuracies(student, task.dev)[-1],
            teachers=[teacher],
        )
        if tuned.training is not None:
            report = tuned.training + report  # the teacher is part of what a student costs
        return FullDepth(student, report)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> FullDepth:
        """What ``save`` wrote."""
        return FullDepth(*load_model(folder, backbone.device))
