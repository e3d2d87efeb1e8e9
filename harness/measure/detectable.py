"""What a test could have found: the least true difference that it detects with a stated probability (its power).

A test without a finding says nothing by itself: with few rows it finds nothing whatever is true. So every verdict states this
number. It describes the test at the noise that was observed, not the observed difference (no "observed power": Hoenig &
Heisey 2001).
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm

POWER = 0.8


def detectable_mean(se: float, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the least true mean that a two-sided z-test at level alpha finds with this power: (z_(1-alpha/2) + z_power) se.

    Source: Lachin 1981, "Introduction to sample size determination and power analysis for clinical trials". Ignores the chance of
    a finding of the wrong sign, which is negligible at usual powers. Without any observed spread (``se`` = 0) it says nothing.

    Args:
        se: standard error of the mean, in its unit.
    """
    return float(norm.ppf(1 - alpha / 2) + norm.ppf(power)) * se


def provable_margin(se: float, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the least margin that a non-inferiority test would have shown with this power if both sides were equally good.

    (z_(1-alpha) + z_power) se, one-sided (Lachin 1981).
    """
    return float(norm.ppf(1 - alpha) + norm.ppf(power)) * se


@lru_cache(maxsize=64)
def _most_losses(most: int, alpha: float) -> np.ndarray:
    """Return for 0..most discordant samples the largest number on one side that is significant; -1 where none is."""
    discordant = np.arange(most + 1)
    losses = binom.ppf(alpha / 2, discordant, 0.5)
    losses -= binom.cdf(losses, discordant, 0.5) > alpha / 2
    losses[0] = -1
    return np.asarray(losses)


def mcnemar_power(difference: float, discordant: float, n: int, alpha: float = 0.05) -> float:
    """Return the probability that the exact two-sided McNemar test is significant.

    Sums over the possible numbers of discordant samples (Miettinen 1968 gives its normal approximation).

    Args:
        difference: true difference in accuracy, 0..1.
        discordant: probability that a sample is discordant; at least ``difference``.
        n: samples.
    """
    spread = 8 * sqrt(n * discordant * (1 - discordant)) + 8
    low, high = max(0, int(n * discordant - spread)), min(n, int(n * discordant + spread))
    counts = np.arange(low, high + 1)
    # A few lengths only, so that the table of limits is made once.
    limits = _most_losses(min(n, 1 << high.bit_length()), alpha)[counts]
    chance = min(1.0, (discordant + difference) / (2 * discordant)) if discordant else 0.5
    found = binom.cdf(limits, counts, 1 - chance) + binom.cdf(limits, counts, chance)
    return float(binom.pmf(counts, n, discordant) @ found)


@lru_cache(maxsize=4096)
def detectable_by_mcnemar(n: int, discordant: int, alpha: float = 0.05, power: float = POWER) -> float | None:
    """Return the least true difference in accuracy that the exact two-sided McNemar test finds with this power.

    The share of discordant samples is the observed one, or the difference itself where that is larger: with no discordant
    sample among 1,000 about 0.8 points could still have been found, all of them wins.

    Args:
        n: paired samples.
        discordant: wins + losses observed among them.
        alpha: level of the test; after a correction for m tests alpha / m.

    Returns:
        None if so few samples cannot reach the power with any difference (n = 5 at 0.05).
    """
    share = discordant / n

    def missing(difference: float) -> float:
        return mcnemar_power(difference, max(share, difference), n, alpha) - power

    if missing(1.0) < 0:
        return None
    return float(brentq(missing, 1e-9, 1.0, xtol=1e-5))


def chance_of_showing(difference: float, seen_se: float, next_se: float, margin: float, alpha: float = 0.05) -> float:
    """Return the probability that new samples show "worse by less than ``margin``", given what was seen on other ones.

    The predictive power of a non-inferiority test: the bound on the new samples is ``new difference - z_(1-alpha) next_se``,
    and the new difference is normal around the seen one, with both variances. Source: Spiegelhalter, Freedman & Blackburn 1986,
    "Monitoring clinical trials: conditional or predictive power?", with a flat prior.

    Args:
        difference: in accuracy on the samples seen, 0..1.
        seen_se, next_se: standard errors of the difference on the samples seen, and on the new ones; above 0.
    """
    above = difference + margin - float(norm.ppf(1 - alpha)) * next_se
    return float(norm.cdf(above / sqrt(seen_se**2 + next_se**2)))


def times_as_many(
    difference: float, se: float, margin: float, alpha: float = 0.05, power: float = POWER
) -> float | None:
    """Return how many times as many samples would show "worse by less than ``margin``" if the true difference is this one.

    Inverts :func:`provable_margin`: the standard error falls with the root of the number of samples (Lachin 1981).

    Args:
        se: standard error of the difference on the samples so far.

    Returns:
        None if no number would, since the difference is not within the margin.
    """
    if difference <= -margin:
        return None
    return (provable_margin(se, alpha, power) / (difference + margin)) ** 2
