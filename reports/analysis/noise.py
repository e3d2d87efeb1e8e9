"""How far a ratio of times lies from 1 when nothing differs: the reference against itself, round by round (A/A)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.measure.statistics import self_ratios
from reports.notation.numbers import DASH, fixed

# Below this many pairs the tails of a band are those of a handful of numbers.
FEWEST = 5
WHY_MISSING = f"fewer than {FEWEST} pairs of neighbouring reference passes were recorded"


@dataclass(frozen=True)
class Noise:
    """A/A ratios of one dataset: 10th and 90th percentile, and the pairs that they come from."""

    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{fixed(self.low)}–{fixed(self.high)}×"


def usable(passes: Iterable[Sequence[float]]) -> list[Sequence[float]]:
    """Series of seconds that a logarithm can be taken of: not empty, finite, above zero."""
    return [one for one in passes if len(one) and np.isfinite(one).all() and min(one) > 0]


def noise_band(passes: Iterable[Sequence[float]]) -> Noise | None:
    """The p10-p90 band of A/A ratios, or None where there are too few.

    Each pair counts in both directions, as the reference comes first in half of the rounds: the band is symmetric around 1.
    It is the noise of *one* round; a median over rounds lies in it more often than 80 %.

    Args:
        passes: reference seconds of each cell, in the order in which they ran; each cell once.
    """
    logs = self_ratios(usable(passes))
    if len(logs) < FEWEST:
        return None
    high = float(np.exp(np.quantile(np.concatenate([logs, -logs]), 0.9)))
    return Noise(1 / high, high, len(logs))


def show(noise: Noise | None) -> str:
    """A band as text."""
    return str(noise) if noise is not None else DASH
