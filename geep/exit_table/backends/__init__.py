"""Where counts and rows are kept and added up. A new backend is a file here and a line in :func:`make_backend`.

A backend gets checked input only: the table in front of it validates, counts samples, computes the prior and knows
whether it is frozen. It must equal ``reference`` bit for bit, :meth:`Backend.export` included.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from geep.exit_table.keys import Packed
from harness.errors import UnknownNameError

BACKENDS = ("auto", "cpu", "reference")


class Backend(Protocol):
    """Counts per (key, exit), then frozen rows.

    Attributes:
        name: as asked for in ``ExitTable(backend=...)``.
    """

    name: str

    def insert(self, packed: Packed, exits: Tensor) -> None:
        """Count every key of sample i at ``exits[i]`` (int64 [N])."""
        ...

    def absorb(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Add counts (uint32 [K, L]) of distinct rising keys (int64 [K])."""
        ...

    def export(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys, rising (int64 [K]), and their counts (uint32 [K, L]), none of them all zero."""
        ...

    def freeze(self, prior: np.ndarray, min_count: int, smoothing: int) -> None:
        """Turn counts into rows (see ``rows``); keys rarer than ``min_count`` take ``prior`` (int64 [L])."""
        ...

    def sums(self, packed: Packed) -> tuple[Tensor, int]:
        """Rows of each sample's keys added up, int64 [N, L] on the samples' device, and how many keys were found."""
        ...

    def exits_at(self, sums: Tensor, per_mille: list[int]) -> Tensor:
        """The exits at Q quantiles, int16 [N, Q]; see ``rows.exits_at``."""
        ...

    @property
    def layout(self) -> str:
        """How rows are found: ``"dense"`` (by token id) or ``"sorted"`` (some or all by search over keys)."""
        ...

    @property
    def keys(self) -> int:
        """Distinct keys counted."""
        ...

    @property
    def bytes(self) -> int:
        """Memory held by counts and rows."""
        ...


def make_backend(name: str, num_layers: int, ngram: int) -> Backend:
    """The backend of that name; ``"auto"`` takes the fastest there is.

    Raises:
        UnknownNameError: there is none of that name.
    """
    from geep.exit_table.backends.cpu import CpuBackend
    from geep.exit_table.backends.reference import ReferenceBackend

    if name in ("auto", "cpu"):
        return CpuBackend(num_layers, ngram)
    if name == "reference":
        return ReferenceBackend(num_layers, ngram)
    raise UnknownNameError("exit table backend", name, BACKENDS)
