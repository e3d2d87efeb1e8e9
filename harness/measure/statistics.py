"""Statistics of accuracies, costs and times. Pure functions on arrays; no file, no clock, no global state.

Accuracies, shares and their differences are 0..1, never percent. "Wins" are samples that only the new side answers
correctly, "losses" those that only the old side does; together they are the discordant samples.

* one accuracy: :func:`bootstrap_interval`; several seeds: :func:`spread`
* two accuracies on the same samples: :func:`mcnemar`, :func:`paired`, :func:`bootstrap_difference`, :func:`worst_case`
* many tests at once: :func:`holm`, :func:`holm_testable`
* accuracy against cost: :func:`area_under_curve`, :func:`score_at_matched_cost`
* times: :func:`self_ratios`, :func:`median_noise`; times and accuracy in one: :func:`faster_and_not_worse`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binom, norm, t


def bootstrap_interval(correct: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of an accuracy (Efron 1979), exactly.

    Resampling n zeros and ones with replacement gives a Binomial(n, accuracy) / n; its quantiles are the limits for
    infinitely many resamples. Degenerate (both limits equal the accuracy) if all or none are correct.

    Args:
        correct: bool [n], n >= 1.
        level: nominal coverage, in 0..1.
    """
    n, p = len(correct), float(np.mean(correct))
    tail = (1 - level) / 2
    low, high = binom.ppf([tail, 1 - tail], n, p) / n
    return float(low), float(high)


