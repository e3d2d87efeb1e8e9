"""Operating points chosen on dev at matched cost: one rule for every method that has a threshold to choose.

A threshold of one exit rule means nothing to another. So methods are compared at budgets: shares of the full depth that they
may run on average. Which threshold that takes is decided on dev, never on test (DESIGN section 4, rule 8).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.errors import ConfigError

BUDGETS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Candidate:
    """What one threshold does on dev.

    Attributes:
        threshold: of the rule, a JSON number.
        layers: mean layers a sample runs.
        accuracy: share of right answers.
    """

    threshold: float
    layers: float
    accuracy: float


def checked_budgets(method: str, budgets: Any) -> tuple[float, ...]:
    """Budgets as floats, in rising order.

    Raises:
        ConfigError: it is no list, there is none, one is no number above 0 and up to 1, or two bear the same name (``%g``).
    """
    if not isinstance(budgets, list | tuple):
        raise ConfigError(f"method '{method}': budgets = {budgets!r} is not a list: write budgets = [...]")
    wrong = [b for b in budgets if isinstance(b, bool) or not isinstance(b, int | float) or not 0 < b <= 1]
    if wrong or not budgets:
        raise ConfigError(
            f"method '{method}': budgets {list(budgets)} make no sense: give at least one, each above 0 and up to 1"
        )
    if len({f"{b:g}" for b in budgets}) < len(budgets):
        raise ConfigError(f"method '{method}': budgets {list(budgets)} name one twice: six digits must tell them apart")
    return tuple(sorted(float(b) for b in budgets))


def budget_name(budget: float) -> str:
    """Name of the operating point of a budget."""
    return f"budget={budget:g}"


def at_budgets(candidates: Iterable[Candidate], budgets: Sequence[float], depth: int) -> list[Candidate]:
    """For each budget the most accurate candidate that keeps it; of equally accurate ones the cheapest.

    A budget is kept by at most ``budget * depth`` mean layers. Where no candidate keeps it, the cheapest one is taken: a method
    that cannot be that cheap shows what it can do.

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
        # A hair of tolerance: budgets are shares, and means of integers come out of floating-point sums.
        able = [one for one in pool if one.layers <= budget * depth * (1 + 1e-9)]
        chosen.append(max(able, key=lambda one: (one.accuracy, -one.layers)) if able else pool[0])
    return chosen
