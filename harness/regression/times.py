"""Compare the speed-ups of two runs: is a method slower than before, relative to the reference of the same run?

Times of two processes are not comparable, because the load of the machine may differ. Each run's speed-up over its reference,
pass for pass, is. Its noise is estimated from successive passes of one series (A/A pairs), of the reference and of all methods in
both runs (:func:`harness.measure.time_noise.self_ratios`, :func:`~harness.measure.time_noise.median_noise`).

An alarm needs three things: (1) significance after Holm in one of two families that share alpha: all cells, and all methods, each
by the median over its cells, because a slow-down of 10 % that no single cell of three rounds can prove is visible in all
cells together; (2) an estimate above the limit, because two processes differ by some percent for reasons that the passes of one
cannot show; (3) the same in the best passes (Chen & Revels 2016), which do not suffer if a machine stalls for two rounds of three.

A change that slows the reference as much as the method is not found. The reference's own seconds are reported, never an alarm.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import exp, log

import numpy as np

from harness.measure.many_tests import holm
from harness.measure.time_noise import median_noise, self_ratios
from harness.results.packed_run import PackedCell, PackedRun

# With fewer A/A pairs in a run, the tails of its noise are unknown.
LEAST_PAIRS = 20
# Enough for the smallest p-value to be below alpha / 2 after Holm.
DRAWS_A_CELL = 1_000
LEAST_DRAWS = 100_000

Rounds = tuple[tuple[int, int], ...]


@dataclass
class TimeChange:
    """Speed-ups of one cell.

    Attributes:
        speedup: (base, new): medians over rounds, over the reference; geometric means over seeds.
        ratio: new / base; below 1 is slower. ``low`` and ``high``: 95 % range of the noise around ``ratio``.
        best: the same ratio from the best passes.
        p: one-sided, of "not slower"; ``p_adjusted`` over cells.
        alarm: a sentence; empty without an alarm.
    """

    speedup: tuple[float, float]
    ratio: float
    low: float
    high: float
    best: float
    p: float
    p_adjusted: float = 1.0
    alarm: str = ""


@dataclass
class MethodTime:
    """A method over all of its cells: ``ratio`` and ``best`` are medians over cells."""

    name: str
    cells: int
    ratio: float
    best: float
    p: float
    p_adjusted: float = 1.0
    alarm: str = ""


@dataclass
class Timed:
    """One cell in both runs, one entry per seed that was timed in both, and the change of its times."""

    base: PackedRun
    new: PackedRun
    olds: Sequence[PackedCell]
    youngs: Sequence[PackedCell]
    change: TimeChange | None = field(default=None, init=False)

    @classmethod
    def of(cls, base: PackedRun, new: PackedRun, olds: Sequence[PackedCell], youngs: Sequence[PackedCell]) -> Timed:
        """Return a cell with those of its seeds that were timed in both runs."""
        both = [(old, young) for old, young in zip(olds, youngs, strict=True) if old.timed and young.timed]
        return cls(base, new, [old for old, _ in both], [young for _, young in both])

    @property
    def rounds(self) -> Rounds:
        """Number of passes (base, new) of every seed."""
        both = zip(self.olds, self.youngs, strict=True)
        return tuple((len(old.round_seconds), len(young.round_seconds)) for old, young in both)

    def refusal(self) -> str | None:
        """Return why the times of this cell cannot be compared; None if they can."""
        if not self.olds:
            return "no seed was timed in both runs"
        for old, young in zip(self.olds, self.youngs, strict=True):
            a, b = self.base.machine(old), self.new.machine(young)
            ways = ("device", "dtype", "compute", "executor", "engine")
            differing = [
                f"{name} {getattr(one, name)} against {getattr(other, name)}"
                for one, other, names in ((old.cell, young.cell, ways), (a, b, type(a).model_fields))
                for name in names
                if getattr(one, name) != getattr(other, name)
            ]
            if differing:
                return f"measured on different machines or in different ways: {', '.join(differing)}"
            if not a.known:
                return "the machine is unknown"
            if old.reference is None or old.reference != young.reference:
                return "they have no common reference"
            if not all(cell.round_seconds and cell.reference_seconds for cell in (old, young)):
                return "the single passes were not stored (results of an older version)"
            if min(*old.round_seconds, *old.reference_seconds, *young.round_seconds, *young.reference_seconds) <= 0:
                return "some passes have a time of 0"
        return None


def _log_ratios(cell: PackedCell) -> np.ndarray:
    return np.log(np.array(cell.reference_seconds)) - np.log(np.array(cell.round_seconds))


def _best(cell: PackedCell) -> float:
    return log(min(cell.reference_seconds)) - log(min(cell.round_seconds))


def judge_times(timed: Sequence[Timed], slower: float, alpha: float) -> tuple[list[MethodTime], list[str]]:
    """Set the ``change`` of every cell whose times can be compared, with an alarm if they got worse.

    Args:
        timed: all cells of both runs.
        slower: allowed increase of time, e.g. 0.05.
        alpha: probability of any false alarm, shared by cells and methods.

    Returns:
        The methods, and remarks: one line per reason why times were not compared, and the times of the reference itself.
    """
    refusals = [one.refusal() for one in timed]
    remarks = [
        f"times of {count} cells are not compared: {why}" for why, count in Counter(filter(None, refusals)).items()
    ]
    able = [one for one, why in zip(timed, refusals, strict=True) if why is None]
    pools = [_pairs(able, lambda one: one.olds), _pairs(able, lambda one: one.youngs)]
    if not able:
        return [], remarks
    if (fewest := min(map(len, pools))) < LEAST_PAIRS:
        remarks.append(
            f"times of {len(able)} cells are not compared: {fewest} pairs of successive passes are too few to estimate the noise "
            f"({LEAST_PAIRS} are needed): compare more cells, or measure more rounds"
        )
        return [], remarks
    remarks += _reference(able)
    able = [one for one in able if one.youngs[0].cell.method != one.youngs[0].reference]
    noise = _Noise(pools, max(LEAST_DRAWS, DRAWS_A_CELL * len(able)))
    for one in able:
        _measure(one, noise)
    methods = _methods(able, noise)
    limit = -log(1 + slower)
    families: tuple[Sequence[TimeChange | MethodTime], ...] = ([one.change for one in able if one.change], methods)
    for family in families:
        for change, adjusted in zip(family, holm([change.p for change in family]), strict=True):
            change.p_adjusted = adjusted
            if adjusted <= alpha / 2 and log(change.ratio) < limit and log(change.best) < limit:
                change.alarm = (
                    f"{100 * (1 / change.ratio - 1):.1f} % slower relative to the reference (adjusted p {adjusted:.2g}; "
                    f"the limit is {100 * slower:g} %)"
                )
    return methods, remarks


def _pairs(cells: Sequence[Timed], side: Callable[[Timed], Sequence[PackedCell]]) -> np.ndarray:
    """Return the A/A pairs of all passes in one run; passes of the reference that several cells share count once."""
    every = [cell for one in cells for cell in side(one)]
    shared = dict.fromkeys(tuple(cell.reference_seconds) for cell in every if cell.together > 1)
    own = (cell.reference_seconds for cell in every if cell.together == 1)
    return self_ratios([*(cell.round_seconds for cell in every), *own, *shared])


class _Noise:
    """Distribution of the log ratio of two speed-ups without any change, from A/A pairs of both runs."""

    def __init__(self, pools: Sequence[np.ndarray], draws: int) -> None:
        self.pools, self.draws = pools, draws
        self._cached = cache(self._draw)
        self.sorted_of_cell = cache(lambda rounds: np.sort(self.of_cell(rounds)))

    def _draw(self, base: int, new: int) -> np.ndarray:
        sides = [median_noise(self.pools[i], rounds, self.draws, seed=i) for i, rounds in enumerate((base, new))]
        return np.asarray(sides[1] - sides[0])

    def of_cell(self, rounds: Rounds, start: int = 0) -> np.ndarray:
        """Return the noise of the mean over a cell's seeds, [draws]. Each ``start`` gives an independent sample."""
        parts = [np.roll(self._cached(*pair), 7919 * (start + i)) for i, pair in enumerate(rounds)]
        return np.asarray(np.mean(parts, axis=0))

    def of_method(self, cells: Sequence[Timed]) -> np.ndarray:
        """Return the noise of the median over cells in ascending order, [draws].

        Cells that were timed beside the same passes of the reference share its noise, and count as having all noise in common.
        """
        seeds = max(len(one.olds) for one in cells)
        beside = [tuple(tuple(young.reference_seconds) for young in one.youngs) for one in cells]
        numbers = {passes: number for number, passes in enumerate(dict.fromkeys(beside))}
        parts = [self.of_cell(one.rounds, numbers[key] * seeds) for one, key in zip(cells, beside, strict=True)]
        return np.sort(np.median(parts, axis=0))


