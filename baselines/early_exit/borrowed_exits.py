"""Any exit rule on the weights of another early-exit method: how much of a method is its training, and how much its rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.contracts import Fitted, Kind
from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.registry import register
from harness.toolkit.budgets import BUDGETS, budget_name, checked_budgets
from harness.toolkit.fitted import FittedModel
from harness.toolkit.rule_exits import RuleExits, checked_rule, under_rule
from harness.toolkit.training import own_settings

DEFAULTS: dict[str, Any] = {"rule": "entropy", "budgets": BUDGETS}


class BorrowedExits(RuleExits):
    """Another method's model; only what was chosen on dev is its own."""

    def save(self, folder: Path) -> None:
        """The rule and its points."""
        self.save_rule(folder)


@register
class ExitRuleOnWeights:
    """The model of the one method it needs, run under another rule, set on dev at budgets. Learns nothing.

    Config: :data:`DEFAULTS`; ``rule`` out of :data:`~harness.toolkit.rule_exits.RULES`.
    """

    name = "exit-rule"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("fastbert",)
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> BorrowedExits:
        """Calibrate the rule and choose its settings on dev.

        Raises:
            ConfigError: an unknown rule, a setting that nobody reads, or weights that lack what the rule needs.
        """
        own = own_settings(self.name, config, DEFAULTS)
        rule, budgets = checked_rule(self.name, own["rule"]), checked_budgets(self.name, own["budgets"])
        source = self._source(teachers)
        fitted = under_rule(
            BorrowedExits,
            source.model,
            None,
            method=self.name,
            rule=rule,
            budgets=budgets,
            dev=task.dev,
            gate=getattr(source, "gate", None),
        )
        assert isinstance(fitted, BorrowedExits)
        return fitted

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return [budget_name(b) for b in checked_budgets(self.name, config.get("budgets", BUDGETS))]

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> BorrowedExits:
        source = self._source(teachers)
        fitted = BorrowedExits.around(folder, source.model, None, getattr(source, "gate", None))
        assert isinstance(fitted, BorrowedExits)
        return fitted

    def _source(self, teachers: Mapping[str, Fitted]) -> FittedModel:
        if len(teachers) != 1:
            raise ConfigError(
                f"method '{self.name}' borrows from one method, not {len(teachers)}: name one in its needs"
            )
        ((name, source),) = teachers.items()
        if not isinstance(source, FittedModel):
            raise ConfigError(
                f"method '{self.name}' cannot borrow from '{name}', a {type(source).__name__} of its own kind: "
                "take a method that runs on this project's encoder"
            )
        return source
