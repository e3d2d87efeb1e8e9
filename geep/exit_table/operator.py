"""Prediction as one torch operator, ``torch.ops.geep.predict_exits``, which ``torch.compile`` does not trace into."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet


class Quantiles(Protocol):
    """What the operator needs of a table; see :class:`~geep.exit_table.table.ExitTable`."""

    def quantiles(self, tokens: TokenSet, quantiles: Sequence[float | int]) -> Tensor:
        """Return the predicted exits at Q quantiles, int16 [N, Q]."""


_tables: WeakValueDictionary[int, Quantiles] = WeakValueDictionary()
_next = count(1)


def register_table(table: Quantiles) -> int:
    """Return a number by which the operator finds the table, as long as the table exists."""
    handle = next(_next)
    _tables[handle] = table
    return handle


@torch.library.custom_op("geep::predict_exits", mutates_args=())
def predict_exits(ids: Tensor, offsets: Tensor, special: list[int], per_mille: list[int], table: int) -> Tensor:
    """Run :meth:`ExitTable.quantiles` on the parts of a ``TokenSet``.

    Args:
        ids: int32 [total].
        offsets: int64 [N + 1].
        special: ids that are part of no key.
        per_mille: Q quantiles, each 1 .. 1000.
        table: ``handle`` of the table.

    Returns:
        int16 [N, Q] on the device of ``ids``.

    Raises:
        ConfigError: the table no longer exists, or as :meth:`ExitTable.quantiles`.
    """
    found = _tables.get(table)
    if found is None:
        raise ConfigError(f"exit table: there is no table {table}: keep a reference to it while it is used")
    return found.quantiles(TokenSet(ids, offsets, torch.empty(0, dtype=torch.int8), tuple(special)), per_mille)


@predict_exits.register_fake
def _(ids: Tensor, offsets: Tensor, special: list[int], per_mille: list[int], table: int) -> Tensor:
    return ids.new_empty((offsets.shape[0] - 1, len(per_mille)), dtype=torch.int16)
