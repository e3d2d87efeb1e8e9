"""Choice of operating points on dev at equal cost: one rule for every method with a threshold to choose.

Thresholds of different exit rules cannot be compared. So methods are compared at budgets: shares of the full depth that
a sample may run on average. The threshold for a budget is chosen on dev, never on test, and a point uses its budget
(:func:`at_budgets`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.contracts import OperatingPoint

BUDGETS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Candidate:
    """What one threshold does on dev.

    Attributes:
        threshold: of the rule, a JSON number.
        layers: mean layers that a sample runs.
        accuracy: share of right answers.
    """

    threshold: float
    layers: float
    accuracy: float


def budget_name(budget: float) -> str:
    """Return the name of the operating point of a budget."""
    return f"budget={budget:g}"


C = TypeVar("C", bound=Candidate)


def at_budgets(candidates: Iterable[C], budgets: Sequence[float], depth: int, rows: int) -> list[C]:
    """Return for each budget the candidate that uses it best: of those as good as the most accurate one, the deepest.

    A candidate is within a budget if it runs at most ``budget * depth`` mean layers. It is as good as the most accurate one
    within the budget if its accuracy on dev is at most one standard error lower: ``sqrt(p * (1 - p) / rows)`` for the
    accuracy p of the most accurate one. Of these the one with the most layers is chosen, then the more accurate. A small
    difference on dev is mostly chance; without this rule a method could spend a quarter of its budget because a cheap
    candidate was right on one dev row more, and points of two methods at one budget would differ in cost.

    If no candidate is within a budget, the cheapest one is reported. The layers of the choice never fall with the budget.

    Args:
        candidates: at least one.
        budgets: shares of ``depth``.
        depth: layers of the whole model.
        rows: dev rows that accuracies were measured on.

    Raises:
        ValueError: there is no candidate.
    """
    pool = sorted(candidates, key=lambda one: (one.layers, -one.accuracy, one.threshold))
    if not pool:
        raise ValueError("no candidate to choose from")
    return [_at_budget(pool, budget * depth, rows) for budget in budgets]


def _at_budget(pool: Sequence[C], layers: float, rows: int) -> C:
    """Return the choice of :func:`at_budgets` among ``pool``, which is sorted by layers, then by falling accuracy."""
    # Small tolerances: budgets are shares, and mean layers and accuracies are floating-point sums.
    within = [one for one in pool if one.layers <= layers * (1 + 1e-9)]
    if not within:
        return pool[0]
    best = max(one.accuracy for one in within)
    least = best - math.sqrt(best * (1 - best) / rows) - 1e-9
    return max((one for one in within if one.accuracy >= least), key=lambda one: (one.layers, one.accuracy))


def points_at_budgets(
    candidates: Iterable[C], budgets: Sequence[float], depth: int, rows: int, settings: Callable[[C], Mapping[str, Any]]
) -> list[OperatingPoint]:
    """Return an operating point per budget, see :func:`at_budgets`; ``settings`` are those of a method for a candidate.

    A point with the parameter ``over_budget`` runs more layers on dev than its budget, because no candidate was within it.
    """
    chosen = zip(budgets, at_budgets(candidates, budgets, depth, rows), strict=True)
    return [
        OperatingPoint(
            budget_name(budget),
            {
                "budget": budget,
                **settings(one),
                "dev_mean_layers": one.layers,
                "dev_accuracy": one.accuracy,
                **({"over_budget": True} if one.layers > budget * depth * (1 + 1e-9) else {}),
            },
        )
        for budget, one in chosen
    ]
