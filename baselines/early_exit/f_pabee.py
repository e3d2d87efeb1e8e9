"""F-PABEE (Gao et al., ICASSP 2023): PABEE's training; exit when heads in a row give nearly the same distribution."""

from __future__ import annotations

from baselines.early_exit.borrowed_exits import RuleOnWeights
from harness.toolkit.method_settings import BudgetSettings
from harness.toolkit.rule_exits import RuleName


class FPabee(RuleOnWeights[BudgetSettings]):
    """PABEE's weights under a softer rule (``patience-similarity``): threshold and patience are chosen together. Trains nothing.

    The loss of all exits is PABEE's, so that both share one training. Of the paper's four measures of similarity this is the
    one that it found best, the Jensen-Shannon kind; the others are not included. Multi-label tasks are not, either.
    """

    name = "f-pabee"
    needs: tuple[str, ...] = ("pabee",)
    settings = BudgetSettings

    def rule(self, own: BudgetSettings) -> RuleName:
        return "patience-similarity"
