"""A/A noise: how far a ratio of times lies from 1 when nothing differs (the reference against itself, round by round)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.measure.statistics import self_ratios
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
