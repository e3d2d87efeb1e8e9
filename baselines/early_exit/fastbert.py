"""FastBERT (Liu et al., ACL 2020): fine-tune, freeze, self-distil a head per layer, exit by normalised entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.distillation import Unlabelled, rows_to_teach
from harness.toolkit.fitted import FittedModel, SequentialExits
from harness.toolkit.frozen.frozen_heads import FrozenHeads
from harness.toolkit.method_settings import SpeedSettings

Direction = Literal["teacher-student", "student-teacher"]


class FastBertSettings(SpeedSettings):
    """Settings of FastBERT. ``epochs`` and ``learning_rate`` are step 1's, which ``bert`` has run."""

    distill_epochs: int = Field(5, ge=1, description="epochs of distillation")
    distill_learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of distillation; by default 10 x learning_rate"
    )
    schedule: Literal["intended", "released"] = Field(
        "intended", description="released: the learning rate is 0 after as many steps as step 1 had"
    )
    divergence: Direction = Field(
        "teacher-student", description="KL(p_t || p_s) as in the code, or KL(p_s || p_t) as in the paper"
    )
    teacher_dropout: bool = Field(False, description="true: the teacher answers with dropout, as released")
    unlabelled: Unlabelled = Field(
        "no",
        description="whether step 2, which reads no label, also learns from rows without labels; auto: if there are any",
    )


def divergence(student: Tensor, teacher: Tensor, direction: Direction) -> Tensor:
    """Return the divergence of two answers, logits [B, C] each, mean over samples; see :class:`FastBertSettings`."""
    log_s, log_t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    if direction == "student-teacher":
        log_s, log_t = log_t, log_s
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


class FastBert(StagedMethod[FastBertSettings]):
    """A head after every layer, distilled from the frozen, fine-tuned model; confident samples exit layer by layer.

    Step 1 is the method ``bert``; step 2 trains a student on every layer but the last against the soft answer of ``bert``.
    The last epoch is kept, as published. Mistakes of the released code are options: by default the learning rate decays
    over all distillation epochs, weight decay is applied, and the teacher answers without dropout. ``schedule =
    "released"``, ``teacher_dropout = true`` and ``weight_decay = 0`` give the released behaviour. Inference shrinks the
    batch without a synchronisation per sample ("tuned").
    """

    name = "fastbert"
    needs: tuple[str, ...] = ("bert",)
    weights_version = 2
    settings = FastBertSettings
    fitted = SequentialExits

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether step 2 learns from rows without labels."""
        return config.get("unlabelled", "no") != "no"

    def learn(
        self, own: FastBertSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> SequentialExits:
        frozen = FrozenHeads.on(self.name, own.head, task, teachers, seed)
        step_1 = frozen.teacher.training

        def loss(answers: Sequence[Tensor], target: Tensor, labels: Tensor) -> Tensor:
            return torch.stack([divergence(answer, target, own.divergence) for answer in answers]).sum()

        horizon = None
        if own.schedule == "released":
            horizon = step_1.steps if step_1 else math.ceil(len(task.train) / own.batch_size) * own.epochs
        recipe = own.changed(
            epochs=own.distill_epochs, learning_rate=own.distill_learning_rate or 10 * own.learning_rate
        )
        rows = rows_to_teach(task, own.unlabelled, self.name)
        report = frozen.train(loss, task, recipe, seed, horizon, dropout=own.teacher_dropout, rows=rows)
        return SequentialExits(frozen.model, report)

    def decide(self, own: FastBertSettings, weights: FittedModel, task: Task, seed: int) -> SequentialExits:
        return SequentialExits.at_speeds(weights.model, weights.training, own.speeds)
