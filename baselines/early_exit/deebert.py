"""DeeBERT (Xin et al., ACL 2020): fine-tune, freeze, train a ramp per layer with labels; leave by entropy."""

from __future__ import annotations

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
from harness.toolkit.budgets import BUDGETS, budget_name, checked_budgets
from harness.toolkit.distillation import fine_tuned, take_layers
from harness.toolkit.rule_exits import RuleExits, under_rule
from harness.toolkit.training import Recipe, own_settings, train

DEFAULTS: dict[str, Any] = {"ramp_epochs": None, "ramp_learning_rate": None, "budgets": BUDGETS}


@register
class DeeBert:
    """A head after every layer but the last, trained on labels over the frozen, fine-tuned model; rule ``raw-entropy``.

    Step 1 is the method ``bert`` itself; step 2 minimises the sum of the ramps' cross-entropies. As released:
    the last layer keeps the head of step 1, ramps start from all of it but the label layer, dropout stays on below them,
    both steps have the same recipe, and the last epoch is kept. Ramps are of the teacher's kind; the published ones are
    ``head = "linear"``.

    Config: :data:`DEFAULTS` (``None``: as in the recipe), and the keys of :class:`~harness.toolkit.training.Recipe` for step 2.
    """

    name = "deebert"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("bert",)
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> RuleExits:
        """Train the ramps, then set the rule on dev.

        Raises:
            ConfigError: a setting that makes no sense or that nobody reads, or a teacher that does not fit.
        """
        own = own_settings(self.name, config, DEFAULTS)
        budgets = checked_budgets(self.name, own["budgets"])
        changes = {"epochs": own["ramp_epochs"], "learning_rate": own["ramp_learning_rate"]}
        recipe = replace(Recipe.of(config), **{key: value for key, value in changes.items() if value is not None})
        tuned = fine_tuned(self.name, teachers)
        bert = tuned.model
        if bert.depth < 2:
            raise ConfigError("deebert needs a 'bert' of at least 2 layers: a single one leaves nowhere to exit early")
        if config.get("head", bert.head_kind) != bert.head_kind:
            raise ConfigError(f"deebert: head '{config['head']}' is not 'bert's '{bert.head_kind}': set both alike")
        torch.manual_seed(seed)
        encoder = take_layers(bert.encoder, range(bert.depth))
        model = MultiExitModel(encoder, task.num_labels, range(bert.depth - 1), bert.head_kind)
        model.teacher.load_state_dict(bert.teacher.state_dict())
        start = {key: value for key, value in bert.teacher.state_dict().items() if not key.startswith("label.")}
        for ramp in model.students.values():
            ramp.load_state_dict(start, strict=False)
        model.encoder.requires_grad_(False)
        model.teacher.requires_grad_(False)

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            with torch.no_grad():
                states = list(model.encoder.states(tokens, layout, upto=model.depth - 1))[1:]
            ramps = [F.cross_entropy(model.student(i)(states[i], layout).float(), labels) for i in model.exits]
            return torch.stack(ramps).sum()

        report = train(model, loss, task.train, recipe, seed=seed, name=f"deebert {task.name}")
        if tuned.training is not None:
            report = tuned.training + report  # step 1 is part of what DeeBERT costs
        model.requires_grad_(True)
        return under_rule(RuleExits, model, report, method=self.name, rule="raw-entropy", budgets=budgets, dev=task.dev)

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return [budget_name(b) for b in checked_budgets(self.name, config.get("budgets", BUDGETS))]

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> RuleExits:
        return RuleExits.load(folder, backbone.device)
