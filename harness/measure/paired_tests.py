"""Two accuracies on the same samples. Pure functions on arrays.

Accuracies, shares and their differences are 0..1, never percent. "Wins" are samples that only the new side answers
correctly, "losses" those that only the old side does; together they are the discordant samples.

* measured answers on both sides: :func:`mcnemar`, :func:`paired`, :func:`bootstrap_difference`
* real-valued differences, as against an expectation: :func:`mean_difference`
* several sets of samples: :func:`stratified_difference`
* not worse: :func:`worst_case`; over several sets the ``lower`` bound of :func:`stratified_difference`
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binom, norm, t


def mcnemar(wins: int, losses: int, alternative: Literal["two-sided", "worse"] = "two-sided") -> float:
    """Return the p-value of the exact McNemar test: binomial(wins + losses, 1/2); 1.0 without a discordant sample.

    Source: McNemar 1947, in its exact conditional form. Conservative: with few discordant samples its level is far below the
    nominal one, and with fewer than five it can never reach 0.05 (see :func:`harness.measure.many_tests.holm_testable`).

    Args:
        wins, losses: numbers of discordant samples.
        alternative: ``"worse"`` for a one-sided test that rejects if losses outweigh wins.
    """
    if alternative == "worse":
        return float(binom.cdf(wins, wins + losses, 0.5))
    return min(1.0, 2 * float(binom.cdf(min(wins, losses), wins + losses, 0.5)))


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


class MeanDifference(NamedTuple):
    """Result of :func:`mean_difference`: mean with standard error and interval, p-value, and rows that differ from 0."""

    mean: float
    se: float
    low: float
    high: float
    p: float
    informative: int


def mean_difference(differences: np.ndarray, level: float = 0.95) -> MeanDifference | None:
    """Return the mean of real-valued differences with Student's t interval and the two-sided p-value of a mean of 0.

    For differences between an answer and an expectation, such as ``correct - expected``, to which McNemar's test does not
    apply. With equal differences the interval has no width, and p is 1 if they are 0, else 0. Asymptotic (central limit
    theorem): with fewer than about ten differences other than 0 (``informative``) p is too small, so do not use it there.

    Source: Student 1908.

    Args:
        differences: float [n], one per test row; several seeds of a row are averaged before.

    Returns:
        None below two rows.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, se = float(np.mean(differences)), float(np.std(differences, ddof=1)) / sqrt(n)
    half = float(t.ppf((1 + level) / 2, n - 1)) * se
    p = float(2 * t.sf(abs(mean) / se, n - 1)) if se > 0 else float(mean == 0)
    return MeanDifference(mean, se, mean - half, mean + half, p, int(np.count_nonzero(differences)))


class StratifiedDifference(NamedTuple):
    """Result of :func:`stratified_difference`; ``lower`` is the one-sided bound at the level of one tail more."""

    mean: float
    se: float
    low: float
    high: float
    lower: float
    p: float


def stratified_difference(
    strata: Sequence[np.ndarray], level: float = 0.95, resamples: int = 4_000, seed: int = 0
) -> StratifiedDifference:
    """Return the mean over strata of their mean difference, with its stratified percentile bootstrap interval.

    A stratum is one dataset; its rows are drawn with replacement from itself only, and every stratum weighs the same, however
    many rows it has. A row enters with the mean of its differences over seeds, so that seeds are kept together and do not count
    as rows. p is the two-sided achieved significance level: twice the share of resamples on the far side of 0, at least
    2 / (resamples + 1).

    Where it misleads: it covers other test rows of the *same* sets for the same fits, neither other sets nor other seeds. With
    few rows that differ the interval is too short. Without any difference it has no width, and p is 1.

    Source: Davison & Hinkley 1997, "Bootstrap methods and their application", sections 3.2 (strata) and 4.4 (tests).

    Args:
        strata: float [n_k] each, one difference per test row; at least one stratum, none of them empty.
        level: coverage of ``low`` to ``high``; ``lower`` is the one-sided bound with the same confidence.
        resamples: the limits vary by about 0.03 standard errors with 4,000.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros(resamples)
    variance = 0.0
    for rows in strata:
        values, counts = np.unique(np.round(rows, 12), return_counts=True)
        drawn = rng.multinomial(len(rows), counts / len(rows), size=resamples)
        means += drawn @ values / (len(rows) * len(strata))
        variance += float(np.var(rows)) / len(rows) / len(strata) ** 2
    tail = (1 - level) / 2
    low, high, lower = np.quantile(means, [tail, 1 - tail, 1 - level])
    # Sums in floating point: a resample without any difference must count on both sides.
    beyond = min(np.count_nonzero(means <= 1e-12), np.count_nonzero(means >= -1e-12))
    mean = float(np.mean([np.mean(rows) for rows in strata]))
    return StratifiedDifference(
        mean, sqrt(variance), float(low), float(high), float(lower), float(min(1.0, 2 * (1 + beyond) / (resamples + 1)))
    )


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
