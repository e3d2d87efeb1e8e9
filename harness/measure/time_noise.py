"""Times compared with their own noise, and "faster and not worse". Pure functions on arrays.

* noise of a ratio of times: :func:`self_ratios`, :func:`median_noise`
* times and accuracy in one: :func:`faster_and_not_worse`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.measure.paired_tests import worst_case


def self_ratios(passes: Iterable[Sequence[float]]) -> np.ndarray:
    """Return log ratios of successive passes of the same series (A/A pairs): they differ by noise only.

    In successive differences (von Neumann 1941) slow drift, such as a warming processor, cancels, as it does in a ratio to
    a reference that runs in the same round.

    Args:
        passes: series of seconds, one per cell: float [rounds] each, > 0.

    Returns:
        float [pairs], pairs = sum of (rounds - 1); empty if no series has two rounds.
    """
    parts = [np.diff(np.log(np.asarray(series, dtype=np.float64))) for series in passes]
    return np.concatenate([np.empty(0), *parts])


def median_noise(pairs: np.ndarray, rounds: int, draws: int = 100_000, seed: int = 0) -> np.ndarray:
    """Return the distribution of a log speed-up (median over rounds) without any difference: float [draws], in drawn order.

    Draws ``rounds`` of the A/A pairs with replacement, each with a random sign, and takes their median: a bootstrap under
    the null hypothesis (Efron & Tibshirani 1993, ch. 16), which keeps the heavy tails of real clocks.

    Where it misleads: it does not cover differences between two *processes* (memory layout, other load: Kalibera & Jones
    2013), so require a practical minimum beside significance; few pairs say little about the tails.

    Args:
        pairs: of :func:`self_ratios`, at least one.
        rounds: ratios under the median, at least 1.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.choice(pairs, size=(draws, rounds)) * rng.choice((-1.0, 1.0), size=(draws, rounds))
    return np.asarray(np.median(drawn, axis=1))


@dataclass(frozen=True)
class FasterAndNotWorse:
    """Both halves of "faster and not worse".

    Attributes:
        lowest_difference: lower bound of the accuracy's difference (0..1).
        lowest_speedup: lower bound of the speed-up.
    """

    not_worse: bool
    faster: bool
    lowest_difference: float
    lowest_speedup: float


def faster_and_not_worse(
    wins: int,
    losses: int,
    n: int,
    ratios: Sequence[float],
    pairs: np.ndarray,
    *,
    margin: float,
    alpha: float = 0.05,
    draws: int = 100_000,
) -> FasterAndNotWorse:
    """Test whether a method is faster than the reference with an accuracy that is worse by less than ``margin``.

    Not worse (non-inferiority): the lower paired bound (:func:`worst_case`) is above ``-margin``. Faster: the median of the
    ratios, minus the noise of A/A pairs (:func:`median_noise`), is above 1. Both tests use level alpha; as both must hold, no
    correction is needed (an intersection-union test, Berger 1982). Few samples cannot prove "not worse": without any
    discordant sample, n must be above about 2.7 / margin at alpha = 0.05.

    Args:
        wins, losses: samples that only the method, or only the reference, answers correctly, of ``n``.
        ratios: float [rounds]: reference seconds / own seconds.
        pairs: A/A log ratios of similar passes.
        margin: accuracy that may be lost, 0..1; state it before looking at results.
    """
    lowest = worst_case(wins, losses, n, alpha)
    chance = float(np.quantile(median_noise(pairs, len(ratios), draws), 1 - alpha))
    slowest = float(np.exp(np.log(np.median(ratios)) - chance))
    return FasterAndNotWorse(lowest > -margin, slowest > 1, lowest, slowest)
