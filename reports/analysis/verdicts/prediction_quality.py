"""Quality of predicted exits: predicted layers against those of the sequential exit on the same weights.

The sequential exit applies a head after every layer; a perfect predictor would name its exit layer beforehand. Agreement
of ranks is Kendall's tau-b (Kendall 1945): exits have few distinct values, so that most pairs are tied. Tau-b counts the
untied pairs and corrects for ties on either side; Spearman's rho would correlate mid-ranks instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from reports.analysis.cell_settings import values_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.roles import SEQUENTIAL
from reports.analysis.run_contents import Reader, paired_samples
from reports.analysis.verdicts.paired_test import SAME
from reports.notation.marks import together
from reports.notation.numbers import finite


class Agreement(NamedTuple):
    """Predicted against sequential exits: shares over samples, ``tau_b`` the mean over seeds.

    ``confusion`` has the sequential exits as rows and the predicted ones as columns, both ``first``..depth, where ``first`` is 0 if
    samples were predicted to need no layer, else 1; ``cost_early`` and ``cost_late`` are the change in accuracy on samples that
    exit too early or too late.
    """

    compared: int
    confusion: list[list[int]]
    tau_b: float | None
    hit: float
    within_one: float
    early: float
    late: float
    cost_early: float
    cost_late: float
    first: int = 1


@dataclass(frozen=True, kw_only=True)
class PredictorRow(ResultRow):
    """A row that predicts exits; ``n`` counts samples and ``seeds`` those compared, ``marks`` are those of both sides.

    Attributes:
        sequential_row: the sequential exit on the same weights.
        agreement: predicted against sequential exits.
        accuracy_vs_sequential: difference in accuracy, 0..1.
        layers_vs_sequential: difference in mean layers; None where unknown.
    """

    sequential_row: ResultRow
    agreement: Agreement
    accuracy_vs_sequential: float | None
    layers_vs_sequential: float | None

    @property
    def compared_with(self) -> str:
        return self.sequential_row.point


def tau_b(confusion: np.ndarray) -> float | None:
    """Return Kendall's tau-b of two ordered variables, from their contingency table.

    (C - D) / sqrt((P - T1)(P - T2)): concordant minus discordant pairs over the pairs untied in each variable.

    Args:
        confusion: counts, int [K, K]; row and column order is the order of values.

    Returns:
        -1..1; None where a variable is constant, because nothing is ranked then.
    """
    table = confusion.astype(np.float64)
    total = table.sum()
    order = np.sign(np.subtract.outer(np.arange(len(table)), np.arange(len(table)))).astype(np.float64)
    # Each pair of samples occurs twice in this sum: +1 if concordant, -1 if discordant.
    score = float((table * (order @ table @ order.T)).sum()) / 2

    def untied(margin: np.ndarray) -> float:
        return float(total * total - (margin**2).sum()) / 2

    under = untied(table.sum(0)) * untied(table.sum(1))
    return score / math.sqrt(under) if under > 0 else None


def confusion_of(actual: np.ndarray, predicted: np.ndarray, depth: int, first: int = 1) -> np.ndarray:
    """Return counts, int [K, K]: row is the actual exit, column the predicted one, both ``first``..depth."""
    size = depth - first + 1
    flat = (actual.astype(np.int64) - first) * size + (predicted.astype(np.int64) - first)
    return np.bincount(flat, minlength=size * size).reshape(size, size)


def predictor_quality(rows: Sequence[ResultRow], read: Reader) -> list[PredictorRow]:
    """Compare every row that predicts exits with the sequential exit on the same weights.

    Args:
        rows: rows of the view, with their marks.
        read: per-sample rows of a cell.

    Returns:
        Rows at one point beside each other, methods first.
    """
    found = []
    for row in rows:
        if row.kind == "bound" or row.role == SEQUENTIAL:
            continue
        sequential = _sequential(row, rows)
        if sequential is None:
            continue
        pairs = list(paired_samples(row.cells, sequential.cells, read).values())
        if not pairs or not any((mine["predicted_exit"] != 0).any() for mine, _ in pairs):
            continue
        agreement = _agreement(pairs)
        about = {**vars(row), "seeds": len(pairs), "n": agreement.compared}
        about["marks"] = together(row.marks, sequential.marks)
        found.append(
            PredictorRow(
                **about,
                sequential_row=sequential,
                agreement=agreement,
                accuracy_vs_sequential=_difference(pairs),
                layers_vs_sequential=_layers(row, sequential),
            )
        )
    order = {"method": 0, "control": 1}
    return sorted(found, key=lambda r: (r.slug, r.base, order.get(r.kind, 2), r.method, r.point))


def _sequential(row: ResultRow, rows: Sequence[ResultRow]) -> ResultRow | None:
    """Return the sequential exit under the same conditions, at the same point or its base."""
    fitting = [
        other
        for other in rows
        if other.role == SEQUENTIAL
        and other.point in (row.point, row.base)
        and values_of(other, SAME) == values_of(row, SAME)
    ]
    return max(fitting, key=lambda other: other.point == row.point, default=None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known else None


def _agreement(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> Agreement:
    depth = max(int(max(mine["predicted_exit"].max(), other["exit_layer"].max())) for mine, other in pairs)
    first = 0 if any((mine["predicted_exit"] < 0).any() for mine, _ in pairs) else 1
    tables, costs = [], []
    for mine, other in pairs:
        stored = mine["predicted_exit"].to_numpy()
        left = other["exit_layer"].to_numpy()
        known, predicted = stored != 0, stored.clip(min=0)  # -1 is before layer 1, and 0 no prediction
        tables.append(confusion_of(left[known], predicted[known], depth, first))
        change = mine["correct"].to_numpy().astype(np.int64) - other["correct"].to_numpy().astype(np.int64)
        sides = (known & (predicted < left), known & (predicted > left))
        costs.append([change[side].sum() / len(mine) for side in sides])
    table = np.sum(tables, axis=0)
    total = int(table.sum())
    places = np.arange(len(table))
    step = places[None, :] - places[:, None]  # predicted minus sequential
    early, late = (float(np.mean(cost)) for cost in zip(*costs, strict=True))
    return Agreement(
        compared=total,
        confusion=table.tolist(),
        tau_b=_mean([tau_b(one) for one in tables]),
        hit=float(np.trace(table)) / total,
        within_one=float(table[np.abs(step) <= 1].sum()) / total,
        early=float(table[step < 0].sum()) / total,
        late=float(table[step > 0].sum()) / total,
        cost_early=early,
        cost_late=late,
        first=first,
    )


def _difference(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> float | None:
    """Return accuracy minus that of the other side, on the same samples."""
    return _mean([float(mine["correct"].mean() - other["correct"].mean()) for mine, other in pairs])


def _layers(row: ResultRow, other: ResultRow) -> float | None:
    ours, theirs = row.mean_layers, other.mean_layers
    return ours - theirs if finite(ours) and finite(theirs) else None
