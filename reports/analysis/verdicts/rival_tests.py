"""Paired tests of every method against its rivals, and whether it is faster and not worse.

Rivals are ``bert``, ``fastbert``, those that the profile names, and for a variant the method that it is based on.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.measure.paired_tests import bootstrap_difference, paired, worst_case
from harness.measure.time_noise import faster_and_not_worse, self_ratios
from reports.analysis.cell_settings import values_of
from reports.analysis.result_rows import SAME_NOISE, ResultRow, reference_passes
from reports.analysis.run_contents import Reader, paired_samples
from reports.analysis.time_ratios import FEWEST, usable
from reports.analysis.verdicts.paired_test import ALPHA, MARGIN, SAME, PairedTest, standard_error, with_adjusted_p
from reports.notation.marks import together
from reports.notation.numbers import finite

RIVALS = ("bert", "fastbert")
# The interval is stable to about 0.02 points on a thousand rows; hundreds of comparisons stay quick.
RESAMPLES = 10_000
DRAWS = 4_000
MEASURED, RATIO = "measured", "ratio of speed-ups"


class Judgement(NamedTuple):
    """Faster and not worse, of the worst seed (:func:`harness.measure.time_noise.faster_and_not_worse`); None: unknown."""

    not_worse: bool | None = None
    faster: bool | None = None
    lowest_difference: float | None = None
    lowest_speedup: float | None = None


@dataclass(frozen=True, kw_only=True)
class RivalTest(PairedTest):
    """A method's row against one rival.

    The Holm family is one method and one rival, over datasets and points, real and synthetic data apart.

    Attributes:
        rival: name of the rival.
        rival_row: the row of the rival that it is compared with; None where there is none at this point and setting.
        difference_low, difference_high: 95 % interval of the difference in accuracy.
        rival_speedup: speed-up over the rival.
        speed_from: whether that was measured, or is a ratio of two speed-ups.
        judgement: faster and not worse.
    """

    rival: str
    rival_row: ResultRow | None
    difference_low: float | None
    difference_high: float | None
    rival_speedup: float | None
    speed_from: str | None
    judgement: Judgement

    @property
    def rival_point(self) -> str | None:
        return self.rival_row.point if self.rival_row else None

    @property
    def rival_accuracy(self) -> float | None:
        return self.rival_row.accuracy if self.rival_row else None

    @property
    def passed(self) -> bool | None:
        return None if self.judgement.faster is None else bool(self.judgement.not_worse and self.judgement.faster)


def compare_with_rivals(
    rows: Sequence[ResultRow], read: Reader, named: Mapping[str, Sequence[str]] | None = None
) -> list[RivalTest]:
    """Test every row of kind method against every rival that its dataset has.

    The rival's row shares dataset and setting, except how blocks are run and the engine; the same engine is preferred. Its point
    is the same, or its base (``speed=0.5`` of ``speed=0.5/once``); if its points are of another kind (speeds against budgets),
    the nearest in mean layers; if one of the two has only one point, the rival's most accurate one.

    Args:
        rows: rows of the view, with their marks and noise.
        read: per-sample rows of a cell.
        named: method -> rivals in addition to :data:`RIVALS`.
    """
    noise = _aa_pairs(rows)
    measured = {(row.method, row.slug) for row in rows}
    found = []
    for row in rows:
        if row.kind != "method":
            continue
        for rival in dict.fromkeys((*RIVALS, *(named or {}).get(row.method, ()))):
            if row.method == rival or (rival, row.slug) not in measured:
                continue
            other = _rival_of(row, rival, rows)
            pairs = paired_samples(row.cells, other.cells, read) if other else {}
            seeds = list(pairs)
            left, right = ([both[side]["correct"] for both in pairs.values()] for side in (0, 1))
            low, high, se = _interval(left, right)
            speedup, source = _speedup(row, other) if other else (None, None)
            judgement = Judgement()
            if other is not None:
                ratios = _round_ratios(row, other)
                aa_pairs = noise[values_of(row, SAME_NOISE)][source or MEASURED]
                judgement = _judged(left, right, [ratios.get(seed) for seed in seeds], aa_pairs)
            about = {**vars(row), "seeds": len(seeds), "marks": together(row.marks, other.marks if other else "")}
            found.append(
                RivalTest(
                    **about,
                    rival=rival,
                    rival_row=other,
                    **paired(left, right),
                    se=se,
                    difference_low=low,
                    difference_high=high,
                    rival_speedup=speedup,
                    speed_from=source,
                    judgement=judgement,
                )
            )
    return with_adjusted_p(found, lambda test: (test.data, test.method, test.rival))


def _rival_of(row: ResultRow, rival: str, rows: Sequence[ResultRow]) -> ResultRow | None:
    """Return the rival's row that ``row`` is compared with."""
    alike = [name for name in SAME if name not in ("compute", "engine")]
    eligible = [other for other in rows if other.method == rival and values_of(other, alike) == values_of(row, alike)]
    near = [other for other in eligible if other.point in (row.point, row.base)]
    settings = [other for other in eligible if "=" in other.point]

    def same_way(other: ResultRow) -> tuple[bool, bool, bool]:
        return other.engine == row.engine, other.compute == row.compute, other.executor == row.executor

    def accuracy(other: ResultRow) -> float:
        return other.accuracy if finite(other.accuracy) else -1.0

    if near:
        return max(near, key=lambda other: (other.point == row.point, same_way(other), accuracy(other)))
    if "=" not in row.base or not settings:
        return max(eligible, key=lambda one: (one.engine == row.engine, accuracy(one), same_way(one)), default=None)
    mean = row.mean_layers
    if any(other.point.partition("=")[0] == row.base.partition("=")[0] for other in settings) or not mean:
        return None  # the rival was not measured at this very speed
    apart = [(abs(math.log(other.mean_layers / mean)), other) for other in settings if other.mean_layers]
    return min(apart, key=lambda pair: (pair[0], *(not yes for yes in same_way(pair[1]))), default=(0, None))[1]


