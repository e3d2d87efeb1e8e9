"""Choice of operating points on dev at equal cost: one rule for every method with a threshold to choose.

Thresholds of different exit rules cannot be compared. So methods are compared at budgets: shares of the full depth that
a sample may run on average. The threshold for a budget is chosen on dev, never on test.
"""

from __future__ import annotations

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


def at_budgets(candidates: Iterable[C], budgets: Sequence[float], depth: int) -> list[C]:
    """Return for each budget the most accurate candidate within it; of equally accurate ones the cheapest.

    A candidate is within a budget if it runs at most ``budget * depth`` mean layers. If no candidate is, the cheapest one
    is reported.

    Args:
        candidates: at least one.
        budgets: shares of ``depth``.
        depth: layers of the whole model.

    Raises:
        ValueError: there is no candidate.
    """
    pool = sorted(candidates, key=lambda one: (one.layers, -one.accuracy, one.threshold))
    if not pool:
        raise ValueError("no candidate to choose from")
    chosen = []
    for budget in budgets:
        # A small tolerance: budgets are shares, and mean layers are floating-point sums.
        within = [one for one in pool if one.layers <= budget * depth * (1 + 1e-9)]
        chosen.append(max(within, key=lambda one: (one.accuracy, -one.layers)) if within else pool[0])
    return chosen


def points_at_budgets(
    candidates: Iterable[C], budgets: Sequence[float], depth: int, settings: Callable[[C], Mapping[str, Any]]
) -> list[OperatingPoint]:
    """Return an operating point per budget, see :func:`at_budgets`; ``settings`` are those of a method for a candidate."""
    chosen = zip(budgets, at_budgets(candidates, budgets, depth), strict=True)
    return [
        OperatingPoint(
            budget_name(budget),
            {"budget": budget, **settings(one), "dev_mean_layers": one.layers, "dev_accuracy": one.accuracy},
        )
        for budget, one in chosen
    ]
