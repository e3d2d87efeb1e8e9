"""What the exit table asks of a backend: where counts and rows are kept and added up."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from geep.exit_table.keys import PackedKeys


class KeyHits(NamedTuple):
    """What a query found: keys with a row of their own, and all keys. On a device, 0-d tensors that nobody has read."""

    found: int | Tensor
    asked: int | Tensor


class Backend(Protocol):
    """Counts per (key, exit), then frozen rows.

    Attributes:
        name: as asked for in ``ExitTable(backend=...)``.
        device: where ids may be that nobody has checked yet, as the backend checks them while it reads them and tells
            in :meth:`check`; ``None`` if they must be checked before.
    """

    name: str
    device: torch.device | None

    def insert(self, packed: PackedKeys, exits: Tensor) -> None:
        """Count every key of sample i at ``exits[i]`` (int64 [N]).

        Raises:
            OutOfMemory: nothing of it was counted. Whatever else is raised leaves counts that are not whole.
        """
        ...

    def absorb(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Add counts (uint32 [K, L]) of distinct rising keys (int64 [K]); raises as :meth:`insert`."""
        ...

    def export(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys, rising (int64 [K]), and their counts (uint32 [K, L]), none of them all zero."""
        ...

    def freeze(self, prior: np.ndarray, min_count: int, smoothing: int) -> None:
        """Turn counts into rows (see ``rows``); keys rarer than ``min_count`` take ``prior`` (int64 [L])."""
        ...

    def sums(self, packed: PackedKeys) -> tuple[Tensor, KeyHits]:
        """Rows of each sample's keys added up, int64 [N, L] on the samples' device."""
        ...

    def exits(self, packed: PackedKeys, per_mille: list[int]) -> tuple[Tensor, KeyHits]:
        """The exits at Q quantiles of those sums, int16 [N, Q] on the samples' device; see ``rows.exits_at``."""
        ...

    def check(self) -> None:
        """Raise what queries found wrong with their ids (see ``device``), if anything.

        Raises:
            ConfigError: an id or an offset was out of range; it was left out.
        """
        ...

    @property
    def layout(self) -> str:
        """How rows are found: ``"dense"`` (all by token id), ``"sorted"`` (some by search over sorted keys),
        ``"dense+hash"`` (n-grams and large ids by hash)."""
        ...

    @property
    def keys(self) -> int:
        """Distinct keys counted."""
        ...

    @property
    def bytes(self) -> int:
        """Memory held by counts and rows."""
        ...
