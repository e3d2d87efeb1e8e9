"""How well are exits predicted? Predicted exits against those of the sequential exit on the same weights.

The sequential exit asks a head after every layer; a perfect predictor would say beforehand where it leaves. Agreement
of ranks is Kendall's tau-b (Kendall 1945): exits take a handful of values, so nearly all pairs are tied in one of the two, and
tau-b counts the untied pairs and corrects for ties on either side, where Spearman's rho would correlate made-up mid-ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.results.schema import Cell
from reports.analysis.cell_settings import SETTING
from reports.figures.palette import GREYS, INK, PAPER
from reports.figures.svg import Canvas, fitted, width_of
from reports.notation.marks import together
from reports.notation.numbers import finite, fixed, minus, percent

SEQUENTIAL, ORACLE = "control-sequential", "oracle"
Reader = Callable[[Cell], "pd.DataFrame | None"]
# The executor belongs to the method; everything else must be the same.
_SAME = ("slug", *(name for name in SETTING if name != "executor"))


def tau_b(confusion: np.ndarray) -> float | None:
    """Kendall's tau-b of two ordered variables, from their contingency table.

    (C - D) / sqrt((P - T1)(P - T2)): concordant minus discordant pairs over the pairs untied in each variable.

    Args:
        confusion: counts, int [K, K]; row and column order is the order of values.

    Returns:
        -1..1; None where a variable is constant: nothing is ranked then.
    """
    table = confusion.astype(np.float64)
    total = table.sum()
    # Counts strictly below and right, and strictly below and left, of each cell.
    below = np.zeros_like(table)
    below[:-1] = table[::-1].cumsum(0)[::-1][1:]
    right, left = np.zeros_like(table), np.zeros_like(table)
    right[:, :-1] = below[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
    left[:, 1:] = below.cumsum(1)[:, :-1]
    concordant, discordant = float((table * right).sum()), float((table * left).sum())

    def untied(margin: np.ndarray) -> float:
        return float(total * total - (margin**2).sum()) / 2

    under = untied(table.sum(0)) * untied(table.sum(1))
    return (concordant - discordant) / math.sqrt(under) if under > 0 else None


def confusion_of(actual: np.ndarray, predicted: np.ndarray, depth: int) -> np.ndarray:
    """Counts [depth, depth]: row is the actual exit, column the predicted one, both 1..depth."""
    flat = (actual.astype(np.int64) - 1) * depth + (predicted.astype(np.int64) - 1)
    return np.bincount(flat, minlength=depth * depth).reshape(depth, depth)


def predictor_quality(
    rows: Sequence[Mapping[str, Any]], members: Sequence[Sequence[Cell]], read: Reader
) -> list[dict[str, Any]]:
    """Every row that predicts exits, against the sequential exit and the oracle of the same weights.

    Args:
        rows: rows of the view.
        members: the cells (one per seed) behind each row.
        read: per-sample rows of a cell.
    """
    found = []
    for index, row in enumerate(rows):
        if row["kind"] == "bound" or row["method"] == SEQUENTIAL:
            continue
        rival = _rival(row, rows, SEQUENTIAL)
        if rival is None:
            continue
        pairs = _pairs(members[index], members[rival], read)
        if not pairs or not any((mine["predicted_exit"] > 0).any() for mine, _ in pairs):
            continue
        bound = _rival(row, rows, ORACLE, anywhere=True)
        ideal = _pairs(members[index], members[bound], read) if bound is not None else []
        found.append(
            {
                **{key: row[key] for key in ("slug", "label", "dataset", "data", "kind", "method", "point", *SETTING)},
                "base": row["point"].partition("/")[0],
                "compared_with": rows[rival]["point"],
                "marks": together(str(row.get("marks", "")), str(rows[rival].get("marks", ""))),
                "seeds": len(pairs),
                "unseen_tokens": row["unseen_tokens"],
                **_agreement(pairs),
                "accuracy_vs_sequential": _difference(pairs),
                "layers_vs_sequential": _layers(row, rows[rival]),
                "accuracy_vs_oracle": _difference(ideal),
                "layers_vs_oracle": _layers(row, rows[bound]) if bound is not None else None,
            }
        )
    order = {"method": 0, "control": 1}
    # Beside each other: what predicts at one point, methods first.
    return sorted(
        found, key=lambda r: (r["slug"], r["base"], order.get(r["kind"], 2), *(str(r[n]) for n in ("method", "point")))
    )


def _rival(
    row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], method: str, *, anywhere: bool = False
) -> int | None:
    """The row of ``method`` in the same place, at the same point or its base (or at any point)."""
    base = row["point"].partition("/")[0]
    fitting = [
        i
        for i, other in enumerate(rows)
        if other["method"] == method
        and (anywhere or other["point"] in (row["point"], base))
        and all(other[name] == row[name] for name in _SAME)
    ]
    return max(fitting, key=lambda i: rows[i]["point"] == row["point"], default=None)


def _pairs(ours: Sequence[Cell], theirs: Sequence[Cell], read: Reader) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Rows of both sides over the same test samples, for each seed that both have."""
    by_seed = {cell.seed: cell for cell in theirs}
    pairs = []
    for cell in ours:
        if cell.seed not in by_seed:
            continue
        mine, other = read(cell), read(by_seed[cell.seed])
        if mine is None or other is None:
            continue
        if not mine.index.equals(other.index):
            common = mine.index.intersection(other.index)
            mine, other = mine.loc[common], other.loc[common]
        if len(mine):
            pairs.append((mine, other))
    return pairs


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known else None


