"""Where counts and rows are kept and added up. A new backend is a file here and a line in :func:`make_backend`.

A backend gets checked input only: the table in front of it validates, counts samples, computes the prior and knows
whether it is frozen. It must equal ``reference`` bit for bit, :meth:`Backend.export` included.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from geep.exit_table.keys import Packed
from harness.core.errors import UnknownNameError

BACKENDS = ("auto", "cpu", "cuda", "host", "reference")


class Tally(NamedTuple):
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

    def insert(self, packed: Packed, exits: Tensor) -> None:
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

    def sums(self, packed: Packed) -> tuple[Tensor, Tally]:
        """Rows of each sample's keys added up, int64 [N, L] on the samples' device."""
        ...

    def exits(self, packed: Packed, per_mille: list[int]) -> tuple[Tensor, Tally]:
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


def make_backend(name: str, num_layers: int, ngram: int, seed: int) -> Backend:
    """The backend of that name; ``"auto"`` takes the fastest that works here: ``"cuda"``, else ``"cpu"``.

    Raises:
        UnknownNameError: there is none of that name.
        DeviceError: it was named, but cannot work here: no CuPy or no device, no C++ compiler.
        ConfigError: the compiler refused the kernels.
    """
    from geep.exit_table.backends.cpu import CpuBackend
    from geep.exit_table.backends.hashed import HashedBackend, kernels
    from geep.exit_table.backends.reference import ReferenceBackend
    from harness.kernels import cuda, host

    if name == "auto":
        name = _fastest()
    if name == "cpu":
        return CpuBackend(num_layers, ngram)
    if name == "reference":
        return ReferenceBackend(num_layers, ngram)
    if name == "cuda":
        return HashedBackend(name, num_layers, ngram, seed, cuda.launcher(kernels(num_layers)))
    if name == "host":
        return HashedBackend(name, num_layers, ngram, seed, host.launcher(kernels(num_layers)))
    raise UnknownNameError("exit table backend", name, BACKENDS)


@cache
def _fastest() -> str:
    """``"cuda"`` or ``"cpu"``; where a device goes unused, says why, once."""
    from harness.kernels import cuda

    reason = cuda.problem()
    if reason and torch.cuda.is_available():
        warnings.warn(f"exit tables are kept on the CPU: {reason}", RuntimeWarning, stacklevel=4)
    return "cpu" if reason else "cuda"
