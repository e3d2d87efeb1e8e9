"""Accuracy that a row loses against another one on the same rows of dev or test, with its one-sided bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from harness.measure.paired_tests import stratified_difference, worst_case
from harness.results.rows.answer_bits import from_bits
from harness.results.schema import Cell, Result
from reports.analysis.result_rows import ResultRow
from reports.analysis.run_contents import Reader

# Correctness of the rows of a cell, bool [n] in file order; None where it is not known.
Answers = Callable[[Cell], "np.ndarray | None"]


@dataclass(frozen=True)
class Loss:
    """A difference in accuracy, of one set or as the mean over several, each with the same weight.

    Attributes:
        rows: of all sets; of several seeds of training a row counts once.
        alike: rows of a single set that would give a mean of the same precision.
        difference: accuracy less that of the other side, 0..1; below 0 for a loss.
        se: its standard error, never 0.
        worst: its one-sided lower bound.
        wins, losses: rows that only this side, or only the other one, has right, in the mean over seeds.
    """

    rows: int
    alike: float
    difference: float
    se: float
    worst: float
    wins: float
    losses: float


def loss_of(strata: Sequence[np.ndarray], alpha: float) -> Loss:
    """Return the loss behind some differences: Tango's bound for one set and seed, else the stratified bootstrap's.

    The bootstrap's bound is none better than Tango's for as many rows without any difference.

    Args:
        strata: per set, float [n_k]: own correctness less the other side's, mean over seeds.
        alpha: one minus the confidence of the bound.
    """
    sizes = [len(rows) for rows in strata]
    alike = len(strata) ** 2 / sum(1 / n for n in sizes)
    wins, losses = (float(sum(np.maximum(sign * rows, 0).sum() for rows in strata)) for sign in (1, -1))
    # One differing row more than there are, so that a few rows without any are no proof.
    variances = [(float((rows**2).sum()) + 1) / len(rows) ** 2 for rows in strata]
    if len(strata) == 1 and np.isin(strata[0], (-1, 0, 1)).all():
        worst = worst_case(round(wins), round(losses), sizes[0], alpha)
    else:
        worst = min(stratified_difference(strata, 1 - alpha).lower, worst_case(0, 0, max(1, round(alike)), alpha))
    difference = float(np.mean([np.mean(rows) for rows in strata]))
    return Loss(sum(sizes), alike, difference, sqrt(sum(variances)) / len(strata), worst, wins, losses)


def differences(ours: ResultRow, theirs: ResultRow, answers: Answers) -> np.ndarray | None:
    """Return own correctness less the other side's, mean over the seeds that both have: float [n]; None without any."""
    other = {cell.seed: answers(cell) for cell in theirs.cells}
    found = []
    for cell in ours.cells:
        mine, their = answers(cell), other.get(cell.seed)
        if mine is not None and their is not None and len(mine) == len(their):
            found.append(mine.astype(np.float64) - their)
    return np.mean(found, axis=0) if found else None


class StoredAnswers:
    """Correctness of dev and test rows: from the results and, for test rows of older results, from their per-sample rows."""

    def __init__(self, results: Sequence[Result], read: Reader | None) -> None:
        self._results = {result.cell: result for result in results}
        self._read = read

    def dev(self, cell: Cell) -> np.ndarray | None:
        """Return those of the dev rows."""
        answers = self._results[cell].answers
        return None if answers is None else from_bits(answers.dev, answers.dev_rows)

    def test(self, cell: Cell) -> np.ndarray | None:
        """Return those of the test rows."""
        result = self._results[cell]
        if result.answers is not None:
            return from_bits(result.answers.test, result.quality.n)
        rows = self._read(cell) if self._read else None
        return None if rows is None else rows["correct"].to_numpy(dtype=bool)

    def even(self, cell: Cell) -> np.ndarray | None:
        """Return those of every second test row, from the first."""
        rows = self.test(cell)
        return None if rows is None else rows[::2]

    def odd(self, cell: Cell) -> np.ndarray | None:
        """Return those of the other test rows."""
        rows = self.test(cell)
        return None if rows is None else rows[1::2]
