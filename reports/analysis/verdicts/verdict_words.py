"""Verdicts as sentences. A missing finding always comes with the difference that could have been found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.measure.detectable import POWER
from reports.analysis.cell_settings import grouped
from reports.analysis.verdicts.control_tests import (
    AHEAD,
    BEHIND,
    KEEPS_UP,
    NOT_FOUND,
    NOT_SHOWN,
    UNEQUAL,
    UNKNOWN,
    ControlTest,
)
from reports.analysis.verdicts.layer_answers import Reachable
from reports.analysis.verdicts.paired_test import MARGIN, NARROW_MARGIN
from reports.analysis.verdicts.pooled_verdicts import PooledTest
from reports.notation.numbers import finite, fixed, points

WITH_POWER = f"with {100 * POWER:g} % power"
MARGIN_TEXT, NARROW_TEXT = (f"{100 * margin:g} points" for margin in (MARGIN, NARROW_MARGIN))
# Where full depth is worth less than this over the first head, exits at any depth are about as good.
LEAST_DEPTH = 0.02


def size(value: object) -> str:
    """Return a difference without its sign, in points."""
    return fixed(100 * abs(value), 1) if finite(value) else "unknown"


def bounds_text(low: object, high: object) -> str:
    """Return ``-0.6 to +1.2``: an en dash would be read as a minus sign."""
    return f"{points(low)} to {points(high)}"


def sentence(test: PooledTest) -> str:
    """Return what was found, as the end of a sentence."""
    verdict = test.verdict
    interval = f"95 % interval {bounds_text(test.low, test.high)}"
    if verdict == UNKNOWN:
        return f"{UNKNOWN}: {'; '.join(dict.fromkeys(test.missing.values()))}"
    if verdict in (AHEAD, BEHIND):
        return f"{verdict} by {size(test.difference)} points ({interval})"
    if verdict == NOT_FOUND:
        return (
            f"{NOT_FOUND} ({points(test.difference)} points, {interval}; could have found {size(test.detectable)} points "
            f"{WITH_POWER})"
        )
    worst = f"{points(test.difference)} points, with 95 % confidence above {points(test.worst)}; margin {MARGIN_TEXT}"
    if verdict == KEEPS_UP:
        return f"{KEEPS_UP} ({worst})"
    if verdict == NOT_SHOWN:
        return f"{NOT_SHOWN} ({worst}; could have shown a margin of {size(test.detectable)} points {WITH_POWER})"
    return verdict


def _brief(test: PooledTest) -> str:
    """Return a secondary finding in a few words; its numbers are in the table."""
    if test.verdict in (NOT_FOUND, NOT_SHOWN):
        what = "shown a margin of" if test.verdict == NOT_SHOWN else "found"
        return f"{test.verdict} (could have {what} {size(test.detectable)} points)"
    if test.verdict == KEEPS_UP:
        narrow = test.worst is not None and test.worst > -NARROW_MARGIN
        return f"{KEEPS_UP} (less than {NARROW_TEXT if narrow else MARGIN_TEXT} lost, with 95 % confidence)"
    by = f" by {size(test.difference)} points" * (test.verdict in (AHEAD, BEHIND))
    return test.verdict + by


def headlines(pooled: Sequence[PooledTest], tests: Sequence[ControlTest], bounds: Sequence[Reachable]) -> list[str]:
    """Return a sentence per primary endpoint, one with its secondary endpoints, and one per method that could not be judged.

    Args:
        pooled: of :func:`reports.analysis.verdicts.pooled_verdicts.pool`.
        tests: per dataset.
        bounds: of the datasets.
    """
    lines = []
    for primary in (one for one in pooled if one.primary):
        rest = [
            one
            for one in pooled
            if not one.primary
            and one.verdict != UNKNOWN
            and (one.data, one.method, one.point) == (primary.data, primary.method, primary.point)
        ]
        lines.append(f"{_subject(primary)}, {_question(primary)}: {sentence(primary)}.")
        if rest:
            lines.append(f"Beside it, {primary.method}: {'; '.join(f'{_question(r)}: {_brief(r)}' for r in rest)}.")
        lines += _at_equal_cost(primary, pooled)
        if primary.verdict == UNKNOWN:
            mine = [one for one in tests if (one.data, one.method) == (primary.data, primary.method)]
            lines += [
                f"{label}: {primary.method}, {counted(same)}."
                for label, same in grouped(mine, lambda one: one.label).items()
            ]
    shallow = [one.label for one in bounds if one.depth_worth < LEAST_DEPTH]
    if shallow:
        lines.append(
            f"On {', '.join(dict.fromkeys(shallow))} all layers together are worth less than {100 * LEAST_DEPTH:g} points over the "
            "first head, so nothing about exits can be claimed from it."
        )
    return lines


def _at_equal_cost(primary: PooledTest, pooled: Sequence[PooledTest]) -> list[str]:
    """Return a line on the points at which a method that looks first runs the layers of the sequential exit."""
    mine = [
        one
        for one in pooled
        if (one.data, one.method) == (primary.data, primary.method)
        and one.asks_to_keep_up
        and one.point != primary.point
        and one.verdict != UNKNOWN
    ]
    if not mine:
        return []
    found = "; ".join(
        f"{one.point}: {points(one.difference)} points, with 95 % confidence above {points(one.worst)}: {_brief(one)}"
        for one in mine
    )
    return [f"{primary.method}, {_question(mine[0])} at no more layers: {found}."]


def _subject(test: PooledTest) -> str:
    sets = f"{len(test.sets)} set{'s' * (len(test.sets) != 1)}" if test.sets else ""
    lost = f" of {len(test.sets) + len(test.missing)}" if test.sets and test.missing else ""
    few, most = test.seeds
    seeds = f"{few} seed{'s' * (most != 1)}" if few == most else f"{few} to {most} seeds"
    over = f", over {sets}{lost} and {seeds}" if test.sets else ""
    synthetic = " (synthetic data)" if test.synthetic else ""
    return f"{test.method} {test.point}".rstrip() + synthetic + over


def _question(test: PooledTest) -> str:
    return f"{test.measure} against {test.control}" + " at equal mean layers" * test.primary


def counted(tests: Sequence[ControlTest]) -> str:
    """Return how often each verdict occurs among some comparisons, with what the ones without a finding could have found."""
    counts = Counter(test.verdict for test in tests)
    parts = [f"{word} {count}×" for word, count in counts.items()]
    missed = [test.detectable for test in tests if test.verdict == NOT_FOUND and test.detectable is not None]
    at = f" (each could have found {size(min(missed))} to {size(max(missed))} points {WITH_POWER})" if missed else ""
    made = sum(count for word, count in counts.items() if word not in (UNEQUAL, UNKNOWN))
    return f"{made} of {len(tests)} comparisons with controls could be made: {', '.join(parts)}{at}"
