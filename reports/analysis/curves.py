"""Each curve of accuracy against FLOPs as one number: the area under it, and its score at matched cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.measure.statistics import area_under_curve, score_at_matched_cost
from reports.analysis.cell_settings import grouped, values_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.roles import CONSTANT
from reports.notation.marks import together
from reports.notation.numbers import finite


@dataclass(frozen=True, kw_only=True)
class Curve(ResultRow):
    """One curve; what it inherits is that of its first point.

    Attributes:
        points: number of operating points.
        cost_low, cost_high: cheapest and most expensive point, FLOPs per sample.
        budget_low, budget_high: budgets of the area: all points of the dataset under the same conditions.
        area: 0..1; None where no budget below the highest buys a point.
        baseline: method of constant depth that the score refers to; None where none was measured under the same conditions.
        score: 0..1; None without a baseline, or where every point is cheaper than the baseline.
        score_used: points that the score counts.
    """

    points: int
    cost_low: float
    cost_high: float
    budget_low: float
    budget_high: float
    area: float | None
    baseline: str | None
    score: float | None
    score_used: int


def measure_curves(rows: Sequence[ResultRow], varying: Sequence[str]) -> list[Curve]:
    """Return one curve per dataset, method, variant and setting; bounds are left out, because they are not methods.

    Budgets of the area reach from the cheapest to the most expensive point of the dataset under the same conditions, so that
    areas of one dataset can be compared; below a curve's cheapest point the accuracy counts as 0. The baseline of the score is
    the control of constant depth under the same conditions.

    Args:
        rows: rows of the view, with their marks.
        varying: settings that tell rows of a dataset apart.
    """
    shared = ["slug", *(name for name in varying if name != "executor")]
    eligible = [
        row
        for row in rows
        if row.kind != "bound" and finite(row.accuracy) and finite(row.flops_linear) and row.flops_linear > 0
    ]
    conditions = grouped(eligible, lambda row: values_of(row, shared))
    found = []
    for mine in grouped(eligible, lambda row: values_of(row, ("slug", "method", "variant", *varying))).values():
        same = conditions[values_of(mine[0], shared)]
        name = min((row.method for row in same if row.role == CONSTANT), default=None)
        baseline = [row for row in same if row.method == name]
        costs, accuracies = _costs_and_accuracies(mine)
        budgets, _ = _costs_and_accuracies(same)
        low, high = min(budgets), max(budgets)
        matched = score_at_matched_cost(costs, accuracies, *_costs_and_accuracies(baseline)) if baseline else None
        found.append(
            Curve(
                **{**vars(mine[0]), "marks": together(*(row.marks for row in (*mine, *baseline)))},
                points=len(mine),
                cost_low=min(costs),
                cost_high=max(costs),
                budget_low=low,
                budget_high=high,
                area=area_under_curve(costs, accuracies, low, high) if min(costs) < high else None,
                baseline=name,
                score=matched.score if matched else None,
                score_used=matched.used if matched else 0,
            )
        )
    return found


def _costs_and_accuracies(rows: Sequence[ResultRow]) -> tuple[list[float], list[float]]:
    return [row.flops_linear or 0.0 for row in rows], [row.accuracy or 0.0 for row in rows]
