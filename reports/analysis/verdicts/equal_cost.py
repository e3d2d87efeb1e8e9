"""Every method at equal cost on every set, and average ranks over sets with Friedman's and Nemenyi's tests (Demsar 2006).

Three endpoints: the accuracy that half of the reference's FLOPs buys, the accuracy that half of its time buys, and ELUE's score.
All of it follows from the stored results alone; no per-sample rows are needed. The unit is a set.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.measure.areas import average_ranks, budget_weights
from harness.measure.statistics import score_at_matched_cost
from reports.analysis.cell_settings import grouped, values_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.verdicts.area_ranks import POOLED
from reports.notation.marks import together
from reports.notation.numbers import finite

HALF = 0.5  # of the reference's cost
ELUE_BASELINE = "elasticbert"
# A method takes part in means and ranks if it has a value on this share of the sets; then only sets that all of them have count.
LEAST_SETS = 0.75
FEWEST_METHODS, FEWEST_SETS = 3, 2
CHEAPER = 0.95  # of the reference's cost; a method that is nowhere cheaper has nothing to do with half of it


def relative_flops(row: ResultRow) -> float | None:
    """Return FLOPs over those of the reference; None without one."""
    return 1 / row.ratio_linear if finite(row.ratio_linear) and row.ratio_linear > 0 else None


def relative_time(row: ResultRow) -> float | None:
    """Return wall time over that of the reference; None where it was not measured."""
    return 1 / row.speedup if finite(row.speedup) and row.speedup > 0 else None


COSTS: dict[str, Callable[[ResultRow], float | None]] = {"flops": relative_flops, "time": relative_time}
ENDPOINTS = (*COSTS, "score")


@dataclass(frozen=True)
class Line:
    """The operating points of one method (or one variant of its points) on one set.

    A method and those variants of it that differ in the number of layers are one line.
    """

    rows: tuple[ResultRow, ...]

    def mix_at(self, cost: str, budget: float) -> tuple[list[ResultRow], np.ndarray, float] | None:
        """Return the points with a cost, how much each counts at a budget, and how much guessing does.

        None where no point has this cost, or where guesses count and the number of classes was not recorded.
        """
        rows = [row for row in self.rows if finite(COSTS[cost](row))]
        if not rows:
            return None
        weights, guess = budget_weights([COSTS[cost](row) or 0.0 for row in rows], budget)
        return None if guess and not rows[0].classes else (rows, weights, guess)

    def accuracy_at(self, cost: str, budget: float) -> float | None:
        """Return the accuracy that a budget, relative to the reference's cost, buys."""
        if (mix := self.mix_at(cost, budget)) is None:
            return None
        rows, weights, guess = mix
        bought = float(sum(w * (row.accuracy or 0.0) for w, row in zip(weights, rows, strict=True)))
        return bought + (guess / rows[0].classes if guess else 0.0)

    def score_against(self, baseline: Line | None) -> float | None:
        """Return ELUE's score against a baseline, 0..1; None where no point can be scored."""
        if baseline is None:
            return None
        sides = [
            ([row.flops_linear or 0.0 for row in line.rows], [row.accuracy or 0.0 for row in line.rows])
            for line in (self, baseline)
        ]
        return score_at_matched_cost(*sides[0], *sides[1]).score


Name = tuple[str, str]  # method, variant of its points
Lines = dict[Name, dict[str, Line]]  # on each set, by its label


def lines_of(rows: Iterable[ResultRow], families: Mapping[str, str]) -> Lines:
    """Return the lines of all methods.

    Args:
        rows: of one pool.
        families: method -> the method whose line it belongs to.
    """
    eligible = [row for row in rows if row.kind == "method" and finite(row.accuracy)]
    found: dict[Name, dict[str, list[ResultRow]]] = {}
    for same in grouped(eligible, lambda row: (row.method, row.variant, row.label)).values():
        # The same method, run in another way, gives the same answers: the first way counts.
        first = values_of(same[0], _WAY)
        mine = [row for row in same if values_of(row, _WAY) == first]
        row = mine[0]
        name = families.get(row.method, row.method), row.variant
        found.setdefault(name, {}).setdefault(row.label, []).extend(mine)
    return {name: {label: Line(tuple(rows)) for label, rows in by_set.items()} for name, by_set in found.items()}


_WAY = ("executor", "compute", "engine")


@dataclass(frozen=True, kw_only=True)
class OnSets:
    """One method on every set.

    Attributes:
        method, variant, marks: of its rows.
        values: label of a set -> the endpoint there, 0..1; None where it is missing.
        mean, rank: over the sets that count; None for a method that takes no part.
    """

    method: str
    variant: str
    marks: str
    values: Mapping[str, float | None]
    mean: float | None = None
    rank: float | None = None

    @property
    def name(self) -> str:
        return f"{self.method} ({self.variant})" if self.variant else self.method


