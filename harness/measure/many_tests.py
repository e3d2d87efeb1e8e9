"""Many tests at once: corrections that keep the probability of any false finding at the stated level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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


def least_p(discordant: int, *, two_sided: bool = True) -> float:
    """Return the least p-value that an exact McNemar test (or sign test) can have with this number of discordant samples.

    All samples on one side have probability 2^-d; a two-sided test counts both sides, and without a discordant sample it is 1.
    """
    return min(1.0, 2.0 ** (two_sided - discordant))


def holm_testable(p_values: Sequence[float], least: Sequence[float], alpha: float) -> list[float | None]:
    """Apply Holm to those tests that could reach significance at all (Tarone 1990).

    Let K be the smallest k such that at most k tests have a least p-value of at most alpha / k; only tests whose least p-value
    is at most alpha / K take part. What the least p-values depend on (the number of discordant samples) does not depend on
    which side wins, so the probability of any false rejection stays at most alpha. There is no gain if every test has many
    discordant samples. A continuous test has a least p-value of 0 and always takes part.

    Args:
        p_values: one per test.
        least: the least p-value of each test (:func:`least_p`); 0 for a continuous test.
        alpha: level that the results will be compared with.

    Returns:
        Adjusted p-values in the order given; None for a test that could not have been significant.
    """
    floor = np.asarray(least, dtype=np.float64)
    for family in range(1, len(p_values) + 1):
        chosen = np.flatnonzero(floor <= alpha / family)
        if len(chosen) <= family:
            break
    else:
        chosen = np.arange(0)
    adjusted: list[float | None] = [None] * len(p_values)
    for index, value in zip(chosen, holm([p_values[int(i)] for i in chosen]), strict=True):
        adjusted[int(index)] = value
    return adjusted
