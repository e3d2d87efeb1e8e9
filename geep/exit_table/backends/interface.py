"""Interface between the exit table and its backends, which store and add up counts and rows."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from geep.exit_table.keys import PackedKeys
from geep.exit_table.rules import Rule


class KeyHits(NamedTuple):
    """Keys of a query that have a row of their own, and all its keys. On a device, 0-d tensors not read yet."""

    found: int | Tensor
    asked: int | Tensor


class Backend(Protocol):
    """Counts per (key, column), then frozen rows of W columns (:mod:`geep.exit_table.columns`).

    A backend receives checked input only: the table validates, counts samples, computes the prior and tracks whether it is
    frozen. All backends must equal the reference bit for bit, :meth:`export` included.

    Attributes:
        name: as in ``ExitTable(backend=...)``.
        device: where ids may be passed unchecked, because the backend checks them while reading and reports errors in
            :meth:`check`; ``None`` if they must be checked before.
    """

    name: str
    device: torch.device | None = None

    def insert(self, packed: PackedKeys, marks: Tensor) -> None:
        """Count every key of sample i at the columns that ``marks[i]`` has bits for (int64 [N]).

        Raises:
            OutOfMemory: nothing of it was counted. After any other error the counts are incomplete.
        """

    def absorb(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Add counts (uint32 [K, W]) of distinct rising keys (int64 [K]); raises as :meth:`insert`."""

    def export(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all keys, rising (int64 [K]), and their counts (uint32 [K, W]), none of them all zero."""

    def freeze(self, prior: np.ndarray, min_count: int, smoothing: int) -> None:
        """Turn counts into rows (see ``rows``); keys rarer than ``min_count`` take ``prior`` (int64 [W])."""

    def sums(self, packed: PackedKeys) -> tuple[Tensor, KeyHits]:
        """Add up the rows of each sample's keys: int64 [N, W] on the samples' device."""

    def exits(self, packed: PackedKeys, rule: Rule) -> tuple[Tensor, KeyHits]:
        """Return the exits under Q settings of a rule, int16 [N, Q] on the samples' device; see ``Rule.assign``."""

    def check(self) -> None:
        """Report invalid ids of earlier queries (see ``device``); nothing by default.

        Raises:
            ConfigError: an id or an offset was out of range; it was left out.
        """
        return None

    @property
    def layout(self) -> str:
        """How rows are found: ``"dense"`` (by token id), ``"sorted"`` (some by search over sorted keys) or ``"dense+hash"``
        (n-grams and large ids by hash).
        """

    @property
    def keys(self) -> int:
        """Distinct keys counted."""

    @property
    def bytes(self) -> int:
        """Memory of counts and rows."""
