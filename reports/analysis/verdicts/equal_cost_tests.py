"""Two methods at equal cost, over all sets and seeds: paired tests of the accuracy that a budget buys.

The unit is a test row. Its value is what a mix of two operating points expects (:mod:`reports.analysis.verdicts.equal_cost`), and
its differences under several seeds are averaged first. Rows are drawn inside their set, and sets weigh equally.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from harness.measure.detectable import detectable_by_mcnemar, detectable_mean
from harness.measure.many_tests import holm
from harness.measure.paired_tests import mean_difference, stratified_difference
from reports.analysis.cell_settings import values_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.roles import PREDICTS, VERIFIES
from reports.analysis.run_contents import Reader
from reports.analysis.verdicts.area_ranks import POOLED
from reports.analysis.verdicts.control_tests import AHEAD, BEHIND, NOT_FOUND, SAME_ANSWERS, UNKNOWN
from reports.analysis.verdicts.equal_cost import COSTS, HALF, Line, Lines, Name, lines_of, pools_of
from reports.analysis.verdicts.paired_test import ALPHA, FEWEST
from reports.notation.marks import together
from reports.notation.numbers import finite

# Methods that predict their exits are compared with these, and with those that the profile names.
RIVALS = ("fastbert", "distilbert", "tinybert")


@dataclass(frozen=True, kw_only=True)
class EqualCostTest:
    """One method against one rival at half of the reference's cost.

    Attributes:
        data: real or synthetic.
        cost: ``flops`` or ``time``.
        method, variant, rival, marks: of both lines.
        setting: values of the settings that the rows of the pool share, for telling pools apart.
        sets: labels of the sets compared; ``missing``: label -> why a set could not be.
        seeds: fewest and most seeds of a set; ``pairs``: test rows of all sets.
        difference, low, high: mean over sets with its 95 % stratified bootstrap interval, 0..1.
        se, p, p_adjusted: standard error; two-sided p, adjusted (Holm) over all tests at this cost; None where fewer than
            :data:`FEWEST` test rows differ, which say too little about their spread.
        detectable: difference found with 80 % power at the strictest level of the family.
        rows_alike: rows of a single set that would give a mean of the same precision; fewer where sets are unequal.
        ahead, behind: sets on which the method is ahead, or behind (t-test, adjusted over the sets of this pair by Holm).
        training: training FLOPs over those of the rival, mean over sets; None where not counted.
    """

    data: str
    cost: str
    method: str
    variant: str
    rival: str
    marks: str
    setting: tuple[Hashable, ...]
    sets: tuple[str, ...] = ()
    missing: Mapping[str, str]
    seeds: tuple[int, int] = (0, 0)
    pairs: int = 0
    rows_alike: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    se: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    detectable: float | None = None
    ahead: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    training: float | None = None

    @property
    def synthetic(self) -> bool:
        return self.data == "synthetic"

    @property
    def name(self) -> str:
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def verdict(self) -> str:
        """What was shown, in the words of :attr:`reports.analysis.verdicts.control_tests.ControlTest.verdict`."""
        if self.difference is None:
            return UNKNOWN
        if self.p_adjusted is not None and self.p_adjusted < ALPHA:
            return AHEAD if self.difference > 0 else BEHIND
        return NOT_FOUND if self.se else SAME_ANSWERS


def compare_at_equal_cost(
    rows: Sequence[ResultRow], read: Reader, families: Mapping[str, str], named: Mapping[str, Sequence[str]]
) -> list[EqualCostTest]:
    """Return every pair at every cost, by pool.

    Args:
        rows: rows of the view, with their marks.
        read: per-sample rows of a cell.
        families: :func:`reports.analysis.run_contents.read_families`.
        named: method -> others that the profile compares it with.
    """
    families = {name: base for name, base in families.items() if base in {row.method for row in rows}}
    found: list[EqualCostTest] = []
    for pool in pools_of(rows):
        lines = lines_of(pool, families)
        for cost in COSTS:
            tests = [_compared(pool, cost, pair, lines, read) for pair in _pairs(lines, named)]
            found += _adjusted([test for test in tests if test.sets])
    return found


def _pairs(lines: Lines, named: Mapping[str, Sequence[str]]) -> list[tuple[Name, Name]]:
    pairs = []
    for name, by_set in lines.items():
        role = next(iter(by_set.values())).rows[0].role
        rivals = (*(RIVALS if role in (PREDICTS, VERIFIES) else ()), *named.get(name[0], ()))
        pairs += [(name, (rival, "")) for rival in dict.fromkeys(rivals) if rival != name[0] and (rival, "") in lines]
    return pairs


def _compared(
    pool: Sequence[ResultRow], cost: str, pair: tuple[Name, Name], lines: Lines, read: Reader
) -> EqualCostTest:
    (method, variant), (rival, _) = pair
    ours, theirs = (lines[name] for name in pair)
    deltas: dict[str, tuple[np.ndarray, int]] = {}
    missing: dict[str, str] = {}
    for label in dict.fromkeys(row.label for row in pool):
        if label not in ours or label not in theirs:
            missing[label] = f"{method if label not in ours else rival} was not measured there"
            continue
        found = _deltas(ours[label], theirs[label], cost, read)
        if isinstance(found, str):
            missing[label] = found
        else:
            deltas[label] = found
    both = [row for side in (ours, theirs) for line in side.values() for row in line.rows]
    test = EqualCostTest(
        data=pool[0].data,
        cost=cost,
        method=method,
        variant=variant,
        rival=rival,
        marks=together(*(row.marks for row in both)),
        setting=values_of(pool[0], POOLED),
        missing=missing,
    )
    if not deltas:
        return test
    strata = [values for values, _ in deltas.values()]
    pooled = stratified_difference(strata, 1 - ALPHA)
    ahead, behind = _on_single_sets({label: values for label, (values, _) in deltas.items()})
    differing = sum(int(np.count_nonzero(values)) for values in strata)
    seeds = [count for _, count in deltas.values()]
    return replace(
        test,
        sets=tuple(deltas),
        seeds=(min(seeds), max(seeds)),
        pairs=sum(map(len, strata)),
        rows_alike=max(1, round(len(strata) ** 2 / sum(1 / len(values) for values in strata))),
        difference=pooled.mean,
        low=pooled.low,
        high=pooled.high,
        se=pooled.se,
        p=pooled.p if differing >= FEWEST else None,
        ahead=ahead,
        behind=behind,
        training=_training([(ours[label], theirs[label]) for label in deltas]),
    )


def _deltas(ours: Line, theirs: Line, cost: str, read: Reader) -> tuple[np.ndarray, int] | str:
    """Return the difference of every test row, float [n], and the number of seeds behind it; or why there is none."""
    mixes = [line.mix_at(cost, HALF) for line in (ours, theirs)]
    if mixes[0] is None or mixes[1] is None:
        return "no time was measured" if cost == "time" else "no reference, or the number of classes is not known"
    frames: list[list[tuple[float, dict[int, pd.Series]]]] = []
    for mix in mixes:
        assert mix is not None
        points = [(row, float(weight)) for row, weight in zip(mix[0], mix[1], strict=True) if weight > 0]
        frames.append(
            [
                (weight, {cell.seed: rows["correct"] for cell in row.cells if (rows := read(cell)) is not None})
                for row, weight in points
            ]
        )
    every = [by_seed for side in frames for _, by_seed in side]
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in every)))
    if not seeds:
        return "per-sample rows are missing or share no seed"
    values = []
    for mix, side in zip(mixes, frames, strict=True):
        assert mix is not None
        parts = [pd.concat([by_seed[seed] for seed in seeds], axis=1, join="inner").mean(axis=1) for _, by_seed in side]
        mixed = pd.concat(parts, axis=1, join="inner") @ np.array([weight for weight, _ in side])
        values.append(mixed + (mix[2] / mix[0][0].classes if mix[2] else 0.0))
    delta = (values[0] - values[1]).dropna()
    return (delta.to_numpy(dtype=np.float64), len(seeds)) if len(delta) else "the two share no test row"


def _on_single_sets(deltas: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sets with a difference above 0 and below 0; adjusted over the sets where enough rows differ for a t-test."""
    tests = {label: test for label, values in deltas.items() if (test := mean_difference(values)) is not None}
    tests = {label: test for label, test in tests.items() if test.informative >= FEWEST}
    adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    found = [label for label in tests if adjusted[label] < ALPHA]
    return tuple(one for one in found if tests[one].mean > 0), tuple(one for one in found if tests[one].mean < 0)


def _training(pairs: Sequence[tuple[Line, Line]]) -> float | None:
    """Return the mean over sets of the training FLOPs of one side over those of the other; the dearest fit of a line counts."""
    ratios = []
    for sides in pairs:
        flops = [
            max((row.train_flops or 0.0 for row in line.rows if finite(row.train_flops)), default=0.0) for line in sides
        ]
        if min(flops) > 0:
            ratios.append(flops[0] / flops[1])
    return float(np.mean(ratios)) if ratios else None


def _adjusted(tests: Sequence[EqualCostTest]) -> list[EqualCostTest]:
    """Return the tests of one cost with adjusted p-values, and what they could have found at the strictest level."""
    tested = [test.p for test in tests if test.p is not None]
    adjusted = iter(holm(tested))
    alpha = ALPHA / max(1, len(tested))

    def least(test: EqualCostTest) -> float:
        return max(detectable_mean(test.se or 0.0, alpha), detectable_by_mcnemar(test.rows_alike, 0, alpha) or 0.0)

    return [
        replace(test, p_adjusted=None if test.p is None else next(adjusted), detectable=least(test)) for test in tests
    ]
