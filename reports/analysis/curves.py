"""Accuracy/FLOPs curves in one number each: the area under them, and the score at matched cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.measure.statistics import area_under_curve, score_at_matched_cost
from reports.notation.marks import together
from reports.notation.numbers import finite

BASELINE = "control-constant"
COST = "flops_linear"

Record = Mapping[str, Any]


def measure_curves(rows: Sequence[Record], varying: Sequence[str]) -> list[dict[str, Any]]:
    """One record per (dataset, method, variant, setting); bounds are left out, as nobody can buy them.

    Budgets of the area reach from the cheapest to the dearest point of the dataset under the same conditions, so that areas of
    one dataset compare; left of a curve's cheapest point a method has nothing. The baseline of the score is
    ``control-constant`` under the same conditions.

    Args:
        rows: rows of the view, with their marks.
        varying: coordinates that tell rows of a dataset apart.

    Returns:
        Records with ``points``, ``cost_low`` and ``cost_high`` (FLOPs of a sample), ``budget_low`` and ``budget_high``, ``area``
        (0..1; None where no budget below the dearest buys a point), ``score``
        (0..1; None without a baseline at such costs), ``score_used``.
    """
    shared = [name for name in varying if name != "executor"]
    curves: dict[tuple[Any, ...], list[Record]] = {}
    conditions: dict[tuple[Any, ...], list[Record]] = {}
    for row in rows:
        if row["kind"] == "bound" or not finite(row["accuracy"]) or not finite(row[COST]) or row[COST] <= 0:
            continue
        variant = row["point"].partition("/")[2]
        key = (row["slug"], row["method"], variant, *(row[name] for name in varying))
        curves.setdefault(key, []).append(row)
        conditions.setdefault((row["slug"], *(row[name] for name in shared)), []).append(row)
    found = []
    for (slug, _, variant, *_), mine in curves.items():
        first = mine[0]
        same = conditions[(slug, *(first[name] for name in shared))]
        low, high = min(row[COST] for row in same), max(row[COST] for row in same)
        baseline = [row for row in same if row["method"] == BASELINE]
        cost, accuracy = [row[COST] for row in mine], [row["accuracy"] for row in mine]
        matched = None
        if baseline:
            matched = score_at_matched_cost(
                cost, accuracy, [row[COST] for row in baseline], [row["accuracy"] for row in baseline]
            )
        record = {key: first[key] for key in ("slug", "label", "data", "dataset", "kind", "method", *varying)}
        record.update(variant=variant, points=len(mine), cost_low=min(cost), cost_high=max(cost))
        record.update(budget_low=low, budget_high=high)
        record["area"] = area_under_curve(cost, accuracy, low, high) if min(cost) < high else None
        record.update(score=matched.score if matched else None, score_used=matched.used if matched else 0)
        record["marks"] = together(*(row["marks"] for row in (*mine, *baseline)))
        found.append(record)
    return found
