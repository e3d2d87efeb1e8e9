"""Memory of the host: huge pages for weights, and what tensors freed stays with the process.

A pass reads all weights of a model, many more pages of 4 KiB than a CPU remembers the places of: weights lie in huge pages, where
Linux has them for programs that ask.

By default, glibc gives large blocks back to the system. Each new tensor then gets pages that the system has to clear first, which
takes longer than many operations between two products. It matters most on int8, whose products are short: a pass at full depth
through twelve layers of width 384 took 0.78 of its time.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

_PAGE = 2 << 20  # of a huge page on x86-64 and, with usual settings, on ARM
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1 and later
_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_NEVER = 2**31 - 1  # bytes


def use_huge_pages(address: int, size: int) -> int:
    """Move memory to huge pages, and return how many there are now; contents and addresses stay.

    What lies in a page with other memory moves with it.

    Args:
        size: bytes from ``address`` on.
    """
    if sys.platform != "linux":
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    pages = range(address // _PAGE * _PAGE, address + size, _PAGE)
    return sum(advise(page, _PAGE, _COLLAPSE) == 0 for page in pages)


def _libc(name: str) -> Any:
    """Return a function of glibc; ``None`` with another C library."""
    return getattr(ctypes.CDLL(None), name, None)


@cache
def keep_freed_memory() -> bool:
    """Keep freed memory in this process from now on; return whether the C library can."""
    mallopt = _libc("mallopt")
    return mallopt is not None and all(mallopt(option, _NEVER) == 1 for option in (_MAP, _TRIM))


def release_freed_memory() -> None:
    """Give freed memory back once, so that resident memory is what is in use."""
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)
