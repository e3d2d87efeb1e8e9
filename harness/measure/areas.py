"""Accuracy over cost as a weighted mean of operating points, at one budget or over many, and ranks of methods.

Pure functions on arrays. Accuracies are 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range


def area_weights(layers: Sequence[float], low: float, high: float) -> tuple[np.ndarray, float]:
    """Return how much every operating point counts in the mean accuracy over budgets ``low`` to ``high``, in mean layers.

    A budget between two points buys a mix of both (some samples run with one, the others with the other); one above the last
    point buys that point; one below the first point buys a mix of it and of guesses, which take no layer. Points of equal layers
    count alike. Nothing is chosen on test rows: a point that another one dominates counts, too.

    Args:
        layers: mean layers of the points, each > 0 or, where nothing ran, 0; in any order, at least one.
        low, high: 0 <= low < high.

    Returns:
        Weights [P], and the weight of guessing; all of them together are 1.
    """
    places, which, counts = np.unique(np.asarray(layers, dtype=np.float64), return_inverse=True, return_counts=True)
    knots = places if places[0] == 0 else np.concatenate([[0.0], places])
    grid = np.array([low, *(knot for knot in knots if low < knot < high), high])
    # The curve is linear between knots, so that every knot counts with the area under its own triangle.
    triangles = [np.interp(grid, knots, one) for one in np.eye(len(knots))]
    weights = np.array([np.trapezoid(one, grid) for one in triangles]) / (high - low)
    guess = 0.0 if len(knots) == len(places) else float(weights[0])
    return weights[-len(places) :][which] / counts[which], guess


def budget_weights(costs: Sequence[float], budget: float) -> tuple[np.ndarray, float]:
    """Return how much every operating point counts in the accuracy that one budget buys; mixes are those of :func:`area_weights`.

    Args:
        costs: mean cost of the points, in any order, at least one.
        budget: in the same unit.

    Returns:
        Weights [P], and the weight of guessing; all of them together are 1.
    """
    places, which, counts = np.unique(np.asarray(costs, dtype=np.float64), return_inverse=True, return_counts=True)
    knots = places if places[0] == 0 else np.concatenate([[0.0], places])
    weights = np.array([np.interp(budget, knots, one) for one in np.eye(len(knots))])
    guess = 0.0 if len(knots) == len(places) else float(weights[0])
    return weights[-len(places) :][which] / counts[which], guess


class Ranking(NamedTuple):
    """Result of :func:`pooled_ranks`: of every method its mean, rank (1 is best), and their intervals, each [M]."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rank: np.ndarray
    rank_low: np.ndarray
    rank_high: np.ndarray


def pooled_ranks(strata: Sequence[np.ndarray], level: float = 0.95, resamples: int = 2_000, seed: int = 0) -> Ranking:
    """Rank methods by their mean over strata, with stratified percentile bootstrap intervals of means and ranks.

    A resample draws the rows of a stratum (one dataset) with replacement, the same rows for all methods; every stratum weighs
    the same. A rank is 1 + the number of methods that are better; equals share the better rank. Rank intervals tend to be too
    short for methods that are nearly equal (Hall & Miller 2009, "Using the bootstrap to quantify the authority of an empirical
    ranking", Annals of Statistics 37): read "not separated" where they overlap, never "equal". They cover other rows of these
    sets for the same fits, neither other sets nor other seeds.

    Args:
        strata: float [M, n_k] each: one number per method and row; the same M methods in all, at least one row each.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros((resamples, len(strata[0])))
    for values in strata:
        n = values.shape[1]
        for at in range(0, resamples, 250):  # bounds memory
            drawn = rng.multinomial(n, np.full(n, 1 / n), size=min(250, resamples - at))
            means[at : at + 250] += drawn @ values.T / (n * len(strata))
    mean = np.mean([values.mean(1) for values in strata], axis=0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(means, tails, axis=0)
    rank_low, rank_high = np.quantile(ranks_of(means), tails, axis=0, method="closest_observation")
    return Ranking(mean, low, high, ranks_of(mean[None])[0], rank_low.astype(np.int64), rank_high.astype(np.int64))


def ranks_of(values: np.ndarray) -> np.ndarray:
    """Return the ranks of M values in every row, int64 [R, M]: 1 + how many are greater by more than rounding."""
    return 1 + (values[:, None, :] > values[:, :, None] + 1e-12).sum(-1)


class AverageRanks(NamedTuple):
    """Result of :func:`average_ranks`: ranks of every method on every set [M, N] and on average [M], and what separates them.

    ``p`` is that of Friedman's test that all methods rank alike; two methods whose average ranks differ by less than
    ``critical_difference`` are not separated at the level of 5 % (Nemenyi's test of all pairs).
    """

    ranks: np.ndarray
    average: np.ndarray
    statistic: float
    p: float
    critical_difference: float


def average_ranks(values: np.ndarray, alpha: float = 0.05) -> AverageRanks:
    """Rank methods on every set (1 is best; equals share the mean of their ranks) and test the averages over sets.

    Here the sets are the sample, so the tests speak about other sets of this kind, as far as these are a fair sample of
    them; how sure the value on a set is plays no part. With few sets they find little: with 12 sets and 10 methods average
    ranks must differ by 3.9. Nemenyi's test depends on which methods take part.

    Source: Demsar 2006, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, section 3.2.2; Friedman 1937;
    Nemenyi 1963.

    Args:
        values: float [M, N], the same M methods on N sets, more is better; M >= 3, N >= 2.
        alpha: level of Nemenyi's test.
    """
    rounded = np.round(values, 12)
    methods, sets = rounded.shape
    ranks = rankdata(-rounded, axis=0)
    statistic, p = map(float, friedmanchisquare(*rounded)) if np.ptp(ranks) else (0.0, 1.0)
    quantile = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / np.sqrt(2)
    critical = quantile * float(np.sqrt(methods * (methods + 1) / (6 * sets)))
    return AverageRanks(ranks, ranks.mean(1), statistic, p, critical)


def not_separated(average: Sequence[float], critical_difference: float) -> list[tuple[int, int]]:
    """Return the largest groups of methods within the critical difference, as first and last place in order of rank.

    Args:
        average: average ranks in rising order.
    """
    groups: list[tuple[int, int]] = []
    for first, rank in enumerate(average):
        last = max(i for i, other in enumerate(average) if other - rank < critical_difference)
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups
