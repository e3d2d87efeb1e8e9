"""Teaching assistants with evolved weights (Ganta et al. 2022, arXiv 2206.12005): models of middle size teach a small student.

Published: several assistants between teacher and student in size, each distilled from the teacher; their mean, with weights from
differential evolution, teaches the student. The claim is a better student than with one assistant (Mirzadeh et al., AAAI 2020).
It is shown on images; settings are not published.

Our interpretation: assistants are methods of the run, such as ``distilbert`` with other numbers of layers; weights minimise the
cross-entropy on dev, since accuracy on a few hundred rows moves in steps; the student starts from layers of ``bert``, as
``distilbert`` does, and learns ``alpha T^2 KL(sum_i w_i p_i || s) + (1 - alpha) CE``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import OperatingPoint
from harness.core.errors import ConfigError
from harness.core.text_formats import read_json
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.dev_scores import full_depth_score
from harness.toolkit.distillation import (
    Unlabelled,
    fitted_teacher,
    hard_loss,
    rows_to_teach,
    soft_kl,
    spread_layers,
    states_and_logits,
    take_heads,
    take_layers,
)
from harness.toolkit.fitted import FullDepth, load_model, reading
from harness.toolkit.method_settings import MethodSettings
from harness.toolkit.teachers.ensemble import best_member, evolved_weights, label_probabilities, mixed_logits
from harness.toolkit.teachers.loss_schedule import Scheduled, ScheduleSettings, without_patience
from harness.toolkit.teachers.teacher_answers import TeacherAnswers
from harness.toolkit.training import total_cost, train

Weighting = Literal["none", "best", "uniform", "evolved"]


class AssistantsSettings(ScheduleSettings, MethodSettings):
    """Settings of a student of assistants. Temperature and alpha are usual values."""

    layers: int | None = Field(None, ge=1, description="layers of the student; by default a third of bert's")
    weights: Weighting = Field(
        "evolved",
        description="weights of the assistants: evolved on dev; uniform; best: the one with the smallest loss on dev only; none: "
        "bert itself teaches",
    )
    temperature: float = Field(
        4.0, gt=0, description="temperature of the teachers' and the student's softmax in the loss"
    )
    alpha: float = Field(
        0.9, ge=0, le=1, description="weight of the assistants' answers; that of the labels is 1 - alpha"
    )
    unlabelled: Unlabelled = Field(
        "no", description="whether the assistants also answer rows without labels; auto: if there are any"
    )


@dataclass
class AssistedStudent(FullDepth):
    """A student and the weights of those that taught it, which are parameters of its operating point."""

    weights: dict[str, float] = field(default_factory=dict)

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint("full", {f"weight of {name}": value for name, value in self.weights.items()})]

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "weights.json").write_text(json.dumps(self.weights), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        model, report = load_model(folder, device)
        with reading(folder):
            return cls(model, report, dict(read_json(folder / "weights.json")))


def weights_on(kind: Weighting, answers: TeacherAnswers, dev: Split, seed: int) -> np.ndarray:
    """Return the weights of the assistants, in the order of their answers, with sum 1.

    Raises:
        ConfigError: there is no dev split to choose them on.
    """
    count = len(answers.names)
    if kind in ("none", "uniform"):
        return np.full(count, 1 / count)
    if not len(dev):
        raise ConfigError(
            f'assistants: weights = "{kind}" are chosen on dev, and there are no dev rows: raise --max-dev'
        )
    right = label_probabilities(answers.of(dev.tokens), dev.labels)
    if kind == "best":
        return np.eye(count)[best_member(right)]
    return evolved_weights(right, seed)


class Assistants(StagedMethod[AssistantsSettings, AssistedStudent]):
    """A shallow student of the weighted mean of its assistants.

    The role ``bert`` is the model that the student starts from; all other teachers are assistants. The best dev epoch is kept.
    """

    name = "assistants"
    needs: tuple[str, ...] = ("bert", "distilbert")
    settings = AssistantsSettings
    fitted = AssistedStudent

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the assistants answer rows without labels, too."""
        return config.get("unlabelled", "no") != "no"

    def learn(
        self, own: AssistantsSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> AssistedStudent:
        tuned = fitted_teacher(teachers)
        assisting = {name: one for name, one in teachers.items() if name != "bert"}
        if own.weights == "none":
            assisting = {"bert": teachers["bert"]}
        elif not assisting:
            raise ConfigError(
                f'{self.name}: weights = "{own.weights}" without assistants: name some in needs beside bert, or set weights to none'
            )
        rows = rows_to_teach(task, own.unlabelled, self.name)
        answers = TeacherAnswers(assisting, rows.tokens, task, backbone, own, self.name)
        weights = weights_on(own.weights, answers, task.dev, seed)
        taught = mixed_logits(answers.logits, weights, own.temperature)

        torch.manual_seed(seed)
        first = tuned.model
        chosen = spread_layers(first.depth, own.layers or max(1, first.depth // 3))
        student = MultiExitModel(take_layers(first.encoder, chosen), task.num_labels, (), own.head or first.head_kind)
        take_heads(student, first)
        hard = F.cross_entropy if rows is task.train else hard_loss

        def said(tokens: TokenSet, layout: Layout) -> tuple[Tensor, Tensor]:
            logits = states_and_logits(student, tokens, layout)[1]
            return logits, taught.index_select(0, tokens.numbers)  # type: ignore[attr-defined]

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            logits, soft = said(tokens, layout)
            total = own.alpha * soft_kl(logits, soft, own.temperature)
            return total + (1 - own.alpha) * hard(logits.float(), labels)

        def at(tokens: TokenSet, layout: Layout, labels: Tensor, time: float) -> Tensor:
            return own.changing_loss(*said(tokens, layout), labels, time)

        report = train(
            student,
            Scheduled(at, len(rows), own) if own.scheduled else loss,
            Split(answers.rows, rows.labels),
            without_patience(own) if own.scheduled else own,
            seed=seed,
            name=f"{task.name} {self.name}",
            evaluate=lambda: full_depth_score(student, task.dev),
        )
        # The student starts from bert, which is also what taught its assistants.
        cost = total_cost(tuned.training, answers.cost, report)
        known = dict(zip(answers.names, weights.tolist(), strict=True))
        return AssistedStudent(student, cost, known)
