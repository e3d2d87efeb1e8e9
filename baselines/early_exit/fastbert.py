"""FastBERT (Liu et al., ACL 2020): fine-tune, freeze, self-distil a head per layer, leave by normalised entropy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import Fitted, Kind
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.registry import register
from harness.toolkit.distillation import fine_tuned, take_layers
from harness.toolkit.fitted import SPEEDS, SequentialExits, checked_speeds
from harness.toolkit.training import Recipe, own_settings, train

DEFAULTS: dict[str, Any] = {
    "distill_epochs": 5,
    "distill_learning_rate": None,  # 10 x learning_rate, as published
    "schedule": "intended",
    "divergence": "teacher-student",
    "teacher_dropout": False,
    "speeds": SPEEDS,
}
SCHEDULES = ("intended", "released")
DIVERGENCES = ("teacher-student", "student-teacher")


def divergence(student: Tensor, teacher: Tensor, direction: str) -> Tensor:
    """Distance of two answers, logits [B, C] each, mean over samples.

    Args:
        direction: ``"teacher-student"`` is KL(p_t || p_s), as in the released code; ``"student-teacher"`` is
            KL(p_s || p_t), as in the paper.
    """
    log_s, log_t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    if direction == "student-teacher":
        log_s, log_t = log_t, log_s
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


@register
class FastBert:
    """A head after every layer, distilled from the frozen, fine-tuned model; sure samples leave layer by layer.

    Step 1 is the method ``bert`` itself; step 2 trains students on every layer but the last against its soft answer.
    The released code's slips are not copied unless asked for: by default the learning rate decays over all distillation
    epochs, weight decay is applied, and the teacher answers without dropout. Direction of the divergence as in its code:
    KL(p_t || p_s). Inference shrinks the batch without a synchronisation per sample ("tuned").

    Config: :data:`DEFAULTS`, and the keys of :class:`~harness.toolkit.training.Recipe` for step 2. Heads are of the teacher's
    kind. To have the slips: ``schedule = "released"`` (the rate falls to 0 over as many steps as step 1 took, and stays
    there), ``teacher_dropout = true``, ``weight_decay = 0``. ``divergence = "student-teacher"`` is the paper's direction.
    """

    name = "fastbert"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("bert",)
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> SequentialExits:
        """Distil the heads; the last epoch is kept, as published.

        Raises:
            ConfigError: a setting that makes no sense or that nobody reads, or a teacher that does not fit.
        """
        own = own_settings(self.name, config, DEFAULTS)
        speeds = checked_speeds(self.name, own["speeds"])
        for key, known in (("schedule", SCHEDULES), ("divergence", DIVERGENCES), ("teacher_dropout", (False, True))):
            if own[key] not in known or type(own[key]) is not type(known[0]):
                choice = " or ".join(json.dumps(one) for one in known)
                raise ConfigError(f"method 'fastbert': {key} = {own[key]!r} is unknown: choose {choice}")
        base, rate = Recipe.of(config), own["distill_learning_rate"]
        recipe = replace(
            base,
            epochs=own["distill_epochs"],
            learning_rate=10 * base.learning_rate if rate is None else rate,
        )
        tuned = fine_tuned(self.name, teachers)
        bert = tuned.model
        if bert.depth < 2:
            raise ConfigError("fastbert needs a 'bert' of at least 2 layers: a single one leaves nowhere to exit early")
        if config.get("head", bert.head_kind) != bert.head_kind:
            raise ConfigError(f"fastbert: head '{config['head']}' is not 'bert's '{bert.head_kind}': set both alike")
        torch.manual_seed(seed)
        encoder = take_layers(bert.encoder, range(bert.depth))
        model = MultiExitModel(encoder, task.num_labels, range(bert.depth - 1), bert.head_kind)
        model.teacher.load_state_dict(bert.teacher.state_dict())
        model.encoder.requires_grad_(False)
        model.teacher.requires_grad_(False)

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            # Frozen: no dropout in what students and teacher look at, unless it is asked for.
            model.encoder.train(own["teacher_dropout"])
            model.teacher.train(own["teacher_dropout"])
            with torch.no_grad():
                states = list(model.encoder.states(tokens, layout))[1:]
                target = model.teacher(states[-1], layout)
            answers = [model.student(i)(states[i], layout) for i in model.exits]
            return torch.stack([divergence(answer, target, own["divergence"]) for answer in answers]).sum()

        horizon = None
        if own["schedule"] == "released":
            horizon = math.ceil(len(task.train) / base.batch_size) * base.epochs
            if tuned.training is not None:
                horizon = tuned.training.steps
        report = train(model, loss, task.train, recipe, seed=seed, name=f"fastbert {task.name}", horizon=horizon)
        if tuned.training is not None:
            report = tuned.training + report  # step 1 is part of what FastBERT costs
        model.requires_grad_(True)
        return SequentialExits(model, report, speeds)

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return [f"speed={speed:g}" for speed in checked_speeds(self.name, config.get("speeds", SPEEDS))]

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> SequentialExits:
        return SequentialExits.load(folder, backbone.device)
