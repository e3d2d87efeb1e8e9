"""Assignment rules as a setting: per rule, the candidates among which dev chooses, and how a chosen point becomes exits.

* ``quantile`` (Li et al. 2024): the q-quantile of the summed distributions; q is chosen.
* ``cuts`` (ours): samples ordered by the expected exit of the table; the cut points are chosen so that dev has a wanted
  histogram of exits. At a speed, that is the histogram of the sequential exit. At a budget, also any mix of two depths.
* ``expected`` (ours): the exit with the smallest ``1 - P(agrees with full depth) + price * layers``; the price is chosen.

All cut points and prices come from dev, never from test.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from geep.exit_table import ExitTable
from geep.exit_table.rules import UNIT, Cuts, Expected, Quantiles, Rule
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.execution.exit_rules import candidate_thresholds

RuleName = Literal["quantile", "cuts", "expected"]
RULE: RuleName = "quantile"
"""The default. ``python -m suites.studies.assignment`` says which rule dev prefers."""

QUANTILES = tuple(range(5, 1001, 5))  # per mille
PRICES = 256  # tried, at most
HISTOGRAMS = 256  # of the sequential exit, tried at most


@dataclass(frozen=True)
class Assignments:
    """The candidates of one table and rule, with their exits on dev.

    Attributes:
        settings: parameters of an operating point, per candidate.
        exits: int16 [N, Q], one column per candidate.
    """

    settings: list[dict[str, Any]]
    exits: np.ndarray

    @classmethod
    def under(cls, table: ExitTable, tokens: TokenSet, rule: Rule, key: str) -> Assignments:
        """Ask the table for all settings of a rule; ``key`` names the parameter."""
        values = [list(each) if isinstance(rule, Cuts) else each[0] for each in rule.settings]
        return cls([{key: value} for value in values], table.assign(tokens, rule).cpu().numpy())

    def __add__(self, other: Assignments) -> Assignments:
        return Assignments(self.settings + other.settings, np.concatenate([self.exits, other.exits], axis=1))


def rule_of_point(params: Mapping[str, Any]) -> Rule:
    """Return the rule with the setting of an operating point."""
    if "cuts" in params:
        return Cuts((tuple(params["cuts"]),))
    if "price" in params:
        return Expected((params["price"],))
    return Quantiles((params["quantile"],))


def with_quantiles(table: ExitTable, tokens: TokenSet) -> Assignments:
    """Return all quantiles in steps of half a per cent."""
    return Assignments.under(table, tokens, Quantiles(QUANTILES), "quantile")


def with_prices(table: ExitTable, tokens: TokenSet, answers: Sequence[int], most: int = PRICES) -> Assignments:
    """Return prices at which samples of dev change their exits, with 0 (all agreement) and 1 (one layer) at the ends."""
    return Assignments.under(table, tokens, Expected(prices(table, tokens, answers, most)), "price")


def prices(table: ExitTable, tokens: TokenSet, answers: Sequence[int], most: int = PRICES) -> tuple[int, ...]:
    """Return falling prices, in units of the table, between those at which the exit of some sample becomes deeper.

    At price 0 a sample takes the layer that agrees most; as the price rises it takes the vertices of the concave hull of
    its expected agreement over layers. The slopes between vertices are these prices.

    Args:
        answers: layer indices that have a head, rising.
    """
    sums = table.distribution(tokens)[:, : table.num_layers].cpu().numpy().astype(np.float64)
    sums = sums[sums[:, -1] > 0]
    agreement = sums[:, answers] / sums[:, -1:]  # [N, A]
    layers = np.array(answers, dtype=np.float64)
    slopes: list[np.ndarray] = []
    at = np.zeros(len(agreement), dtype=np.int64)
    samples = np.arange(len(agreement))
    for _ in answers[1:]:
        rise = agreement - agreement[samples, at][:, None]
        run = layers - layers[at][:, None]
        slope = np.where(run > 0, rise / np.where(run > 0, run, 1), -np.inf)
        best = slope.max(1, initial=-np.inf)
        moves = best > 0
        slopes.append(best[moves])
        # The furthest of equal slopes is the next vertex.
        furthest = slope.shape[1] - 1 - (slope == best[:, None])[:, ::-1].argmax(1)
        at = np.where(moves, furthest, at)
    found = candidate_thresholds(np.concatenate(slopes, dtype=np.float64), (0.0, 1.0), most=most)
    return tuple(sorted({round(float(price) * UNIT) for price in found if 0 <= price <= 1}, reverse=True))


def cut_points(table: ExitTable, tokens: TokenSet, answers: Sequence[int], histograms: np.ndarray) -> Cuts:
    """Return the cut points that give dev these histograms of exits, up to samples with equal expected exits.

    Args:
        answers: A layer indices that have a head, rising.
        histograms: samples per answering layer, int64 [Q, A]; every row adds up to the number of samples.

    Raises:
        ConfigError: there are no samples, or a histogram is empty.
    """
    if not len(tokens) or (histograms.sum(1) != len(tokens)).any():
        raise ConfigError(
            f"method 'geep': rule = \"cuts\" chooses cut points on dev, which has {len(tokens)} rows for histograms of "
            f"{', '.join(str(total) for total in dict.fromkeys(histograms.sum(1).tolist())) or 'none'}: "
            'give dev rows (dev_share), or set rule = "quantile"'
        )
    sums = table.distribution(tokens)[:, : table.num_layers].cpu().numpy()
    total, last = sums.sum(1), (table.num_layers - 1) * UNIT
    weighted = (sums * np.arange(table.num_layers)).sum(1) * UNIT
    # Rounded down, an expected exit reaches the same whole cut points. Samples without keys are deepest under any.
    expected = np.sort(np.where(total > 0, weighted // np.maximum(total, 1), last))
    shallower = histograms.cumsum(1)[:, :-1]  # [Q, A - 1] samples below each cut point
    below = expected[np.maximum(shallower - 1, 0)]
    above = expected[np.minimum(shallower, len(expected) - 1)]
    # Of equal expected exits, all are on the side that leaves the histogram nearer.
    low, high = np.searchsorted(expected, above, "left"), np.searchsorted(expected, above, "right")
    tied = above + (high - shallower < shallower - low)
    cuts = np.where(below < above, (below + above) // 2 + 1, tied)
    cuts = np.where(shallower == 0, 0, np.where(shallower == len(expected), last + 1, cuts))
    # Layers without a head share the cut point of the next layer that has one.
    place = np.searchsorted(answers, np.arange(1, table.num_layers))
    padded = np.concatenate([np.zeros((len(cuts), 1), dtype=np.int64), cuts], axis=1)
    return Cuts(tuple(tuple(row) for row in padded[:, place].tolist()))


def with_cuts(table: ExitTable, tokens: TokenSet, answers: Sequence[int], histograms: np.ndarray) -> Assignments:
    """Return cut points for each of these histograms; raises as :func:`cut_points`."""
    return Assignments.under(table, tokens, cut_points(table, tokens, answers, histograms), "cuts")


def sequential_histograms(entropy: np.ndarray, speeds: Sequence[float]) -> np.ndarray:
    """Return the histograms of the sequential exit at these speeds and at others, int64 [Q, A], the former first.

    Args:
        entropy: normalised, [A, N], of every answering layer.
    """
    others = candidate_thresholds(entropy[:-1], (0.0, 1.0), most=HISTOGRAMS)
    found = []
    for speed in dict.fromkeys((*speeds, *others.tolist())):
        sure = entropy <= speed
        sure[-1] = True
        found.append(np.bincount(sure.argmax(0), minlength=len(entropy)))
    return np.array(found)


def two_depths(samples: int, answers: Sequence[int], layers: Sequence[float]) -> np.ndarray:
    """Return the histograms of two depths with at most so many mean layers each, int64 [Q, A]: at random, the hull's.

    Args:
        samples: N.
        layers: wanted mean layers.
    """
    found = []
    for wanted, (low, high) in itertools.product(layers, itertools.combinations(range(len(answers)), 2)):
        shallow, deep = answers[low] + 1, answers[high] + 1
        if shallow <= wanted < deep:
            deeper = int(samples * (wanted - shallow) / (deep - shallow) + 1e-9)
            found.append(np.bincount([low, high], weights=[samples - deeper, deeper], minlength=len(answers)))
    return np.array(found, dtype=np.int64).reshape(-1, len(answers))
