"""Statistics of reports in plain loops, independent of the project's own: what its tables are compared with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from statistics import fmean
from typing import Any

Rows = list[dict[str, Any]]


def binomial_quantile(level: float, n: int, p: float) -> int:
    """Return the smallest k with P(X <= k) >= level."""
    if p in (0.0, 1.0):
        return round(n * p)
    total = 0.0
    for k in range(n + 1):
        log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        total += math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))
        if total >= level:
            return k
    return n


def macro_f1(rows: Rows) -> float:
    """Return the mean F1 over the classes that occur as label or prediction."""
    hit, said, true = Counter(), Counter(), Counter()
    for row in rows:
        said[row["prediction"]] += 1
        true[row["label"]] += 1
        hit[row["label"]] += row["label"] == row["prediction"]
    return fmean(2 * hit[c] / (said[c] + true[c]) for c in {*said, *true})


def exact_p(wins: int, losses: int) -> float:
    """Return the p-value of the two-sided sign test."""
    n, least = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def holm(values: list[float], least: list[float]) -> list[float | None]:
    """Return Holm's step-down adjustment of those whose least p-value is at most 5 % over the number of those (Tarone's K)."""
    k = next((k for k in range(1, len(values) + 1) if sum(one <= 0.05 / k for one in least) <= k), len(values) + 1)
    order = sorted((i for i in range(len(values)) if least[i] <= 0.05 / k), key=lambda i: values[i])
    adjusted, highest = [None] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = highest
    return adjusted


def tau_b(pairs: list[tuple[int, int]]) -> float | None:
    """Return Kendall's tau-b over pairs of distinct values with their counts."""
    counts = list(Counter(pairs).items())
    score = 0
    for i, ((a, b), m) in enumerate(counts):
        for (c, d), k in counts[:i]:
            score += m * k * ((a > c) - (a < c)) * ((b > d) - (b < d))

    def untied(values: Iterable[int]) -> int:
        n = len(pairs)
        return (n * n - sum(k * k for k in Counter(values).values())) // 2

    under = untied(a for a, _ in pairs) * untied(b for _, b in pairs)
    return score / math.sqrt(under) if under else None


def tango_lower(wins: int, losses: int, n: int) -> float:
    """Return the least difference that Tango's score test at 5 % does not reject, by bisection on its constrained estimate."""
    low, high = -1 + 1e-12, (wins - losses) / n
    for _ in range(80):
        d = (low + high) / 2
        # The likelihood's root for the chance of a loss: 2n x^2 + (b) x - losses d (d - 1) = 0 with d negated for losses.
        b = (2 * n - wins + losses) * d - wins - losses
        chance = (math.sqrt(b * b + 8 * n * losses * d * (1 - d)) - b) / (4 * n)
        z = (wins - losses - n * d) / math.sqrt(n * (2 * chance + d * (1 - d)))
        low, high = (d, high) if z > 1.6448536269514722 else (low, d)
    return (low + high) / 2
