"""Verdicts on predicted exits over all sets and seeds of a run: one endpoint that was stated beforehand, and secondary ones.

The unit is a test row: its differences under several seeds are averaged first. Rows are drawn inside their set, and sets weigh
equally (:func:`harness.measure.paired_tests.stratified_difference`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.measure.detectable import detectable_by_mcnemar, detectable_mean, provable_margin
from harness.measure.many_tests import holm
from harness.measure.paired_tests import stratified_difference, worst_case
from reports.analysis.cell_settings import ROW_SETTING, grouped, values_of
from reports.analysis.roles import CONSTANT, SEQUENTIAL, VERIFIES
from reports.analysis.verdicts.control_tests import (
    AHEAD,
    BEHIND,
    KEEPS_UP,
    NAMES,
    NOT_FOUND,
    NOT_SHOWN,
    SAME_ANSWERS,
    UNKNOWN,
    ControlTest,
)
from reports.analysis.verdicts.layer_answers import ACCURACY
from reports.analysis.verdicts.paired_test import ALPHA, MARGIN
from reports.notation.marks import together

# The primary endpoint, stated before any run was measured: accuracy at the first of these points that a method has, minus that of
# the hull of constant depths at equal mean layers, pooled over sets and seeds.
PRIMARY_POINTS = ("budget=0.5", "speed=0.5")
PRIMARY_CONTROL, PRIMARY_MEASURE = CONSTANT, ACCURACY
PRIMARY_TEXT = (
    f"{PRIMARY_MEASURE} at {PRIMARY_POINTS[0]} (or, where a method has no budgets, {PRIMARY_POINTS[1]}) minus that of the "
    f"{NAMES[PRIMARY_CONTROL]} at equal mean layers, over all sets and seeds"
)
# Points at which a method that looks first is compared with the sequential exit: both run about the same layers there.
EQUAL_COST_POINTS = "speed="
RESAMPLES = 4_000
# Sets of one pool have a language, and so a backbone, each.
_POOLED = tuple(name for name in ROW_SETTING if name not in ("backbone", "source"))


@dataclass(frozen=True, kw_only=True)
class PooledTest:
    """One endpoint of one method, over sets and seeds.

    Attributes:
        data: real or synthetic.
        method, point, marks: of the rows.
        primary: whether it is the endpoint stated beforehand.
        measure, control_role, control: what is compared (:class:`ControlTest`).
        setting: values of the settings that its rows share, for telling pools apart.
        sets: labels of the sets pooled; ``missing``: label -> why a set could not be.
        seeds: fewest and most seeds of a set; ``pairs``: test rows of all sets.
        rows_alike: rows of a single set that would give a mean of the same precision; fewer where sets are unequal.
        mean_layers, layer_ratio: means over sets of the row's layers, and of them over the control's.
        own_value, control_value: means over sets of the measure on both sides, 0..1.
        difference, se, low, high: mean over sets, its standard error, and the 95 % stratified bootstrap interval.
        worst: one-sided 95 % lower bound.
        p, p_adjusted: two-sided; Holm over the primary endpoints of all methods, or over the secondary ones of a method.
        detectable: difference found with 80 % power at alpha over the size of the family; where the question is whether the row
            keeps up, the margin that would have been shown with 80 % power if both sides were equally good.
    """

    data: str
    method: str
    point: str
    marks: str
    primary: bool
    measure: str
    control_role: str | None
    control: str
    setting: tuple[Hashable, ...] = ()
    sets: tuple[str, ...] = ()
    missing: dict[str, str]
    seeds: tuple[int, int] = (0, 0)
    pairs: int = 0
    rows_alike: int = 0
    mean_layers: float | None = None
    layer_ratio: float | None = None
    own_value: float | None = None
    control_value: float | None = None
    difference: float | None = None
    se: float | None = None
    low: float | None = None
    high: float | None = None
    worst: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    detectable: float | None = None

    @property
    def synthetic(self) -> bool:
        return self.data == "synthetic"

    @property
    def asks_to_keep_up(self) -> bool:
        return self.control_role == SEQUENTIAL

    @property
    def endpoint(self) -> str:
        return "primary" if self.primary else "secondary"

    @property
    def verdict(self) -> str:
        """What was shown, in the words of :attr:`ControlTest.verdict`."""
        if self.difference is None or self.worst is None:
            return UNKNOWN
        if self.asks_to_keep_up and self.worst > -MARGIN:
            return KEEPS_UP
        if self.p_adjusted is not None and self.p_adjusted < ALPHA:
            return AHEAD if self.difference > 0 else BEHIND
        if self.asks_to_keep_up:
            return NOT_SHOWN
        return NOT_FOUND if self.se else SAME_ANSWERS


def pool(tests: Sequence[ControlTest]) -> list[PooledTest]:
    """Return the pooled endpoints of every method: the primary one first, then the secondary ones.

    At the point of the primary endpoint every control and measure is an endpoint; at other points only accuracy against the hull
    and, at speeds, that of methods that look first against the sequential exit.
    A set takes part where the test could be made at equal layers; the others are named in ``missing``.

    Args:
        tests: of all sets.
    """
    points = _primary_points(tests)
    chosen = []
    for same in _pools(tests):
        test = same[0]
        at_primary = test.base == points.get((test.data, test.method))
        is_endpoint = test.expected and (test.control_role, test.measure) == (PRIMARY_CONTROL, PRIMARY_MEASURE)
        if not (at_primary or is_endpoint or _at_equal_cost(test)):
            continue
        one = _pooled(same, primary=at_primary and is_endpoint)
        if one.primary or one.sets:  # what secondary endpoints lack is in the table of all comparisons
            chosen.append(one)
    found = [*_adjusted(chosen), *_unjudged(tests)]
    first = {(one.data, one.method, one.point) for one in found if one.primary}
    return sorted(
        found,
        key=lambda one: (
            one.data,
            one.method,
            not one.primary,
            (one.data, one.method, one.point) not in first,
            one.point,
        ),
    )


def _at_equal_cost(test: ControlTest) -> bool:
    looks = test.role == VERIFIES and test.asks_to_keep_up and test.measure == ACCURACY
    return looks and test.base.startswith(EQUAL_COST_POINTS)


def _primary_points(tests: Sequence[ControlTest]) -> dict[tuple[str, str], str]:
    """Return (data, method) -> the point of its primary endpoint."""
    found = {}
    for key, same in grouped(tests, lambda test: (test.data, test.method)).items():
        bases = {test.base for test in same}
        if point := next((one for one in PRIMARY_POINTS if one in bases), None):
            found[key] = point
    return found


def _pools(tests: Sequence[ControlTest]) -> list[list[ControlTest]]:
    """Return tests of different sets that are one endpoint; several backbones of one set are several pools."""

    def key(test: ControlTest) -> tuple[Hashable, ...]:
        about = (test.data, test.method, test.point, test.measure, test.control_role or test.control, test.expected)
        return (*about, *values_of(test, _POOLED))

    found = []
    for same in grouped(tests, key).values():
        if len({test.slug for test in same}) == len(same):
            found.append(same)
        else:
            found += grouped(same, lambda test: test.backbone).values()
    return found


def _pooled(same: Sequence[ControlTest], *, primary: bool) -> PooledTest:
    """Return one endpoint over its sets."""
    first = same[0]
    used = [test for test in same if test.deltas is not None and test.equal_layers]
    about = PooledTest(
        data=first.data,
        method=first.method,
        point=first.point,
        marks=together(*(test.marks for test in same)),
        primary=primary,
        measure=first.measure,
        control_role=first.control_role,
        control=first.control,
        setting=values_of(first, _POOLED),
        missing={test.label: test.reason or "layers not equal" for test in same if test not in used},
    )
    if not used:
        return about
    strata = [test.deltas for test in used if test.deltas is not None]
    found = stratified_difference(strata, 1 - ALPHA, RESAMPLES)
    ratios = [value for test in used if (value := test.layer_ratio) is not None]
    return replace(
        about,
        sets=tuple(test.label for test in used),
        seeds=(min(test.seeds for test in used), max(test.seeds for test in used)),
        pairs=sum(test.pairs for test in used),
        rows_alike=_rows_alike(used),
        mean_layers=float(np.mean([test.mean_layers or 0.0 for test in used])),
        layer_ratio=float(np.mean(ratios)) if ratios else None,
        own_value=float(np.mean([test.own_value for test in used])),
        control_value=float(np.mean([test.control_value for test in used])),
        difference=found.mean,
        se=found.se,
        low=found.low,
        high=found.high,
        # Without any differing row the bootstrap has no width; Tango's bound has.
        worst=min(found.lower, worst_case(0, 0, _rows_alike(used), ALPHA)),
        p=found.p,
    )


def _rows_alike(used: Sequence[ControlTest]) -> int:
    """Return how many rows of a single set would give a mean of the same precision: K^2 / sum over sets of 1 / n."""
    return max(1, round(len(used) ** 2 / sum(1 / test.pairs for test in used)))


def _adjusted(tests: Sequence[PooledTest]) -> list[PooledTest]:
    """Return the tests with adjusted p-values and what they could have found."""
    found = list(tests)
    tested = [i for i, test in enumerate(tests) if test.p is not None]

    def family(i: int) -> tuple[Hashable, ...]:
        return (tests[i].data, tests[i].primary, None if tests[i].primary else tests[i].method)

    for same in grouped(tested, family).values():
        for i, p in zip(same, holm([tests[i].p or 0.0 for i in same]), strict=True):
            se, alpha = tests[i].se or 0.0, ALPHA / len(same)
            if tests[i].asks_to_keep_up:
                least = max(provable_margin(se), -worst_case(0, 0, tests[i].rows_alike, ALPHA))
            else:
                least = max(detectable_mean(se, alpha), detectable_by_mcnemar(tests[i].rows_alike, 0, alpha) or 0.0)
            found[i] = replace(tests[i], p_adjusted=p, detectable=least)
    return found


def _unjudged(tests: Sequence[ControlTest]) -> list[PooledTest]:
    """Return a primary endpoint without numbers for every method that has no point for it."""
    points = _primary_points(tests)
    why = f"it has no point {' or '.join(PRIMARY_POINTS)}"
    return [
        PooledTest(
            data=data,
            method=method,
            point="",
            marks=together(*(test.marks for test in same)),
            primary=True,
            measure=PRIMARY_MEASURE,
            control_role=PRIMARY_CONTROL,
            control=NAMES[PRIMARY_CONTROL],
            missing={test.label: why for test in same},
        )
        for (data, method), same in grouped(tests, lambda test: (test.data, test.method)).items()
        if (data, method) not in points
    ]