@dataclass(frozen=True, kw_only=True)
class SetRanks:
    """All methods of a pool by one endpoint.

    Attributes:
        data: real or synthetic.
        endpoint: one of :data:`ENDPOINTS`.
        setting: values of the settings that the rows of the pool share, for telling pools apart.
        sets: labels of all sets of the pool.
        counted: those that means and ranks are over.
        absent: sets that the profile names, or that have rows, but none of this pool.
        methods: the best average rank first, then those that take no part.
        p, critical_difference: of :func:`harness.measure.areas.average_ranks`; None without ranks.
    """

    data: str
    endpoint: str
    setting: tuple[Hashable, ...]
    sets: tuple[str, ...]
    counted: tuple[str, ...]
    absent: tuple[str, ...]
    methods: tuple[OnSets, ...]
    p: float | None = None
    critical_difference: float | None = None

    @property
    def synthetic(self) -> bool:
        return self.data == "synthetic"

    @property
    def ranked(self) -> list[OnSets]:
        """The methods with an average rank, best first."""
        return [one for one in self.methods if one.rank is not None]

    def missing(self) -> dict[str, list[str]]:
        """Return set that does not count -> methods that take part and have no value there."""
        part = [one for one in self.methods if one.mean is not None]
        return {
            label: [one.name for one in part if one.values[label] is None]
            for label in self.sets
            if label not in self.counted
        }


def pools_of(rows: Sequence[ResultRow]) -> list[list[ResultRow]]:
    """Return rows of real and of synthetic data apart, and of these those that share all settings but the backbone."""
    return list(grouped(rows, lambda row: (row.data, values_of(row, POOLED))).values())


def absent_from(pool: Sequence[ResultRow], rows: Iterable[ResultRow], expected: Iterable[str]) -> tuple[str, ...]:
    """Return the datasets that should be in a pool and are not: those expected, and those of other pools of this kind of data."""
    known = {row.dataset for row in pool}
    others = [row.dataset for row in rows if row.synthetic == pool[0].synthetic]
    return tuple(name for name in dict.fromkeys((*expected, *others)) if name not in known)


def rank_over_sets(
    rows: Sequence[ResultRow], families: Mapping[str, str], expected: Sequence[str] = ()
) -> list[SetRanks]:
    """Return every endpoint of every pool of two or more sets.

    Args:
        rows: rows of the view, with their marks.
        families: :func:`reports.analysis.run_contents.read_families`.
        expected: datasets that the run should have.
    """
    families = {name: base for name, base in families.items() if base in {row.method for row in rows}}
    found = []
    for pool in pools_of(rows):
        lines = lines_of(pool, families)
        labels = tuple(dict.fromkeys(row.label for row in pool))
        if len(labels) < FEWEST_SETS:
            continue
        baselines = lines.get((ELUE_BASELINE, ""), {})
        for endpoint in ENDPOINTS:
            eligible = [(name, by_set) for name, by_set in lines.items() if _is_cheaper(by_set.values(), endpoint)]
            methods = [_on_sets(name, by_set, labels, endpoint, baselines) for name, by_set in eligible]
            methods = [one for one in methods if any(value is not None for value in one.values.values())]
            if methods:
                one = SetRanks(
                    data=pool[0].data,
                    endpoint=endpoint,
                    setting=values_of(pool[0], POOLED),
                    sets=labels,
                    counted=(),
                    absent=absent_from(pool, rows, expected),
                    methods=tuple(methods),
                )
                found.append(_ranked(one))
    return found


def _is_cheaper(lines: Iterable[Line], endpoint: str) -> bool:
    """Return whether a method is cheaper than the reference on any set; costs play no part in ELUE's score."""
    cost = COSTS.get(endpoint)
    return cost is None or any((cost(row) or 1.0) < CHEAPER for line in lines for row in line.rows)


def _on_sets(
    name: Name, by_set: Mapping[str, Line], labels: Sequence[str], endpoint: str, baselines: Mapping[str, Line]
) -> OnSets:
    def value(label: str) -> float | None:
        line = by_set.get(label)
        if line is None:
            return None
        return line.score_against(baselines.get(label)) if endpoint == "score" else line.accuracy_at(endpoint, HALF)

    marks = together(*(row.marks for line in by_set.values() for row in line.rows))
    return OnSets(method=name[0], variant=name[1], marks=marks, values={label: value(label) for label in labels})


def _ranked(one: SetRanks) -> SetRanks:
    """Return it with means and ranks over the sets that all methods have that have most of them."""
    least = LEAST_SETS * len(one.sets)
    part = [m for m in one.methods if sum(value is not None for value in m.values.values()) >= least]
    rest = [replace(m, mean=None, rank=None) for m in one.methods if m not in part]
    counted = tuple(label for label in one.sets if part and all(m.values[label] is not None for m in part))
    if not counted:
        return replace(one, methods=(*part, *rest))
    values = np.array([[m.values[label] for label in counted] for m in part], dtype=np.float64)
    part = [replace(m, mean=float(row.mean())) for m, row in zip(part, values, strict=True)]
    if len(part) < FEWEST_METHODS or len(counted) < FEWEST_SETS:
        order = sorted(part, key=lambda m: -(m.mean or 0.0))
        return replace(one, methods=(*order, *rest), counted=counted)
    test = average_ranks(values)
    part = [replace(m, rank=float(rank)) for m, rank in zip(part, test.average, strict=True)]
    order = sorted(part, key=lambda m: (m.rank or 0.0, -(m.mean or 0.0)))
    methods = (*order, *rest)
    return replace(one, methods=methods, counted=counted, p=test.p, critical_difference=test.critical_difference)
