"""Assignment rules: how the summed rows of a sample's keys become an exit. Integers only, the same on every backend.

The published one is a quantile of the summed distribution (Li et al. 2024). The sum of many rows hardly spreads, so its
quantiles are nearly the same exit for all samples. The two others (ours) use what is there: the *order* of samples by
expected exit, or the expected agreement of every exit with full depth.

A sample without keys takes the deepest layer, L - 1, under every rule. Numbers below fit 64 bits for samples of up to 2^28 keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import torch
from torch import Tensor

from geep.exit_table.columns import GroupName
from harness.core.errors import ConfigError

PER_MILLE = 1000
UNIT = 1 << 16
"""Cut points are given in 1/65536 of a layer, prices of a layer in 1/65536 of a lost agreement."""


class Rule(ABC):
    """A rule with Q settings, which are looked up together.

    Attributes:
        name: of the rule; ``code`` is its number in ``exit_table.cu``.
        group: the columns that it reads.
    """

    name: ClassVar[str]
    code: ClassVar[int]
    group: ClassVar[GroupName]

    @property
    @abstractmethod
    def settings(self) -> tuple[tuple[int, ...], ...]:
        """Whole numbers of every setting, Q times as many."""

    @abstractmethod
    def exits(self, sums: Tensor) -> Tensor:
        """Return exits int16 [N, Q] for summed rows int64 [N, L] of samples that have keys."""

    def numbers(self, layers: int) -> int:
        """Return how many numbers a setting has for that many layers."""
        return 1

    def assign(self, sums: Tensor) -> Tensor:
        """Return exits, int16 [N, Q].

        Args:
            sums: int64 [N, L], the rows of each sample's keys added up.
        """
        none = sums[:, -1:] == 0 if self.group == "agreement" else sums.sum(1, keepdim=True) == 0
        return self.exits(sums).masked_fill_(none, sums.shape[1] - 1).to(torch.int16)


@dataclass(frozen=True)
class Quantiles(Rule):
    """The smallest exit with ``1000 * cumulative >= q * total``. As q > 0, it has a positive count or prior.

    Attributes:
        per_mille: Q quantiles, each 1 .. 1000.
    """

    per_mille: tuple[int, ...]
    name: ClassVar = "quantile"
    code: ClassVar = 0
    group: ClassVar = "exits"

    @classmethod
    def of(cls, quantiles: Sequence[float | int]) -> Quantiles:
        """Read quantiles as :func:`to_per_mille` does."""
        return cls(tuple(to_per_mille(quantile) for quantile in quantiles))

    @property
    def settings(self) -> tuple[tuple[int, ...], ...]:
        return tuple((q,) for q in self.per_mille)

    def exits(self, sums: Tensor) -> Tensor:
        cumulative = sums.cumsum(1)
        wanted = cumulative[:, -1:] * torch.tensor(self.per_mille, dtype=torch.int64, device=sums.device)
        return torch.searchsorted(cumulative * PER_MILLE, wanted)


@dataclass(frozen=True)
class Cuts(Rule):
    """The number of cut points that the expected exit, the mean layer index of the summed distribution, reaches.

    Attributes:
        cuts: Q times L - 1 cut points, not falling, in 1/65536 of a layer; above (L - 1) * 65536 none reaches it.

    Raises:
        ConfigError: cut points fall or are out of range.
    """

    cuts: tuple[tuple[int, ...], ...]
    name: ClassVar = "cuts"
    code: ClassVar = 1
    group: ClassVar = "exits"

    def __post_init__(self) -> None:
        for each in self.cuts:
            if list(each) != sorted(each) or (each and not 0 <= each[0] <= each[-1] <= len(each) * UNIT + 1):
                raise ConfigError(f"cut points {each} must not fall, and lie in 0..{len(each) * UNIT + 1}")

    @property
    def settings(self) -> tuple[tuple[int, ...], ...]:
        return self.cuts

    def numbers(self, layers: int) -> int:
        return layers - 1

    def exits(self, sums: Tensor) -> Tensor:
        weighted = (sums * torch.arange(sums.shape[1], device=sums.device)).sum(1) * UNIT  # [N]
        cuts = torch.tensor(self.cuts, dtype=torch.int64, device=sums.device)  # [Q, L - 1]
        return (weighted[:, None, None] >= cuts * sums.sum(1)[:, None, None]).sum(2)


@dataclass(frozen=True)
class Expected(Rule):
    """The exit with the smallest expected loss, ``1 - P(agrees with full depth) + price * layers``; the first on ties.

    Attributes:
        prices: Q prices of a layer, each 0 .. 65536, in 1/65536.

    Raises:
        ConfigError: a price is out of range.
    """

    prices: tuple[int, ...]
    name: ClassVar = "expected"
    code: ClassVar = 2
    group: ClassVar = "agreement"

    def __post_init__(self) -> None:
        wrong = [price for price in self.prices if not 0 <= price <= UNIT]
        if wrong:
            raise ConfigError(f"price {wrong[0]} of a layer is outside 0..{UNIT}")

    @property
    def settings(self) -> tuple[tuple[int, ...], ...]:
        return tuple((price,) for price in self.prices)

    def exits(self, sums: Tensor) -> Tensor:
        total = sums[:, -1:]  # the last layer always agrees
        lost = (total - sums) * UNIT  # [N, L]
        layers = total * torch.arange(1, sums.shape[1] + 1, device=sums.device)
        # torch's argmin may return any of several minima.
        preferred = torch.arange(sums.shape[1], 0, -1, device=sums.device)
        exits = []
        for price in self.prices:
            costs = lost + price * layers
            exits.append(((costs == costs.amin(1, keepdim=True)) * preferred).argmax(1))
        return torch.stack(exits, 1) if exits else sums.new_empty(len(sums), 0)


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Quantiles, Cuts, Expected)}


def rule_of(name: str, numbers: Sequence[int], queries: int) -> Rule:
    """Return the rule of that name with ``queries`` settings, from all their numbers in one row."""
    if name == Cuts.name:
        each = len(numbers) // max(queries, 1)
        return Cuts(tuple(tuple(numbers[q * each : (q + 1) * each]) for q in range(queries)))
    return RULES[name](tuple(numbers))  # type: ignore[call-arg]


def to_per_mille(quantile: float | int) -> int:
    """Return a quantile in per mille: an int is per mille, 1 .. 1000; a float is a fraction in (0, 1], rounded to per mille.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(quantile, Integral) and not isinstance(quantile, bool):
        value = int(quantile)
    elif isinstance(quantile, Real) and not isinstance(quantile, bool) and 0 < quantile <= 1:
        value = round(float(quantile) * PER_MILLE)
    else:
        value = 0
    if not 1 <= value <= PER_MILLE:
        raise ConfigError(f"quantile {quantile!r}: give a fraction up to 1.0, or an int in per mille, 1 to 1000")
    return value
