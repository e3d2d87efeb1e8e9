"""A method whose student is taught in one stage or several: what `distil`, `distilbert` and `tinybert` have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import TypeVar

from baselines.distilled.axes.knowledge import Knowledge, Teaching, projects, taught_places
from baselines.distilled.axes.layer_matching import matched_layers
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.augmentation import augment
from harness.toolkit.base_method import Teachers
from harness.toolkit.distillation import (
    Unlabelled,
    fitted_teacher,
    hard_loss,
    rows_to_teach,
    states_and_logits,
    take_heads,
)
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen.frozen_states import FrozenStates
from harness.toolkit.student_start import StudentMethod, StudentSettings, leading_directions
from harness.toolkit.teachers.loss_schedule import Scheduled
from harness.toolkit.training import total_cost, train

T = TypeVar("T", bound=StudentSettings, default=StudentSettings)


@dataclass(frozen=True)
class Stage(Generic[T]):
    """One training of a student.

    Attributes:
        own: the method's settings, with the recipe of this stage.
        label: behind the method's name in messages.
    """

    knowledge: Knowledge
    own: T
    label: str = ""


@dataclass(frozen=True)
class Start:
    """A student's encoder before training.

    Attributes:
        taken: whether weights are the teacher's, whose training is then part of the cost.
        with_head: whether the head starts from the teacher's, too, if it is of its kind.
        basis: the directions on which embeddings were projected, if they were.
    """

    encoder: Encoder
    taken: bool = False
    with_head: bool = False
    basis: Tensor | None = None


class TaughtStudent(StudentMethod[T], Generic[T]):
    """A student of the fine-tuned ``bert``, taught in stages; the last one has answers and keeps the best epoch on dev.

    A ``schedule`` replaces the loss of the last stage.
    """

    @abstractmethod
    def stages(self, own: T) -> tuple[Stage[T], ...]:
        """Return what is taught, in order."""

    @abstractmethod
    def start(self, own: T, teacher: MultiExitModel, given: Backbone | None, backbone: Backbone) -> Start:
        """Make the student's encoder; torch's generator is seeded.

        Args:
            given: the pretrained student that the settings name.

        Raises:
            ConfigError: the settings do not fit the teacher.
        """

    def unlabelled_rows(self, own: T) -> Unlabelled:
        """Return whether the teacher also answers rows without labels."""
        return "no"

    def learn(self, own: T, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FullDepth:
        tuned = fitted_teacher(teachers)
        teacher, name, stages = tuned.model, f"{task.name} {self.name}", self.stages(own)
        given = self.pretrained(own, teacher.encoder.shape, backbone, task)
        torch.manual_seed(seed)
        start = self.start(own, teacher, given, backbone)
        student = MultiExitModel(start.encoder, task.num_labels, (), own.head or teacher.head_kind)
        if start.with_head:
            take_heads(student, teacher)

        asked = own.scheduled or any(stage.knowledge.taught for stage in stages)
        train_rows = rows_to_teach(task, self.unlabelled_rows(own), self.name) if asked else task.train
        split, made = augment(train_rows, backbone, own.augmentation, seed=seed, name=name)
        constant = stages[:-1] if own.scheduled else stages
        pairs = [
            matched_layers(stage.knowledge.matching, teacher.depth, student.depth, seed)
            if stage.knowledge.by_layer
            else ()
            for stage in constant
        ]
        basis = start.basis
        if basis is None and any(projects(stage.knowledge, start.encoder, teacher.encoder) for stage in constant):
            basis = leading_directions(teacher.encoder, start.encoder.shape.width)
        places = {
            place
            for stage, each in zip(constant, pairs, strict=True)
            for place in taught_places(stage.knowledge, each, teacher.depth)
        }
        frozen = FrozenStates(teacher, split.tokens, sorted(places), own, name=name)
        stored = frozen.store() if asked and sum(stage.own.epochs for stage in stages) > 1 else None
        rows = Split(frozen.rows, split.labels)
        hard = F.cross_entropy if train_rows is task.train else hard_loss

        reports = []
        for stage, each in zip(stages[:-1], pairs, strict=False):
            layers = Teaching(start.encoder, teacher.encoder, stage.knowledge, each, basis, frozen, hard)
            reports.append(
                train(layers, layers.loss, rows, stage.own, seed=seed, name=name + stage.label, teachers=[teacher])
            )
        last = stages[-1]
        if own.scheduled:

            def at(tokens: TokenSet, layout: Layout, labels: Tensor, time: float) -> Tensor:
                said = frozen(tokens, layout, places=()).answers
                return own.changing_loss(states_and_logits(student, tokens, layout)[1], said, labels, time)

            loss = Scheduled(at, len(rows), last.own)
            reports.append(self.train_student(student, loss, rows, last.own, task, seed, tuned, last.label))
        else:
            whole = Teaching(student, teacher.encoder, last.knowledge, pairs[-1], basis, frozen, hard)
            reports.append(
                self.train_student(
                    student, whole.loss, rows, last.own, task, seed, tuned, last.label, trained=whole.trained
                )
            )
        # The teacher is part of the cost of a student that uses it.
        teaching = tuned.training if start.taken or asked else None
        return FullDepth(student, total_cost(teaching, made, stored, *reports))
