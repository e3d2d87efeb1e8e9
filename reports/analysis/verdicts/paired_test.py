"""One row against another on the same test rows: tests, their correction, and what they could have found."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import TypeVar

import numpy as np

from harness.measure.detectable import detectable_by_mcnemar, detectable_mean
from harness.measure.many_tests import holm_testable, least_p
from reports.analysis.cell_settings import ROW_SETTING, grouped
from reports.analysis.result_rows import ResultRow

T = TypeVar("T", bound="PairedTest")
ALPHA = 0.05
# Accuracy (or agreement) that a row may lose and still count as not worse: half a point.
MARGIN = 0.005
# What is stated instead where it was shown, and what one look after the first layer was asked to keep to.
NARROW_MARGIN = 0.003
# What must be the same for a pair to be comparable; the executor belongs to the method.
SAME = ("slug", *(name for name in ROW_SETTING if name != "executor"))


@dataclass(frozen=True, kw_only=True)
class PairedTest(ResultRow):
    """A row against something else on the same test rows; ``seeds`` counts those compared, ``marks`` are those of both sides.

    Attributes:
        difference: accuracy (or agreement) less that of the other side, 0..1; None where nothing can be compared.
        se: its standard error over test rows, seeds of a row kept together.
        wins, losses: test rows that speak for this row, or for the other side, over all seeds.
        pairs: test rows compared.
        p: two-sided p-value; None where no test was made.
        exact: whether p comes from an exact test of wins and losses.
        p_holm: p adjusted for a family of tests (Holm); None also for a test that could not have been significant (Tarone).
        detectable: difference that the test, at its place in the family, finds with 80 % power.
    """

    difference: float | None
    se: float | None
    wins: int
    losses: int
    pairs: int
    p: float | None
    exact: bool = True
    p_holm: float | None = None
    detectable: float | None = None

    @property
    def significant(self) -> bool:
        return self.p_holm is not None and self.p_holm < ALPHA and bool(self.difference)


def standard_error(deltas: np.ndarray) -> float:
    """Return the standard error of the mean of one number per test row, float [n]; 0 for a single row."""
    return float(np.std(deltas, ddof=1)) / sqrt(len(deltas)) if len(deltas) > 1 else 0.0


def with_adjusted_p(tests: Sequence[T], family: Callable[[T], Hashable]) -> list[T]:
    """Return the tests with p-values adjusted within each family (Holm over those that can be significant: Tarone).

    What a test could have found is stated at the strictest level of its family, alpha / (number of tests that take part).
    """
    found = list(tests)
    tested = [i for i, test in enumerate(tests) if test.p is not None]
    for same in grouped(tested, lambda i: family(tests[i])).values():
        least = [least_p(tests[i].wins + tests[i].losses) if tests[i].exact else 0.0 for i in same]
        adjusted = holm_testable([tests[i].p or 0.0 for i in same], least, ALPHA)
        alpha = ALPHA / max(1, sum(p is not None for p in adjusted))
        for i, p in zip(same, adjusted, strict=True):
            found[i] = replace(found[i], p_holm=p, detectable=_detectable(tests[i], alpha))
    return found


def _detectable(test: PairedTest, alpha: float) -> float | None:
    """Return what a test finds with 80 % power; by normal theory except for exact tests of one seed.

    Few differing rows say little about their spread, so it is at least what McNemar's test finds with so many discordant rows.
    """
    least = detectable_by_mcnemar(test.pairs, min(test.pairs, test.wins + test.losses), alpha)
    if (test.exact and test.seeds == 1) or not test.se or least is None:
        return least
    return detectable_mean(test.se, alpha) if test.wins + test.losses >= FEWEST else least


# Rows that differ, below which the spread of differences is not known well enough for a test by normal theory.
FEWEST = 10