def _interval(left: Sequence[pd.Series], right: Sequence[pd.Series]) -> tuple[float | None, float | None, float | None]:
    """Return 95 % interval and standard error of the difference over the rows that all seeds of both sides share."""
    if not left:
        return None, None, None
    index = left[0].index
    for one in left[1:]:
        index = index if one.index.equals(index) else index.intersection(one.index)
    if not len(index):
        return None, None, None
    ours, theirs = (np.stack([one.loc[index].to_numpy() for one in side]) for side in (left, right))
    se = standard_error((ours.astype(np.float64) - theirs).mean(0))
    return *bootstrap_difference(ours, theirs, 1 - ALPHA, RESAMPLES), se


def _speedup(row: ResultRow, other: ResultRow) -> tuple[float | None, str | None]:
    """Return the speed-up over the rival, and whether it was measured or goes by way of a common reference."""
    mine, name = row.speedup, row.reference
    if name and finite(mine):
        if name == other.method:
            return mine, MEASURED
        if name == other.reference and finite(other.speedup) and other.speedup > 0:
            return mine / other.speedup, RATIO
    return None, None


def _aa_pairs(rows: Sequence[ResultRow]) -> dict[tuple[Hashable, ...], dict[str, np.ndarray]]:
    """Return A/A log ratios by :data:`SAME_NOISE`: of one ratio, and of a quotient of two ratios, whose noises add."""
    found = {}
    for key, passes in reference_passes(rows).items():
        logs = self_ratios(usable(passes))
        logs = logs if len(logs) >= FEWEST else np.empty(0)
        rng = np.random.default_rng(0)
        draws = (2, DRAWS if len(logs) else 0)
        both = (rng.choice(logs, size=draws) * rng.choice((-1.0, 1.0), size=draws)).sum(0) if len(logs) else logs
        found[key] = {MEASURED: logs, RATIO: both}
    return found


def _round_ratios(row: ResultRow, other: ResultRow) -> dict[int, np.ndarray]:
    """Return seed -> rival's seconds over own seconds, round by round; seeds without single passes are left out."""
    mine, theirs = _against_reference(row), _against_reference(other)
    common = [cell.seed for cell in other.cells if cell.seed in mine]
    if row.reference == other.method:
        return {seed: mine[seed] for seed in common}
    if row.reference != other.reference:
        return {}
    found = {}
    for seed in (seed for seed in common if seed in theirs):
        rounds = min(len(mine[seed]), len(theirs[seed]))
        found[seed] = mine[seed][:rounds] / theirs[seed][:rounds]
    return found


def _against_reference(row: ResultRow) -> dict[int, np.ndarray]:
    """Return seed -> reference seconds over own seconds of each round."""
    found = {}
    for cell, own, reference in zip(row.cells, row.round_seconds, row.reference_seconds, strict=True):
        if row.reference and len(own) == len(reference) and len(usable([own, reference])) == 2:
            found[cell.seed] = np.asarray(reference) / np.asarray(own)
    return found


def _judged(
    left: Sequence[pd.Series], right: Sequence[pd.Series], ratios: Sequence[np.ndarray | None], noise: np.ndarray
) -> Judgement:
    """Return faster and not worse, tested for every seed by itself: not worse in all seeds, faster in all that were timed.

    Unknown if no seed was timed. Seeds are not pooled: the bound counts a test row once, and a row under several seeds has no
    single answer.
    """
    timed = [one is not None for one in ratios]
    if not any(timed) or not len(noise):
        return Judgement()
    found, lowest = [], []
    for a, b, rounds in zip(left, right, ratios, strict=True):
        delta = a.to_numpy().astype(np.int8) - b.to_numpy()
        counts = int((delta > 0).sum()), int((delta < 0).sum()), len(delta)
        lowest.append(worst_case(*counts, ALPHA))
        if rounds is not None:
            found.append(faster_and_not_worse(*counts, rounds.tolist(), noise, margin=MARGIN, alpha=ALPHA, draws=DRAWS))
    return Judgement(
        min(lowest) > -MARGIN,
        all(one.faster for one in found),
        min(lowest),
        min(one.lowest_speedup for one in found),
    )
