"""Statistics of one accuracy, and of accuracy against cost. Pure functions on arrays; no file, no clock, no global state.

Accuracies, shares and their differences are 0..1, never percent.

* one accuracy: :func:`bootstrap_interval`; several seeds: :func:`spread`
* calibration of probabilities: :func:`calibration_error`
* accuracy against cost: :func:`area_under_curve`, :func:`score_at_matched_cost`
* two accuracies on the same samples: :mod:`harness.measure.paired_tests`; many tests: :mod:`harness.measure.many_tests`
* what a test could have found: :mod:`harness.measure.detectable`; exits by chance: :mod:`harness.measure.expected_exits`
* times: :mod:`harness.measure.time_noise`
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy.stats import binom, t


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


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error (ECE): mean over samples of |accuracy - mean confidence| of their bin, 0..1.

    Source: Naeini, Cooper & Hauskrecht 2015 (AAAI); 15 bins of equal width as in Guo et al. 2017 (ICML). It depends on the bins,
    and chance alone makes it larger than 0: with 1,000 samples by about 0.02.

    Args:
        confidence: float [n], probability of the predicted class, n >= 1.
        correct: bool [n].
    """
    place = np.minimum((np.asarray(confidence, dtype=np.float64) * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, weights=np.asarray(correct, dtype=np.float64) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(place))


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
