"""The arithmetic of rows: integers only, the same on every backend.

Over exclusive columns (:mod:`geep.exit_table.columns`), e.g. the L exits, a row is a distribution in Q14 fixed point:
non-negative integers whose sum is **exactly** 2^14. To keep it exact, cumulative sums are rounded down and then differenced:

    C_k = (SCALE * (c_0 + .. + c_k) + smoothing * (P_0 + .. + P_k)) // (total + smoothing),   row_k = C_k - C_(k-1)

with counts c, the key's ``total`` and the prior row P. Each entry is within 1 of the unrounded value. An exit with neither count
nor prior gets 0, so a quantile never predicts it. An entry of another column is a share of its own, rounded down: C_k with c_k
and P_k alone; that of the last layer's agreement is exactly 2^14. Q14 lets float32 add 1,024 rows exactly.
"""

from __future__ import annotations

import numpy as np

from geep.exit_table.columns import TableColumns

SCALE = 1 << 14
COUNT_LIMIT = 1 << 32
"""Limit of inserted tokens: counts and row totals fit uint32, and ``SCALE * total`` stays far below 2^63."""


def prior_row(histogram: np.ndarray, columns: TableColumns) -> np.ndarray:
    """Return the back-off row, what all samples marked, rounded as any row.

    Args:
        histogram: int64 [W], samples per column, at least one in all.

    Returns:
        int64 [W]; exclusive columns add up to 2^14.
    """
    return columns.difference(columns.cumulate(histogram) * SCALE // histogram[columns.once].sum())


def smoothed_rows(counts: np.ndarray, prior: np.ndarray, smoothing: int, columns: TableColumns) -> np.ndarray:
    """Return rows of keys that occurred.

    Args:
        counts: [K, W], every row with at least one count.
        prior: int64 [W], the back-off row.
        smoothing: pseudo-counts of the prior, 0 .. 2^32 - 1.

    Returns:
        int64 [K, W]; exclusive columns of each row add up to 2^14.
    """
    total = counts[:, columns.once].sum(axis=1, dtype=np.int64)[:, None]
    level = (columns.cumulate(counts) * SCALE + smoothing * columns.cumulate(prior)) // (total + smoothing)
    return columns.difference(level)
