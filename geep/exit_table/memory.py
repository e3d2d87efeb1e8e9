"""Out-of-memory errors, on a device or on the host, as one type of error with one line of advice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.core.errors import DeviceError, first_line


class OutOfMemory(DeviceError):
    """Memory is too small for the request.

    Args:
        what: what did not fit, and where.
        whole: whether earlier counts are complete and can be exported. Always true for errors of a backend.

    Attributes:
        what: as given.
    """

    def __init__(self, what: str, *, whole: bool = True) -> None:
        self.what = what
        kept = "earlier counts are kept" if whole else "counts are incomplete: build the table again"
        super().__init__(
            f"exit table: {what}: give fewer samples at a time, take shorter n-grams, free memory, or keep the table"
            f' on the CPU with backend="cpu"; {kept}'
        )


def ran_out(error: Exception) -> bool:
    """Return whether an allocation failed: torch has an exception type for most device failures and none for the host."""
    if isinstance(error, (MemoryError, OutOfMemory, torch.OutOfMemoryError)):
        return True
    says = ("can't allocate memory", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in says)


def in_a_line(error: Exception) -> str:
    """Return the first line of an error; torch's memory errors are long."""
    return f"memory ran out ({first_line(error)})"


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn out-of-memory errors of torch into :class:`OutOfMemory`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(in_a_line(error)) from error
