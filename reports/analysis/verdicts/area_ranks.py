"""Early exits by the area under their own curve of accuracy over mean layers, pooled over sets and seeds, with ranks.

The area is the mean accuracy over budgets from :data:`BUDGETS` of the depth (:func:`harness.measure.areas.area_weights`), so it
judges a method with its own rule and its own choices on dev. Only points at budgets count, because all of these methods have them;
the area of others, such as those at speeds, would depend on where they happen to lie. Methods without points at budgets are left
out. The unit is a test row, whose values under several seeds are averaged first; sets weigh equally.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from harness.measure.areas import area_weights, pooled_ranks
from harness.measure.detectable import detectable_mean
from harness.measure.paired_tests import stratified_difference
from reports.analysis.cell_settings import ROW_SETTING, grouped, values_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.run_contents import Reader
from reports.analysis.verdicts.paired_test import ALPHA
from reports.notation.marks import together
from reports.notation.numbers import finite

BUDGETS = (0.25, 0.75)
BUDGET = "budget="  # how the names of points at budgets begin
GRID = tuple(np.linspace(0.1, 1.0, 19).round(3).tolist())  # shares of the depth that the figure shows
# Sets of one pool have a language, and so a backbone, each; a method brings its executor and engine.
POOLED = tuple(name for name in ROW_SETTING if name not in ("backbone", "source", "executor", "compute", "engine"))


@dataclass(frozen=True, kw_only=True)
class AreaRank:
    """One method (or a variant of its points) over all sets of a pool.

    Attributes:
        data: real or synthetic.
        method, variant, kind, marks: of its rows.
        setting: values of the settings that the rows of the pool share, for telling pools apart.
        sets: labels of the pooled sets; ``missing``: those of the pool in which it has no curve.
        left_out: methods of the pool that exit early, but have fewer than two points at budgets.
        seeds: fewest seeds of a set; ``pairs``: test rows of all sets; ``points``: most points at budgets of a set.
        area, low, high: mean over sets with its 95 % stratified bootstrap interval, 0..1.
        rank, rank_low, rank_high: among the methods with all sets, 1 is best; None for a method without.
        behind, behind_low, behind_high: area less that of the best method, paired, with its 95 % interval.
        detectable: difference from the best that would have been found with 80 % power (one test at 5 %).
        curve: accuracy, mean over sets, at the shares of the depth in :data:`GRID`.
    """

    data: str
    method: str
    variant: str
    kind: str
    marks: str
    setting: tuple[Hashable, ...] = ()
    sets: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    seeds: int = 0
    pairs: int = 0
    points: int = 0
    area: float = 0.0
    low: float = 0.0
    high: float = 0.0
    rank: int | None = None
    rank_low: int | None = None
    rank_high: int | None = None
    behind: float | None = None
    behind_low: float | None = None
    behind_high: float | None = None
    detectable: float | None = None
    curve: tuple[float, ...] = ()

    @property
    def synthetic(self) -> bool:
        return self.data == "synthetic"

    @property
    def name(self) -> str:
        return f"{self.method} ({self.variant})" if self.variant else self.method


@dataclass(frozen=True)
class _Curve:
    """A method on one set: value per test row (mean over seeds), accuracies on the grid, and the rows it stands for."""

    rows: Sequence[ResultRow]
    values: pd.Series
    curve: np.ndarray
    seeds: int


def rank_areas(rows: Sequence[ResultRow], read: Reader) -> list[AreaRank]:
    """Return all methods and controls with at least two points at budgets, and a point short of full depth, best first.

    Args:
        rows: rows of the view, with their marks.
        read: per-sample rows of a cell.
    """
    eligible = [
        row for row in rows if row.kind in ("method", "control") and finite(row.mean_layers) and finite(row.depth)
    ]
    found: list[AreaRank] = []
    for same in grouped(eligible, lambda row: (row.data, values_of(row, POOLED))).values():
        found += _ranked(same, read)
    return found


def _ranked(rows: Sequence[ResultRow], read: Reader) -> list[AreaRank]:
    """Return the methods of one pool."""
    depths = {slug: max(row.depth or 0 for row in some) for slug, some in grouped(rows, lambda row: row.slug).items()}
    labels = {row.slug: row.label for row in rows}
    curves: dict[tuple[str, str], dict[str, _Curve]] = {}
    early = {(row.method, row.variant) for row in rows if (row.mean_layers or 0.0) < depths[row.slug] - 0.01}
    budgeted = {
        name
        for name, mine in grouped(rows, lambda row: (row.method, row.variant)).items()
        if len({row.base for row in mine if row.base.startswith(BUDGET)}) > 1
    }
    left_out = tuple(sorted(f"{method} ({variant})" if variant else method for method, variant in early - budgeted))
    able = [row for row in rows if (row.method, row.variant) in early & budgeted]
    rows = [row for row in able if row.base.startswith(BUDGET)]
    lines = grouped(rows, lambda row: (row.method, row.variant, row.slug, row.executor, row.compute, row.engine))
    for (method, variant, slug, *_), mine in lines.items():
        if (method, variant) in curves and slug in curves[method, variant]:
            continue  # the same method, run in another way: the same answers at the same layers
        if (curve := _curve(mine, depths[slug], read)) is not None:
            curves.setdefault((method, variant), {})[slug] = curve
    if len(curves) < 2:
        return []
    slugs = [slug for slug in depths if any(slug in one for one in curves.values())]
    full = [name for name, one in curves.items() if len(one) == len(slugs)]
    found = {name: replace(_described(name, one, labels, slugs), left_out=left_out) for name, one in curves.items()}
    if len(full) > 1:
        found |= _with_ranks({name: found[name] for name in full}, curves, slugs)
    return sorted(found.values(), key=lambda one: (one.rank is None, one.rank or 0, -one.area))


def _curve(rows: Sequence[ResultRow], depth: float, read: Reader) -> _Curve | None:
    """Return the curve of a method on a set; None without two points, or rows per sample."""
    if len(rows) < 2:
        return None
    by_seed: dict[int, list[tuple[float, pd.DataFrame]]] = {}
    for row in rows:
        for cell, layers in zip(row.cells, row.seed_layers, strict=True):
            if (frame := read(cell)) is not None:
                by_seed.setdefault(cell.seed, []).append((layers, frame))
    complete = [points for points in by_seed.values() if len(points) == len(rows)]
    if not complete:
        return None
    values, curves = [], []
    for points in complete:
        reached = [each for each, _ in points]
        right = pd.concat([frame["correct"].astype(np.float64) for _, frame in points], axis=1, join="inner")
        weights, guess = area_weights(reached, BUDGETS[0] * depth, BUDGETS[1] * depth)
        classes = max(2, points[0][1]["label"].nunique())
        values.append(pd.Series(right.to_numpy() @ weights + guess / classes, right.index))
        curves.append(_on_grid(reached, right.to_numpy().mean(0), 1 / classes, depth))
    mean = pd.concat(values, axis=1, join="inner").mean(axis=1)
    return _Curve(rows, mean, np.mean(curves, axis=0), len(complete))


def _on_grid(layers: Sequence[float], accuracy: np.ndarray, guess: float, depth: float) -> list[float]:
    """Return the accuracy that the shares of the depth in :data:`GRID` buy: the curve whose mean the area is."""
    order = np.argsort(layers, kind="stable")
    x, y = np.asarray(layers)[order], accuracy[order]
    if x[0] > 0:
        x, y = np.concatenate([[0.0], x]), np.concatenate([[guess], y])
    return [float(np.interp(share * depth, x, y)) for share in GRID]


def _described(
    name: tuple[str, str], curves: dict[str, _Curve], labels: dict[str, str], slugs: Sequence[str]
) -> AreaRank:
    there = [slug for slug in slugs if slug in curves]
    first = curves[there[0]].rows[0]
    pooled = stratified_difference([curves[slug].values.to_numpy() for slug in there])
    return AreaRank(
        data=first.data,
        method=name[0],
        variant=name[1],
        kind=first.kind,
        marks=together(*(row.marks for slug in there for row in curves[slug].rows)),
        setting=values_of(first, POOLED),
        sets=tuple(labels[slug] for slug in there),
        missing=tuple(labels[slug] for slug in slugs if slug not in curves),
        seeds=min(curves[slug].seeds for slug in there),
        pairs=sum(len(curves[slug].values) for slug in there),
        points=max(len(curves[slug].rows) for slug in there),
        area=pooled.mean,
        low=pooled.low,
        high=pooled.high,
        curve=tuple(np.mean([curves[slug].curve for slug in there], axis=0).tolist()),
    )


def _with_ranks(
    found: dict[tuple[str, str], AreaRank], curves: dict[tuple[str, str], dict[str, _Curve]], slugs: Sequence[str]
) -> dict[tuple[str, str], AreaRank]:
    """Return the methods with ranks and differences from the best, on the test rows that all of them have."""
    names = list(found)
    strata = [
        pd.concat([curves[name][slug].values for name in names], axis=1, join="inner").to_numpy().T for slug in slugs
    ]
    ranking = pooled_ranks(strata)
    best = int(np.argmax(ranking.mean))
    ranked = {}
    for at, name in enumerate(names):
        behind = stratified_difference([values[at] - values[best] for values in strata])
        ranked[name] = replace(
            found[name],
            rank=int(ranking.rank[at]),
            rank_low=int(ranking.rank_low[at]),
            rank_high=int(ranking.rank_high[at]),
        )
        if at != best:
            least = detectable_mean(behind.se, ALPHA)
            ranked[name] = replace(
                ranked[name], behind=behind.mean, behind_low=behind.low, behind_high=behind.high, detectable=least
            )
    return ranked