class Spread(NamedTuple):
    """One quantity over several seeds. ``sd``, ``low`` and ``high`` are None below two seeds."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


def spread(values: Sequence[float], level: float = 0.95) -> Spread:
    """Return mean, sample standard deviation (n - 1) and Student's t interval of the mean over seeds (Student 1908).

    The interval covers the variation of training only (Bouthillier et al. 2021, "Accounting for variance in machine learning
    benchmarks"). With two or three seeds it is wide, and assumes normal values, which so few cannot confirm.

    Args:
        values: float [seeds], at least one.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return Spread(float(array.mean()), None, None, None, len(array))
    mean, sd = float(array.mean()), float(array.std(ddof=1))
    half = float(t.ppf((1 + level) / 2, len(array) - 1)) * sd / sqrt(len(array))
    return Spread(mean, sd, mean - half, mean + half, len(array))


def mcnemar(wins: int, losses: int, alternative: Literal["two-sided", "worse"] = "two-sided") -> float:
    """Return the p-value of the exact McNemar test: binomial(wins + losses, 1/2); 1.0 without a discordant sample.

    Source: McNemar 1947, in its exact conditional form. Conservative: with few discordant samples its level is far below the
    nominal one, and with fewer than five it can never reach 0.05 (see :func:`holm_testable`).

    Args:
        wins, losses: numbers of discordant samples.
        alternative: ``"worse"`` for a one-sided test that rejects if losses outweigh wins.
    """
    if alternative == "worse":
        return float(binom.cdf(wins, wins + losses, 0.5))
    return min(1.0, 2 * float(binom.cdf(min(wins, losses), wins + losses, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down method (Holm 1979), in the order given.

    Rejecting those of at most alpha keeps the probability of any false rejection at most alpha, under any dependence.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[int(index)] = highest
    return adjusted


def holm_testable(p_values: Sequence[float], discordant: Sequence[int], alpha: float) -> list[float | None]:
    """Apply Holm to those one-sided McNemar tests that could reach significance at all (Tarone 1990).

    A test with d discordant samples has no p-value below 2^-d. Let K be the smallest k such that at most k tests have
    2^-d <= alpha / k; only tests with 2^-d <= alpha / K take part. The counts do not depend on which samples are wins, so the
    probability of any false rejection stays at most alpha. There is no gain if every cell has many discordant samples.

    Args:
        p_values: of ``mcnemar(..., "worse")``.
        discordant: wins + losses of each test.
        alpha: level that the results will be compared with.

    Returns:
        Adjusted p-values in the order given; None for a test that could not have been significant.
    """
    least = np.ldexp(1.0, -np.asarray(discordant, dtype=np.int64))
    for family in range(1, len(p_values) + 1):
        chosen = np.flatnonzero(least <= alpha / family)
        if len(chosen) <= family:
            break
    else:
        chosen = np.arange(0)
    adjusted: list[float | None] = [None] * len(p_values)
    for index, value in zip(chosen, holm([p_values[int(i)] for i in chosen]), strict=True):
        adjusted[int(index)] = value
    return adjusted


class PairedDifference(TypedDict):
    """Result of :func:`paired`: difference in accuracy (0..1), wins and losses of ``pairs`` test rows, two-sided ``p``."""

    difference: float | None
    wins: int
    losses: int
    pairs: int
    p: float | None


def paired(ours: Sequence[pd.Series], theirs: Sequence[pd.Series]) -> PairedDifference:
    """Compare correctness (bool Series indexed by test row), one pair of Series per seed.

    With one seed this is the exact McNemar test. With several seeds, a sample's wins minus losses are one observation (a
    sign test), because the same sample under two seeds is not two samples.
    """
    total: pd.Series | None = None
    differences = []
    for a, b in zip(ours, theirs, strict=True):
        if not a.index.equals(b.index):
            a, b = a.align(b, join="inner")
        delta = a.astype(np.int64) - b.astype(np.int64)
        if len(delta):
            differences.append(float(delta.mean()))
        total = delta if total is None else total.add(delta, fill_value=0)
    if total is None or not differences:
        return {"difference": None, "wins": 0, "losses": 0, "pairs": 0, "p": None}
    wins, losses = int((total > 0).sum()), int((total < 0).sum())
    mean, p = float(np.mean(differences)), mcnemar(wins, losses)
    return {"difference": mean, "wins": wins, "losses": losses, "pairs": len(total), "p": p}


def bootstrap_difference(
    new: np.ndarray, base: np.ndarray, level: float = 0.95, resamples: int = 20_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile interval of accuracy(new) - accuracy(base), resampling pairs of test samples (Efron 1979).

    The sample is the unit: a draw takes a test row with the answers of all seeds on both sides, so that seeds do not count
    as rows. The interval covers other test samples for the same fits, not other seeds. It is degenerate if every row has the
    same difference, and too short with few discordant rows (see :func:`worst_case`).

    Args:
        new, base: bool [n] or [seeds, n]: the same n test rows in the same order.

    Raises:
        ValueError: the shapes differ.
    """
    new, base = np.atleast_2d(new), np.atleast_2d(base)
    if new.shape != base.shape:
        raise ValueError(f"correctness of shapes {new.shape} and {base.shape} is not paired")
    difference = (new.astype(np.int64) - base).sum(0)
    values, counts = np.unique(difference, return_counts=True)
    n = new.shape[1]
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    means = drawn @ values / (n * len(new))
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _tango_z(difference: float, wins: int, losses: int, n: int) -> float:
    """Return the score statistic of a true difference (Tango 1998, eq. 6); at 0 it equals McNemar's."""
    a = 2 * n
    b = (2 * n - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    p21 = (sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * p21 + difference * (1 - difference))
    above = wins - losses - n * difference
    return 0.0 if above == 0 else above / sqrt(variance) if variance > 0 else float(np.copysign(np.inf, above))


def worst_case(wins: int, losses: int, n: int, alpha: float = 0.05) -> float:
    """Return the lower one-sided (1 - alpha) bound of accuracy(new) - accuracy(base): Tango's score bound for paired samples.

    McNemar's exact test has no margin to test against. Wald's bound has no width without discordant samples, so that five
    agreeing rows would prove "not worse"; Tango's has a width of about z^2 / n there. At a difference of 0 it equals
    McNemar's test. Asymptotic: for n below about 30 its coverage may be slightly below nominal.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17.

    Args:
        n: all paired samples; at least 1.
    """
    z = float(norm.ppf(1 - alpha))
    observed = (wins - losses) / n
    if observed <= -1:
        return -1.0
    edge = -1 + 1e-12
    if _tango_z(edge, wins, losses, n) <= z:
        return -1.0
    return float(brentq(lambda d: _tango_z(d, wins, losses, n) - z, edge, observed, xtol=1e-12))


def area_under_curve(
    cost: Sequence[float], accuracy: Sequence[float], low: float, high: float, floor: float = 0.0
) -> float:
    """Return the mean over budgets, log-uniform in [low, high], of the best accuracy within the budget.

    The curve is the Pareto front of the operating points as steps, with ``floor`` left of the cheapest one; costs above
    ``high`` do not count. This is the two-dimensional hypervolume of Zitzler & Thiele 1999 over the logarithm of cost,
    divided by its width. Steps, because a budget between two points buys the cheaper one; logarithm, because cost is
    compared in ratios.

    Where it misleads: only values with the same bounds and floor are comparable; more points never lower it, even if they
    are better by chance; accuracy at impractical costs counts as much as elsewhere.

    Args:
        cost: float [points], > 0: FLOPs, or FLOPs over those of the reference.
        accuracy: float [points], 0..1.
        low, high: budgets, in units of ``cost``; 0 < low < high.
        floor: accuracy without any cost, e.g. of the most frequent label.

    Raises:
        ValueError: the bounds are out of order, or a cost is not positive.
    """
    if not 0 < low < high or min(cost, default=1.0) <= 0:
        raise ValueError(f"costs must be positive and 0 < low < high, not low={low}, high={high}")
    area, edge, best = 0.0, low, floor
    for price, share in sorted(zip(cost, accuracy, strict=True)):
        if price > high:
            break
        if share > best:
            start = max(price, low)
            area += best * np.log(start / edge)
            edge, best = start, share
    area += best * np.log(high / edge)
    return float(area / np.log(high / low))


class MatchedScore(NamedTuple):
    """Mean advantage over the baseline's curve. ``below`` points were cheaper than the whole curve and are left out."""

    score: float | None
    used: int
    below: int


def score_at_matched_cost(
    cost: Sequence[float],
    accuracy: Sequence[float],
    baseline_cost: Sequence[float],
    baseline_accuracy: Sequence[float],
) -> MatchedScore:
    """Return the mean over operating points of accuracy minus the baseline's at the same cost, linearly interpolated.

    The ELUE score (Liu et al., NAACL 2022, "Towards Efficient NLP: a standard evaluation and a strong baseline"), whose
    baseline is ElasticBERT at each of its depths. The paper does not define it outside the baseline's range: here a point
    that costs more than the whole baseline is compared with the baseline's most expensive point, and a point that costs less
    is left out and counted in ``below``.

    Where it misleads: every point weighs the same, so a method can add points where it does well; points between two
    baselines exist only on average, by mixing both; a baseline that is not monotone is used as it is.

    Args:
        cost, accuracy: float [points] of the method.
        baseline_cost, baseline_accuracy: float [m], m >= 1; of several accuracies at one cost the best counts.
    """
    best: dict[float, float] = {}
    for price, share in zip(baseline_cost, baseline_accuracy, strict=True):
        best[price] = max(share, best.get(price, -np.inf))
    grid = np.array(sorted(best))
    curve = np.array([best[price] for price in grid])
    x, y = np.asarray(cost, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    inside = x >= grid[0]
    if not inside.any():
        return MatchedScore(None, 0, len(x))
    gained = y[inside] - np.interp(x[inside], grid, curve)
    return MatchedScore(float(gained.mean()), int(inside.sum()), int((~inside).sum()))


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
class Verdict:
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
) -> Verdict:
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
    return Verdict(lowest > -margin, slowest > 1, lowest, slowest)
