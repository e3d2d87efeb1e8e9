"""Choose the backend of an exit table by name."""

from __future__ import annotations

import warnings
from functools import cache

import torch

from geep.exit_table.backends.cpu import CpuBackend
from geep.exit_table.backends.hashed import HashedBackend, kernels
from geep.exit_table.backends.interface import Backend
from geep.exit_table.backends.reference_backend import ReferenceBackend
from geep.exit_table.columns import TableColumns
from harness.core.errors import UnknownNameError
from harness.kernels import cuda, host

BACKENDS = ("auto", "cpu", "cuda", "host", "reference")


def make_backend(name: str, columns: TableColumns, ngram: int, seed: int) -> Backend:
    """Return the backend of that name; ``"auto"`` is ``"cuda"`` where it works, else ``"cpu"``.

    Raises:
        UnknownNameError: there is no such backend.
        DeviceError: it cannot work here: no CuPy, no device or no C++ compiler.
        ConfigError: the compiler rejected the kernels.
    """
    if name == "auto":
        name = _fastest()
    if name == "cpu":
        return CpuBackend(columns, ngram)
    if name == "reference":
        return ReferenceBackend(columns, ngram)
    if name in ("cuda", "host"):
        source = kernels(columns.width)
        launcher = cuda.launcher(source) if name == "cuda" else host.launcher(source)
        return HashedBackend(name, columns, ngram, seed, launcher)
    raise UnknownNameError("exit table backend", name, BACKENDS)


@cache
def _fastest() -> str:
    """Return ``"cuda"`` or ``"cpu"``; warn once if a CUDA device stays unused."""
    reason = cuda.problem()
    if reason and torch.cuda.is_available():
        warnings.warn(f"exit tables are kept on the CPU: {reason}", RuntimeWarning, stacklevel=4)
    return "cpu" if reason else "cuda"
