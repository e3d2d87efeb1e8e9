"""DeeBERT (Xin et al., ACL 2020): fine-tune, freeze, train a ramp per layer with labels; exit by entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.fitted import FittedModel
from harness.toolkit.frozen.frozen_heads import FrozenHeads
from harness.toolkit.method_settings import BudgetSettings
from harness.toolkit.rule_exits import RuleExits, RuleName, under_rule

RULE: RuleName = "raw-entropy"


class DeeBertSettings(BudgetSettings):
    """Settings of DeeBERT."""

    ramp_epochs: int | None = Field(None, ge=1, description="epochs of the ramps; by default as epochs")
    ramp_learning_rate: float | None = Field(
        None, gt=0, description="learning rate of the ramps; by default as learning_rate"
    )
    encoder_dropout: bool = Field(
        True,
        description="dropout below the ramps, as released; false: the frozen encoder runs once, not in every epoch",
    )


class DeeBert(StagedMethod[DeeBertSettings]):
    """A head ("ramp") after every layer but the last, trained with labels on the frozen model; rule ``raw-entropy``.

    Step 1 is the method ``bert``; step 2 minimises the sum of the ramps' cross-entropies. As released, the last layer keeps
    the head of step 1, ramps start from all of it but the label layer, both steps have the same recipe, and the last epoch is
    kept. Dropout stays on below the ramps, as in the released code (``model.train()`` in every step); the paper does not say.
    Ramps are of the teacher's kind; the published ones are ``head = "linear"``.
    """

    name = "deebert"
    needs: tuple[str, ...] = ("bert",)
    version = 2
    settings = DeeBertSettings
    fitted = RuleExits

    def learn(self, own: DeeBertSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> RuleExits:
        frozen = FrozenHeads.on(self.name, own.head, task, teachers, seed)
        model = frozen.model
        start = {key: value for key, value in model.teacher.state_dict().items() if not key.startswith("label.")}
        for ramp in model.students.values():
            ramp.load_state_dict(start, strict=False)

        def loss(answers: Sequence[Tensor], target: Tensor, labels: Tensor) -> Tensor:
            return torch.stack([F.cross_entropy(ramp.float(), labels) for ramp in answers]).sum()

        recipe = own.changed(epochs=own.ramp_epochs, learning_rate=own.ramp_learning_rate)
        report = frozen.train(loss, task, recipe, seed, answers=False, dropout=own.encoder_dropout)
        return RuleExits(model, report, rule=RULE)

    def decide(self, own: DeeBertSettings, weights: FittedModel, task: Task, seed: int) -> RuleExits:
        return under_rule(
            RuleExits, weights.model, weights.training, method=self.name, rule=RULE, budgets=own.budgets, dev=task.dev
        )
