"""Any exit rule on the weights of another early-exit method: separates the effect of training from that of the rule."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import Field

from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit.base_method import BaseMethod, Teachers
from harness.toolkit.fitted import FittedModel
from harness.toolkit.method_settings import BudgetSettings
from harness.toolkit.rule_exits import RuleExits, RuleName, under_rule


class ExitRuleSettings(BudgetSettings):
    """Settings of ``exit-rule``."""

    rule: RuleName = Field("entropy", description="the exit rule")


class BorrowedExits(RuleExits):
    """Another method's model. Saves only what was chosen on dev."""

    def save(self, folder: Path) -> None:
        self.save_rule(folder)


B = TypeVar("B", bound=BudgetSettings)


class RuleOnWeights(BaseMethod[B], Generic[B]):
    """A method that runs the model of the one method that it needs under a rule, tuned on dev at budgets. Trains nothing."""

    @abstractmethod
    def rule(self, own: B) -> RuleName:
        """Return the exit rule."""

    def learn(self, own: B, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> BorrowedExits:
        source = self._source(teachers)
        return under_rule(
            BorrowedExits,
            source.model,
            None,
            method=self.name,
            rule=self.rule(own),
            budgets=own.budgets,
            dev=task.dev,
            gate=getattr(source, "gate", None),
        )

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Teachers) -> BorrowedExits:
        source = self._source(teachers)
        return BorrowedExits.around(folder, source.model, None, getattr(source, "gate", None))

    def _source(self, teachers: Teachers) -> FittedModel:
        if len(teachers) != 1:
            raise ConfigError(
                f"method '{self.name}' uses the weights of one method, not of {len(teachers)}: name one in its needs"
            )
        ((name, source),) = teachers.items()
        if not isinstance(source, FittedModel) or not source.is_stack:
            raise ConfigError(
                f"method '{self.name}' cannot use the weights of '{name}', a {type(source).__name__}: "
                "name a method that runs on this project's encoder"
            )
        return source


class ExitRuleOnWeights(RuleOnWeights[ExitRuleSettings]):
    """The model of the one method that it needs, run under another rule, tuned on dev at budgets. Trains nothing."""

    name = "exit-rule"
    needs: tuple[str, ...] = ("fastbert",)
    version = 2
    settings = ExitRuleSettings

    def rule(self, own: ExitRuleSettings) -> RuleName:
        return own.rule