def _agreement(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> dict[str, Any]:
    """Predicted against sequential exits: shares over samples, tau-b the mean over seeds."""
    depth = max(int(max(mine["predicted_exit"].max(), other["exit_layer"].max())) for mine, other in pairs)
    tables, costs = [], []
    for mine, other in pairs:
        said = mine["predicted_exit"].to_numpy()
        left = other["exit_layer"].to_numpy()
        known = said > 0
        tables.append(confusion_of(left[known], said[known], depth))
        change = mine["correct"].to_numpy().astype(np.int64) - other["correct"].to_numpy().astype(np.int64)
        costs.append((change[known & (said < left)].sum() / len(mine), change[known & (said > left)].sum() / len(mine)))
    table = np.sum(tables, axis=0)
    total = int(table.sum())
    step = np.arange(depth)[None, :] - np.arange(depth)[:, None]  # predicted minus sequential
    return {
        "n": total,
        "confusion": table.tolist(),
        "tau_b": _mean([tau_b(one) for one in tables]),
        "hit": float(np.trace(table)) / total,
        "within_one": float(table[np.abs(step) <= 1].sum()) / total,
        "early": float(table[step < 0].sum()) / total,
        "late": float(table[step > 0].sum()) / total,
        "cost_early": float(np.mean([early for early, _ in costs])),
        "cost_late": float(np.mean([late for _, late in costs])),
    }


def _difference(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> float | None:
    """Accuracy minus the other side's, on the same samples."""
    return _mean([float(mine["correct"].mean() - other["correct"].mean()) for mine, other in pairs])


def _layers(row: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    ours, theirs = row["mean_layers"], other["mean_layers"]
    return ours - theirs if finite(ours) and finite(theirs) else None


def draw_confusion(title: str, records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """A heat map per predictor: the sequential exit downwards, the predicted one to the right; stronger is more samples.

    Returns:
        The SVG and a description in words.
    """
    columns, size, gap, head = 4, 138.0, 40.0, 34.0
    blocks = [list(same) for same in _by_base(records).values()]
    lines = sum(math.ceil(len(block) / columns) for block in blocks)
    canvas = Canvas(max(columns * (size + gap), width_of(title, 13)) + 12, 46 + lines * (size + gap + head - 10), title)
    canvas.text(6, 16, title, size=13)
    canvas.text(
        6,
        31,
        "down: layer where the sequential exit leaves; right: layer predicted; stronger: more samples (numbers: %); framed: hits",
        size=9.5,
    )
    line = 0
    for block in blocks:
        for number, record in enumerate(block):
            x0 = 6 + 18 + (number % columns) * (size + gap)
            y0 = 46 + (line + number // columns) * (size + gap + head - 10) + head
            _heat(canvas, record, x0, y0, size)
        line += math.ceil(len(block) / columns)
    words = "; ".join(f"{r['method']} {r['point']} {percent(r['hit'], 0)} % hits" for r in records)
    return canvas.svg(), f"{title}. {words}. All numbers are in the table."


def _by_base(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        blocks.setdefault(record["base"], []).append(record)
    return blocks


# Shares of samples below which a cell of a heat map is left white, and below which it does not say its number.
_VISIBLE, _WORTH_SAYING = 0.001, 0.01


def _heat(canvas: Canvas, record: Mapping[str, Any], x0: float, y0: float, size: float) -> None:
    table = record["confusion"]
    depth, total = len(table), record["n"]
    step = size / depth
    canvas.text(x0 - 14, y0 - 18, fitted(f"{record['method']} {record['point']}", 10, size + 34), size=10, bold=True)
    tau = minus(fixed(record["tau_b"]))
    canvas.text(x0 - 14, y0 - 6, f"hits {percent(record['hit'], 0)} %, tau-b {tau}", size=9)
    canvas.rect(x0, y0, size, size, "none", stroke=INK)
    for down in range(depth):
        for right in range(depth):
            share = table[down][right] / total
            x, y = x0 + right * step, y0 + down * step
            if share >= _VISIBLE:
                says = (
                    f"left at {down + 1}, predicted {right + 1}: {percent(share)} %" if share >= _WORTH_SAYING else ""
                )
                canvas.rect(x, y, step, step, INK, opacity=round(20 * share**0.5) / 20 or 0.05, says=says)
            if down == right:
                canvas.rect(x + 0.5, y + 0.5, step - 1, step - 1, "none", stroke=GREYS[0], above=1)
            if share >= _WORTH_SAYING and step >= 18:
                color = PAPER if share**0.5 > 0.5 else INK
                canvas.text(x + step / 2, y + step / 2 + 3.5, percent(share, 0), size=9, anchor="middle", color=color)
    for layer in sorted({0, depth // 2, depth - 1}):
        canvas.text(x0 + (layer + 0.5) * step, y0 + size + 11, str(layer + 1), size=8.5, anchor="middle")
        canvas.text(x0 - 4, y0 + (layer + 0.5) * step + 3, str(layer + 1), size=8.5, anchor="end")
