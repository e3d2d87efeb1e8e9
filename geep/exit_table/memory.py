"""Memory that runs out, on a device or on the host, whoever notices: one type of error, in one line, with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.core.errors import DeviceError, first_line


class OutOfMemory(DeviceError):
    """Memory is too small for what was asked.

    Args:
        what: what did not fit, and where.
        whole: whether what was counted before is whole, and can be exported. A backend raises nothing else.

    Attributes:
        what: as given.
    """

    def __init__(self, what: str, *, whole: bool = True) -> None:
        self.what = what
        kept = "what was counted before is kept" if whole else "counts are not whole: build the table again"
        super().__init__(
            f"exit table: {what}: give fewer samples at a time, take shorter n-grams, free memory, or keep the table"
            f' on the CPU with backend="cpu"; {kept}'
        )


def ran_out(error: Exception) -> bool:
    """Whether an allocation failed: torch has a type for most of them on a device, and none on the host."""
    if isinstance(error, (MemoryError, OutOfMemory, torch.OutOfMemoryError)):
        return True
    says = ("can't allocate memory", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in says)


def in_a_line(error: Exception) -> str:
    """What an error says first; torch tells long stories about memory."""
    return f"memory ran out ({first_line(error)})"


@contextmanager
def memory_told() -> Iterator[None]:
    """Memory that runs out inside an operation of torch is the user's to know of, in one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(in_a_line(error)) from error
