"""CERBERUS (Matsubara et al., Findings of EMNLP 2022, arXiv 2201.05767): one body, several ends, a teacher for each end.

Published: a student whose lower layers are shared and whose ends are one or a few Transformer layers with a classifier each; end
i learns from teacher i alone; at inference the ends' predictions are averaged. The teachers are large models of other families
(ALBERT, ELECTRA, RoBERTa). The claim is more accuracy than from any single teacher, at far less than the teachers' size.

Our interpretation: no training code is published, so that form and weights of the loss are the usual ones. The student starts
from the first layers of the fine-tuned ``bert``, every end from copies of its next layers and its head; the teachers are
methods of the run, such as ``bert`` with other seeds. ``answer = "best"`` runs the best end on dev alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.dev_scores import EVALUATION
from harness.toolkit.distillation import (
    Unlabelled,
    fitted_teacher,
    hard_loss,
    rows_to_teach,
    soft_kl,
    take_heads,
    take_layers,
)
from harness.toolkit.method_settings import MethodSettings
from harness.toolkit.teachers.branched import BranchedTraining, Branches, FittedBranches
from harness.toolkit.teachers.loss_schedule import Scheduled, ScheduleSettings, without_patience
from harness.toolkit.teachers.teacher_answers import TeacherAnswers
from harness.toolkit.training import DevScore, total_cost, train


class CerberusSettings(ScheduleSettings, MethodSettings):
    """Settings of CERBERUS. Loss of an end: ``(1 - alpha) T^2 KL(teacher_T || end_T) + alpha CE(labels)``."""

    shared_layers: int | None = Field(None, ge=1, description="layers of the shared body; by default half of bert's")
    end_layers: int = Field(1, ge=1, description="layers of each end")
    ends: int | None = Field(
        None, ge=1, description="ends of the student; by default one per teacher; with more, teachers take turns"
    )
    temperature: float = Field(
        2.0, gt=0, description="temperature of the teacher's and the student's softmax in the loss"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the labels; that of the teacher is 1 - alpha")
    unlabelled: Unlabelled = Field(
        "no", description="whether the teachers also answer rows without labels; auto: if there are any"
    )
    answer: Literal["mean", "best"] = Field(
        "mean", description="mean: all ends run, and the mean of their probabilities counts; best: the best end on dev"
    )


def branches_of(own: CerberusSettings, depth: int, teachers: int) -> Branches:
    """Return the student's layers.

    Args:
        depth: of the model that the student starts from.

    Raises:
        ConfigError: fewer ends than teachers, or more layers on a path than that model has.
    """
    ends = own.ends or teachers
    if ends < teachers:
        raise ConfigError(
            f"cerberus: {teachers} teachers for ends = {ends}: leave out a teacher, or set ends to {teachers} or more"
        )
    shared = own.shared_layers or max(1, depth // 2)
    if shared + own.end_layers > depth:
        raise ConfigError(
            f"cerberus: shared_layers = {shared} and end_layers = {own.end_layers} are more than the {depth} layers of the "
            "model that the student starts from: lower one of them"
        )
    return Branches(shared, ends, own.end_layers)


def ends_loss(
    ends: Sequence[Tensor], answers: Tensor, labels: Tensor, alpha: float, temperature: float, *, all_labelled: bool
) -> Tensor:
    """Return the sum of the ends' losses.

    Args:
        ends: logits of k ends, [B, C] each.
        answers: logits of T teachers, [T, B, C]; end i learns from teacher i mod T.
        labels: int64 [B].
        all_labelled: whether every row has a label.
    """
    hard = F.cross_entropy if all_labelled else hard_loss
    total = ends[0].new_zeros((), dtype=torch.float32)
    for number, logits in enumerate(ends):
        soft = soft_kl(logits, answers[number % len(answers)], temperature)
        total = total + ((1 - alpha) * soft + alpha * hard(logits.float(), labels))
    return total


class Cerberus(StagedMethod[CerberusSettings, FittedBranches]):
    """A body of shared layers and an end per teacher, all trained at once; the answer is the mean over the ends.

    The role ``bert`` is the model that the student starts from, and one of the teachers. Ends are numbered by the teachers' names.
    """

    name = "cerberus"
    needs: tuple[str, ...] = ("bert", "bert-truncated", "elasticbert")
    settings = CerberusSettings
    fitted = FittedBranches
    choices = StagedMethod.choices | {"answer"}

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the teachers answer rows without labels, too."""
        return config.get("unlabelled", "no") != "no"

    def learn(
        self, own: CerberusSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> FittedBranches:
        first = fitted_teacher(teachers).model
        if first.encoder.shape.shared:
            raise ConfigError(f"{self.name}: all layers of '{backbone.name}' share weights, so that ends cannot differ")
        if first.encoder.shape.sizes:
            raise ConfigError(
                f"{self.name}: its first teacher is pruned, and ends need layers of one size: name another"
            )
        branches = branches_of(own, first.depth, len(teachers))
        rows = rows_to_teach(task, own.unlabelled, self.name)
        taught = TeacherAnswers(teachers, rows.tokens, task, backbone, own, self.name)

        torch.manual_seed(seed)
        end = list(range(branches.shared, branches.shared + branches.layers))
        encoder = take_layers(first.encoder, [*range(branches.shared), *end * branches.count])
        student = MultiExitModel(encoder, task.num_labels, branches.exits, own.head or first.head_kind)
        take_heads(student, first)
        network = BranchedTraining(student, branches)
        fitted = FittedBranches(student, None, branches, tuple(range(branches.count)))

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            ends, answers = network(tokens, layout), taught(tokens)
            known = rows is task.train
            return ends_loss(ends, answers, labels, own.alpha, own.temperature, all_labelled=known)

        def at(tokens: TokenSet, layout: Layout, labels: Tensor, time: float) -> Tensor:
            ends, answers = network(tokens, layout), taught(tokens)
            turns = (answers[number % len(answers)] for number in range(len(ends)))
            losses = [own.changing_loss(end, one, labels, time) for end, one in zip(ends, turns, strict=True)]
            return torch.stack(losses).sum()

        report = train(
            network,
            Scheduled(at, len(rows), own) if own.scheduled else loss,
            Split(taught.rows, rows.labels),
            without_patience(own) if own.scheduled else own,
            seed=seed,
            name=f"{task.name} {self.name}",
            evaluate=lambda: pooled_score(fitted, task.dev),
        )
        return replace(fitted, training=total_cost(taught.cost, report))

    def decide(self, own: CerberusSettings, weights: FittedBranches, task: Task, seed: int) -> FittedBranches:
        count = weights.branches.count
        if own.answer == "mean":
            return replace(weights, answering=tuple(range(count)))
        (at,) = weights.operating_points(task.dev)
        said = weights.answers_of(task.dev.tokens, replace(at, execution=EVALUATION))
        right = (said.argmax(-1) == task.dev.labels).sum(-1).tolist()
        losses = [float(F.nll_loss(one, task.dev.labels)) for one in said]
        best = max(range(count), key=lambda end: (right[end], -losses[end]))  # equal accuracy: the smaller loss
        return replace(weights, answering=(best,))


def pooled_score(fitted: FittedBranches, dev: Split) -> DevScore:
    """Return the dev accuracy of the answer as score."""
    (at,) = fitted.operating_points(dev)
    said = fitted.predict(dev.tokens, at=replace(at, execution=EVALUATION)).logits.argmax(-1)
    accuracy = float((torch.from_numpy(said) == dev.labels).float().mean())
    return DevScore(accuracy, (accuracy,))
