"""Paired tests of methods that predict exits against their controls, and the verdicts in words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pandas as pd

from harness.measure.many_tests import holm
from harness.measure.paired_tests import paired
from harness.results.schema import Cell
from reports.analysis.cell_settings import ROW_SETTING, grouped, values_of
from reports.analysis.result_rows import ResultRow, ratio
from reports.analysis.roles import PREDICTS, SEQUENTIAL, VERIFIES
from reports.analysis.run_contents import Reader, paired_samples
from reports.notation.marks import together
from reports.notation.numbers import fixed

T = TypeVar("T", bound="PairedTest")
ALPHA = 0.05
# Layer ratios inside this band count as the same cost.
SAME_COST = (0.95, 1.05)
# Verified exits keep up with the sequential exit if they are at most this much less accurate, with at most 5 % more layers.
CLOSE_ACCURACY = 0.002
# What must be the same for a pair to be comparable; the executor belongs to the method.
SAME = ("slug", *(name for name in ROW_SETTING if name != "executor"))
_TOLERANCE = f"at most {fixed(100 * CLOSE_ACCURACY, 1)} points less accurate and 5 % more layers"

BEATS, DEARER, NO_BETTER = "beats", "beats, with more layers,", "no better than"
WORSE, UNKNOWN = "worse than", "cannot be compared with"


@dataclass(frozen=True, kw_only=True)
class PairedTest(ResultRow):
    """A row against another one on the same test rows; ``seeds`` counts those compared, ``marks`` are those of both sides.

    Attributes:
        difference: accuracy less that of the other row, 0..1; None where nothing can be compared.
        wins, losses: test rows that only this row, or only the other, classifies correctly.
        pairs: test rows compared.
        p, p_holm: exact p-value, and adjusted for a family of tests (Holm).
    """

    difference: float | None
    wins: int
    losses: int
    pairs: int
    p: float | None
    p_holm: float | None = None


@dataclass(frozen=True, kw_only=True)
class ControlTest(PairedTest):
    """A predicting row against one control."""

    control_row: ResultRow

    @property
    def control(self) -> str:
        return self.control_row.method

    @property
    def control_point(self) -> str:
        return self.control_row.point

    @property
    def verified(self) -> bool:
        return self.role == VERIFIES

    @property
    def layer_ratio(self) -> float | None:
        return ratio(self.mean_layers, self.control_row.mean_layers)

    @property
    def speed_ratio(self) -> float | None:
        return ratio(self.samples_per_s, self.control_row.samples_per_s)

    @property
    def verdict(self) -> str:
        if self.p_holm is None or self.difference is None:
            return UNKNOWN
        if self.p_holm >= ALPHA or self.difference == 0:
            return NO_BETTER
        if self.difference < 0:
            return WORSE
        return DEARER if self.layer_ratio is not None and self.layer_ratio > SAME_COST[1] else BEATS

    @property
    def close(self) -> bool:
        """Whether the row keeps up with the control."""
        if self.difference is None or self.layer_ratio is None:
            return False
        return self.difference >= -CLOSE_ACCURACY - 1e-12 and self.layer_ratio <= SAME_COST[1]


def _matching(row: ResultRow, rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return, for each control, its row at the same point or at the base of the point, ordered by name.

    A method that verifies its exits has the sequential exit as its only control.
    """
    found: dict[str, tuple[tuple[bool, bool], ResultRow]] = {}
    for other in rows:
        if other.kind != "control" or values_of(other, SAME) != values_of(row, SAME):
            continue
        if other.point not in (row.point, row.base) or (row.role == VERIFIES and other.role != SEQUENTIAL):
            continue
        rank = (other.point == row.point, other.executor == row.executor)
        if other.method not in found or rank > found[other.method][0]:
            found[other.method] = (rank, other)
    return [other for _, (_, other) in sorted(found.items())]


def compare_with_controls(rows: Sequence[ResultRow], read: Reader) -> list[ControlTest]:
    """Test every row whose role is to predict or verify exits against every control at the same point.

    Args:
        rows: rows of the view, with their marks and noise.
        read: per-sample rows of a cell.
    """
    tests = []
    for row in rows:
        if row.kind != "method" or row.role not in (PREDICTS, VERIFIES):
            continue
        for other in _matching(row, rows):
            ours, theirs, seeds = correct_by_seed(row.cells, other.cells, read)
            about = {**vars(row), "seeds": len(seeds), "marks": together(row.marks, other.marks)}
            tests.append(ControlTest(**about, control_row=other, **paired(ours, theirs)))
    return with_adjusted_p(tests, lambda test: test.slug)  # all comparisons of one dataset


def correct_by_seed(
    ours: Sequence[Cell], theirs: Sequence[Cell], read: Reader
) -> tuple[list[pd.Series], list[pd.Series], list[int]]:
    """Return the correctness of both sides for every readable seed that both have, and these seeds."""
    pairs = paired_samples(ours, theirs, read)
    return [a["correct"] for a, _ in pairs.values()], [b["correct"] for _, b in pairs.values()], list(pairs)


def with_adjusted_p(tests: Sequence[T], family: Callable[[T], Hashable]) -> list[T]:
    """Return the tests with p-values adjusted within each family (Holm)."""
    found: dict[int, float] = {}
    tested = {i: test.p for i, test in enumerate(tests) if test.p is not None}
    for same in grouped(tested, lambda i: family(tests[i])).values():
        found |= zip(same, holm([tested[i] for i in same]), strict=True)
    return [replace(test, p_holm=found.get(i)) for i, test in enumerate(tests)]


def headlines(tests: Sequence[ControlTest]) -> list[str]:
    """Return one sentence per dataset and method: which controls it beats, and at how many of its points."""
    lines = []
    for (label, method), part in grouped(tests, lambda test: (test.label, test.method)).items():
        won, lost, dearer, unknown = (_count(part, verdict) for verdict in (BEATS, WORSE, DEARER, UNKNOWN))
        verified = all(test.verified for test in part)
        if verified:
            names = " and ".join(sorted({test.control for test in part}))
            close = sum(test.close for test in part)
            clauses = [f"keeps up with {names} ({_TOLERANCE}) at {close} of {len(part)} points"]
            clauses += [f"beats {won}"] if won else []
        else:
            clauses = [f"beats {won}" if won else "beats none of its controls"]
        clauses += [f"is worse than {lost}"] if lost else []
        clauses += [f"beats, but with more layers, {dearer}"] if dearer else []
        clauses += [f"cannot be compared with {unknown}"] if unknown else []
        rest = sum(test.verdict == NO_BETTER for test in part)
        clauses += [f"is no better in {rest} of {len(part)} comparisons"] if rest and not verified else []
        lines.append(f"{label}: {method} {'; '.join(clauses)}.")
    return lines


def _count(part: Sequence[ControlTest], verdict: str) -> str:
    """Return ``control-a at 2 of 3 points, control-b at 1 of 3 points`` for one verdict; empty where there is none."""
    shown = []
    for control in sorted({test.control for test in part}):
        mine = [test.verdict == verdict for test in part if test.control == control]
        if any(mine):
            shown.append(f"{control} at {sum(mine)} of {len(mine)} points")
    return ", ".join(shown)
