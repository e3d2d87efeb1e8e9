"""Control: the sequential entropy exit on GEEP's weights."""

from __future__ import annotations

from collections.abc import Sequence

from baselines.controls.borrowed_geep import BorrowedGeep, GeepControl, mirrored
from harness.contracts import OperatingPoint, Role
from harness.core.tokens import Split
from harness.toolkit.fitted import SequentialExits
from harness.toolkit.rule_exits import Tried, make_rule, outcomes, scores_of, worth_trying


class SequentialGeep(BorrowedGeep, SequentialExits):
    """FastBERT's exit rule on GEEP's weights.

    At GEEP's speeds, its entropy threshold is the one that GEEP's table was built with. At GEEP's budgets it is the one whose
    mean layers on dev are nearest to those of GEEP's point.
    """

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        points, tried = [], self._thresholds(dev)
        for point in mirrored(self.geep, dev):
            if "budget" in point.params:
                mean = self.mean_layers(dev, point)
                one = min(tried, key=lambda one: (abs(one.layers - mean), one.layers))
                kept = {key: point.params[key] for key in ("budget", "over_budget") if key in point.params}
                figures = {"speed": one.threshold, "dev_mean_layers": one.layers, "dev_accuracy": one.accuracy}
                point = OperatingPoint(point.name, {**kept, **figures})
            points.append(point)
        return points

    def _thresholds(self, dev: Split) -> list[Tried]:
        """Return what every threshold worth trying does on dev."""
        logits, correct = self.exits_on_dev(dev)
        scores = scores_of(make_rule("entropy", {"threshold": 0.0}), logits)
        options = worth_trying("entropy", scores, self.model.labels)
        return outcomes("entropy", scores, correct, self.model.answers, options)


class SequentialControl(GeepControl):
    """FastBERT's sequential entropy exit on GEEP's weights."""

    name = "control-sequential"
    role: Role = "sequential-exits"
    borrowed = SequentialGeep
