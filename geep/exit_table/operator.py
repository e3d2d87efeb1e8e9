"""Prediction as one torch operator, ``torch.ops.geep.predict_exits``, which ``torch.compile`` does not trace into."""

from __future__ import annotations

from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from geep.exit_table.rules import Rule, rule_of
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet


class Assigns(Protocol):
    """What the operator needs of a table; see :class:`~geep.exit_table.table.ExitTable`."""

    def assign(self, tokens: TokenSet, rule: Rule) -> Tensor:
        """Return the exits under Q settings of a rule, int16 [N, Q]."""


_tables: WeakValueDictionary[int, Assigns] = WeakValueDictionary()
_next = count(1)


def register_table(table: Assigns) -> int:
    """Return a number by which the operator finds the table, as long as the table exists."""
    handle = next(_next)
    _tables[handle] = table
    return handle


@torch.library.custom_op("geep::predict_exits", mutates_args=())
def predict_exits(
    ids: Tensor, offsets: Tensor, special: list[int], rule: str, settings: list[int], queries: int, table: int
) -> Tensor:
    """Run :meth:`ExitTable.assign` on the parts of a ``TokenSet``.

    Args:
        ids: int32 [total].
        offsets: int64 [N + 1].
        special: ids that are part of no key.
        rule: name of the rule.
        settings: the numbers of its Q settings, in one row.
        queries: Q.
        table: ``handle`` of the table.

    Returns:
        int16 [N, Q] on the device of ``ids``.

    Raises:
        ConfigError: the table no longer exists, or as :meth:`ExitTable.assign`.
    """
    found = _tables.get(table)
    if found is None:
        raise ConfigError(f"exit table: there is no table {table}: keep a reference to it while it is used")
    tokens = TokenSet(ids, offsets, torch.empty(0, dtype=torch.int8), tuple(special))
    return found.assign(tokens, rule_of(rule, settings, queries))


@predict_exits.register_fake
def _(
    ids: Tensor, offsets: Tensor, special: list[int], rule: str, settings: list[int], queries: int, table: int
) -> Tensor:
    return ids.new_empty((offsets.shape[0] - 1, queries), dtype=torch.int16)
