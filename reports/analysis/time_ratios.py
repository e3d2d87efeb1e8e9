"""Ratios of times: their A/A noise, and the factors of a speed-up from layers to FLOPs to block time to wall time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.measure.time_noise import self_ratios
from harness.results.schema import Factor, SpeedupFactors
from reports.analysis.cell_settings import grouped
from reports.notation.numbers import fixed

# Fewer pairs give no usable 10th and 90th percentile.
FEWEST = 5
WHY_MISSING = f"fewer than {FEWEST} pairs of neighbouring reference passes were recorded"


@dataclass(frozen=True)
class Noise:
    """A/A ratios of one dataset: 10th and 90th percentile, and the number of pairs behind them."""

    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{fixed(self.low)}–{fixed(self.high)}×"


def usable(passes: Iterable[Sequence[float]]) -> list[Sequence[float]]:
    """Return the series of seconds that have a logarithm: not empty, finite, above zero."""
    return [one for one in passes if len(one) and np.isfinite(one).all() and min(one) > 0]


def noise_band(passes: Iterable[Sequence[float]]) -> Noise | None:
    """Return the p10-p90 band of A/A ratios; None where there are too few.

    Each pair counts in both directions, because the reference runs first in half of the rounds: the band is symmetric around 1.
    It is the noise of *one* round; a median over rounds lies in it more often than 80 %.

    Args:
        passes: reference seconds of each cell, in the order in which they ran; each cell once.
    """
    logs = self_ratios(usable(passes))
    if len(logs) < FEWEST:
        return None
    high = float(np.exp(np.quantile(np.concatenate([logs, -logs]), 0.9)))
    return Noise(1 / high, high, len(logs))


# If times of the reference differ by more than this factor between cells, the machine changed its speed.
STEADY = 1.25


def slow_rows(passes: Sequence[Sequence[Sequence[float]]]) -> list[bool]:
    """Return for each row whether the machine was slower than usual while it was timed.

    Args:
        passes: reference seconds of rows that were timed under the same conditions, [rows, seeds, rounds]; a seed may have none.

    Returns:
        whether the median of a row's seed is over :data:`STEADY` times the median of all.
    """
    medians = [[float(np.median(one)) for one in row if len(one)] for row in passes]
    every = [one for row in medians for one in row]
    middle = float(np.median(every)) if every else math.inf
    return [any(one > STEADY * middle for one in row) for row in medians]


# Factors from layers to wall time, with the meaning of a value below 1. Other names come last.
LOSSES: dict[str, str] = {
    "layers": "more layers run than in the reference",
    "width": "a layer costs more FLOPs per token",
    "length": "the samples that run many layers are the long ones",
    "attention and padding": "padding is computed, or attention over longer sequences weighs more",
    "heads": "exit heads are computed in addition to layers",
    "FLOPs": "more FLOPs run, over all blocks",
    "kernels": "the same FLOPs take longer: smaller or more launches",
    "prediction": "exits have to be predicted",
    "sorting": "samples are sorted and gathered, and the host receives the order",
    "answers": "predictions are copied to the host and back into input order",
    "rest": "the remainder of the pass: Python, launches, waiting",
}
_ORDER = {name: place for place, name in enumerate(LOSSES)}


def in_order(waterfalls: Sequence[SpeedupFactors]) -> list[str]:
    """Return the names of all factors that occur, from layers to wall time, unknown names last."""
    names = sorted({factor.name for one in waterfalls for factor in one.factors})
    return sorted(names, key=lambda name: _ORDER.get(name, len(_ORDER)))


def mean_over_seeds(waterfalls: Sequence[SpeedupFactors]) -> SpeedupFactors | None:
    """Return geometric means of the factors; one that a seed lacks counts as 1 there, so that products stay exact.

    Seeds with a factor that is not finite and positive are left out; None where no seed remains. The explanation of a factor is
    that of the first seed that has it.
    """
    good = [one for one in waterfalls if all(math.isfinite(v) and v > 0 for v in _values(one))]
    if not good:
        return None
    found = grouped([factor for one in good for factor in one.factors], lambda factor: factor.name)

    def mean(values: Sequence[float]) -> float:
        return math.exp(sum(math.log(value) for value in values) / len(good))

    names = in_order(good)
    return SpeedupFactors(
        factors=[Factor(name=n, ratio=mean([f.ratio for f in found[n]]), what=found[n][0].what) for n in names],
        product=mean([one.product for one in good]),
        measured=mean([one.measured for one in good]),
    )


def _values(one: SpeedupFactors) -> list[float]:
    return [*(factor.ratio for factor in one.factors), one.product, one.measured]


def largest_loss(one: SpeedupFactors) -> Factor | None:
    """Return the smallest factor; None where no factor is below 0.995."""
    least = min(one.factors, key=lambda factor: factor.ratio, default=None)
    return least if least is not None and least.ratio < 0.995 else None


def ratio_of(one: SpeedupFactors | None, name: str) -> float | None:
    """Return the ratio of one factor; None where the row has no such factor."""
    return next((factor.ratio for factor in one.factors if factor.name == name), None) if one else None
