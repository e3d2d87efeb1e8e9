"""Every method at every operating point, on average over sets: accuracy, what it loses against the reference, cost and speed-up.

Sets have equal weight. Means are over the sets that all methods have; a method that lacks too many has no mean, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean

from harness.measure.statistics import spread
from reports.analysis.cell_settings import grouped, values_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.verdicts.area_ranks import POOLED
from reports.analysis.verdicts.equal_cost import FEWEST_SETS, LEAST_SETS, absent_from, pools_of
from reports.notation.marks import together
from reports.notation.numbers import finite

_NORMAL = 1.96  # 95 %
_SAME = ("kind", "method", "point", "executor", "compute", "engine")


@dataclass(frozen=True, kw_only=True)
class SetMean:
    """A method at an operating point over the sets that count; everything but its name is None where it takes no part.

    Attributes:
        kind, method, point, marks: of its rows.
        rows: label of a set -> its row, of all sets that it was measured on.
        accuracy: mean, 0..1.
        low, high: 95 % interval over test rows, by normal theory; fits and sets are fixed.
        seeds: fewest seeds of a set.
        seeds_low, seeds_high: 95 % interval of the mean over seeds (Student's t); None below two seeds.
        lost: accuracy of the reference less its own, on the same sets.
        speedup, ratio_linear: geometric means; None where they are missing on a set.
        layers: mean layers over the reference's.
        train_ratio: training FLOPs over those of the reference.
    """

    kind: str
    method: str
    point: str
    marks: str
    rows: dict[str, ResultRow]
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    seeds_low: float | None = None
    seeds_high: float | None = None
    lost: float | None = None
    speedup: float | None = None
    ratio_linear: float | None = None
    layers: float | None = None
    train_ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class SetMeans:
    """All methods of a pool (:func:`reports.analysis.verdicts.equal_cost.pools_of`).

    Attributes:
        data: real or synthetic.
        setting: values of the settings that the rows of the pool share, for telling pools apart.
        sets: labels of all sets of the pool, ``counted``: those that means are over.
        absent: sets that the profile names, or that have rows, but none of this pool.
        missing: label of a set that does not count -> what was not measured there.
        rest: methods at points that take no part.
        methods: those that do.
        references: label of a set -> the row of the reference.
    """

    data: str
    setting: tuple[Hashable, ...]
    sets: tuple[str, ...]
    counted: tuple[str, ...]
    absent: tuple[str, ...]
    missing: dict[str, list[str]]
    rest: tuple[str, ...]
    methods: tuple[SetMean, ...]
    references: dict[str, ResultRow]

    @property
    def synthetic(self) -> bool:
        return self.data == "synthetic"


def lost_by(row: ResultRow, reference: ResultRow | None) -> float | None:
    """Return how much less accurate a row is than its reference, 0..1; None without one."""
    if reference is None or not finite(row.accuracy) or not finite(reference.accuracy):
        return None
    return reference.accuracy - row.accuracy


def means_over_sets(rows: Sequence[ResultRow], expected: Sequence[str] = ()) -> list[SetMeans]:
    """Return the means of every pool of two or more sets.

    Args:
        rows: rows of the view, with their marks.
        expected: datasets that the run should have.
    """
    found = []
    for pool in pools_of([row for row in rows if finite(row.accuracy)]):
        labels = tuple(dict.fromkeys(row.label for row in pool))
        if len(labels) < FEWEST_SETS:
            continue
        wide = [_wide(same) for same in grouped(pool, lambda row: values_of(row, _SAME)).values()]
        part = [one for one in wide if len(one.rows) >= LEAST_SETS * len(labels)]
        counted = tuple(label for label in labels if part and all(label in one.rows for one in part))
        lacking = {
            label: [f"{one.method} {one.point}" for one in part if label not in one.rows]
            for label in labels
            if label not in counted
        }
        references = {row.label: row for row in pool if row.is_reference}
        found.append(
            SetMeans(
                data=pool[0].data,
                setting=values_of(pool[0], POOLED),
                sets=labels,
                counted=counted,
                absent=absent_from(pool, rows, expected),
                missing=lacking,
                rest=tuple(f"{one.method} {one.point}" for one in wide if one not in part),
                methods=tuple(_averaged(one, counted, references) for one in part) if counted else (),
                references=references,
            )
        )
    return found


def _wide(same: Sequence[ResultRow]) -> SetMean:
    row = same[0]
    marks = together(*(one.marks for one in same))
    rows = {one.label: one for one in same}
    return SetMean(kind=row.kind, method=row.method, point=row.point, marks=marks, rows=rows)


def _averaged(one: SetMean, counted: Sequence[str], references: dict[str, ResultRow]) -> SetMean:
    rows = [one.rows[label] for label in counted]
    accuracy = fmean(row.accuracy or 0.0 for row in rows)
    error = math.sqrt(sum((row.accuracy or 0.0) * (1 - (row.accuracy or 0.0)) / row.n for row in rows)) / len(rows)
    of_seeds = spread(_by_seed(rows))
    return replace(
        one,
        accuracy=accuracy,
        low=max(0.0, accuracy - _NORMAL * error),
        high=min(1.0, accuracy + _NORMAL * error),
        seeds=min(row.seeds for row in rows),
        seeds_low=of_seeds.low,
        seeds_high=of_seeds.high,
        lost=_if_all(lost_by(row, references.get(row.label)) for row in rows),
        speedup=_if_all((row.speedup for row in rows), geometric=True),
        ratio_linear=_if_all((row.ratio_linear for row in rows), geometric=True),
        layers=_if_all(_over(row, references, "mean_layers") for row in rows),
        train_ratio=_if_all(_over(row, references, "train_flops") for row in rows),
    )


def _by_seed(rows: Sequence[ResultRow]) -> list[float]:
    """Return the mean over sets for every seed that all of them have."""
    by_set = [{cell.seed: value for cell, value in zip(row.cells, row.seed_accuracies, strict=True)} for row in rows]
    seeds = sorted(set.intersection(*map(set, by_set)))
    return [fmean(values[seed] for values in by_set) for seed in seeds] or [math.nan]


def _over(row: ResultRow, references: dict[str, ResultRow], name: str) -> float | None:
    below = getattr(references.get(row.label), name, None)
    above = getattr(row, name)
    return above / below if finite(above) and finite(below) and below > 0 else None


def _if_all(values: Iterable[float | None], *, geometric: bool = False) -> float | None:
    """Return the mean of values that are all there, else None."""
    known = list(values)
    good = [value for value in known if finite(value) and (value > 0 or not geometric)]
    if len(good) < len(known):
        return None
    return geometric_mean(good) if geometric else fmean(good)