def _p(null: np.ndarray, observed: float) -> float:
    """Return the share of the sorted ``null`` that is at most ``observed``; never 0."""
    return float((1 + np.searchsorted(null, observed, side="right")) / (1 + len(null)))


def _measure(one: Timed, noise: _Noise) -> None:
    base, new = (float(np.mean([np.median(_log_ratios(cell)) for cell in side])) for side in (one.olds, one.youngs))
    best = float(np.mean([_best(b) - _best(a) for a, b in zip(one.olds, one.youngs, strict=True)]))
    null = noise.sorted_of_cell(one.rounds)
    low, high = (float(null[round(share * (len(null) - 1))]) for share in (0.025, 0.975))
    shift = new - base
    one.change = TimeChange(
        (exp(base), exp(new)), exp(shift), exp(shift + low), exp(shift + high), exp(best), _p(null, shift)
    )


def _methods(able: Sequence[Timed], noise: _Noise) -> list[MethodTime]:
    together: dict[str, list[Timed]] = defaultdict(list)
    for one in able:
        together[one.youngs[0].cell.method].append(one)
    methods = []
    for name, cells in together.items():
        changes = [one.change for one in cells if one.change is not None]
        ratio = float(np.median([log(change.ratio) for change in changes]))
        best = float(np.median([log(change.best) for change in changes]))
        methods.append(MethodTime(name, len(cells), exp(ratio), exp(best), _p(noise.of_method(cells), ratio)))
    return methods


def _reference(able: Sequence[Timed]) -> list[str]:
    """Report the change of the reference's own passes: the median over cells of medians over passes."""
    shifts = [
        float(np.median(np.log(young.reference_seconds)) - np.median(np.log(old.reference_seconds)))
        for one in able
        for old, young in zip(one.olds, one.youngs, strict=True)
    ]
    percent = 100 * (exp(float(np.median(shifts))) - 1)
    return [
        f"passes of the reference itself took {abs(percent):.1f} % {'more' if percent > 0 else 'less'} time than in base: "
        "this may be the code or the machine, and is never an alarm"
    ]
