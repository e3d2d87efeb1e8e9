"""The arithmetic of rows and quantiles: integers only, the same on every backend.

A row is a distribution over the L exits in Q14 fixed point: non-negative integers whose sum is **exactly** 2^14. To keep it
exact, cumulative sums are rounded down and then differenced:

    C_k = (SCALE * (c_0 + .. + c_k) + smoothing * (P_0 + .. + P_k)) // (total + smoothing),   row_k = C_k - C_(k-1)

with counts c, their ``total`` and the prior row P. Each entry is within 1 of the unrounded value. An exit with neither count
nor prior gets 0, so it is never predicted. Q14 lets float32 add 1,024 rows exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import ConfigError

SCALE = 1 << 14
PER_MILLE = 1000
COUNT_LIMIT = 1 << 32
"""Limit of inserted tokens: counts and row totals fit uint32, and ``SCALE * total`` stays far below 2^63."""


def prior_row(histogram: np.ndarray) -> np.ndarray:
    """Return the back-off row, the distribution of all samples over exits, rounded as any row.

    Args:
        histogram: int64 [L], samples per exit, at least one in all.

    Returns:
        int64 [L] with sum 2^14.
    """
    cumulative = histogram.astype(np.int64).cumsum()
    return np.diff(cumulative * SCALE // cumulative[-1], prepend=0)


def smoothed_rows(counts: np.ndarray, prior: np.ndarray, smoothing: int) -> np.ndarray:
    """Return rows of keys that occurred.

    Args:
        counts: [K, L], every row with at least one count.
        prior: int64 [L], the back-off row.
        smoothing: pseudo-counts of the prior, 0 .. 2^32 - 1.

    Returns:
        int64 [K, L], each row with sum 2^14.
    """
    cumulative = counts.astype(np.int64).cumsum(axis=1)
    total = cumulative[:, -1:]
    level = (cumulative * SCALE + smoothing * prior.cumsum()) // (total + smoothing)
    return np.diff(level, axis=1, prepend=0)


def exits_at(sums: Tensor, per_mille: Sequence[int]) -> Tensor:
    """Return the exits at several quantiles: the smallest k with ``1000 * cum_k >= q * total``.

    As q > 0, the chosen exit always has a positive count or prior. A sample without keys takes the deepest layer, L - 1.

    Args:
        sums: int64 [N, L], rows of each sample's keys added up.
        per_mille: Q quantiles, each 1 .. 1000.

    Returns:
        int16 [N, Q].
    """
    cumulative = sums.cumsum(1)
    total = cumulative[:, -1:]
    wanted = total * torch.tensor(list(per_mille), dtype=torch.int64, device=sums.device)
    exits = torch.searchsorted(cumulative * PER_MILLE, wanted)
    return exits.masked_fill_(total == 0, sums.shape[1] - 1).to(torch.int16)


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
